"""How a benchmark's command ends: its exit status, and one line on stderr where it failed or was interrupted."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.common import reporting

# Exit status of a program that Ctrl-C ended.
INTERRUPTED = 130
# What ends a command with one line on stderr and exit status 2.
ERRORS = (ValueError, OSError, RuntimeError, MemoryError)


def run(work: Callable[[], int | None], interrupted: str = "nothing was written") -> int:
    """Do a command's work and return its exit status.

    Args:
        work: returns the exit status, or None for 0.
        interrupted: what the message says after "interrupted; " where Ctrl-C ends the work.

    Returns:
        What `work` returned; 2 after one of :data:`ERRORS`, 130 after Ctrl-C.
    """
    try:
        return work() or 0
    except KeyboardInterrupt:
        print(f"interrupted; {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except ERRORS as error:
        print(f"error: {reporting.first_line(error)}", file=sys.stderr)
        return 2

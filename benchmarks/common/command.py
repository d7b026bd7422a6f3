"""What all commands share: how --help looks, progress bars, and how a command ends.

A command that fails or is interrupted ends with one line on stderr, `error: …` or `interrupted; …`, and an exit status.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

from benchmarks.common import reporting

# Exit status of a program that Ctrl-C ended.
INTERRUPTED = 130
# What ends a command with one line on stderr and exit status 2.
ERRORS = (ValueError, OSError, RuntimeError, MemoryError)
# Most columns of the paragraphs that --help shows.
_WIDTH = 100


class _HelpFormatter(argparse.HelpFormatter):
    """Keeps the paragraphs of a description and its indented lines, and shows the default of every option with one."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(
            paragraph
            if paragraph.startswith((" ", "- "))
            else textwrap.fill(
                " ".join(paragraph.split()),
                min(width, _WIDTH),
                initial_indent=indent,
                subsequent_indent=indent,
                break_on_hyphens=False,
            )
            for paragraph in paragraphs
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if not action.option_strings or default is None or default is argparse.SUPPRESS or isinstance(default, bool):
            return text
        if "%(default)" in text or "(default:" in text:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})" if shown else text


def make_parser(
    command: str,
    description: str,
    failures: str = "bad arguments",
    interrupted: str = "",
    other: str = "",
    positional: str = "",
) -> argparse.ArgumentParser:
    """Return a parser whose --help ends with the exit statuses.

    Args:
        command: what the user types, such as `python -m benchmarks.demo`.
        description: what the command does, with its own line breaks.
        failures: what leads to exit status 2.
        interrupted: what Ctrl-C leaves, as in "what was measured before is written".
        other: further exit statuses, such as "1 a check failed".
        positional: arguments without a name, as the usage shows them.
    """
    statuses = ["0 done", *([other] if other else []), f"2 {failures}"]
    after_ctrl_c = "130 Ctrl-C" + (f" ({interrupted})" if interrupted else "")
    epilog = f"Exit status: {'; '.join([*statuses, after_ctrl_c])}."
    usage = " ".join([command, *([positional] if positional else []), "[options]"])
    return argparse.ArgumentParser(
        prog=command, usage=usage, description=description, epilog=epilog, formatter_class=_HelpFormatter
    )


def progress(iterable: Iterable[Any] | None = None, *, unit: str, shown: bool = True, **settings: Any) -> tqdm:
    """Return a progress bar on stderr.

    Args:
        iterable: what to go through; without it, call `update`.
        unit: what is counted, in the singular.
        shown: whether to show it at all.
        settings: more of tqdm's arguments, such as desc, total, initial and leave.
    """
    return tqdm(iterable, unit=f" {unit}", mininterval=0.5, dynamic_ncols=True, disable=not shown, **settings)


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

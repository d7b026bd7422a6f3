"""Random wrong calls (bad_calls.py) in a process of their own, which must outlive them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cases import child_environment
from strategies import examples

EXAMPLES = examples(300)


@pytest.mark.cpu_kernels
def test_random_wrong_calls(kernels: None) -> None:
    """Each raises a documented exception that contains the argument, and leaves the right call as it was."""
    script = Path(__file__).with_name("bad_calls.py")
    done = subprocess.run(
        [sys.executable, str(script), str(EXAMPLES), "0"],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=120 + EXAMPLES,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-1000:]}"
    assert done.stdout.startswith(f"{EXAMPLES} wrong calls of "), done.stdout

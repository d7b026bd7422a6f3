"""Tests over several processes: torchrun runs the test's own file, whose last lines are what a process does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist
from cases import child_environment

if not dist.is_available():
    pytest.skip("this torch has no distributed package", allow_module_level=True)


def torchrun(file: str, *arguments: object, processes: int = 2) -> None:
    """Run the file in processes of a group, and fail if one of them does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), file]
    with subprocess.Popen(
        [*command, *map(str, arguments)],
        env=child_environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as launcher:
        try:
            output, _ = launcher.communicate(timeout=120)
        finally:
            launcher.terminate()  # upon which it ends the processes that it still has
    assert launcher.returncode == 0, output


@contextmanager
def process_of_group() -> Iterator[tuple[int, Path]]:
    """Joins the group that torchrun describes; gives the rank and the folder of the first argument."""
    dist.init_process_group("gloo")
    yield dist.get_rank(), Path(sys.argv[1])
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    # Gloo's threads, which at times end in std::terminate at shutdown, are not what is tested.
    os._exit(0)

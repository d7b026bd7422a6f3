"""Write, describe and print benchmark results."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import cw_ext
from benchmarks.common import gpu

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Environment variables that change what is measured.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUBLAS_WORKSPACE_CONFIG",
    "KMP_BLOCKTIME",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "PYTORCH_CUDA_ALLOC_CONF",
    "THP_MEM_ALLOC_ENABLE",
)


def environment(device: str = "cpu") -> dict[str, Any]:
    """Describe what a result was measured on: processor, versions, settings, build and commit; for "cuda" the GPU."""
    return {
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **(gpu.properties() if device == "cuda" else {}),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "cw_ext": cw_ext.build_config(),
        "git_commit": git_commit(Path(__file__).parent),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def git_commit(directory: Path) -> str | None:
    """Return the commit of a directory's source tree, with "-dirty" if files differ from it, or None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        output = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return output.stdout.strip() or None


def default_directory(name: str) -> Path:
    """Return a folder under runs/ that no earlier run has used."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"


def make_writable_directory(path: Path) -> None:
    """Create the directory and write a trial file, so that a long run does not fail at its end.

    Raises:
        OSError: the directory cannot be created or written to; the message contains it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(f"{path}: expected a writable output directory, got: {error.strerror}") from None


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write, and rename it once it is written: a write that fails or is interrupted leaves
    the previous file as it was, and nothing else.

    Raises:
        OSError: the file cannot be written; the message contains it.
    """
    unfinished = path.with_name(f"unfinished-{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:  # as where the disk is full
            error.filename = str(path)
        raise


def write_json(path: Path, results: dict[str, Any]) -> None:
    """Write results as one file, whole or not at all.

    Raises:
        OSError: the file cannot be written; the message contains it.
    """
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG, whole or not at all.

    Raises:
        OSError: the file cannot be written; the message contains it.
    """
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=150)


def print_results(*paths: Path) -> None:
    """Print where a command's results are, in the one way in which all commands do."""
    print(f"results: {', '.join(map(str, paths))}")


def first_line(error: BaseException) -> str:
    """Return an error's message without the stack that torch adds to some."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns: the first one to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def align(line: Sequence[str]) -> str:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        return "  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip()

    return "\n".join([align(header), "  ".join("-" * width for width in widths), *map(align, rows)])


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()

"""What cuda_emulation/build.py and sanitizers/build.py have in common: ninja builds with flags of the tests' own."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]

# $flags and $common are the file's that includes it.
RULES = [
    "rule compile",
    "  command = $cxx $common $flags -MMD -MF $out.d -x c++ -c $in -o $out",
    "  depfile = $out.d",
    "  deps = gcc",
    "  description = $out",
    "rule link",
    "  command = $cxx $in $flags -o $out",
    "  description = $out",
]


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def torch_flags(**strings: str) -> list[str]:
    """What compiles sources with the stable ABI alone of torch; `strings` are macros to define as text."""
    from torch.utils.cpp_extension import include_paths

    flags = [f"-isystem{path}" for path in include_paths()]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]
    return flags + [f"'-D{name}=\"{value}\"'" for name, value in strings.items()]


def torch_libraries() -> str:
    import torch

    folder = Path(torch.__file__).parent / "lib"
    return f"-L{folder} -Wl,-rpath,{folder} -ltorch_cpu"


def bring_up_to_date(folder: Path, rules: str, targets: tuple[str, ...]) -> None:
    """Makes the targets of a ninja file in `folder`, one caller at a time."""
    try:
        import ninja

        program = str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        program = "ninja"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "build.ninja").write_text(rules)
        subprocess.run([program, "-C", str(folder), "-j", jobs, "--quiet", *targets], check=True)


def runtime(library: str) -> Path | None:
    """A library that comes with the compiler, a sanitizer's for example, where it has it."""
    path = Path(subprocess.check_output([str(compiler()), f"-print-file-name={library}"], text=True).strip())
    return path if path.is_absolute() else None

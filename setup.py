"""Builds the kernels against the torch that is installed. Everything static stands in pyproject.toml.

Environment: USE_KERNELS=0 leaves the kernels out, and needs neither torch nor a compiler; USE_CUDA=0|1 overrides the
search for nvcc and a CUDA torch; TORCH_CUDA_ARCH_LIST names the GPU architectures; CXX names the compiler; MAX_JOBS
limits its processes.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import Extension, setup

# The first release with the headers and the Python API that this package is tested against.
MINIMUM_TORCH = (2, 11)
DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0+PTX"
# Memory that one compiler process of the ATen side may take.
BYTES_PER_JOB = 2 * 2**30

ROOT = Path(__file__).parent
WITHOUT_KERNELS = (
    "or set USE_KERNELS=0 to install without the kernels: all then runs on the pure PyTorch reference, which is slow "
    "and needs far more memory"
)


def switch(name: str) -> bool | None:
    """What an environment variable asks for; None: nothing."""
    value = os.environ.get(name) or None
    if value not in (None, "0", "1"):
        raise SystemExit(f"{name} must be 0 or 1, got {value!r}")
    return None if value is None else value == "1"


WITH_KERNELS = switch("USE_KERNELS") is not False
if WITH_KERNELS:
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension, get_cxx_compiler
    except ImportError:
        raise SystemExit(
            "cw_ext is compiled against the torch you already have: install torch >= 2.11, then run "
            f"`pip install --no-build-isolation .`; {WITHOUT_KERNELS}"
        ) from None


def sources(*folders: str, suffixes: tuple[str, ...] = (".cpp",)) -> list[str]:
    found = [p for folder in folders for p in (ROOT / folder).iterdir() if p.suffix in suffixes]
    return sorted(str(p.relative_to(ROOT)) for p in found)


def wants_cuda() -> bool:
    asked = switch("USE_CUDA")
    can = torch.version.cuda is not None and CUDA_HOME is not None
    if asked and not can:
        missing = "a CUDA build of torch" if torch.version.cuda is None else "nvcc (set CUDA_HOME)"
        raise SystemExit(f"USE_CUDA=1, but {missing} is missing")
    return can and asked is not False


def set_up_compilers() -> None:
    """What the compilers find in the environment."""
    try:  # its program is not on the PATH of an environment that is used without being activated
        import ninja

        os.environ["PATH"] = ninja.BIN_DIR + os.pathsep + os.environ["PATH"]
    except ImportError:
        pass
    if "MAX_JOBS" not in os.environ and hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        os.environ["MAX_JOBS"] = str(max(1, min(os.cpu_count() or 1, memory // BYTES_PER_JOB)))


def check_needs() -> None:
    """What would otherwise fail in the middle of a compiler's output."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MINIMUM_TORCH:
        raise SystemExit(f"cw_ext needs torch >= {'.'.join(map(str, MINIMUM_TORCH))}, found {torch.__version__}")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        raise SystemExit(f"cw_ext needs Python's headers: install your system's python3-dev package, {WITHOUT_KERNELS}")
    compiler = get_cxx_compiler()
    if shutil.which(next(iter(shlex.split(compiler)), "")) is None:
        raise SystemExit(
            f"cw_ext needs a C++ compiler, and {compiler!r} is not here: install g++ or clang++ or name one in CXX, "
            f"{WITHOUT_KERNELS}"
        )


def kernels() -> Extension:
    cxx_flags = [
        "-O3",
        "-g0",  # Python's own flags ask for debug information, which is most of the library
        # No NaN or infinity is assumed away by these; they only free the compiler from errno and trap flags, without
        # which it does not vectorise a select.
        "-fno-math-errno",
        "-fno-trapping-math",
        # at::parallel_for is a template: compiled without OpenMP it runs on one thread. The runtime is not linked: it
        # is the one that torch has loaded, so that torch.set_num_threads() counts here too.
        "-fopenmp" if torch.backends.openmp.is_available() and sys.platform == "linux" else "-fopenmp-simd",
        "-fvisibility=hidden",
        "-Wall",
        "-Wno-unknown-pragmas",
    ]
    macros = [("CW_TORCH_VERSION", f'"{torch.__version__}"')]
    if not wants_cuda():
        return CppExtension(
            "cw_ext._C",
            sources("csrc", "csrc/cpu"),
            define_macros=macros,
            extra_compile_args={"cxx": cxx_flags},
        )
    archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHS)
    macros += [
        ("CW_WITH_CUDA", None),
        ("CW_CUDA_VERSION", f'"{torch.version.cuda}"'),
        ("CW_CUDA_ARCHS", f'"{archs}"'),
    ]
    return CUDAExtension(
        "cw_ext._C",
        sources("csrc", "csrc/cpu") + sources("csrc/cuda", suffixes=(".cpp", ".cu")),
        define_macros=macros,
        extra_compile_args={"cxx": cxx_flags, "nvcc": ["-O3"]},
    )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Has builds in the same folder wait for each other: one would link what the other is still writing."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_command() -> type:
    class BuildKernels(BuildExtension):
        def run(self) -> None:
            check_needs()
            with alone_in(Path(self.build_temp)):
                self.build_and_vouch()

        def build_and_vouch(self) -> None:
            super().run()
            # Read before the library is loaded (cw_ext/extension.py), so it stands for the library beside it.
            package = (ROOT if self.inplace else Path(self.build_lib)) / "cw_ext"
            (package / "_built_for.py").write_text(f'TORCH_VERSION = "{torch.__version__}"\n')

    return BuildKernels


def arguments() -> dict[str, Any]:
    if not WITH_KERNELS:
        return {}
    set_up_compilers()
    return {"ext_modules": [kernels()], "cmdclass": {"build_ext": build_command()}}


setup(**arguments())

"""Builds the kernels against the torch that is installed. Everything static stands in pyproject.toml.

Environment: USE_KERNELS=0 leaves the kernels out, and needs neither torch nor a compiler; USE_CUDA=0|1 overrides the
search for nvcc and a CUDA torch; TORCH_CUDA_ARCH_LIST names the GPU architectures; CXX names the compiler; MAX_JOBS
limits its processes.
"""

import os
import shlex
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import setuptools
from setuptools import Extension, setup

# The first that reads all of pyproject.toml.
MINIMUM_SETUPTOOLS = 77
# The first release with the headers and the Python API that this package is tested against.
MINIMUM_TORCH = (2, 11)
DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0+PTX"
# Memory that one compiler process may take.
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


if int(setuptools.__version__.split(".")[0]) < MINIMUM_SETUPTOOLS:
    raise SystemExit(
        f"cw_ext needs setuptools >= {MINIMUM_SETUPTOOLS}, found {setuptools.__version__}: run "
        f"`pip install 'setuptools>={MINIMUM_SETUPTOOLS}'`"
    )

WITH_KERNELS = switch("USE_KERNELS") is not False
if WITH_KERNELS:
    try:
        import pybind11
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension, get_cxx_compiler
    except ImportError as error:
        raise SystemExit(
            f"cw_ext is compiled with what you already have, and {error.name} is not here: install torch >= 2.11 and "
            f"pybind11, then run `pip install --no-build-isolation .`; {WITHOUT_KERNELS}"
        ) from None


def sources(*folders: str, suffixes: tuple[str, ...] = (".cpp",)) -> list[str]:
    found = [p for folder in folders for p in (ROOT / folder).iterdir() if p.suffix in suffixes]
    return sorted(str(p.relative_to(ROOT)) for p in found)


def wants_cuda() -> bool:
    asked = switch("USE_CUDA")
    # torch takes the folder above the first nvcc on PATH for the toolkit, even where that nvcc only calls another.
    has_toolkit = CUDA_HOME is not None and Path(CUDA_HOME, "include", "cuda_runtime.h").is_file()
    can = torch.version.cuda is not None and has_toolkit
    if asked and not can:
        if torch.version.cuda is None:
            raise SystemExit(f"USE_CUDA=1, but torch {torch.__version__} has no CUDA: install a CUDA build of torch")
        raise SystemExit(
            "USE_CUDA=1, but the CUDA toolkit is missing: set CUDA_HOME to the folder with its include/cuda_runtime.h, "
            f"got {CUDA_HOME}"
        )
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


# No NaN or infinity is assumed away by the last two; they only free the compiler from errno and trap flags, without
# which it does not vectorise a select. -g0: Python's own flags ask for debug information, which is most of a library.
CXX_FLAGS = ["-O3", "-g0", "-fopenmp-simd", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
CXX_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]


def python_module() -> Extension:
    """What was built, for `cw_ext.build_config()`: the one library that depends on the Python."""
    return Extension(
        "cw_ext._C",
        ["csrc/python/module.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=[("CW_TORCH_VERSION", f'"{torch.__version__}"')],
        extra_compile_args={"cxx": CXX_FLAGS},
        language="c++",
    )


def library(name: str, kind: type[Extension], sources: list[str], macros: list[tuple[str, str | None]]) -> Extension:
    """A library of ops on LibTorch's stable ABI: it depends on no Python, and on no torch beyond the oldest."""
    major, minor = MINIMUM_TORCH
    return kind(
        name,
        sources,
        define_macros=[("TORCH_TARGET_VERSION", f"0x{major:02x}{minor:02x}000000000000"), *macros],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": ["-O3", "-Xcompiler", "-fvisibility=hidden"]},
        py_limited_api=True,
    )


def cpu_library() -> Extension:
    found = library("cw_ext._cpu", CppExtension, sources("csrc", "csrc/cpu"), [])
    found.libraries = ["torch_cpu"]  # alone: what else torch's extensions are linked with is not in the stable ABI
    return found


def cuda_library(cuda: str) -> Extension:
    archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHS)
    found = library(
        "cw_ext._cuda",
        CUDAExtension,
        sources("csrc") + sources("csrc/cuda", suffixes=(".cpp", ".cu")),
        [
            ("CW_CUDA", None),
            ("USE_CUDA", None),  # for torch's stable headers to declare what they have for CUDA
            ("CW_CUDA_VERSION", f'"{cuda}"'),
            ("CW_CUDA_ARCHS", f'"{archs}"'),
        ],
    )
    found.libraries = ["torch_cpu", "torch_cuda", "cudart"]
    return found


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
                super().run()

        def build_extension(self, extension: Extension) -> None:
            # In a folder of its own: the CPU's and CUDA's libraries have sources in common.
            everything = self.build_temp
            self.build_temp = str(Path(everything, extension.name))
            super().build_extension(extension)
            self.build_temp = everything

    return BuildKernels


def arguments() -> dict[str, Any]:
    if not WITH_KERNELS:
        return {}
    set_up_compilers()
    extensions = [python_module(), cpu_library(), *([cuda_library(torch.version.cuda)] if wants_cuda() else [])]
    return {"ext_modules": extensions, "cmdclass": {"build_ext": build_command()}}


if __name__ == "__main__":
    setup(**arguments())

"""Compiles the package's libraries for a machine, this one or another, from the sources and flags of setup.py.

Only `_C` depends on the Python. What the ops' libraries take from torch and CUDA is found when they are loaded: they
are linked with empty libraries of the same names, so they need no torch for that machine, nor one with CUDA.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
OUT = ROOT / "build" / "wheels"
MACHINES = ("x86_64", "aarch64")
# What the libraries are linked with; torch has loaded it before.
FROM_TORCH = {"torch_cpu": "libtorch_cpu.so", "torch_cuda": "libtorch_cuda.so", "cudart": "libcudart.so.13"}

RULES = """
rule cxx
  command = $cxx -std=c++20 -fPIC $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $out
rule c
  command = $cxx -x c -O2 -fPIC -c $in -o $out
  description = $out
rule nvcc
  command = $nvcc -std=c++20 -ccbin $cxx -Xcompiler -fPIC,-fvisibility=hidden $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = $out
rule link
  command = $cxx -shared -Wl,-s,--no-as-needed $in -o $out
  description = $out
rule program
  command = $cxx $in -o $out
  description = $out
rule stand_in
  command = $cxx -shared -nostdlib -Wl,-soname,$soname -x c /dev/null -o $out
  description = $out
"""
# glibc 2.29 and 2.34 have new versions of these. The first ones, whose number is the machine's, do the same.
FIRST_GLIBC = {"x86_64": "2.2.5", "aarch64": "2.17"}
RENEWED = ("exp", "log", "pow", "dlopen", "dlsym", "dlclose")

ASK_PYTHON = """
import json, sys, sysconfig
print(json.dumps([*sys.version_info[:2], sysconfig.get_path("include"), sysconfig.get_config_var("MULTIARCH")]))
"""


@dataclass(frozen=True)
class Python:
    version: str  # "311"
    headers: Path

    def module(self, machine: str) -> str:
        return f"_C.cpython-{self.version}-{machine}-linux-gnu.so"


def compiler(machine: str) -> str:
    return os.environ.get("CXX", "g++") if machine == platform.machine() else f"{machine}-linux-gnu-g++"


def cuda_toolkit() -> Path | None:
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    return next((Path(home) for home in homes if home and Path(home, "bin", "nvcc").is_file()), None)


def cuda_version(toolkit: Path) -> str:
    said = subprocess.check_output([toolkit / "bin" / "nvcc", "--version"], text=True)
    return said.partition("release ")[2].partition(",")[0]


def python_of(interpreter: str) -> Python:
    """A Python's version and headers. These serve for other machines: all that differs in pyconfig.h between Linux on
    x86-64 and on 64-bit ARM is for CPython's own sources."""
    said = subprocess.run([interpreter, "-c", ASK_PYTHON], stdout=subprocess.PIPE, text=True, check=True)
    major, minor, headers, multiarch = json.loads(said.stdout)
    copy = OUT / f"python{major}.{minor}"
    shutil.copytree(headers, copy, dirs_exist_ok=True)
    # Debian's pyconfig.h includes one per machine, from another folder.
    own = Path(headers).parent / str(multiarch) / Path(headers).name / "pyconfig.h"
    if own.is_file():
        shutil.copy(own, copy)
    return Python(f"{major}{minor}", copy)


def quoted(flags: Iterable[object]) -> str:
    return " ".join("'" + str(flag).replace("$", "$$") + "'" for flag in flags)


def gencode(archs: str) -> list[str]:
    flags = []
    for arch in archs.split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        codes = [f"sm_{number}", f"compute_{number}"] if arch.endswith("+PTX") else [f"sm_{number}"]
        flags += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return flags


def first_versions(machine: str) -> str:
    """For the assembler."""
    return "".join(f".symver {name}, {name}@GLIBC_{FIRST_GLIBC[machine]}\n" for name in RENEWED)


class Build:
    """A ninja file, and what it makes: each method adds a library and returns its path."""

    def __init__(self, toolkit: Path | None) -> None:
        from torch.utils import cpp_extension

        cpp_extension.CUDA_HOME = toolkit and str(toolkit)  # which a CPU build of torch has not looked for
        self.toolkit = toolkit
        self.setup = runpy.run_path(str(ROOT / "setup.py"))
        archs = os.environ.get("TORCH_CUDA_ARCH_LIST", self.setup["DEFAULT_CUDA_ARCHS"])
        # The toolkit's headers are the same files for all machines; nvcc would look for those of the compiler's.
        self.nvcc_flags = [*cpp_extension.COMMON_NVCC_FLAGS, *gencode(archs), "-target-dir", "x86_64-linux"]
        self.lines = RULES.splitlines()
        self.targets: dict[Path, set[str]] = {}  # with what each takes from torch

    def cpu(self, machine: str) -> Path:
        return self._library(self.setup["cpu_library"](), "_cpu.abi3.so", machine)

    def cuda(self, machine: str) -> Path:
        return self._library(self.setup["cuda_library"](cuda_version(self.toolkit)), "_cuda.abi3.so", machine)

    def module(self, machine: str, python: Python) -> Path:
        extension = self.setup["python_module"]()
        extension.include_dirs.append(str(python.headers))
        return self._library(extension, python.module(machine), machine)

    def kernel_values(self, machine: str) -> Path:
        """A program without torch that prints what the kernels give: tests/build/kernel_values.cpp."""
        extension = self.setup["cpu_library"]()
        extension.sources = ["csrc/cpu/kernels_default.cpp", "tests/build/kernel_values.cpp"]
        extension.include_dirs = [str(ROOT / "csrc")]
        return self._target("program", "kernel_values", machine, self._objects(extension, "values", machine), set())

    def make(self) -> None:
        import ninja

        for machine in MACHINES:
            file = OUT / machine / "first_versions.s"
            if not file.exists() or file.read_text() != first_versions(machine):  # or all would be compiled again
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(first_versions(machine))
        (OUT / "build.ninja").write_text("\n".join(self.lines) + "\n")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        command = [Path(ninja.BIN_DIR) / "ninja", "-C", OUT, "-j", jobs, "--quiet", *self.targets]
        subprocess.run(command, check=True)

    def _library(self, extension: Any, name: str, machine: str) -> Path:
        folder = name.removesuffix(".so")
        objects = self._objects(extension, folder, machine)
        from_torch = {FROM_TORCH[library] for library in extension.libraries}
        for file in sorted(from_torch):
            out = OUT / machine / "objects" / folder / file
            objects.append(self._edge("stand_in", out, [], machine, soname=file))
        return self._target("link", name, machine, objects, from_torch)

    def _objects(self, extension: Any, folder: str, machine: str) -> list[object]:
        common = [f"-D{macro}" if value is None else f"-D{macro}={value}" for macro, value in extension.define_macros]
        common += [word for path in extension.include_dirs for word in ("-isystem", path)]
        own = extension.extra_compile_args
        # What follows -Xassembler is assembled in front of each file.
        first = OUT / machine / "first_versions.s"
        flags = {
            "cxx": quoted([*own["cxx"], *common, "-include", HERE / "glibc_2_28.h", "-Xassembler", first]),
            "nvcc": quoted([*own.get("nvcc", ()), *common, *self.nvcc_flags, "-Xcompiler", f"-Xassembler,{first}"]),
        }
        made = [self._edge("c", OUT / machine / "objects" / folder / "glibc_2_28.o", [HERE / "glibc_2_28.c"], machine)]
        for source in extension.sources:
            rule = "nvcc" if source.endswith(".cu") else "cxx"
            out = OUT / machine / "objects" / folder / f"{source}.o"
            made.append(self._edge(rule, out, [ROOT / source, "|", first], machine, flags=flags[rule]))
        return made

    def _target(self, rule: str, name: str, machine: str, objects: list[object], from_torch: set[str]) -> Path:
        path = self._edge(rule, OUT / machine / name, objects, machine)
        self.targets[path] = from_torch
        return path

    def _edge(self, rule: str, out: Path, inputs: list[object], machine: str, **variables: str) -> Path:
        variables |= {"cxx": compiler(machine), "nvcc": f"{self.toolkit}/bin/nvcc"}
        self.lines.append(f"build {out}: {rule} {' '.join(map(str, inputs))}")
        self.lines += [f"  {name} = {value}" for name, value in variables.items()]
        return out

"""Builds the emulated CUDA kernels (emulation.h) with the host compiler: `python tests/cuda_emulation/build.py`.

Prints the library's path. CW_EXT_TEST_LIBRARY=PATH in the environment makes the tests run on it (tests/conftest.py).
Ninja compiles what has changed; CXX names another compiler, MAX_JOBS limits its processes.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).absolute().parent
ROOT = HERE.parent.parent
OUT = ROOT / "build" / "cuda_emulation"

# -O1: with more, the compiler takes longer than the tests save.
COMMON = "-std=c++20 -O1 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-unknown-pragmas"
# How the kernels are compiled. What faults on a GPU must never pass: misaligned vectors, and indices beyond an array of
# known size.
KINDS = {
    "plain": "-fsanitize=alignment,bounds -fno-sanitize-recover=all",
    "address": "-fsanitize=address,alignment,bounds -fno-sanitize-recover=all -g1",
    "thread": "-fsanitize=thread -g1",
}


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def why_not() -> str | None:
    """Why this machine cannot build the emulation, or None."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return "the emulation of CUDA is written for Linux on x86-64"
    if compiler() is None:
        return "the emulation of CUDA needs a C++ compiler"
    if not kernels():
        return "csrc/cuda is not here: tests/ stands outside the source tree"
    return None


def contraction() -> str:
    """The compiler's flags for multiplications with an addition in one, which nvcc makes wherever it can."""
    return "-mfma -ffp-contract=fast" if " fma " in Path("/proc/cpuinfo").read_text() else ""


def kernels() -> list[Path]:
    """The CUDA sources, with a stand-in for the sort, which is CUB's."""
    found = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    return [HERE / "sort.cpp" if source.name == "sort.cu" else source for source in found]


def ninja_file() -> str:
    import torch
    from torch.utils.cpp_extension import include_paths

    names = {"CW_CUDA_VERSION": "emulated", "CW_CUDA_ARCHS": "", "CW_TORCH_VERSION": torch.__version__}
    torch_flags = [f"-isystem{path}" for path in (*include_paths(), sysconfig.get_paths()["include"])]
    torch_flags += ["-DCW_CUDA_EMULATION", "-DCW_WITH_CUDA"]
    torch_flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    torch_flags += [f"'-D{name}=\"{value}\"'" for name, value in names.items()]
    libraries = f"-L{Path(torch.__file__).parent / 'lib'} -lc10 -ltorch -ltorch_cpu -ltorch_python"
    lines = [
        f"cxx = {compiler()}",
        f"common = {COMMON} {contraction()} -I{HERE / 'include'}",
        "rule compile",
        "  command = $cxx $common $flags -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = $out",
        # All variables of a kernel's file are shared memory. In a section whose name is an identifier the linker says
        # where they begin and end. (GCC's attribute for it counts for nothing in a template.)
        "rule bring_together",
        "  command = objcopy --rename-section .bss=cw_shared $in $out",
        "  description = $out",
        "rule link",
        "  command = $cxx $in $flags -o $out",
        "  description = $out",
    ]

    def compiled(source: Path, kind: str, flags: str) -> str:
        # With the ending: scores.cpp and scores.cu may both be there.
        target = f"{kind}/{source.name}.o"
        lines.extend([f"build {target}: compile {source}", f"  flags = {flags}"])
        if source.suffix != ".cu":
            return target
        lines.append(f"build {target}.shared: bring_together {target}")
        return f"{target}.shared"

    def linked(target: str, objects: list[str], flags: str) -> None:
        lines.extend([f"build {target}: link {' '.join(objects)}", f"  flags = {flags}"])

    emulation = compiled(HERE / "emulation.cpp", "emulation", "-O2")
    with_torch = [*sorted((ROOT / "csrc").glob("*.cpp")), *sorted((ROOT / "csrc" / "cuda").glob("*.cpp"))]
    common = [compiled(source, "torch", " ".join(torch_flags)) for source in with_torch] + [emulation]
    # Undefined symbols show when the library is loaded, not when a test happens to call them.
    for kind, flags in KINDS.items():
        own = [compiled(source, kind, flags) for source in kernels()]
        linked(f"{kind}/_C.so", [*common, *own], f"-shared -Wl,-z,now {flags} {libraries}")
        linked(f"{kind}/planted", [compiled(HERE / "planted.cu", kind, flags), emulation], flags)
    return "\n".join([*lines, ""])


def build(*targets: str) -> None:
    """Brings KIND/_C.so, the library, or KIND/planted up to date."""
    try:
        import ninja

        program = str(Path(ninja.BIN_DIR) / "ninja")
    except ImportError:
        program = "ninja"
    OUT.mkdir(parents=True, exist_ok=True)
    jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
    with (OUT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (OUT / "build.ninja").write_text(ninja_file())
        subprocess.run([program, "-C", str(OUT), "-j", jobs, "--quiet", *targets], check=True)


def runtime(library: str) -> Path | None:
    """A sanitizer's library, where the compiler has it."""
    path = Path(subprocess.check_output([str(compiler()), f"-print-file-name={library}"], text=True).strip())
    return path if path.is_absolute() else None


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else "plain/_C.so"
    build(target)
    print(OUT / target)

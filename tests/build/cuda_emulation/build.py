"""Builds the emulated CUDA kernels (emulation.h) with the host compiler: `python tests/build/cuda_emulation/build.py`.

Prints the library's path. CW_EXT_TEST_LIBRARY=PATH in the environment makes the tests run on it (tests/conftest.py).
Ninja compiles what has changed; CXX names another compiler, MAX_JOBS limits its processes.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from native_build import ROOT, RULES, bring_up_to_date, compiler, runtime, torch_flags, torch_libraries

__all__ = ["OUT", "ROOT", "build", "runtime", "why_not"]

HERE = Path(__file__).absolute().parent
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
    return [HERE / "sort.cpp" if source.name == "sort_kernel.cu" else source for source in found]


def ninja_file() -> str:
    with_torch_flags = ["-DCW_CUDA", "-DCW_CUDA_EMULATION", "-DUSE_CUDA"]
    with_torch_flags += torch_flags(CW_CUDA_VERSION="emulated", CW_CUDA_ARCHS="")
    lines = [
        f"cxx = {compiler()}",
        f"common = {COMMON} {contraction()} -I{HERE / 'include'}",
        *RULES,
        # All variables of a kernel's file are shared memory. In a section whose name is an identifier the linker tells
        # where they begin and end. (GCC's attribute for it counts for nothing in a template.)
        "rule bring_together",
        "  command = objcopy --rename-section .bss=cw_shared $in $out",
        "  description = $out",
    ]

    def compiled(source: Path, kind: str, flags: str) -> str:
        # csrc/scores.cpp and csrc/cuda/scores.cpp are both there.
        target = f"{kind}/{source.parent.name}/{source.name}.o"
        lines.extend([f"build {target}: compile {source}", f"  flags = {flags}"])
        if source.suffix != ".cu":
            return target
        lines.append(f"build {target}.shared: bring_together {target}")
        return f"{target}.shared"

    def linked(target: str, objects: list[str], flags: str) -> None:
        lines.extend([f"build {target}: link {' '.join(objects)}", f"  flags = {flags}"])

    emulation = compiled(HERE / "emulation.cpp", "emulation", "-O2")
    with_torch = [*sorted((ROOT / "csrc").glob("*.cpp")), *sorted((ROOT / "csrc" / "cuda").glob("*.cpp"))]
    with_torch.append(HERE / "libtorch_cuda.cpp")
    common = [compiled(source, "torch", " ".join(with_torch_flags)) for source in with_torch] + [emulation]
    # Undefined symbols show when the library is loaded, not when a test happens to call them; and what stands in for
    # libtorch_cuda does so beside a CUDA build of torch too.
    for kind, flags in KINDS.items():
        own = [compiled(source, kind, flags) for source in kernels()]
        linked(f"{kind}/_cuda.so", [*common, *own], f"-shared -Wl,-z,now,-Bsymbolic {flags} {torch_libraries()}")
        linked(f"{kind}/planted", [compiled(HERE / "planted.cu", kind, flags), emulation], flags)
    return "\n".join([*lines, ""])


def build(*targets: str) -> None:
    """Brings KIND/_cuda.so, the library, or KIND/planted up to date."""
    bring_up_to_date(OUT, ninja_file(), targets)


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else "plain/_cuda.so"
    build(target)
    print(OUT / target)

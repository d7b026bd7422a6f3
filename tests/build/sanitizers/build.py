"""Builds the CPU kernels for the compiler's sanitizers: `python tests/build/sanitizers/build.py KIND/TARGET`.

Prints the target's path. .ci/sanitize runs the tests on the libraries, KIND/_cpu.so; KIND/planted.so holds faults to be
found (planted.cpp). Ninja compiles what has changed; CXX names another compiler, MAX_JOBS limits its processes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).absolute().parent.parent))

from native_build import ROOT, RULES, bring_up_to_date, compiler, runtime, torch_flags, torch_libraries

HERE = Path(__file__).absolute().parent
OUT = ROOT / "build" / "sanitizers"

# As setup.py compiles them, but without -O3, which takes longer than the tests save, and without Python's own -fwrapv,
# with which no signed overflow is one.
COMMON = (
    "-std=c++20 -O1 -g1 -fno-omit-frame-pointer -fPIC -DNDEBUG -D_GLIBCXX_ASSERTIONS -fno-math-errno "
    "-fno-trapping-math -fvisibility=hidden -Wall -Wno-unknown-pragmas"
)
KINDS = {
    "address": "-fopenmp-simd -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all",
    "thread": "-fopenmp-simd -fsanitize=thread",
}
# What takes the place of torch's own.
STAND_INS = {"address": [], "thread": [HERE / "parallel.cpp"]}
# What must be loaded before Python. The C++ library too, or AddressSanitizer does not find the function that throws.
PRELOADED = {"address": ("libasan.so", "libstdc++.so"), "thread": ("libtsan.so",)}


def why_not() -> str | None:
    """Why this machine cannot build with sanitizers, or None."""
    if not sys.platform.startswith("linux"):
        return "the sanitizers are preloaded as on Linux"
    if compiler() is None:
        return "the sanitizers need a C++ compiler"
    if missing := [name for names in PRELOADED.values() for name in names if runtime(name) is None]:
        return f"the compiler has no {', '.join(missing)}"
    if not (ROOT / "csrc" / "cpu").is_dir():
        return "csrc/cpu is not here: tests/ stands outside the source tree"
    return None


def ninja_file() -> str:
    lines = [f"cxx = {compiler()}", f"common = {COMMON} {' '.join(torch_flags())}", *RULES]
    # The instruction sets' kernels take the longest: the first to be compiled.
    folders = [ROOT / "csrc" / "cpu", ROOT / "csrc"]
    sources = sorted((p for folder in folders for p in folder.glob("*.cpp")), key=lambda p: "kernels_" not in p.name)
    for kind, flags in KINDS.items():
        libraries = f"-shared -Wl,-z,now {flags} {torch_libraries()}"
        for target, own in ((f"{kind}/_cpu.so", sources), (f"{kind}/planted.so", [HERE / "planted.cpp"])):
            # With the folder: csrc/scores.cpp and csrc/cpu/scores.cpp are both there.
            objects = [f"{kind}/{source.parent.name}-{source.name}.o" for source in [*own, *STAND_INS[kind]]]
            lines += [f"build {target}: link {' '.join(objects)}", f"  flags = {libraries}"]
        for source in [*sources, HERE / "planted.cpp", *STAND_INS[kind]]:
            target = f"{kind}/{source.parent.name}-{source.name}.o"
            lines += [f"build {target}: compile {source}", f"  flags = {flags}"]
    return "\n".join([*lines, ""])


def build(*targets: str) -> None:
    """Brings KIND/_cpu.so, the library, or KIND/planted.so up to date."""
    bring_up_to_date(OUT, ninja_file(), targets)


def environment(kind: str) -> dict[str, str]:
    """In which Python runs code that was compiled so, until the first fault."""
    settings = {
        "CUDA_VISIBLE_DEVICES": "",
        "LD_PRELOAD": " ".join(str(runtime(name)) for name in PRELOADED[kind]),
        # Python frees little of what it holds at its end, and holds what ours allocates: a leak would not stand out.
        "ASAN_OPTIONS": "detect_leaks=0:strict_init_order=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": f"halt_on_error=1:suppressions={HERE / 'thread.supp'}",
    }
    return os.environ | settings


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else "address/_cpu.so"
    build(target)
    print(OUT / target)

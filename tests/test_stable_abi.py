"""What the compiled libraries ask of other libraries: no more than every torch from 2.11 on has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cw_ext import extension

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or None in (shutil.which("nm"), shutil.which("readelf")),
    reason="needs Linux, and nm and readelf of binutils",
)

# In glibc before 2.34, libc had more than one file.
C_LIBRARY = r"libc|libm|libpthread|libdl|librt|ld-linux-.*"
NEEDED = {
    "_cpu": rf"libtorch_cpu|libstdc\+\+|libgcc_s|{C_LIBRARY}",
    "_cuda": rf"libtorch_cpu|libtorch_cuda|libcudart|libstdc\+\+|libgcc_s|{C_LIBRARY}",
    "_C": rf"libstdc\+\+|libgcc_s|{C_LIBRARY}",
}
# What has these versions is of the compiler's or the system's libraries, whose age a wheel's tag stands for.
# libtorch_cpu brings the second along without one, and stands before the C++ library.
RUNTIMES = re.compile(r"\S+@+(GLIBC|GLIBCXX|CXXABI|GCC)_[\w.]+|_ZNK?St15__exception_ptr\w+")
# The linker's own.
OPTIONAL = {"__cxa_finalize", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
CUDART = re.compile(r"(__)?cuda[A-Z]\w*(@.*)?")
# csrc/tensor.h looks it up, and does without it where it is not there.
LOOKED_UP = "torch_exception_get_what_without_backtrace"


def _needed(library: Path) -> list[str]:
    done = subprocess.run(["readelf", "-dW", library], check=True, capture_output=True, text=True)
    return re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout)


def _undefined(library: Path) -> list[tuple[str, str]]:
    """(kind, mangled name) of each; the kind is w where the name may be missing."""
    done = subprocess.run(["nm", "-D", "--undefined-only", library], check=True, capture_output=True, text=True)
    return [(kind, name) for kind, name in map(str.split, done.stdout.splitlines())]


def _functions_of_libtorch() -> set[str]:
    """The C functions that the installed torch's headers declare for MINIMUM_TORCH."""
    folder = Path(torch.__file__).parent / "include" / "torch" / "csrc"
    headers = [*folder.glob("stable/c/*.h"), *folder.glob("inductor/aoti_torch/**/*.h")]
    found: set[str] = set()
    for header in headers:
        open_ifs: list[bool] = []  # whether torch is new enough for what stands between each and its #endif
        for line in header.read_text(encoding="utf-8").splitlines():
            if re.match(r"\s*#\s*if", line):
                since = re.search(r"TORCH_FEATURE_VERSION >= TORCH_VERSION_(\d+)_(\d+)_", line)
                open_ifs.append(since is None or (int(since[1]), int(since[2])) <= extension.MINIMUM_TORCH)
            elif re.match(r"\s*#\s*endif", line):
                open_ifs.pop()
            elif all(open_ifs):
                found.update(re.findall(r"\b((?:aoti_)?torch_\w+)\(", line))
    return found


def foreign_to(name: str, library: Path) -> list[str]:
    """What `library`, of the kind `name`, asks for beyond what it may."""
    bad = [needed for needed in _needed(library) if not re.fullmatch(rf"({NEEDED[name]})\.so(\.\d+)*", needed)]
    functions = set() if name == "_C" else _functions_of_libtorch()
    for kind, symbol in _undefined(library):
        weak = kind in "wv"
        ours = RUNTIMES.fullmatch(symbol) or symbol in functions or (weak and symbol in OPTIONAL)
        ours = ours or (weak and symbol == LOOKED_UP and name != "_C")
        ours = ours or (name == "_cuda" and CUDART.fullmatch(symbol))
        ours = ours or (name == "_C" and re.fullmatch(r"_?Py\w+", symbol))
        if not ours:
            bad.append(symbol)
    return bad


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("name", NEEDED)
def test_a_library_needs_nothing_else(kernels: None, name: str) -> None:
    library = extension._library(extension.PACKAGE, name)
    if library is None:
        assert name != "_cpu", "the kernels are loaded"
        pytest.skip(f"{name} is not built here")
    assert foreign_to(name, library) == []


def test_the_headers_are_read() -> None:
    functions = _functions_of_libtorch()
    assert {"torch_call_dispatcher", "torch_parallel_for", "aoti_torch_empty_strided", "aoti_torch_zero_"} <= functions
    # Those of torch 2.12 and 2.13.
    assert not functions & {"torch_tag_core", "torch_library_def_with_tags", LOOKED_UP}


# ---- the check itself ---------------------------------------------------------------------------------------


def _compiled(folder: Path, source: str, *flags: str) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    (folder / "planted.cpp").write_text(source)
    library = folder / "planted.so"
    command = [compiler, "-shared", "-fPIC", "-o", library, folder / "planted.cpp", *flags]
    subprocess.run(command, check=True, timeout=60)
    return library


RIGHT = f"""
#include <stdexcept>
#include <string>
extern "C" int torch_call_dispatcher();
extern "C" __attribute__((weak)) int {LOOKED_UP}();
extern "C" int f() {{
  if ({LOOKED_UP} && {LOOKED_UP}()) throw std::out_of_range(std::to_string(torch_call_dispatcher()));
  return torch_call_dispatcher();
}}
"""


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    library = _compiled(tmp_path, RIGHT)
    assert foreign_to("_cpu", library) == []
    # Python's own module is to know nothing of torch.
    assert set(foreign_to("_C", library)) == {LOOKED_UP, "torch_call_dispatcher"}


@pytest.mark.parametrize(
    ("declared", "call", "found"),
    [
        ("namespace at { int planted(); }", "at::planted()", "_ZN2at7plantedEv"),
        ("namespace c10 { int planted(); }", "c10::planted()", "_ZN3c107plantedEv"),
        ("namespace torch::stable { int planted(); }", "torch::stable::planted()", "_ZN5torch6stable7plantedEv"),
        ('extern "C" int PyLong_AsLong();', "PyLong_AsLong()", "PyLong_AsLong"),
        ('extern "C" int torch_tag_core();', "torch_tag_core()", "torch_tag_core"),
        ('extern "C" int aoti_torch_planted();', "aoti_torch_planted()", "aoti_torch_planted"),
        ('extern "C" int cudaGetLastError();', "cudaGetLastError()", "cudaGetLastError"),
        # Not looked up, but needed.
        (f'extern "C" int {LOOKED_UP}();', f"{LOOKED_UP}()", LOOKED_UP),
    ],
)
def test_a_planted_symbol_is_found(tmp_path: Path, declared: str, call: str, found: str) -> None:
    library = _compiled(tmp_path, f'{declared}\nextern "C" int f() {{ return {call}; }}\n')
    assert foreign_to("_cpu", library) == [found]


def test_a_planted_dependence_is_found(tmp_path: Path) -> None:
    library = _compiled(tmp_path, RIGHT, "-Wl,--no-as-needed", "-lgomp")
    assert foreign_to("_cpu", library) == ["libgomp.so.1"]

"""What .ci/wheels does beside compiling: the files and names of a wheel, and what its tag promises."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

ROOT = Path(__file__).absolute().parents[2]
WHEELHOUSE = ROOT / ".ci" / "wheelhouse"
sys.path.insert(0, str(WHEELHOUSE))

import assemble  # noqa: E402
import symbols  # noqa: E402
from libraries import first_versions  # noqa: E402
from same_values import differences  # noqa: E402

import cw_ext  # noqa: E402

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

# --- files and names ---


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("build", "wheel"):
        pytest.importorskip(module, reason="wheels are made with build and wheel")
    return assemble.source_distribution(ROOT, tmp_path_factory.mktemp("sdist"))


def test_a_wheel_holds_the_modules_and_its_libraries(sdist: Path, tmp_path: Path) -> None:
    libraries = [tmp_path / name for name in ("_cpu.abi3.so", "_cuda.abi3.so", "_C.cpython-312-aarch64-linux-gnu.so")]
    for library in libraries:
        library.write_text(library.name)
    modules = assemble.without_libraries(sdist, "cu13", tmp_path / "modules")
    wheel = assemble.with_libraries(modules, libraries, "312", "aarch64", tmp_path / "dist")

    version = f"{cw_ext.__version__}+cu13"
    assert wheel.name == f"cw_ext-{version}-cp312-cp312-manylinux_2_28_aarch64.whl"
    about = f"cw_ext-{version}.dist-info"
    expected = {str(file.relative_to(ROOT)) for file in (ROOT / "cw_ext").rglob("*.py")} | {"cw_ext/py.typed"}
    expected |= {f"cw_ext/{library.name}" for library in libraries}
    expected |= {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt", "licenses/LICENSE")}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == expected
        assert archive.read("cw_ext/_cpu.abi3.so") == b"_cpu.abi3.so"
        metadata = BytesParser().parsebytes(archive.read(f"{about}/METADATA"))
        tags = BytesParser().parsebytes(archive.read(f"{about}/WHEEL"))
    assert metadata["Version"] == version
    assert any(need.startswith("torch>=") for need in metadata.get_all("Requires-Dist"))
    assert tags["Root-Is-Purelib"] == "false"
    assert tags.get_all("Tag") == ["cp312-cp312-manylinux_2_28_aarch64"]
    # Also checks the hashes in RECORD.
    unpack = [sys.executable, "-m", "wheel", "unpack", str(wheel), "--dest", str(tmp_path / "unpacked")]
    subprocess.run(unpack, check=True, stdout=subprocess.DEVNULL)


# --- what a tag promises ---

# With each construct that needs a newer glibc or libstdc++ than the tag promises.
MODERN = """
#include <cmath>
#include <exception>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Job {
  std::exception_ptr error;
};

// The message of the error that comes out of it, by way of copies of a std::exception_ptr.
extern "C" __attribute__((visibility("default"))) int message(double x, long size, char* out) {
  const auto text = std::make_shared<std::stringstream>();
  try {
    Job job;
    try {
      std::vector<double> values(size, std::exp(x) + std::log(x) + std::pow(x, 1.5));
      *text << "first " << values.at(0);
      values.at(values.size());
    } catch (...) {
      job.error = std::current_exception();
    }
    const Job copy = job;
    std::rethrow_exception(copy.error);
  } catch (const std::out_of_range&) {
    *text << ", then out of range";
  } catch (const std::bad_alloc&) {
    *text << "too large";
  } catch (const std::length_error&) {
    *text << "too long";
  }
  return int(text->str().copy(out, 100));
}
"""


def compile_library(source: str, to: Path, *flags: object) -> Path:
    to.with_suffix(".cpp").write_text(source)
    command = ["g++", "-std=c++20", "-O3", "-fPIC", "-shared", to.with_suffix(".cpp"), *flags, "-o", to]
    subprocess.run(list(map(str, command)), check=True)
    return to


def message_of(library: Path, x: float, size: int) -> str:
    text = ctypes.create_string_buffer(100)
    call = ctypes.CDLL(str(library)).message
    call.argtypes = [ctypes.c_double, ctypes.c_long, ctypes.c_char_p]
    length = call(x, size, text)
    return text.raw[:length].decode()


@needs_compiler
def test_what_goes_into_a_wheel_runs_on_an_old_system(tmp_path: Path) -> None:
    machine = symbols.machine_of(Path(sys.executable))
    modern = compile_library(MODERN, tmp_path / "modern.so")
    older = tmp_path / "glibc_2_28.o"
    subprocess.run(["gcc", "-O2", "-fPIC", "-Wall", "-c", WHEELHOUSE / "glibc_2_28.c", "-o", older], check=True)
    versions = tmp_path / "versions.s"
    versions.write_text(first_versions(machine))
    flags = ("-include", WHEELHOUSE / "glibc_2_28.h", older, "-Xassembler", versions)
    library = compile_library(MODERN, tmp_path / "older.so", *flags)
    assert symbols.faults(library, machine, set()) == []
    for size in (3, 1 << 61, 1 << 40):
        assert message_of(library, 2.0, size) == message_of(modern, 2.0, size)
    assert message_of(library, 2.0, 3).endswith(", then out of range")


@needs_compiler
def test_what_keeps_a_library_from_its_tag_is_told(tmp_path: Path) -> None:
    machine = symbols.machine_of(Path(sys.executable))
    other = next(name for name in ("x86_64", "aarch64") if name != machine)
    taken = compile_library("int there() { return 1; }", tmp_path / "libtaken.so", "-Wl,-soname,libtaken.so")
    source = "#include <sys/single_threaded.h>\nint there(); int one() { return there() + __libc_single_threaded; }"
    library = compile_library(source, tmp_path / "library.so", taken)
    newer = "library.so needs __libc_single_threaded of GLIBC 2.32, which is newer than manylinux_2_28's 2.28"
    assert symbols.faults(library, machine, {"libtaken.so"}) == [newer]
    assert symbols.faults(library, other, set()) == [
        f"library.so is for {machine}, not for {other}",
        "library.so needs ['libtaken.so'] beside the system's libraries, not []",
        newer,
    ]


# --- ARM against this machine ---


def test_values_that_differ_between_machines_are_told() -> None:
    here = "float.loss 1.0\nfloat.loss 2.0\ndrawn 7\n"
    assert differences(here, here.replace("2.0", "2.000001")) == []
    for value in ("2.00001", "nan"):
        (told,) = differences(here, here.replace("2.0", value))
        assert told.startswith("float.loss: 1 differ, by ")
    (told,) = differences(here, here.replace("7", "8"))
    assert told.startswith("drawn: 1 differ, by 1,")
    assert differences(here, here + "drawn 7\n") == ["drawn: expected 1 values, got 2"]
    assert len(differences(here, here.replace("drawn 7\n", ""))) == 1
    assert len(differences("", "")) == 1

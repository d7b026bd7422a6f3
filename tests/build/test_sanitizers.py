"""The sanitizers under which .ci/sanitize runs the tests see faults such as the CPU kernels could have, and none where
none is (sanitizers/planted.cpp)."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from sanitizers import build

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))

PLANT = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).plant(sys.argv[2].encode()); print('went on')"

OVERFLOW = "AddressSanitizer: heap-buffer-overflow"
RACE = "ThreadSanitizer: data race"
FAULTS = {
    ("address", "reads_past_tensor"): OVERFLOW,
    ("address", "reads_before_tensor"): OVERFLOW,
    ("address", "reads_freed_tensor"): "AddressSanitizer: heap-use-after-free",
    ("address", "reads_vector_past_tensor"): OVERFLOW,
    ("address", "writes_past_scratch"): OVERFLOW,
    ("address", "indexes_past_vector"): "Assertion '__n < this->size",
    ("address", "overflows"): "runtime error: signed integer overflow",
    ("address", "shifts_too_far"): "runtime error: shift exponent 32 is too large",
    ("address", "casts_infinity"): "runtime error: inf is outside the range of representable values",
    ("address", "casts_misaligned"): "runtime error: load of misaligned address",
    ("thread", "sums_without_lock"): RACE,
    ("thread", "writes_into_neighbours_share"): RACE,
}
NO_FAULTS = [
    *(("address", name) for name in ("reads_inside", "reads_vector_inside", "writes_inside", "throws")),
    *(("thread", name) for name in ("sums_with_lock", "writes_own_share", "throws")),
]


def _planted(kind: str, name: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", PLANT, str(build.OUT / kind / "planted.so"), name],
        env=build.environment(kind),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    # A kernel's address space may be laid out in a way that a sanitizer cannot do with.
    if fatal := re.search(r"FATAL: \w+Sanitizer: .*", done.stdout):
        pytest.skip(fatal[0])
    return done


@pytest.fixture(scope="module")
def built() -> None:
    build.build(*(f"{kind}/planted.so" for kind in build.KINDS))


@pytest.mark.parametrize(("kind", "name"), FAULTS)
def test_a_planted_fault_is_seen(built: None, kind: str, name: str) -> None:
    done = _planted(kind, name)
    assert done.returncode != 0 and "went on" not in done.stdout
    assert FAULTS[kind, name] in done.stdout, done.stdout


@pytest.mark.parametrize(("kind", "name"), NO_FAULTS)
def test_no_fault_is_seen_where_none_is(built: None, kind: str, name: str) -> None:
    done = _planted(kind, name)
    assert (done.returncode, done.stdout) == (0, "went on\n")

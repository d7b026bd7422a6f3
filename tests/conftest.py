"""Fixtures: the devices that are present, the backends, and kernels that must not be missing in silence."""

from __future__ import annotations

import os
from pathlib import Path

# Both are read when torch starts. Without the first, OpenMP's threads spin between the thousands of tiny
# operations of these tests, which a busy machine pays for many times over; without the second, cuBLAS
# refuses to run under deterministic algorithms.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest  # noqa: E402
import torch  # noqa: E402

REFERENCE_ONLY = "CW_EXT_TEST_REFERENCE_ONLY"
# All tests under torch's deterministic algorithms, which also fill fresh memory with NaN.
DETERMINISTIC = "CW_EXT_TEST_DETERMINISTIC"
# The marker `thorough`. make test-all runs all tests; make fuzz, the thorough ones that cross variants with dtypes.
THOROUGH = "repeats on more inputs what quicker tests cover; make test leaves it out, pytest -m thorough runs it"


import cw_ext  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cpu_kernels: about the CPU's kernels; skipped where CUDA's are emulated")
    config.addinivalue_line("markers", f"thorough: {THOROUGH}")
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # a process per core; tests of several threads set their number themselves
    torch.use_deterministic_algorithms(os.environ.get(DETERMINISTIC) == "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    emulated = cw_ext.build_config().get("cuda_version") == "emulated"
    if emulated and item.get_closest_marker("cpu_kernels"):
        pytest.skip("about the CPU's kernels")


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that this machine has."""
    return torch.device(request.param)


@pytest.fixture
def checkout() -> Path:
    """The source tree, for tests of what is not installed."""
    root = Path(__file__).parents[1]
    if not (root / "setup.py").exists():
        pytest.skip("setup.py is not here: tests/ stands outside the source tree")
    return root


def _require_kernels() -> None:
    """A build without kernels must not pass for one whose kernels were tested."""
    if os.environ.get(REFERENCE_ONLY) == "1":
        pytest.skip(f"{REFERENCE_ONLY}=1: the kernels are not tested")
    config = cw_ext.build_config()
    if not config["available"]:
        pytest.fail(f"{config['reason']} (or set {REFERENCE_ONLY}=1 to test the reference alone)", pytrace=False)


@pytest.fixture
def kernels() -> None:
    """For tests of the compiled kernels."""
    _require_kernels()


@pytest.fixture(params=["reference", "fused"])
def backend(request: pytest.FixtureRequest) -> str:
    """Both implementations of the same contract."""
    if request.param == "fused":
        _require_kernels()
    return request.param

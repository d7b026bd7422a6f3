"""Fixtures: the devices that are present, the backends, and kernels that must not be missing in silence."""

from __future__ import annotations

import os

# Both are read when torch starts. Without the first, OpenMP's threads spin between the thousands of tiny
# operations of these tests, which a busy machine pays for many times over; without the second, cuBLAS
# refuses to run under deterministic algorithms.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest  # noqa: E402
import torch  # noqa: E402

import cw_ext  # noqa: E402

REFERENCE_ONLY = "CW_EXT_TEST_REFERENCE_ONLY"


def _devices() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that this machine has."""
    return torch.device(request.param)


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

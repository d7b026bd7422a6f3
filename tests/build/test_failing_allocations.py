"""Memory that runs out in the compiled kernels: one clear error, and all as before."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cases import child_environment
from failing_allocations import CASES, ROWS


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of every case of failing_allocations.py."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("failing allocations need Linux and a C++ compiler")
    here = Path(__file__).parent
    library = tmp_path_factory.mktemp("library") / "failing_allocations.so"
    source = here / "failing_allocations.cpp"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True, timeout=60)
    environment = child_environment(LD_PRELOAD=str(library), OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="2")
    program = [sys.executable, here / "failing_allocations.py"]
    ended = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, f"{ended.returncode}: {ended.stderr}"
    return json.loads(ended.stdout)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("name", CASES)
def test_an_allocation_that_fails_is_an_error_after_which_all_is_as_before(
    kernels: None, outcomes: dict[str, dict[str, Any]], name: str
) -> None:
    """Each of a call's allocations in turn: torch's own exceptions, inputs and gradients whole, nothing lost, and the
    next call right."""
    outcome = outcomes[name]
    assert outcome["faults"] == []
    # The loss, which rows have one, what backward needs and the gradients: no fewer can they be.
    assert outcome["failed"] > outcome["large"] >= 8
    assert set(outcome["errors"]) <= {"RuntimeError", "MemoryError"}
    # What a case leaves at each allocation is a tensor of so many rows at least; Python's own caches hold less.
    assert outcome["kept_bytes"] < 4 * ROWS

"""How the kernels run: the same bits every time and on any number of threads, the same numbers on every
instruction set, and no memory that grows with B·N·D."""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import (
    Case,
    Result,
    assert_near,
    child_environment,
    evaluate,
    generator,
    make_embeddings,
    make_scores,
)
from memory import held_bytes, peak_of
from torch import Tensor

import cw_ext

CAPABILITIES = ("default", "avx2", "avx512")


def _scores() -> Case:
    return make_scores((200,), 150, 3, seed=91, log_q=True, row_weights=True).to(torch.float32)


def _embeddings(**more: Any) -> Case:
    """Items named by hundreds of ids each: where sums over threads would differ."""
    case = make_embeddings(200, 60, 24, 40, 3, seed=92, padding=True, row_weights=True, **more)
    return case.to(torch.float32)


CASES = {
    "scores": (_scores(), {"prior": 0.1}),
    "embeddings": (_embeddings(), {"prior": 0.1}),
    "shared": (_embeddings(shared=True), {"prior": 0.1, "similarity": "dot", "temperature": 5.0}),
    "bf16": (_embeddings().to(torch.bfloat16), {}),
    "sparse": (_embeddings(), {"sparse_grad": True}),
}
each_case = pytest.mark.parametrize(("case", "arguments"), CASES.values(), ids=CASES.keys())


def _assert_same_bits(a: Result, b: Result) -> None:
    assert torch.equal(a.loss, b.loss)
    for name, gradient in a.gradients.items():
        other = b.gradients[name]
        if gradient.is_sparse:
            gradient, other = gradient.to_dense(), other.to_dense()
        assert torch.equal(gradient, other), name


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@each_case
def test_the_same_bits_from_run_to_run(
    kernels: None, deterministic: None, device: torch.device, case: Case, arguments: dict[str, Any]
) -> None:
    weight = torch.randn(200, generator=generator(93)).to(device)
    there = case.to(device=device)
    first = evaluate(there, weight, backend="fused", **arguments)
    for _ in range(3):
        _assert_same_bits(evaluate(there, weight, backend="fused", **arguments), first)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.cpu_kernels
@each_case
def test_the_same_bits_on_any_number_of_threads(
    kernels: None, threads: Callable[[int], None], case: Case, arguments: dict[str, Any]
) -> None:
    weight = torch.randn(200, generator=generator(94))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(evaluate(case, weight, backend="fused", **arguments))
    _assert_same_bits(results[0], results[1])
    _assert_same_bits(results[0], results[2])


@pytest.mark.cpu_kernels
def test_an_error_on_one_of_many_threads(kernels: None, threads: Callable[[int], None]) -> None:
    """It reaches the caller as an exception, and the threads go on working."""
    threads(2)
    good = _embeddings()
    bad = good.map(torch.clone)
    bad.neg_ids[150, 7] = 40
    for _ in range(3):
        with pytest.raises(IndexError, match=r"neg_ids .*got 40"):
            bad.loss(backend="fused")
        assert good.loss(backend="fused").isfinite()


_THREADS = """
import os, sys, torch
from cases import make_embeddings, make_scores
torch.set_num_threads(1)
case = make_scores((64,), 4096) if sys.argv[1] == "1" else make_embeddings(64, 1000, 64, 500)
case = case.to(torch.float32)
threads = lambda: len(os.listdir("/proc/self/task"))
before = threads()
torch.set_num_threads(3)
case.loss(backend="fused")
print(before, threads())
"""


@pytest.mark.cpu_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize("level", ["1", "2"])
def test_the_kernels_run_on_torchs_threads(kernels: None, level: str) -> None:
    """Nothing else in the call is large enough for more than one."""
    done = subprocess.run(
        [sys.executable, "-c", _THREADS, level],
        env=child_environment(),
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    before, after = map(int, done.stdout.split())
    assert after == before + 2


# ---- instruction sets --------------------------------------------------------------------------------------

_CHILD = """
import sys, torch, cw_ext
from cases import VARIANTS, evaluate
cases = torch.load(sys.argv[1], weights_only=False)
results = {name: evaluate(case, weight, backend="fused", **arguments)
           for name, (case, weight, arguments) in cases.items()}
torch.save((cw_ext.build_config()["cpu_capability"], results), sys.argv[2])
"""


def _capability_cases() -> dict[str, tuple[Case, Tensor, dict[str, Any]]]:
    """Each weighting and surrogate, in each dtype, of scores and of embeddings; and more items than a bucket holds."""
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for weighting in ("none", "sigmoid", "exponential", "linear"):
            for surrogate in ("exp", "tanh", "atan", "relu"):
                arguments = {
                    "weighting": weighting,
                    "surrogate": surrogate,
                    "prior": 0.1,
                    "detach_weights": False,
                }
                name = f"{dtype} {weighting} {surrogate}"
                scores = make_scores((4,), 71, 3, seed=95, log_q=True)
                found[f"scores {name}"] = (scores.to(dtype), torch.ones(4), arguments)
                embeddings = make_embeddings(4, 71, 33, 30, 3, seed=96, padding=True)
                found[f"embeddings {name}"] = (embeddings.to(dtype), torch.ones(4), arguments)
        for shared in (False, True):
            many = make_embeddings(30, 200, 37, 150, 2, seed=99, padding=True, shared=shared)
            found[f"many items {dtype} {shared}"] = (many.to(dtype), torch.ones(30), {"prior": 0.1})
    return found


@pytest.mark.cpu_kernels
def test_every_instruction_set(kernels: None, tmp_path: Path) -> None:
    """ATEN_CPU_CAPABILITY is read once per process, so each has its own. All agree with the reference."""
    best = cw_ext.build_config()["cpu_capability"]
    if best not in CAPABILITIES:
        pytest.skip(f"a machine of another kind: {best}")
    cases = _capability_cases()
    torch.save(cases, tmp_path / "cases.pt")
    truths = {}
    for name, (case, weight, arguments) in cases.items():
        truths[name] = evaluate(case.to(torch.float64), weight, backend="reference", **arguments)
    for capability in CAPABILITIES[: CAPABILITIES.index(best) + 1]:
        saved = tmp_path / f"{capability}.pt"
        subprocess.run(
            [sys.executable, "-c", _CHILD, str(tmp_path / "cases.pt"), str(saved)],
            env=child_environment(ATEN_CPU_CAPABILITY=capability),
            check=True,
            timeout=120,
        )
        ran_on, results = torch.load(saved, weights_only=False)
        assert ran_on == capability
        for name, result in results.items():
            dtype = next(iter(result.gradients.values())).dtype
            assert_near(result.loss, truths[name].loss, result.loss.dtype, f"{capability} {name}")
            for its_name, gradient in result.gradients.items():
                # fp16 and bf16 gradients are rounded where they are stored, and sums of duplicates once more.
                expected = truths[name].gradients[its_name]
                assert_near(gradient, expected, dtype, f"{capability} {name} {its_name}")


# ---- memory ------------------------------------------------------------------------------------------------


@pytest.mark.cpu_kernels
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="counts what glibc has handed out")
@pytest.mark.parametrize("outcome", ["loss", "error"])
def test_a_call_leaves_nothing(kernels: None, outcome: str) -> None:
    """Neither one that ends well nor one that raises: fewer bytes than an argument's name has."""
    case = make_embeddings(6, 9, 8, 30, 2, seed=93, log_q=True).to(torch.float32)
    if outcome == "error":
        case.pos_ids[-1] = 30

    def call() -> None:
        with contextlib.nullcontext() if outcome == "loss" else pytest.raises(IndexError):
            case.leaves().loss(backend="fused", prior=0.1, reduction="sum").backward()

    for _ in range(100):
        call()
    before = held_bytes()
    for _ in range(1000):
        call()
    assert (held_bytes() - before) / 1000 < 8


def _training_step(case: Case, backend: str) -> Callable[[], object]:
    leaves = case.leaves(["queries", "items"])

    def run() -> object:
        leaves.loss(backend=backend).backward()
        return leaves

    return run


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_nothing_of_size_b_n_d(kernels: None, device: torch.device, shared: bool) -> None:
    """One step's peak, inputs aside: a few times the gradients, and some bytes per negative."""
    rows, n, dim, items = 128, 256, 64, 500
    case = make_embeddings(rows, n, dim, items, seed=97, shared=shared).to(torch.float32, device)
    measure = peak_of(device)
    _training_step(case, "fused")()  # what is allocated once per process does not count
    peak, largest = measure(_training_step(case, "fused"))
    outputs = 4 * dim * (rows + items)
    assert peak <= 3 * outputs + 24 * rows * n, f"peak {peak / 2**20:.2f} MiB"
    assert largest <= max(outputs, 16 * rows * n), f"largest {largest / 2**20:.2f} MiB"
    assert 3 * outputs + 24 * rows * n < 4 * rows * n * dim // 4, "the bound says something about B·N·D"
    if not shared:
        reference, _ = measure(_training_step(case, "reference"))
        assert reference > 4 * rows * n * dim, "the measurement sees what the reference allocates"


_RESIDENT = """
import json, resource, sys, torch
from cases import make_embeddings
rows, n, dim, items = 512, 1024, 64, 1000
leaves = make_embeddings(rows, n, dim, items).to(torch.float32).leaves(["queries", "items"])
make_embeddings(8, 8, dim, items).to(torch.float32).leaves().loss(backend="fused").backward()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.cuda.is_available()
before = peak()
leaves.loss(backend="fused").backward()
print(json.dumps({"grown": peak() - before, "b_n_d": 4 * rows * n * dim, "per_negative": rows * n}))
"""


@pytest.mark.cpu_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts in kilobytes on Linux only")
def test_resident_memory(kernels: None) -> None:
    """What the process itself grows by, scratch space that no allocator of torch's sees included."""
    done = subprocess.run(
        [sys.executable, "-c", _RESIDENT],
        env=child_environment(),
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)
    assert found["grown"] < found["b_n_d"] / 2 and found["grown"] < 48 * found["per_negative"], found

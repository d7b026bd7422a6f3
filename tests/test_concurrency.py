"""Calls from many threads and processes at once: the results of one caller alone, bit for bit, and no state kept."""

from __future__ import annotations

import os
import pickle
import platform
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from cases import Case, child_environment, evaluate, generator, make_embeddings, make_scores
from drawing import Drawn, make_drawn, make_interactions
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cw_ext import (
    CWSampledLoss,
    Interactions,
    ScoreCurve,
    candidate_scores,
    cw_loss_from_embeddings,
    draw_negatives,
    extension,
)

# In one process, so that these do not take the cores from one another.
pytestmark = pytest.mark.xdist_group("concurrency")

CALLERS = 6
ROWS = 48
# Long enough for a busy machine: what it ends is a hang.
PATIENCE = 120

Call = Callable[[], list[Tensor]]


def _step(case: Case | Drawn, **arguments: Any) -> Call:
    """Forward and backward, with a weight of its own for each row."""
    weight = torch.randn(ROWS, generator=generator(1))

    def call() -> list[Tensor]:
        result = evaluate(case, weight, backend="fused", **arguments)  # type: ignore[arg-type]
        gradients = (g.to_dense() if g.is_sparse else g for g in result.gradients.values())
        return [result.loss, *gradients]

    return call


def _steps() -> dict[str, Call]:
    """Each form of each level, in batches large enough for two of torch's threads."""
    known = make_interactions(60, 300, 900, seed=2)
    temperature, knots = torch.linspace(0.1, 1.0, ROWS, dtype=torch.float64), torch.ones(9, dtype=torch.float64)
    curve = ScoreCurve(-0.5, 0.5, torch.zeros(9))
    scores = make_scores((ROWS,), 2500, 3, seed=3, log_q=True)
    ids = make_embeddings(ROWS, 150, 24, 90, 3, seed=4, padding=True)
    drawn = make_drawn("sampled", ROWS, 24, 2, seed=5, interactions=known, num_negatives=150).to(torch.float32)
    in_batch = make_drawn("in_batch", ROWS, 24, seed=6, interactions=known).to(torch.float32)
    full = make_drawn("full", ROWS, 24, seed=7, interactions=known).to(torch.float32)
    shared = make_embeddings(ROWS, 150, 24, 90, 3, seed=8, shared=True).to(torch.float32)
    few = make_embeddings(160, 150, 24, 90, seed=14).to(torch.float32)
    picked = (few.queries, few.items, few.neg_ids)
    return {
        "scores fp64": _step(scores, prior=0.1),
        "scores fp32": _step(scores.to(torch.float32), normalize_weights=True),
        "scores fp16": _step(scores.to(torch.float16), weighting="linear", detach_weights=False),
        "ids fp64": _step(ids, similarity="dot", weighting="none", temperature=3.0),
        "ids fp32": _step(ids.to(torch.float32), prior=0.1),
        "ids bf16": _step(ids.to(torch.bfloat16)),
        "ids with a curve": _step(replace(ids, temperature=temperature, knots=knots), score_curve=curve),
        "ids sparse": _step(ids.to(torch.float32), sparse_grad=True),
        "shared ids": _step(shared, prior=0.1),
        "drawn": _step(drawn, seed=9),
        "drawn again": _step(drawn, seed=10, recompute=True),
        "drawn by popularity": _step(drawn, seed=11, distribution="popularity"),
        "one drawn set": _step(drawn, seed=12, shared=True),
        "in-batch": _step(in_batch),
        "mixed": _step(in_batch, seed=13, num_negatives=60),
        "full": _step(full),
        "candidate scores": lambda: [candidate_scores(ids.queries, ids.items, ids.neg_ids, backend="fused")],
        "picked candidate scores": lambda: [candidate_scores(*picked, backend="fused")],
    }


def _at_once(*calls: Callable[[], object]) -> list[Any]:
    """What the calls return, each from a thread of its own that starts when all are there."""
    start = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException] = []

    def run(k: int) -> None:
        try:
            start.wait(PATIENCE)
            results[k] = calls[k]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a call does not return"
    if errors:
        raise errors[0]
    return results


def _assert_same(found: list[Tensor], expected: list[Tensor], what: str) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected)), what


@pytest.fixture(autouse=True)
def quick_turns() -> Iterator[None]:
    """Python lets its threads take turns thousands of times as often, so that what can interleave does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=[1, 2], ids=["1 thread each", "2 threads each"])
def threads_of_torch(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# ---- threads -----------------------------------------------------------------------------------------------


@pytest.mark.cpu_kernels
def test_each_thread_gets_what_one_alone_gets(kernels: None, threads_of_torch: int) -> None:
    """All levels and dtypes beside one another, each thread in another order."""
    steps = _steps()
    alone = {name: call() for name, call in steps.items()}

    def caller(k: int) -> list[dict[str, list[Tensor]]]:
        orders = random.Random(k)
        return [{name: steps[name]() for name in orders.sample(list(steps), len(steps))} for _ in range(5)]

    for passes in _at_once(*(partial(caller, k) for k in range(CALLERS))):
        for found in passes:
            for name, expected in alone.items():
                _assert_same(found[name], expected, name)


@pytest.mark.cpu_kernels
def test_the_number_of_threads_may_change_meanwhile(kernels: None) -> None:
    """Each thread changes torch's setting between its own calls, under the feet of the others."""
    steps = _steps()
    alone = {name: call() for name, call in steps.items()}
    before = torch.get_num_threads()

    def caller(k: int) -> dict[str, list[Tensor]]:
        found = {}
        for place, (name, call) in enumerate(steps.items()):
            torch.set_num_threads(1 + (place + k) % 3)
            found[name] = call()
        return found

    try:
        results = _at_once(*(partial(caller, k) for k in range(3)))
    finally:
        torch.set_num_threads(before)
    for found in results:
        for name, expected in alone.items():
            _assert_same(found[name], expected, name)


def _batches(count: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
    """A table of items that asks for gradients, and batches (queries, pos_ids, neg_ids) that look it up."""
    cases = [make_embeddings(ROWS, 100, 16, 80, seed=20 + k).to(dtype) for k in range(count)]
    return cases[0].items.requires_grad_(), [(c.queries, c.pos_ids, c.neg_ids) for c in cases]


def test_threads_share_a_table(kernels: None) -> None:
    """Each takes its own gradient of the one table that all read."""
    items, batches = _batches(CALLERS)

    def gradient(batch: tuple[Tensor, ...]) -> list[Tensor]:
        queries, pos_ids, neg_ids = batch
        loss = cw_loss_from_embeddings(queries, items, pos_ids, neg_ids, prior=0.1, backend="fused")
        return [loss.detach(), *torch.autograd.grad(loss, items)]

    alone = [gradient(batch) for batch in batches]
    for _ in range(5):
        found = _at_once(*(partial(gradient, b) for b in batches))
        for one, expected in zip(found, alone):
            _assert_same(one, expected, "gradient of the shared table")


def test_threads_add_to_one_gradient(backend: str) -> None:
    """None of what backward() adds to a shared leaf is lost. In fp64, as the order of the sum is that of arrival."""
    items, batches = _batches(CALLERS, torch.float64)

    def backward(batch: tuple[Tensor, ...]) -> None:
        queries, pos_ids, neg_ids = batch
        cw_loss_from_embeddings(queries, items, pos_ids, neg_ids, backend=backend).backward()  # type: ignore[arg-type]

    for batch in batches:
        backward(batch)
    assert items.grad is not None
    expected, items.grad = items.grad, None
    _at_once(*(partial(backward, b) for b in batches))
    assert torch.allclose(items.grad, expected, rtol=1e-12, atol=1e-12 * expected.abs().max().item())


def test_threads_share_a_graph(kernels: None) -> None:
    """Backward passes through one graph that is kept find what forward saved, while others read it."""
    items, ((queries, pos_ids, neg_ids),) = _batches(1)
    loss = cw_loss_from_embeddings(queries, items, pos_ids, neg_ids, prior=0.1, reduction="none", backend="fused")
    weights = [torch.randn(ROWS, generator=generator(k)) for k in range(CALLERS)]

    def gradient(weight: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, items, weight, retain_graph=True))

    alone = [gradient(weight) for weight in weights]
    found = _at_once(*(partial(gradient, w) for w in weights))
    for one, expected in zip(found, alone):
        _assert_same(one, expected, "gradient")


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_draws_of_many_threads(distribution: Any) -> None:
    known = make_interactions(60, 300, 900, seed=2)
    query_ids = torch.arange(60)

    def draws(k: int) -> list[Tensor]:
        return [draw_negatives(query_ids, known, 50, seed=s, distribution=distribution) for s in range(k, k + 10)]

    alone = [draws(k) for k in range(CALLERS)]
    assert not torch.equal(alone[0][0], alone[1][0])
    found = _at_once(*(partial(draws, k) for k in range(CALLERS)))
    for k, expected in enumerate(alone):
        _assert_same(found[k], expected, f"draws of thread {k}")


def test_draws_without_a_seed_share_torchs_generator() -> None:
    """No two threads get the same seed from it: together they draw what one alone draws, in some order."""
    known = make_interactions(60, 300, 900, seed=2)
    query_ids = torch.arange(60)

    def draws() -> list[tuple[int, ...]]:
        return [tuple(draw_negatives(query_ids, known, 5).flatten().tolist()) for _ in range(200)]

    torch.manual_seed(3)
    alone = [one for _ in range(CALLERS) for one in draws()]
    torch.manual_seed(3)
    found = [one for draws_of_a_thread in _at_once(*[draws] * CALLERS) for one in draws_of_a_thread]
    assert sorted(found) == sorted(alone) and len(set(found)) == len(found)


def test_a_popularity_table_that_many_want_first() -> None:
    """Whoever makes it: each gets a whole table, the same numbers for all, and one for each exponent is kept."""
    exponents = (0.5, 0.75, 1.0)
    queries, items = torch.arange(200_000) % 500, torch.arange(200_000) ** 2 % 50_021
    expected_of = Interactions(queries, items, num_queries=500, num_items=50_021)
    expected = {exponent: expected_of.popularity(exponent) for exponent in exponents}
    known = Interactions(queries, items, num_queries=500, num_items=50_021)

    def tables(k: int) -> dict[float, Any]:
        return {e: known.popularity(e) for e in exponents[k % 3 :] + exponents[: k % 3]}

    for found in _at_once(*(partial(tables, k) for k in range(CALLERS))):
        for exponent, table in found.items():
            _assert_same([*table[:5]], [*expected[exponent][:5]], f"table of exponent {exponent}")
    kept = {e: known.popularity(e) for e in exponents}
    assert all(known.popularity(e) is kept[e] for e in exponents)


@pytest.mark.cpu_kernels
def test_an_error_in_one_thread_is_no_other_threads(kernels: None) -> None:
    steps = _steps()
    alone = steps["ids fp32"]()
    bad = make_embeddings(ROWS, 150, 24, 90, seed=4)
    bad.neg_ids[ROWS - 1, 7] = 90

    def fails() -> int:
        errors = 0
        for _ in range(20):
            with pytest.raises(IndexError, match=r"neg_ids .*got 90"):
                bad.loss(backend="fused")
            errors += 1
        return errors

    def works() -> list[list[Tensor]]:
        return [steps["ids fp32"]() for _ in range(10)]

    *results, first, second = _at_once(works, works, fails, fails)
    assert (first, second) == (20, 20)
    for result in results:
        for found in result:
            _assert_same(found, alone, "a good batch beside bad ones")


# ---- processes ---------------------------------------------------------------------------------------------


class _Batches(Dataset[list[Tensor]]):
    """What a worker may do: draw negatives, compute the loss, and take its gradient."""

    def __init__(self) -> None:
        known = make_interactions(60, 300, 900, seed=2)
        self.criterion = CWSampledLoss(known, 150, distribution="popularity", prior=0.05)
        self.case = make_drawn("sampled", ROWS, 24, seed=5, interactions=known).to(torch.float32)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, k: int) -> list[Tensor]:
        case = self.case.leaves(["queries", "items"])
        drawn = draw_negatives(case.query_ids, self.criterion.interactions, 150, seed=k)  # type: ignore[arg-type]
        own = self.criterion(case.queries, case.items, case.query_ids, case.pos_ids, seed=k)
        given = cw_loss_from_embeddings(case.queries, case.items, case.pos_ids, drawn)
        (own + given).backward()
        return [drawn, own.detach(), given.detach(), case.queries.grad, case.items.grad]


def load_in_workers(start: str) -> None:
    """Run in a process of its own, which a hang does not outlive."""
    torch.set_num_threads(2)
    data = _Batches()
    alone = [data[k] for k in range(len(data))]  # starts OpenMP's threads, which a fork does not take along
    if torch.backends.openmp.is_available() and sys.platform == "linux":
        assert len(os.listdir("/proc/self/task")) > 1
    for _ in range(2 if start == "fork" else 1):  # the parent has worked on both sides of a fork
        loader = DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context=start)
        for k, found in enumerate(loader):
            _assert_same(found, alone[k], f"batch {k}")
        for k in range(len(data)):
            _assert_same(data[k], alone[k], f"batch {k} in the parent, afterwards")


def _in_a_process(statement: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import test_concurrency; test_concurrency.{statement}"],
        env=child_environment(),
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_data_loader(kernels: None, start: str) -> None:
    """A DataLoader's workers run torch on one thread, so that a fork of a process with OpenMP's threads is safe."""
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} on this system")
    _in_a_process(f"load_in_workers({start!r})")


def test_pickling_while_tables_are_made() -> None:
    """What is sent to a process is complete, though another thread adds to it meanwhile."""
    known = make_interactions(60, 300, 900, seed=2)
    criterion = CWSampledLoss(known, 5)

    def copies() -> list[CWSampledLoss]:
        return [pickle.loads(pickle.dumps(criterion)) for _ in range(100)]

    def tables() -> list[CWSampledLoss]:
        for k in range(100):
            known.popularity(k / 100)
        return []

    for found in _at_once(copies, tables, copies):
        for made in found:
            assert made.interactions is not None
            _assert_same([made.interactions.starts, made.interactions.items], [known.starts, known.items], "copy")


# ---- what stays behind -------------------------------------------------------------------------------------


def _modules_state() -> dict[str, tuple[int, str]]:
    """Every name in cw_ext's modules and classes: the object it stands for, and what that holds if it can change."""
    found = {}
    for name, module in list(sys.modules.items()):
        if module is None or name.partition(".")[0] != "cw_ext":
            continue
        owners = [module] + [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == name]
        for owner in owners:
            for key, value in list(vars(owner).items()):
                held = repr(value) if isinstance(value, list | dict | set | Tensor) and key != "__builtins__" else ""
                found[f"{name} {getattr(owner, '__qualname__', '')} {key}"] = (id(value), held)
    return found


def _torchs_state() -> dict[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "generator": tuple(torch.get_rng_state().tolist()),
        "random": random.getstate(),
        "denormals": (torch.tensor(1e-40) * 1).item(),
    }


def check_that_nothing_stays() -> None:
    """In a process of its own, where these calls are the first ones."""
    steps = _steps()
    before, before_torch = _modules_state(), _torchs_state()
    assert any("parameters" in key and "DEFAULTS" in key and held for key, (_, held) in before.items())

    def all_steps() -> None:
        for call in steps.values():
            call()

    all_steps()
    _at_once(*[all_steps] * 3)
    after, after_torch = _modules_state(), _torchs_state()
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert not changed, sorted(changed)
    assert after_torch == before_torch


@pytest.mark.cpu_kernels
def test_calls_leave_no_state_in_python(kernels: None) -> None:
    """No module or class of cw_ext has changed (caches of functools aside), nor what torch's own calls depend on."""
    _in_a_process("check_that_nothing_stays()")


@pytest.mark.cpu_kernels
def test_the_kernels_have_no_state(kernels: None) -> None:
    """Of the library's data that can be written to, what is cw_ext's own is set once: ops, what the processor has, and
    an undefined tensor."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("needs nm, of binutils")
    library = extension._library(extension.PACKAGE, "_cpu")
    done = subprocess.run([nm, "-C", "--defined-only", library], check=True, capture_output=True, text=True)
    symbols = [line.split(" ", 2)[1:] for line in done.stdout.splitlines()]
    if not symbols:
        pytest.skip("the library is stripped")
    # b, d, u: zeroed, initialised and unique data, thread-local variables among them.
    own = {name for kind, name in symbols if kind.lower() in "bdsu" and ("cw_" in name or "cw::" in name)}
    registered = {name for name in own if "TORCH_LIBRARY" in name}
    assert registered, "the ops are found"
    once = ("cw_cpu::isa()::chosen", "cw_ext::MaybeTensor::undefined()::one")
    if platform.machine() == "x86_64" and platform.system() == "Linux":
        once += ("cw_cpu::has_amx()::has",)
    assert own - registered == {*once, *(f"guard variable for {name}" for name in once)}

"""What only a GPU can show: no waiting for the device, graphs, streams, devices, offsets beyond 32 bits, and ids that
are checked where they are used. Values and gradients have their tests elsewhere, which run on every device there is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import Case, against_truth, assert_near, child_environment, evaluate, make_embeddings, make_scores
from drawing import make_drawn, make_interactions
from torch import Tensor

from cw_ext import cw_loss, draw_negatives

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICE = torch.device("cuda")
GIB = 2**30


def _scores(dtype: torch.dtype, **more: Any) -> Case:
    return make_scores((40,), 300, 3, seed=141, **more).to(dtype, DEVICE)


def _embeddings(dtype: torch.dtype, **more: Any) -> Case:
    return make_embeddings(40, 300, 64, 500, 3, seed=142, padding=True, **more).to(dtype, DEVICE)


def _drawn(kind: str, dtype: torch.dtype, **settings: Any) -> Case:
    interactions = make_interactions(num_items=500, pairs=3000).to(DEVICE)
    interactions.popularity(0.75)
    case = make_drawn(kind, 40, 64, 3, seed=144, padding=True, interactions=interactions)
    return replace(case.to(dtype, DEVICE), settings=settings)


CASES: dict[str, Callable[[], tuple[Case, dict[str, Any]]]] = {
    "scores": lambda: (_scores(torch.float32), {"prior": 0.1}),
    "scores bf16": lambda: (_scores(torch.bfloat16), {}),
    "scores fp16": lambda: (_scores(torch.float16), {}),
    "scores with weights": lambda: (_scores(torch.float32, log_q=True, row_weights=True), {"weighting": "linear"}),
    "embeddings": lambda: (_embeddings(torch.float32), {"prior": 0.1}),
    "embeddings bf16": lambda: (_embeddings(torch.bfloat16), {"confidence_temperature": 1.0}),
    "embeddings fp64": lambda: (_embeddings(torch.float64, log_q=True), {"normalize_weights": True}),
    "shared": lambda: (_embeddings(torch.float32, shared=True), {"prior": 0.1}),
    "shared bf16": lambda: (_embeddings(torch.bfloat16, shared=True), {"similarity": "dot", "temperature": 8.0}),
    "sampled": lambda: (_drawn("sampled", torch.float32, num_negatives=300, seed=5), {"prior": 0.1}),
    "sampled recomputed": lambda: (
        _drawn("sampled", torch.bfloat16, num_negatives=300, seed=5, distribution="popularity", recompute=True),
        {},
    ),
    "sampled shared": lambda: (_drawn("sampled", torch.bfloat16, num_negatives=300, seed=5, shared=True), {}),
    "mixed": lambda: (_drawn("in_batch", torch.float32, num_negatives=30, seed=5), {}),
    "full": lambda: (_drawn("full", torch.float32), {"prior": 0.1}),
    "full bf16": lambda: (_drawn("full", torch.bfloat16), {"normalize_weights": True}),
}
each_case = pytest.mark.parametrize("make", CASES.values(), ids=[name.replace(" ", "-") for name in CASES])


@pytest.fixture(params=[False, True], ids=["", "deterministic"])
def deterministic(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


def _assert_same(actual: Any, expected: Any, dtype: torch.dtype) -> None:
    assert_near(actual.loss, expected.loss, expected.loss.dtype)
    for name, gradient in expected.gradients.items():
        assert_near(actual.gradients[name], gradient, dtype, name)


@each_case
def test_cuda_nothing_waits_for_the_device(kernels: None, deterministic: None, make: Callable[[], Any]) -> None:
    case, arguments = make()
    leaves = case.leaves()
    weight = torch.ones(40, device=DEVICE)
    leaves.loss(backend="fused", **arguments).backward()  # what is set up on first use may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for reduction in ("mean", "sum"):
            leaves.loss(backend="fused", reduction=reduction, **arguments).backward()
        losses = leaves.loss(backend="fused", reduction="none", **arguments)
        losses.backward(weight.to(losses), retain_graph=True)
        losses.backward(weight.to(losses))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_case
def test_cuda_graph(kernels: None, deterministic: None, make: Callable[[], Any]) -> None:
    """A captured step computes what its inputs hold when it is replayed."""
    case, arguments = make()
    leaves = case.leaves()
    inputs = [t for t in vars(leaves).values() if isinstance(t, Tensor) and t.requires_grad]

    def step() -> tuple[Tensor, ...]:
        loss = leaves.loss(backend="fused", **arguments)
        return (loss.detach(), *torch.autograd.grad(loss, inputs))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for t in inputs:
            t.copy_(t.flip(0))
    graph.replay()
    found = [t.clone() for t in captured]
    for actual, expected in zip(found, step(), strict=True):
        assert_near(actual, expected, inputs[0].dtype)


def test_cuda_a_replayed_graph_draws_anew(kernels: None) -> None:
    """Without a seed: from torch's generator at each replay, and so that torch.manual_seed() reproduces them."""
    case = _drawn("sampled", torch.float32, num_negatives=300)

    def run() -> Tensor:
        return case.loss(backend="fused")

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    losses = []
    for seed in (1, 1, 2):
        torch.cuda.manual_seed(seed)
        for _ in range(2):
            graph.replay()
            losses.append(captured.item())
    assert losses[0:2] == losses[2:4]
    assert len(set(losses)) == 4


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_cuda_draws_what_the_cpu_draws(kernels: None, distribution: str) -> None:
    interactions = make_interactions(300, 5000, 200_000)
    query_ids = torch.arange(2, 300).repeat(5)
    expected = draw_negatives(query_ids, interactions, 1001, seed=6, distribution=distribution)
    there = interactions.to(DEVICE)
    found = draw_negatives(query_ids.to(DEVICE), there, 1001, seed=6, distribution=distribution)
    assert torch.equal(found.cpu(), expected)


@each_case
def test_cuda_current_stream(kernels: None, make: Callable[[], Any]) -> None:
    """On a stream of their own, inputs that come late, and results that are read at once."""
    case, arguments = make()
    expected = evaluate(case, backend="fused", **arguments)
    late = case.map(torch.empty_like)
    ids = {name: t for name, t in vars(case).items() if isinstance(t, Tensor) and not t.is_floating_point()}
    late = replace(late, **ids)  # an id of uninitialised memory could end the process
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for name, t in vars(case).items():
            if isinstance(t, Tensor):
                getattr(late, name).copy_(t)
        found = evaluate(late, backend="fused", **arguments)
        copies = [found.loss.clone(), *(g.clone() for g in found.gradients.values())]
    stream.synchronize()
    for actual, wanted in zip(copies, [expected.loss, *expected.gradients.values()], strict=True):
        assert_near(actual, wanted, wanted.dtype)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@each_case
def test_cuda_another_device_than_the_current(kernels: None, make: Callable[[], Any]) -> None:
    case, arguments = make()
    expected = evaluate(case, backend="fused", **arguments)
    there = case.to(device="cuda:1")
    found = evaluate(there, backend="fused", **arguments)
    assert found.loss.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    _assert_same(found, expected, next(iter(expected.gradients.values())).dtype)


@pytest.mark.parametrize("n", [16400, 100_000], ids=["resident", "streamed"])
def test_cuda_more_than_2_to_31_scores(kernels: None, n: int) -> None:
    """Row by row the same as alone: rows at the start, around 2^31 and at the end."""
    rows = 2**31 // n + 300
    needed = 3 * 2 * rows * n
    if torch.cuda.mem_get_info()[0] < needed + 2 * GIB:
        pytest.skip(f"needs {needed / GIB:.0f} GiB of GPU memory")
    pos = torch.rand(rows, device=DEVICE).sub_(0.5).bfloat16()
    neg = torch.empty(rows, n, device=DEVICE, dtype=torch.bfloat16).uniform_(-0.5, 0.5)
    pos.requires_grad_()
    neg.requires_grad_()
    from cw_ext import cw_loss

    losses = cw_loss(pos, neg, prior=0.1, reduction="none", backend="fused")
    losses.sum().backward()
    around = 2**31 // n
    for row in (0, 1, around - 1, around, around + 1, rows - 1):
        own = slice(row, row + 1)
        alone_pos, alone_neg = (t.detach()[own].double().requires_grad_() for t in (pos, neg))
        alone = cw_loss(alone_pos, alone_neg, prior=0.1, reduction="sum", backend="reference")
        alone.backward()
        assert_near(losses[row], alone, torch.float32, f"loss of row {row}")
        assert_near(neg.grad[own], alone_neg.grad, torch.bfloat16, f"gradient of row {row}")
        assert_near(pos.grad[own], alone_pos.grad, torch.bfloat16, f"gradient of positive {row}")


@pytest.mark.parametrize("similarity", ["half_cosine", "dot"])
def test_cuda_popular_items(kernels: None, deterministic: None, similarity: str) -> None:
    """Enough pairs to be sorted in any mode, half of them of one item."""
    case = make_embeddings(150, 1000, 64, 700, 2, seed=143, padding=True, scale=0.1)
    case.neg_ids[:, ::2] = 5
    temperature = 0.1 if similarity == "half_cosine" else 1.0
    against_truth(case, torch.float32, DEVICE, torch.ones(150), similarity=similarity, temperature=temperature)


@each_case
def test_cuda_five_runs_give_the_same_bits(kernels: None, make: Callable[[], Any]) -> None:
    case, arguments = make()
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = [evaluate(case, backend="fused", **arguments) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for other in others:
        assert torch.equal(other.loss, first.loss)
        for name, gradient in first.gradients.items():
            assert torch.equal(other.gradients[name], gradient), name


def test_cuda_out_of_memory(kernels: None) -> None:
    """It is an error as of any operation of torch's, and the next call works."""
    pos = torch.zeros(2**20, device=DEVICE)
    neg = torch.zeros(1, 2**20, device=DEVICE, requires_grad=True)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        cw_loss(pos, neg.expand(2**20, -1), backend="fused")  # 4 TiB of gradients
    assert cw_loss(pos[:2], neg.expand(2, -1), backend="fused").isfinite()


_OUT_OF_RANGE = """
import sys, torch
from cases import make_embeddings
name, value, shared = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "shared"
case = make_embeddings(6, 40, 8, 20, 2, shared=shared).to(torch.float32, "cuda")
case.loss(backend="fused").item()
print("good")
getattr(case, name).view(-1)[3] = value
case.loss(backend="fused").item()
print("read out of bounds")
"""


@pytest.mark.parametrize("kind", ["own", "shared"])
@pytest.mark.parametrize("value", [20, -2, 2**40])
@pytest.mark.parametrize("name", ["pos_ids", "neg_ids", "extra_ids"])
def test_cuda_ids_out_of_range(kernels: None, name: str, value: int, kind: str) -> None:
    """They end the kernel with an assertion, after which the process cannot use the GPU: so in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _OUT_OF_RANGE, name, str(value), kind],
        env=child_environment(),
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["good"], done.stdout + done.stderr
    assert "device-side assert" in done.stderr
    assert f"{name.replace('extra', 'extra_pos')} must be in [0, items)" in done.stderr

"""The gradient of the item table as sums over pairs sorted by item, which is what deterministic algorithms ask of CUDA:
runs of one item that begin, end and go on in every place of the parts that the work is cut into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from cases import (
    DTYPE_IDS,
    DTYPES,
    against_truth,
    assert_near,
    generator,
    item_gradient_arguments,
    make_embeddings,
)
from torch import Tensor

from cw_ext import build_config

# Pairs of a part where there are few: csrc/cuda/sorted_sum_kernel.cu.
SPAN = 32

RUNS = {
    "one item": [10 * SPAN],
    "whole spans": [SPAN] * 6,
    "spans and one more": [SPAN + 1] * 6,
    "spans less one": [SPAN - 1] * 6,
    "many in a span": [1, 2, 3, 4, 5] * 12,
    "one long, many short": [1] * 20 + [7 * SPAN] + [1] * 20,
    "long ones in turn": [3 * SPAN, 5 * SPAN, 2 * SPAN + 3],
    "a span that none begins in": [5, 2 * SPAN + 22, 5],
}


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def _ids(runs: Sequence[int], rows: int, padding: int) -> Tensor:
    """[rows, N]: item i as often as runs[i], and `padding` times −1, in any order."""
    ids = torch.arange(len(runs)).repeat_interleave(torch.tensor(runs))
    ids = torch.cat([ids, torch.full((padding + -(len(ids) + padding) % rows,), -1)])
    return ids[torch.randperm(len(ids), generator=generator(121))].reshape(rows, -1)


@pytest.mark.parametrize("padding", [0, 50], ids=["", "padded"])
@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS.keys())
def test_runs(kernels: None, device: torch.device, runs: list[int], padding: int) -> None:
    rows = 4
    case = make_embeddings(rows, 8, 8, len(runs) + 3, m=2, seed=122)
    case = type(case)(case.queries, case.items, case.pos_ids, _ids(runs, rows, padding), case.extra_ids)
    weight = torch.randn(rows, generator=generator(123), dtype=torch.float64)
    against_truth(case, torch.float32, device, weight, prior=0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("dim", [2, 3, 8, 20, 64, 130, 260])
def test_dimensions(kernels: None, device: torch.device, dim: int, dtype: torch.dtype) -> None:
    case = make_embeddings(6, 70, dim, 9, m=2, seed=124, padding=True)
    weight = torch.randn(6, generator=generator(125), dtype=torch.float64)
    against_truth(case, dtype, device, weight, prior=0.05)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_shared_negatives(kernels: None, device: torch.device, dtype: torch.dtype) -> None:
    """Their sums over the rows come as further sources, one per negative."""
    case = make_embeddings(6, 90, 12, 9, m=2, seed=126, padding=True, shared=True)
    weight = torch.randn(6, generator=generator(127), dtype=torch.float64)
    against_truth(case, dtype, device, weight, prior=0.05)


def test_rows_without_a_gradient(kernels: None, device: torch.device) -> None:
    """Their pairs are left out, so that what their sources hold does not matter; and so may be all of them."""
    case = make_embeddings(6, 70, 8, 9, seed=128).to(torch.float32, device)
    for weights in ([0.0, 1.0, 0.0, 1.0, 0.0, 0.0], [0.0] * 6):
        leaves = case.leaves(["items"])
        row_weights = torch.tensor(weights, device=device)
        losses = leaves.loss(reduction="none", backend="fused")
        losses.backward(row_weights)
        kept = case.leaves(["items"])
        losses = kept.loss(reduction="none", backend="reference")
        losses.backward(row_weights)
        torch.testing.assert_close(leaves.items.grad, kept.items.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_both_ways_to_sum(kernels: None, device: torch.device, shared: bool) -> None:
    """CUDA does as asked, also where it would choose the other way."""
    if device.type == "cpu" and build_config()["cuda_version"] != "emulated":
        pytest.skip("the CPU has one way")
    case = make_embeddings(20, 300, 20, 30, 2, seed=129, padding=True, shared=shared).to(torch.float32, device)
    arguments = item_gradient_arguments(case)
    expected = torch.ops.cw_ext.item_gradient(**arguments)
    for sums in ("atomic", "sorted"):
        actual = torch.ops.cw_ext.item_gradient(**arguments | {"sums": sums})
        assert_near(actual, expected, torch.float32, sums)

"""Sums of very many terms in fp32: what one running sum would lose beside what it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Embeddings, evaluate, largest_error, make_embeddings

from cw_ext import Interactions, draw_negatives, sampled_cw_loss

pytestmark = pytest.mark.cpu_kernels

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("arguments", [{}, {"similarity": "dot", "temperature": 1.0}], ids=["half cosine", "dot"])
@pytest.mark.parametrize("items", [64, 5000])
def test_a_positive_of_all_rows(kernels: None, items: int, arguments: dict[str, Any]) -> None:
    """1,024 rows with one positive: as near to the truth as eager PyTorch in fp32 is, up to a few roundings."""
    case = make_embeddings(1024, 1000, 16, items, seed=171).to(torch.float32)
    case.pos_ids[:] = 3
    truth = evaluate(case.to(torch.float64), backend="fused", **arguments).gradients["items"]
    fused = largest_error(evaluate(case, backend="fused", **arguments).gradients["items"], truth)
    eager = largest_error(evaluate(case, backend="reference", **arguments).gradients["items"], truth)
    assert fused <= eager + 4 * EPS * truth.abs().max().item()


# More terms of one item than a running sum of equal terms can count: it stays at 2^24 of them.
ROWS, NEGATIVES = 3 << 10, 1 << 13
assert ROWS * NEGATIVES > 1 << 24
# With these each negative's gradient is 1 / (N·τ), a power of two.
SUM = {"weighting": "none", "similarity": "dot", "temperature": 0.125, "reduction": "sum", "backend": "fused"}


def _ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, requires_grad=True)


# Few items are all scored and counted; so many that each negative is looked up.
few_and_many_items = pytest.mark.parametrize("num_items", [2, 4 * NEGATIVES])


@few_and_many_items
def test_more_pairs_of_an_item_than_fp32_counts(kernels: None, num_items: int) -> None:
    """By hand: rows whose negatives are all item 0 pull it by 1/τ each, and their positive by −1/τ."""
    queries, items = _ones(ROWS, 1), _ones(num_items, 1)
    ids = torch.zeros(ROWS, NEGATIVES, dtype=torch.int32)
    Embeddings(queries, items, torch.ones(ROWS, dtype=torch.int64), ids).loss(**SUM).backward()
    assert items.grad[:2].flatten().tolist() == [8 * ROWS, -8 * ROWS] and not items.grad[2:].any()


@few_and_many_items
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_the_same_with_drawn_negatives(kernels: None, recompute: bool, num_items: int) -> None:
    """In parts, between which the sums wait in the gradient's own tensor."""
    queries, items = _ones(ROWS, 1), _ones(num_items, 1)
    rows, positive = torch.arange(ROWS), torch.ones(ROWS, dtype=torch.int64)
    known = Interactions(rows, positive, num_queries=ROWS, num_items=num_items)
    more = {"seed": 1, "recompute": recompute, "candidates": torch.tensor([0, 1])}  # of which each row knows item 1
    sampled_cw_loss(queries, items, rows, positive, known, NEGATIVES, **more, **SUM).backward()
    assert items.grad[:2].flatten().tolist() == [8 * ROWS, -8 * ROWS] and not items.grad[2:].any()


@pytest.mark.parametrize("num_items", [130, 3100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_given_and_drawn(kernels: None, dtype: torch.dtype, num_items: int) -> None:
    """More blocks than the sampled op has in work at a time, and popular items in all of them."""
    rows, n = 3000, 1000
    case = make_embeddings(rows, 1, 20, num_items, seed=172).to(dtype)
    users = torch.arange(rows)
    known = Interactions(users, case.pos_ids, num_queries=rows, num_items=num_items)
    gradients = []
    for recompute in (False, True, None):
        queries, items = (x.detach().clone().requires_grad_() for x in (case.queries, case.items))
        if recompute is None:
            ids = draw_negatives(users, known, n, seed=3)
            loss = Embeddings(queries, items, case.pos_ids, ids).loss(backend="fused", prior=0.1)
        else:
            loss = sampled_cw_loss(
                queries, items, users, case.pos_ids, known, n, seed=3, recompute=recompute, prior=0.1, backend="fused"
            )
        loss.backward()
        gradients.append(items.grad)
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


def test_a_row_of_very_many_negatives(kernels: None) -> None:
    """The query's gradient, by hand: the negatives' item times 1/τ, less the positive's."""
    queries, items = _ones(1, 1), torch.tensor([[1.1], [0.0]], requires_grad=True)
    ids = torch.zeros(1, 3 << 20, dtype=torch.int32)
    Embeddings(queries, items, torch.ones(1, dtype=torch.int64), ids).loss(**SUM).backward()
    assert abs(queries.grad.item() / (8 * items[0].item()) - 1) <= 64 * EPS


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_very_many_rows(kernels: None, shared: bool) -> None:
    """As good as eager in fp32, whose error is that of a running sum here."""
    rows = 1 << 17
    case = make_embeddings(rows, 8, 2, 8, seed=173, shared=shared).to(torch.float32)
    case.queries.abs_()
    truth = evaluate(case.to(torch.float64), backend="fused").gradients["items"]
    fused = largest_error(evaluate(case, backend="fused").gradients["items"], truth)
    eager = largest_error(evaluate(case, backend="reference").gradients["items"], truth)
    assert fused <= eager + 16 * EPS * truth.abs().max().item()


def test_infinite_sums_stay_infinite(kernels: None) -> None:
    """What is kept beside a sum that overflows is NaN, and must not get into the sum."""
    rows = 300
    queries = torch.full((rows, 1), 2e37, requires_grad=True)
    items = torch.zeros(2, 1, requires_grad=True)
    ids = torch.zeros(rows, 100, dtype=torch.int32)
    Embeddings(queries, items, torch.ones(rows, dtype=torch.int64), ids).loss(**SUM).backward()
    assert items.grad.flatten().tolist() == [float("inf"), float("-inf")]

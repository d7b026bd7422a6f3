"""So many shared negatives that the CPU goes through them in chunks, at sizes that cross chunks and blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import (
    DTYPE_IDS,
    DTYPES,
    VARIANTS,
    Embeddings,
    Result,
    against_truth,
    assert_near,
    evaluate,
    generator,
    make_embeddings,
    tolerance,
)
from drawing import Drawn, make_drawn, make_interactions
from torch import Tensor

from cw_ext import cw_loss_from_embeddings, cw_loss_full

pytestmark = pytest.mark.cpu_kernels

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
CPU = torch.device("cpu")


@pytest.fixture
def medium() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def _full(num_items: int, rows: int = 9, dim: int = 8, m: int = 2, **more: Any) -> Drawn:
    interactions = make_interactions(num_items=num_items, pairs=4000)
    return make_drawn("full", rows, dim, m, interactions=interactions, **more)


def _weights(rows: int) -> Tensor:
    return torch.randn(rows, generator=generator(98), dtype=torch.float64)


@each_dtype
@pytest.mark.parametrize("num_items", [1023, 1024, 1025, 1281, 2047, 2048, 2049, 2303, 2304, 2305, 4097])
def test_ends_of_chunks(kernels: None, dtype: torch.dtype, num_items: int) -> None:
    against_truth(_full(num_items, padding=True), dtype, CPU, _weights(9))
    against_truth(_full(num_items, row_weights=True), dtype, CPU)


@pytest.mark.parametrize("rows", [1, 47, 49, 191, 193, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_blocks_of_rows(kernels: None, dtype: torch.dtype, rows: int) -> None:
    """400 rows are more than are kept at a time."""
    against_truth(_full(8200 if rows == 400 else 2100, rows, dim=5), dtype, CPU, cancelled=2)


@pytest.mark.parametrize("dim", [1, 31, 33, 64, 130])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
def test_dimensions(kernels: None, dtype: torch.dtype, dim: int) -> None:
    for similarity in ("half_cosine", "dot"):
        against_truth(_full(2300, dim=dim, scale=0.5), dtype, CPU, similarity=similarity, temperature=0.5, cancelled=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter(kernels: None, variant: str, dtype: torch.dtype) -> None:
    case = _full(2300, padding=True, row_weights=True)
    against_truth(case, dtype, CPU, _weights(9), cancelled=2, **VARIANTS[variant])


def _shared(n: int = 2300, rows: int = 7, **more: Any) -> Embeddings:
    return make_embeddings(rows, n, 8, 900, 2, shared=True, **more)


@each_dtype
@pytest.mark.parametrize("log_q", [False, True], ids=["", "log_q"])
@pytest.mark.parametrize("padding", [False, True], ids=["", "padding"])
def test_shared_ids(kernels: None, dtype: torch.dtype, log_q: bool, padding: bool) -> None:
    case = _shared(log_q=log_q, padding=padding)
    for arguments in ({}, {"weighting": "none", "include_positive": True}, {"normalize_weights": True, "prior": 0.05}):
        against_truth(case, dtype, CPU, _weights(7), cancelled=2, **arguments)


@each_dtype
def test_in_batch(kernels: None, dtype: torch.dtype) -> None:
    """Log weights that all rows have in common, and rows that leave columns out."""
    case = make_drawn("in_batch", 2100, 6, interactions=make_interactions(num_items=700, pairs=5000))
    against_truth(case, dtype, CPU, cancelled=2)


def _scores(scores: Tensor, temperature: float, dtype: torch.dtype, backend: str, **arguments: Any) -> Result:
    """The loss of a row with these scores, by embeddings [1] of which one is 1; the positive's score is 0."""
    items = torch.cat([torch.zeros(1), scores]).unsqueeze(1).to(dtype).requires_grad_()
    queries = torch.ones(1, 1, dtype=dtype, requires_grad=True)
    ids = torch.arange(1, len(items))
    loss = cw_loss_from_embeddings(
        queries,
        items,
        torch.zeros(1, dtype=torch.long),
        ids,
        similarity="dot",
        temperature=temperature,
        backend=backend,
        **arguments,
    )
    loss.backward()
    assert queries.grad is not None and items.grad is not None
    return Result(loss.detach(), {"queries": queries.grad, "items": items.grad})


@pytest.mark.parametrize("weighting", ["none", "sigmoid", "linear"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("order", ["rising", "falling", "last"])
def test_extreme_scores(kernels: None, order: str, scale: float, weighting: str) -> None:
    """Maxima that change with every chunk, or come in the last one."""
    scores = scale * torch.linspace(-1, 1, 2000)
    if order == "falling":
        scores = scores.flip(0)
    elif order == "last":
        scores = torch.cat([scores[:1000].repeat(2), scores[-1:]])
    for temperature in (1e-3, 1.0):
        arguments: dict[str, Any] = {"weighting": weighting, "temperature": temperature}
        truth = _scores(scores, dtype=torch.float64, backend="reference", **arguments)
        for dtype in (torch.float64, torch.float32):
            found = _scores(scores, dtype=dtype, backend="fused", **arguments)
            slack = 8 * torch.finfo(dtype).eps * scale / temperature  # of the exponents
            assert_near(found.loss, truth.loss, dtype, "loss", slack)
            for name, gradient in found.gradients.items():
                cancelled = tolerance(dtype) * scale / temperature if name == "queries" else 0.0
                largest = truth.gradients[name].abs().max().item()
                assert_near(gradient, truth.gradients[name], dtype, name, slack * largest + cancelled)


@each_dtype
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_items_that_are_no_numbers(kernels: None, dtype: torch.dtype, value: float) -> None:
    """They do not reach rows that leave them out, and make all others NaN or, with a score of −inf, not."""
    case = _full(2300, rows=4, m=0).to(dtype)
    known = case.interactions
    queries = torch.ones(4, dtype=torch.long)  # query 1 knows all items but the last two
    items = case.items.clone()
    items[600] = value
    finite = evaluate(replace(case, query_ids=queries), backend="fused")
    spoilt = evaluate(replace(case, items=items, query_ids=queries), backend="fused")
    assert torch.equal(spoilt.loss, finite.loss)
    assert torch.equal(spoilt.gradients["queries"], finite.gradients["queries"])
    strangers = torch.zeros(4, dtype=torch.long)  # query 0 knows none
    for similarity in ("half_cosine", "dot"):
        arguments: dict[str, Any] = {"similarity": similarity, "reduction": "none", "query_ids": strangers}
        losses = [
            cw_loss_full(case.queries, items, case.pos_ids, interactions=known, backend=backend, **arguments)
            for backend in ("fused", "reference")
        ]
        assert torch.equal(losses[0].isnan(), losses[1].isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("rows", [5, 300])
def test_same_bits_on_any_number_of_threads(kernels: None, dtype: torch.dtype, rows: int) -> None:
    case, before, found = _full(3000, rows).to(dtype), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(evaluate(case, backend="fused"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other.loss, found[0].loss)
        assert all(torch.equal(x, found[0].gradients[name]) for name, x in other.gradients.items())


def test_medium_precision(kernels: None, medium: None) -> None:
    """No further from the truth than torch's own products of numbers rounded to bf16."""
    case = _full(2500, rows=60, dim=32, m=0)
    exact, single = case, case.to(torch.float32)
    truth = evaluate(exact, backend="reference")
    found = evaluate(single, backend="fused")
    coarse = replace(single, queries=_rounded(single.queries), items=_rounded(single.items))
    rounded = evaluate(coarse, backend="reference")
    allowed = 4 * (rounded.loss.double() - truth.loss).abs().item() + 1e-4
    assert (found.loss.double() - truth.loss).abs().item() < allowed
    for name, gradient in found.gradients.items():
        assert gradient.dtype == torch.float32
        assert_near(gradient, truth.gradients[name], torch.bfloat16, name)


def _rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def test_medium_precision_compiled(kernels: None, medium: None) -> None:
    """What is compiled under one precision is compiled again under the other."""
    case = _full(2500, rows=20, m=0).to(torch.float32)

    def loss(queries: Tensor, items: Tensor) -> Tensor:
        return cw_loss_full(queries, items, case.pos_ids, backend="fused")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for precision in ("medium", "highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        assert torch.equal(compiled(case.queries, case.items), loss(case.queries, case.items)), precision


def test_medium_precision_leaves_fp64_alone(kernels: None, medium: None) -> None:
    against_truth(_full(2500, m=0), torch.float64, CPU)


@pytest.mark.parametrize("threshold", [-0.2, 0.1])
def test_counts_above(kernels: None, threshold: float) -> None:
    case = _full(2500, padding=True)
    arguments: dict[str, Any] = {"return_above": True, "confidence_threshold": threshold, "reduction": "none"}
    arguments |= {"query_ids": case.query_ids, "interactions": case.interactions}
    _, found = cw_loss_full(case.queries, case.items, case.pos_ids, backend="fused", **arguments)
    _, expected = cw_loss_full(case.queries, case.items, case.pos_ids, backend="reference", **arguments)
    assert torch.equal(found, expected)
    assert expected.max() > 0

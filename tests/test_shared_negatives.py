"""In-batch, mixed and all items as negatives, against the loss of the dense scores with a mask made item by item."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPE_IDS,
    DTYPES,
    VARIANTS,
    Result,
    against_truth,
    assert_near,
    each_variant_in_few_dtypes,
    evaluate,
    exact,
    generator,
)
from drawing import Drawn, histories, make_drawn, make_interactions
from memory import peak_of
from torch import Tensor

from cw_ext import (
    CWFullLoss,
    CWInBatchLoss,
    Interactions,
    ScoreCurve,
    cw_loss,
    cw_loss_full,
    cw_loss_in_batch,
    draw_negatives,
    reference,
)
from cw_ext.reference_sampling import history_of

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
MIXED: dict[str, Any] = {"num_negatives": 13, "seed": 4}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "in-batch": ("in_batch", {}),
    "uncorrected": ("in_batch", {"log_q_correction": False}),
    "mixed": ("in_batch", MIXED),
    "full": ("full", {}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def _case(kind: str, rows: int = 9, m: int = 0, **more: Any) -> Drawn:
    function, settings = KINDS[kind]
    case = make_drawn(function, rows, m=m, **{"interactions": make_interactions(pairs=400)} | more)
    return replace(case, settings=settings)


def _weights(rows: int) -> Tensor:
    return torch.randn(rows, generator=generator(98), dtype=torch.float64)


def _columns(case: Drawn) -> list[int]:
    """The items that a batch's rows have in common as negatives."""
    if case.kind == "full":
        return list(range(case.interactions.num_items))
    drawn: list[int] = []
    if n := case.settings.get("num_negatives", 0):
        drawn = draw_negatives(None, case.interactions, n, seed=case.settings["seed"]).tolist()
    return case.pos_ids.tolist() + drawn


def _dense(case: Drawn, with_history: bool = True, **arguments: Any) -> Result:
    """The scores reference on the scores of every row and column."""
    leaves, columns = case.leaves(), _columns(case)
    known = histories(case.interactions) if with_history else [set()] * case.interactions.num_queries
    counts, batch = case.interactions.item_counts.double(), len(case.pos_ids)
    log_q = torch.zeros(batch, len(columns)).double()
    for b, (query, positive) in enumerate(zip(case.query_ids.tolist(), case.pos_ids.tolist())):
        for c, item in enumerate(columns):
            if case.kind == "in_batch" and case.settings.get("log_q_correction", True):
                popular = (float(counts[max(item, 0)]) or float(c < batch)) / float(counts.sum())
                uniform = len(columns) - batch
                in_batch = int((case.pos_ids >= 0).sum())  # rows of padding bring no negative
                share = (in_batch * popular + uniform / counts.numel()) / (in_batch + uniform)
                log_q[b, c] = -math.log(share)
            if min(item, positive) < 0 or item == positive or item in known[query]:
                log_q[b, c] = -math.inf
    columns_or_any = torch.tensor(columns).clamp(min=0)
    unit = F.normalize(leaves.queries, dim=-1)
    table = F.normalize(leaves.items, dim=-1)
    extra = None
    if case.extra_ids is not None:
        extra = 0.5 * (unit.unsqueeze(1) * table[case.extra_ids.clamp(min=0)]).sum(-1)
        extra = extra.masked_fill(case.extra_ids < 0, -math.inf)
    loss = cw_loss(
        0.5 * (unit * table[case.pos_ids.clamp(min=0)]).sum(-1),
        0.5 * unit @ table[columns_or_any].T,
        extra_pos_scores=extra,
        neg_log_weights=log_q,
        row_weights=leaves.row_weights,
        backend="reference",
        **arguments,
    )
    loss.sum().backward()
    return Result(loss.detach(), leaves.gradients())


def _assert_equal(found: Result, expected: Result, dtype: torch.dtype = torch.float64) -> None:
    assert_near(found.loss, expected.loss, dtype, "loss")
    for name, gradient in found.gradients.items():
        assert_near(gradient, expected.gradients[name], dtype, name)


@each_kind
@pytest.mark.parametrize("padding", [False, True], ids=["", "padding"])
def test_equals_the_loss_of_dense_scores(backend: str, device: torch.device, kind: str, padding: bool) -> None:
    case = _case(kind, m=2, padding=padding, row_weights=True)
    case = replace(case, query_ids=case.query_ids.where(case.pos_ids >= 0, -1))  # as padding may have it
    for arguments in ({}, {"prior": 0.1, "normalize_weights": True}, {"weighting": "none", "include_positive": True}):
        for reduction in ("mean", "sum", "none"):
            expected = _dense(case, reduction=reduction, **arguments)
            _assert_equal(evaluate(case.to(device=device), backend=backend, reduction=reduction, **arguments), expected)


@each_kind
def test_without_a_history(backend: str, device: torch.device, kind: str) -> None:
    """Only a row's own positive is left out, wherever it stands."""
    case = _case(kind)
    leaves = case.to(device=device).leaves()
    if case.kind == "full":
        loss = cw_loss_full(leaves.queries, leaves.items, leaves.pos_ids, backend=backend)
    else:
        counts = case.interactions.item_counts.to(device)
        settings = case.settings | {"item_counts": counts, "backend": backend}
        loss = cw_loss_in_batch(leaves.queries, leaves.items, leaves.pos_ids, **settings)
    loss.backward()
    _assert_equal(Result(loss.detach(), leaves.gradients()), _dense(case, with_history=False))


@each_variant_in_few_dtypes
@each_kind
def test_every_parameter(kernels: None, device: torch.device, kind: str, variant: str, dtype: torch.dtype) -> None:
    case = _case(kind, m=3, padding=True, row_weights=True)
    against_truth(case, dtype, device, _weights(9), **VARIANTS[variant])


@each_dtype
@each_kind
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_and_sizes(
    kernels: None, device: torch.device, kind: str, reduction: str, dtype: torch.dtype
) -> None:
    for rows, dim in ((1, 3), (2, 8), (50, 33), (130, 64)):
        interactions = make_interactions(num_items=50 if rows < 50 else 333, pairs=400)
        case = _case(kind, rows, dim=dim, interactions=interactions, padding=rows == 50)
        against_truth(case, dtype, device, reduction=reduction, prior=0.05)


def test_the_full_softmax(backend: str, device: torch.device) -> None:
    """Cross-entropy over all items is InfoNCE with all others as negatives."""
    case = _case("full", 30).to(device=device)
    leaves, again = case.leaves(), case.leaves()
    arguments = {"weighting": "none", "include_positive": True, "similarity": "dot", "temperature": 0.7}
    loss = cw_loss_full(leaves.queries, leaves.items, leaves.pos_ids, backend=backend, **arguments)
    expected = F.cross_entropy(again.queries @ again.items.T / 0.7, again.pos_ids)
    loss.backward()
    expected.backward()
    _assert_equal(Result(loss.detach(), leaves.gradients()), Result(expected.detach(), again.gradients()))


@pytest.mark.parametrize(
    ("reduction", "dtype"),
    [
        pytest.param("mean", torch.float32, id="mean-fp32"),
        pytest.param("none", torch.bfloat16, id="none-bf16"),
        pytest.param("mean", torch.bfloat16, id="mean-bf16", marks=pytest.mark.thorough),
        pytest.param("none", torch.float32, id="none-fp32", marks=pytest.mark.thorough),
    ],
)
def test_many_items(kernels: None, device: torch.device, reduction: str, dtype: torch.dtype) -> None:
    """More scores than are kept at a time."""
    interactions = make_interactions(20, 200_000, 3000)
    case = _case("full", 100, dim=4, interactions=interactions)
    # A row's coefficients add up to 1/τ, times the ½ of the half cosine, and their items point everywhere.
    added = 0.5 / 0.1
    if reduction == "none":
        against_truth(case, dtype, device, _weights(100), cancelled=added)
    else:
        against_truth(case, dtype, device, cancelled=added / 100)


def test_never_all_scores_at_a_time(kernels: None, device: torch.device) -> None:
    rows, items = 1500, 30_000
    case = _case("full", rows, dim=2, interactions=make_interactions(20, items, 3000)).to(torch.float32, device)
    leaves = case.leaves()
    leaves.loss(backend="fused").backward()

    def step() -> object:
        leaves.loss(backend="fused").backward()
        return leaves

    peak, largest = peak_of(device)(step)
    at_once = 36 * 2**20 if device.type == "cpu" else 120 * 2**20
    assert at_once < 4 * rows * items, "the bound says something"
    assert largest <= peak <= at_once + 100 * items


def test_a_spoiled_column_spoils_no_row_that_leaves_it_out(kernels: None, device: torch.device) -> None:
    """An item that holds NaN: rows that know it, or whose positive it is, do not see its score."""
    for kind in KINDS:
        case = _case(kind, 12).to(torch.float32)
        interactions, known = case.interactions, histories(case.interactions)
        item = int(case.pos_ids[-1])
        case.items[item] = math.nan
        loss = case.to(device=device).loss(backend="fused", reduction="none").cpu()
        for b, (query, positive) in enumerate(zip(case.query_ids.tolist(), case.pos_ids.tolist())):
            spoiled = positive == item or item not in known[query]
            columns = set(_columns(case)) - known[query] - {positive}
            assert bool(loss[b].isnan()) == (spoiled and bool(columns)), (kind, b, interactions)


@each_kind
def test_rows_with_no_negative_left(backend: str, device: torch.device, kind: str) -> None:
    """Query 1 knows all items: its rows have loss 0, gradient 0, and no part in the mean."""
    interactions = make_interactions(pairs=400, full=True)
    case = _case(kind, interactions=interactions).to(torch.float32, device)
    case.query_ids[:] = torch.tensor([1, 5, 1, 0, 6, 1, 3, 7, 1], device=device)
    dead = case.query_ids == 1
    found = evaluate(case, backend=backend, reduction="none")
    assert not found.loss[dead].any() and not found.gradients["queries"][dead].any()
    assert (found.loss[~dead] != 0).all()
    assert_near(case.loss(backend=backend), found.loss[~dead].mean(), torch.float32)
    case.query_ids[:] = 1
    nothing = evaluate(case, backend=backend)
    assert nothing.loss == 0 and not any(gradient.any() for gradient in nothing.gradients.values())


@each_kind
def test_double_backward(kernels: None, device: torch.device, kind: str) -> None:
    case = _case(kind, 4, m=2).to(device=device)

    def loss(queries: Tensor, items: Tensor, prior: Tensor) -> Tensor:
        arguments = {"confidence_temperature": 1.0, "detach_weights": False, "reduction": "none"}
        return replace(case, queries=queries, items=items, prior=prior).loss(backend="fused", **arguments)

    prior = exact([0.1, 0.2, 0.05, 0.1]).to(device)
    inputs = tuple(x.detach().requires_grad_() for x in (case.queries, case.items, prior))
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_backward_again(kernels: None, device: torch.device, kind: str, dtype: torch.dtype) -> None:
    leaves = _case(kind).to(dtype, device).leaves()
    loss = leaves.loss(backend="fused")
    inputs = (leaves.queries, leaves.items)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    doubled = torch.autograd.grad(loss, inputs, 2 * torch.ones_like(loss), retain_graph=True)
    last = torch.autograd.grad(loss, inputs)
    for a, b, c in zip(first, doubled, last):
        assert a.dtype == dtype
        assert_near(b, 2 * a, dtype)
        assert_near(c, a, dtype)


@pytest.mark.parametrize("kind", ["in-batch", "mixed"])
def test_sparse_gradient(backend: str, device: torch.device, kind: str) -> None:
    case = _case(kind).to(torch.float32, device)
    expected = evaluate(case, backend="reference")
    leaves = case.leaves()
    leaves.loss(sparse_grad=True, backend=backend).backward()
    assert leaves.items.grad.is_sparse and leaves.items.grad.is_coalesced()
    assert_near(leaves.items.grad.to_dense(), expected.gradients["items"], torch.float32)


@pytest.mark.cpu_kernels
@each_kind
def test_the_same_bits_on_any_number_of_threads(kernels: None, kind: str) -> None:
    case = _case(kind, 200, interactions=make_interactions(20, 3000, 4000)).to(torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(evaluate(case, backend="fused"))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result.loss, results[0].loss)
        assert all(torch.equal(g, results[0].gradients[name]) for name, g in result.gradients.items())


def test_the_correction_is_importance_sampling(kernels: None, device: torch.device) -> None:
    """Over many in-batch negatives, the corrected mean is that over the items themselves."""
    num_items, rows = 30, 3000
    g = generator(7)
    popularity = torch.arange(3, num_items + 3).double()
    pos_ids = torch.multinomial(popularity, rows, replacement=True, generator=g)
    items = torch.randn(num_items, 6, generator=g, dtype=torch.float64)
    queries = torch.randn(rows, 6, generator=g, dtype=torch.float64)
    loss = cw_loss_in_batch(
        queries.to(device),
        items.to(device),
        pos_ids.to(device),
        item_counts=popularity.to(device),
        weighting="none",
        reduction="none",
        backend="fused",
    ).cpu()
    scores = 0.5 * F.normalize(queries, dim=1) @ F.normalize(items, dim=1).T
    margins = scores - scores.gather(1, pos_ids.unsqueeze(1))
    margins.scatter_(1, pos_ids.unsqueeze(1), -math.inf)
    log_mean = torch.logsumexp(margins / 0.1, 1) - math.log(num_items - 1)
    others = (pos_ids.unsqueeze(0) != pos_ids.unsqueeze(1)).sum(1)
    # All rows have the same negatives, so their errors are not independent: a mean over rows is no more precise.
    error = loss - others.log() - log_mean
    assert error.abs().mean() < 0.2
    uncorrected = torch.logsumexp(margins[:, pos_ids] / 0.1, 1) - others.log() - log_mean
    assert uncorrected.abs().mean() > 3 * error.abs().mean(), "the correction is seen"


@pytest.mark.parametrize("kind", ["in-batch", "full"])
def test_the_modules(kernels: None, device: torch.device, kind: str) -> None:
    case = _case(kind).to(torch.float32, device)
    interactions = case.interactions.to(device)
    inputs = (case.queries, case.items, case.pos_ids)
    if kind == "full":
        criterion = CWFullLoss(case.interactions, temperature=0.2)
        expected = cw_loss_full(
            *inputs, query_ids=case.query_ids, interactions=interactions, temperature=0.3, prior=0.1
        )
        found = criterion(*inputs, query_ids=case.query_ids, prior=0.1, temperature=0.3)
    else:
        criterion = CWInBatchLoss(case.interactions, temperature=0.2, num_negatives=5)
        settings = {"query_ids": case.query_ids, "seed": 3, "prior": 0.1}
        expected = cw_loss_in_batch(*inputs, interactions=interactions, num_negatives=5, temperature=0.3, **settings)
        found = criterion(*inputs, temperature=0.3, **settings)
    assert torch.equal(found, expected)
    assert "temperature=0.2" in repr(criterion)


def test_no_rows(backend: str, device: torch.device) -> None:
    for kind in KINDS:
        case = _case(kind).to(torch.float32, device)
        empty = replace(case, queries=case.queries[:0], pos_ids=case.pos_ids[:0], query_ids=case.query_ids[:0])
        leaves = empty.leaves()
        leaves.loss(backend=backend).backward()
        assert leaves.queries.grad.shape == (0, 8) and not leaves.items.grad.any()


INTERACTIONS = make_interactions()
TABLES = {"queries": torch.ones(3, 2), "items": torch.ones(50, 2), "pos_ids": torch.tensor([0, 1, 2])}
WHO = {"query_ids": torch.tensor([2, 3, 4]), "interactions": INTERACTIONS}


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (cw_loss_in_batch, {}, ValueError, "log_q_correction=True needs to know how popular the items are"),
        (cw_loss_in_batch, WHO | {"estimate_full": 1}, TypeError, "estimate_full must be True or False, got 1"),
        (cw_loss_in_batch, WHO | {"estimate_full": True}, ValueError, "estimate_full=True needs include_positive=True"),
        (
            cw_loss_in_batch,
            WHO | {"estimate_full": True, "include_positive": True, "log_q_correction": False},
            ValueError,
            "got include_positive=True and log_q_correction=False",
        ),
        (
            cw_loss_in_batch,
            WHO | {"estimate_full": True, "include_positive": True, "confidence_temperature": 2.0},
            ValueError,
            "estimate_full=True needs confidence_temperature=None, got 2.0",
        ),
        (
            cw_loss_in_batch,
            WHO | {"estimate_full": True, "include_positive": True, "positive_temperature": 0.2},
            ValueError,
            "estimate_full=True needs positive_temperature=None, got 0.2",
        ),
        (
            cw_loss_in_batch,
            WHO | {"estimate_full": True, "include_positive": True, "score_curve": ScoreCurve(0, 1, torch.zeros(2))},
            ValueError,
            r"estimate_full=True needs score_curve=None, got ScoreCurve\(0, 1, 2 log weights",
        ),
        (
            cw_loss_in_batch,
            WHO | {"estimate_full": True, "include_positive": True, "return_above": True},
            ValueError,
            "estimate_full=True needs return_above=False, got True",
        ),
        (
            cw_loss_in_batch,
            WHO | {"interactions": Interactions([0, 0, 1], [2, 2, 3], num_queries=20, num_items=50)},
            ValueError,
            "interactions must tell how often items occur in the batches .* got 3 pairs of which 2 are distinct",
        ),
        (cw_loss_in_batch, {"item_counts": torch.ones(49)}, ValueError, r"item_counts must have shape \(50,\)"),
        (cw_loss_in_batch, {"item_counts": [1] * 50}, TypeError, "item_counts must be a torch.Tensor, got list"),
        (cw_loss_in_batch, {"query_ids": WHO["query_ids"]}, ValueError, "interactions must be given with query_ids"),
        (cw_loss_in_batch, WHO | {"num_negatives": -1}, ValueError, "num_negatives must be an integer ≥ 0, got -1"),
        (cw_loss_in_batch, WHO | {"log_q_correction": 1}, TypeError, "log_q_correction must be True or False, got 1"),
        (cw_loss_in_batch, WHO | {"sparse_grad": 1}, TypeError, "sparse_grad must be True or False, got 1"),
        (cw_loss_in_batch, WHO | {"pos_ids": torch.tensor([0, 1, 50])}, IndexError, r"pos_ids must be in \[0, 50\)"),
        (cw_loss_in_batch, WHO | {"query_ids": torch.tensor([0, 1])}, ValueError, r"query_ids must have shape \(3,\)"),
        (cw_loss_full, {"interactions": INTERACTIONS}, ValueError, "query_ids must be given with interactions"),
        (cw_loss_full, {"query_ids": WHO["query_ids"]}, ValueError, "interactions must be given with query_ids"),
        (cw_loss_full, WHO | {"items": torch.ones(49, 2)}, ValueError, "one row per item of interactions, 50, got 49"),
        (cw_loss_full, {"pos_ids": torch.tensor([0, 1, 50])}, IndexError, r"pos_ids must be in \[0, 50\)"),
        (cw_loss_full, WHO | {"query_ids": torch.tensor([0, 1, 20])}, IndexError, r"query_ids must be in \[0, 20\)"),
        (cw_loss_full, {"temperature": -1}, ValueError, "temperature must be > 0"),
    ],
)
def test_bad_input(
    backend: str, function: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(**TABLES | {"backend": backend} | arguments)


def test_leave_out_is_what_sets_say() -> None:
    """The reference's mask, which the kernels are tested against, pair by pair."""
    interactions = make_interactions(seed=3)
    known = histories(interactions)
    g = generator(5)
    query_ids, pos_ids = torch.randint(20, (15,), generator=g), torch.randint(50, (15,), generator=g)
    neg_ids = torch.randint(-1, 50, (40,), generator=g)
    history = history_of(query_ids, interactions)
    mask = reference.leave_out(None, pos_ids, neg_ids, history, 50, torch.float32) == -math.inf
    for b in range(15):
        for c in range(40):
            item = int(neg_ids[c])
            assert bool(mask[b, c]) == (item == int(pos_ids[b]) or item in known[int(query_ids[b])])

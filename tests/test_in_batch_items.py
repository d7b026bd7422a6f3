"""In-batch negatives where a batch encodes its own items, in one direction and in both: against dense scores, masks by
loops over all pairs, and :func:`cw_ext.cw_loss`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import assert_near, generator
from pair_cases import DIM, ITEMS, KNOWN, QUERIES, PairCase, pair_case
from torch import Tensor
from torch.nn import functional as F

from cw_ext import CWInBatchLoss, Interactions, cw_loss, cw_loss_in_batch

CASE = pair_case(((11, 9),))
WHO = {"query_ids": CASE.query_ids, "interactions": KNOWN}
FORMS: dict[str, dict[str, Any]] = {
    "plain": {"log_q_correction": False},
    "known": WHO | {"log_q_correction": False},
    "counts": {"item_counts": KNOWN.item_counts},
    "known and counts": WHO,
    "candidates": WHO | {"candidates": torch.arange(ITEMS) % 3 > 0},
    "mask without interactions": {"log_q_correction": False, "candidates": torch.arange(ITEMS) % 4 > 0},
    "with the positive": WHO | {"include_positive": True, "weighting": "none", "similarity": "dot"},
    "weights in the gradient": WHO | {"detach_weights": False, "normalize_weights": True, "similarity": "cosine"},
    "confidence": WHO | {"confidence_temperature": 1.5, "positive_temperature": 0.3},
}
SCALE = {"half_cosine": 0.5, "cosine": 1.0, "dot": 1.0}


def _knows(query: int, item: int) -> bool:
    return item in KNOWN.items[KNOWN.starts[query] : KNOWN.starts[query + 1]].tolist()


def _brute_force(case: PairCase, *, back: bool = False, **arguments: Any) -> Tensor:
    """One direction by the loss of scores, whose masks are found pair by pair."""
    similarity = arguments.pop("similarity", "half_cosine")
    corrected, with_history = arguments.pop("log_q_correction", True), "query_ids" in arguments
    candidates = arguments.pop("candidates", None)
    counts = arguments.pop("item_counts", KNOWN.item_counts)
    for name in ("query_ids", "interactions"):
        arguments.pop(name, None)
    live = [b for b in range(len(case.pos_ids)) if case.pos_ids[b] >= 0]
    q, x = case.queries, case.items
    if similarity != "dot":
        q, x = F.normalize(q, dim=-1), F.normalize(x, dim=-1)
    q, x = q[live], x[case.pos_ids[live]]
    item = case.item_ids[case.pos_ids[live]].tolist()
    query = case.query_ids[live].tolist()
    if back:
        counts, numbers = KNOWN.starts.diff(), query
    else:
        numbers = item
    scores = SCALE[similarity] * (x @ q.T if back else q @ x.T)
    log_q = torch.zeros(len(live), len(live), dtype=torch.float64)
    if corrected:
        least = counts[counts > 0].min()
        drawable = len(counts) if candidates is None else int(candidates.sum())
        probability = counts[numbers].double().maximum(least) / counts.sum()
        log_q = log_q - (probability * drawable).log()
    for b in range(len(live)):
        for j in range(len(live)):
            out = item[b] == item[j]
            if back:
                out |= with_history and (query[b] == query[j] or _knows(query[j], item[b]))
            else:
                out |= with_history and _knows(query[b], item[j])
                out |= candidates is not None and not candidates[item[j]]
            if out:
                log_q[b, j] = -math.inf
    extra = None
    if not back:
        all_items = F.normalize(case.items, dim=-1) if similarity != "dot" else case.items
        ids = case.extra_ids[live]
        extra = SCALE[similarity] * (q.unsqueeze(1) * all_items[ids.clamp(min=0)]).sum(-1)
        extra = torch.where(ids < 0, -math.inf, extra)
    return cw_loss(
        scores.diagonal(),
        scores,
        extra_pos_scores=extra,
        neg_log_weights=log_q,
        row_weights=case.row_weights[live],
        prior=case.prior[live],
        backend="reference",
        **arguments,
    )


def _compare(found: Tensor, expected: Tensor, ours: PairCase, theirs: PairCase) -> None:
    assert_near(found, expected, torch.float64, "loss")
    for name in ("queries", "items", "row_weights"):
        mine = torch.autograd.grad(found, getattr(ours, name), retain_graph=True)[0]
        its = torch.autograd.grad(expected, getattr(theirs, name), retain_graph=True)[0]
        assert_near(mine, its, torch.float64, name)


@pytest.mark.parametrize("form", FORMS)
def test_encoded_items(backend: str, form: str) -> None:
    ours, theirs = CASE.leaves(), CASE.leaves()
    found = ours.loss(backend=backend, **FORMS[form])
    _compare(found, _brute_force(theirs, **FORMS[form]), ours, theirs)


SYMMETRIC = [form for form in FORMS if "candidates" not in FORMS[form] and form != "counts"]


@pytest.mark.parametrize("form", SYMMETRIC)
def test_both_directions(backend: str, form: str) -> None:
    ours, theirs = CASE.leaves(), CASE.leaves()
    found = ours.loss(backend=backend, symmetric=True, **FORMS[form])
    expected = (_brute_force(theirs, **FORMS[form]) + _brute_force(theirs, back=True, **FORMS[form])) / 2
    _compare(found, expected, ours, theirs)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_reductions(backend: str, reduction: str) -> None:
    forms = FORMS["known"]
    found = CASE.loss(backend=backend, symmetric=True, reduction=reduction, **forms)
    forth, back = (_brute_force(CASE, back=way, reduction=reduction, **forms) for way in (False, True))
    expected = (forth + back) / 2
    assert_near(found[CASE.pos_ids >= 0] if reduction == "none" else found, expected, torch.float64, "loss")


def test_clips_loss(backend: str) -> None:
    """Radford et al., ICML 2021, figure 3: cross-entropies over the rows and over the columns of one matrix."""
    g = generator(3)
    images, texts = (torch.randn(7, 5, generator=g, dtype=torch.float64).requires_grad_() for _ in range(2))
    scale = torch.tensor(12.0, dtype=torch.float64, requires_grad=True)
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    labels = torch.arange(7)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    found = cw_loss_in_batch(
        images,
        texts,
        labels,
        symmetric=True,
        log_q_correction=False,
        include_positive=True,
        weighting="none",
        similarity="cosine",
        temperature=1 / scale,
        backend=backend,
    )
    assert_near(found, expected, torch.float64, "loss")
    leaves = (images, texts, scale)
    for mine, its in zip(torch.autograd.grad(found, leaves, retain_graph=True), torch.autograd.grad(expected, leaves)):
        assert_near(mine, its, torch.float64, "gradient")
    plain = {"symmetric": True, "log_q_correction": False, "weighting": "none", "backend": backend}
    assert torch.autograd.gradcheck(lambda q, x: cw_loss_in_batch(q, x, labels, **plain), (images, texts))


@pytest.mark.parametrize("symmetric", [False, True])
def test_ids_of_any_size_and_kind(backend: str, symmetric: bool) -> None:
    """Without counts ids are but names: small ones in int32, or those of row_numbers(), which are large."""
    settings = {"backend": backend, "symmetric": symmetric, "log_q_correction": False}
    expected = CASE.loss(**settings)
    for ids in (CASE.item_ids.int(), CASE.item_ids + 2**31, CASE.item_ids * 2**40):
        assert torch.equal(replace(CASE, item_ids=ids).loss(**settings), expected)


def test_query_ids_alone_make_the_batchs_pairs_known(backend: str) -> None:
    """Such as several captions of one image, which are no negatives of each other, either way."""
    live = CASE.pos_ids >= 0
    items = CASE.item_ids[CASE.pos_ids[live]]
    pairs = Interactions(CASE.query_ids[live], items, num_queries=QUERIES, num_items=ITEMS)
    settings = {"symmetric": True, "log_q_correction": False, "backend": backend}
    found = CASE.loss(query_ids=CASE.query_ids * 10**6, **settings)
    assert_near(found, CASE.loss(query_ids=CASE.query_ids, interactions=pairs, **settings), torch.float64, "loss")
    assert (found - CASE.loss(**settings)).abs() > 1e-3


def test_distinct_ids_are_rows_of_a_catalogue(backend: str) -> None:
    """Where each item is encoded once, it is the loss on the catalogue that holds these vectors."""
    items = torch.randn(ITEMS, DIM, generator=generator(8), dtype=torch.float64)
    catalogue_ids = torch.tensor([4, 7, 2, 11, 7, 4])
    distinct, places = torch.unique(catalogue_ids, return_inverse=True)
    queries = torch.randn(6, DIM, generator=generator(9), dtype=torch.float64)
    who = {"query_ids": torch.tensor([0, 1, 2, 3, 4, 0]), "interactions": KNOWN, "backend": backend}
    for more in ({}, {"estimate_full": True, "include_positive": True}, {"return_above": True, "reduction": "none"}):
        whole = cw_loss_in_batch(queries, items, catalogue_ids, **who, **more)
        found = cw_loss_in_batch(queries, items[distinct], places, item_ids=distinct, **who, **more)
        for mine, its in zip(*((x if isinstance(x, tuple) else (x,)) for x in (found, whole))):
            assert_near(mine, its, torch.float64, str(more))


def test_the_module_does_the_same() -> None:
    criterion = CWInBatchLoss(KNOWN, symmetric=True)
    ours = criterion(CASE.queries, CASE.items, CASE.pos_ids, item_ids=CASE.item_ids, query_ids=CASE.query_ids)
    expected = cw_loss_in_batch(CASE.queries, CASE.items, CASE.pos_ids, item_ids=CASE.item_ids, symmetric=True, **WHO)
    assert torch.equal(ours, expected)


def test_compiled_with_a_graph_break() -> None:
    def loss(queries: Tensor, items: Tensor) -> Tensor:
        return cw_loss_in_batch(queries, items, CASE.pos_ids, item_ids=CASE.item_ids, **WHO)

    compiled = torch.compile(loss, backend="aot_eager")
    assert_near(compiled(CASE.queries, CASE.items), loss(CASE.queries, CASE.items), torch.float64, "loss")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches(backend: str, rows: int, symmetric: bool) -> None:
    """Nothing to compare with: loss 0, gradient 0, also of a temperature, which DistributedDataParallel waits for."""
    ours = pair_case(((rows, rows),)).leaves()
    tau = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    loss = ours.loss(backend=backend, symmetric=symmetric, log_q_correction=False, temperature=tau)
    loss.backward()
    assert loss.item() == 0
    assert not any(x.grad.any() for x in (ours.queries, ours.items, ours.row_weights, tau))


def test_padding_that_holds_nan(backend: str) -> None:
    case = pair_case(((11, 9),))
    case.queries[2] = math.nan
    ours = case.leaves()
    for symmetric in (False, True):
        loss = ours.loss(backend=backend, symmetric=symmetric, **FORMS["known"])
        assert_near(loss, CASE.loss(backend=backend, symmetric=symmetric, **FORMS["known"]), torch.float64)
        assert all(x.isfinite().all() for x in torch.autograd.grad(loss, (ours.queries, ours.items)))


KEEPS_COUNTS = Interactions([0, 0, 1], [0, 0, 1], num_queries=QUERIES, num_items=ITEMS, keep_counts=True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"item_ids": CASE.item_ids.double()}, TypeError, "item_ids must have dtype int32, int64, got float64"),
        ({"item_ids": CASE.item_ids[:3]}, ValueError, r"item_ids must have shape \(9,\), one id per row.*got \(3,\)"),
        ({"item_ids": CASE.item_ids - 5}, IndexError, r"item_ids must be in \[0, 12\), got -"),
        ({"item_ids": CASE.item_ids + 5, **WHO}, IndexError, r"item_ids must be in \[0, 12\), got 1"),
        ({"extra_pos_ids": CASE.extra_ids - 3}, IndexError, r"extra_pos_ids must be in \[0, 9\), or −1.*, got -"),
        ({"num_negatives": 3}, ValueError, "item_ids needs num_negatives=0.* got 3"),
        ({"item_ids": None, "num_negatives": 3, "symmetric": True}, ValueError, "symmetric=True needs num_negatives=0"),
        ({"symmetric": True, "query_ids": CASE.query_ids - 9}, IndexError, "query_ids must be in .* got -"),
        ({"query_ids": CASE.query_ids}, ValueError, "interactions must be given with query_ids"),
        ({"symmetric": 1}, TypeError, "symmetric must be True or False, got 1"),
        ({"symmetric": True, "return_above": True}, ValueError, "symmetric=True needs return_above=False"),
        ({"symmetric": True, "sparse_grad": True}, ValueError, "symmetric=True needs sparse_grad=False"),
        ({"symmetric": True, **WHO, "candidates": torch.arange(3)}, ValueError, "symmetric=True needs candidates=None"),
        (
            {"symmetric": True, "log_q_correction": True, "item_counts": KNOWN.item_counts},
            ValueError,
            "got none; or sw",
        ),
        (
            {"symmetric": True, **WHO, "interactions": KEEPS_COUNTS, "log_q_correction": True},
            ValueError,
            "distinct pairs.*got interactions with keep_counts=True",
        ),
        (
            {"candidates": torch.arange(3), "item_counts": None},
            ValueError,
            "candidates with item_ids must be a mask.*got torch.int64",
        ),
        ({"gather_gradients": False}, ValueError, "gather_gradients=False needs process_group and item_ids"),
        ({"ring": True}, ValueError, "ring=True needs process_group, got None"),
        ({"process_group": "world"}, TypeError, "process_group must be a torch.distributed.ProcessGroup.*got str"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"item_ids": CASE.item_ids, "item_counts": KNOWN.item_counts, "log_q_correction": False} | arguments
    with pytest.raises(error, match=message):
        cw_loss_in_batch(CASE.queries, CASE.items, CASE.pos_ids, **given)

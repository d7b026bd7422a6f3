"""Negatives from candidates alone: what is drawn, its expectation, and what a loss is of it, against counts by hand."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import assert_near, evaluate, generator
from drawing import Drawn, assert_distributed, histories, make_drawn, make_interactions
from torch import Tensor

from cw_ext import (
    Candidates,
    CWInBatchLoss,
    CWSampledLoss,
    Interactions,
    cw_loss_from_embeddings,
    cw_loss_in_batch,
    draw_negatives,
    sampled_cw_loss,
)

# Of 50 items; query 1 of make_interactions() knows all but the last two.
IDS = torch.tensor([48, 7, 0, 3, 21, 49, 7, 30, 2, 11, 40, 33, 12, 5, 26])
MASK = torch.zeros(50, dtype=torch.bool)
MASK[IDS] = True
DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "popularity": {"distribution": "popularity"},
    "smoothed": {"distribution": "popularity", "popularity_smoothing": 2.0},
}
each_distribution = pytest.mark.parametrize("settings", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)


def _probabilities(interactions: Interactions, settings: dict[str, Any], candidates: Tensor) -> Tensor:
    """Of each item, fp64 [I], from counts."""
    if not settings:
        weights = torch.ones(interactions.num_items).double()
    else:
        counts = interactions.item_counts.double() + settings.get("popularity_smoothing", 0)
        weights = torch.where(counts > 0, counts**0.75, 0)
    return torch.where(candidates, weights, 0) / weights[candidates].sum()


@each_distribution
@pytest.mark.parametrize("query", [0, 1, 5])
def test_the_distribution(kernels: None, device: torch.device, query: int, settings: dict[str, Any]) -> None:
    interactions = make_interactions(pairs=400)
    unknown = torch.tensor([i not in histories(interactions)[query] for i in range(50)])
    expected = _probabilities(interactions, settings, MASK & unknown)
    if not expected.isfinite().all():
        pytest.skip("nothing is left")
    query_ids = torch.full((400,), query, device=device)
    ids = draw_negatives(query_ids, interactions.to(device), 500, seed=3, candidates=IDS.to(device), **settings).cpu()
    assert_distributed(torch.bincount(ids.flatten(), minlength=50), expected * ids.numel())


@each_distribution
def test_a_query_that_knows_almost_every_candidate(
    kernels: None, device: torch.device, settings: dict[str, Any]
) -> None:
    num_items = 4000
    g = generator(4)
    chosen = torch.randperm(num_items, generator=g)[:2000]
    known = chosen[4:]
    items = torch.cat([known, torch.arange(num_items).repeat(2)])
    query_ids = torch.cat([torch.zeros_like(known), 1 + torch.arange(2 * num_items) // num_items])
    interactions = Interactions(query_ids, items, num_queries=3, num_items=num_items)
    left = torch.zeros(num_items, dtype=torch.bool)
    left[chosen[:4]] = True
    rows = torch.zeros(40, dtype=torch.int64, device=device)
    candidates = chosen.to(device)
    ids = draw_negatives(rows, interactions.to(device), 100, seed=1, candidates=candidates, **settings).cpu()
    expected = _probabilities(interactions, settings, left)
    assert_distributed(torch.bincount(ids.flatten(), minlength=num_items), expected * ids.numel())


@each_distribution
@pytest.mark.parametrize("shared", [False, True])
def test_all_items_as_candidates_change_nothing(
    kernels: None, device: torch.device, shared: bool, settings: dict[str, Any]
) -> None:
    interactions = make_interactions(pairs=400).to(device)
    query_ids = None if shared else torch.arange(2, 20, device=device)
    everything = torch.ones(50, dtype=torch.bool, device=device)
    plain, chosen = (
        draw_negatives(query_ids, interactions, 700, seed=8, candidates=c, **settings) for c in (None, everything)
    )
    assert torch.equal(plain, chosen)


@each_distribution
def test_shared_draws_are_candidates(device: torch.device, settings: dict[str, Any]) -> None:
    interactions = make_interactions(pairs=400)
    ids = draw_negatives(None, interactions.to(device), 20_000, seed=8, candidates=MASK.to(device), **settings).cpu()
    expected = _probabilities(interactions, settings, MASK)
    assert_distributed(torch.bincount(ids, minlength=50), expected * ids.numel())


@each_distribution
def test_the_corrected_mean_is_uniform_over_the_candidates(kernels: None, settings: dict[str, Any]) -> None:
    """Of exp(margin / τ), which log-Q weights turn from popular to uniform: within five standard errors."""
    interactions = make_interactions(pairs=400)
    n, tau = 400_000, 0.5
    g = generator(6)
    items = torch.randn(50, 4, generator=g, dtype=torch.float64)
    query = torch.randn(1, 4, generator=g, dtype=torch.float64)
    arguments = {"similarity": "dot", "temperature": tau, "weighting": "none", "reduction": "none"}
    loss = sampled_cw_loss(
        query, items, torch.tensor([0]), torch.tensor([1]), interactions, n, seed=2, candidates=MASK, **settings,
        **arguments,
    )  # fmt: skip
    values = ((items - items[1]) @ query[0] / tau).exp()
    occurring = interactions.item_counts > 0
    drawable = MASK & occurring if settings == DISTRIBUTIONS["popularity"] else MASK
    truth = values[drawable].mean()
    probabilities = _probabilities(interactions, settings, drawable)
    weights = torch.where(drawable, 1 / (probabilities * drawable.sum()), 0.0)
    error = ((probabilities * (weights * (values - truth)) ** 2).sum() / n).sqrt()
    assert abs(loss[0].exp() / n - truth) < 5 * error
    assert abs(values.mean() - truth) > 10 * error, "over all items it is another"


@pytest.mark.parametrize("uniform", [0, 4000])
@pytest.mark.parametrize("by_mask", [False, True])
def test_in_batch_the_mean_is_uniform_over_the_candidates(backend: str, uniform: int, by_mask: bool) -> None:
    """Of a batch in which items are exactly as frequent as their counts, and drawn ones besides."""
    g = generator(7)
    counts = torch.randint(1, 9, (30,), generator=g)
    pos_ids = torch.arange(30).repeat_interleave(counts)
    chosen = torch.randperm(30, generator=g)[:11]
    mask = torch.zeros(30, dtype=torch.bool)
    mask[chosen] = True
    items, query = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((30, 4), (1, 4)))
    values = (2 * items @ query[0]).exp()
    arguments = {"item_counts": counts, "num_negatives": uniform, "seed": 3, "candidates": mask if by_mask else chosen}
    loss = cw_loss_in_batch(
        query.expand(len(pos_ids), -1), items, pos_ids, similarity="dot", temperature=0.5, weighting="none",
        reduction="none", backend=backend, **arguments,
    )  # fmt: skip
    negatives = torch.bincount(pos_ids[mask[pos_ids]], minlength=30).sum() + uniform
    for row in (~mask[pos_ids]).nonzero().flatten().tolist():  # their positive is no candidate, and nothing is left out
        mean = loss[row].exp() * values[pos_ids[row]] / negatives
        truth = values[mask].mean()
        tolerance = 1e-12 * truth if not uniform else 5 * values[mask].std() / uniform**0.5
        assert abs(mean - truth) < tolerance
        assert abs(values.mean() - truth) > 10 * tolerance, "over all items it is another"


# ---- the loss ----------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = DISTRIBUTIONS | {
    "recomputed": {"recompute": True},
    "uncorrected": {"distribution": "popularity", "log_q_correction": False},
    "shared": {"shared": True},
    "shared, smoothed": {"shared": True, "distribution": "popularity", "popularity_smoothing": 1.5},
    "sparse": {"sparse_grad": True, "distribution": "popularity", "popularity_smoothing": 1.5},
}


def _case(**settings: Any) -> Drawn:
    case = make_drawn("sampled", 7, m=2, padding=True, interactions=make_interactions(pairs=400))
    return replace(case, settings={"num_negatives": 19, "seed": 5, "candidates": IDS} | settings)


def _log_weights(ids: Tensor, interactions: Interactions, settings: dict[str, Any]) -> Tensor:
    if settings.get("distribution") != "popularity" or not settings.get("log_q_correction", True):
        return torch.zeros(ids.shape).double()
    return -0.75 * (interactions.item_counts[ids] + settings.get("popularity_smoothing", 0)).double().log()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_loss_is_that_of_the_ids(backend: str, device: torch.device, settings: dict[str, Any]) -> None:
    case = _case(**settings)
    draws = {k: settings[k] for k in ("distribution", "popularity_smoothing") if k in settings}
    shared = settings.get("shared", False)
    ids = draw_negatives(None if shared else case.query_ids, case.interactions, 19, seed=5, candidates=IDS, **draws)
    assert MASK[ids].all()
    log_q = _log_weights(ids, case.interactions, settings)
    if shared:
        known = histories(case.interactions)
        out = [known[q] | {p} for q, p in zip(case.query_ids.tolist(), case.pos_ids.tolist())]
        masked = torch.tensor([[i in left_out for i in ids.tolist()] for left_out in out])
        log_q = log_q.expand(7, -1).masked_fill(masked, -math.inf)
    leaves = case.leaves()
    batch = (leaves.queries, leaves.items, leaves.pos_ids, ids)
    expected = cw_loss_from_embeddings(
        *batch, neg_log_weights=log_q, extra_pos_ids=leaves.extra_ids, prior=0.1, backend="reference"
    )
    expected.backward()
    there = case.to(device=device)
    there = replace(there, settings=case.settings | {"candidates": IDS.to(device)}).leaves()
    found = there.loss(prior=0.1, backend=backend)
    found.backward()
    assert_near(found, expected, torch.float64, "loss")
    for name in ("queries", "items"):
        gradient = getattr(there, name).grad
        gradient = gradient.to_dense() if gradient.is_sparse else gradient
        assert_near(gradient, getattr(leaves, name).grad, torch.float64, name)


@pytest.mark.parametrize("settings", [{"distribution": "popularity", "recompute": True}, {"shared": True}])
def test_double_backward(kernels: None, device: torch.device, settings: dict[str, Any]) -> None:
    case = _case(**settings).to(device=device)
    case = replace(case, settings=case.settings | {"candidates": IDS.to(device), "num_negatives": 5})

    def loss(queries: Tensor, items: Tensor) -> Tensor:
        return replace(case, queries=queries, items=items).loss(backend="fused", detach_weights=False)

    inputs = tuple(x.detach().requires_grad_() for x in (case.queries, case.items))
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["sampled", "shared", "mixed"])
def test_full_graph(backend: str, device: torch.device, kind: str) -> None:
    case = _case(shared=kind == "shared", distribution="popularity", popularity_smoothing=1.0)
    if kind == "mixed":
        case = replace(case, kind="in_batch", settings={"num_negatives": 9, "seed": 5})
    known = case.interactions.to(device)
    prepared = known.candidates(IDS.to(device))
    prepared.popularity(0.75, 1.0)
    case = replace(
        case.to(torch.float32, device), interactions=known, settings=case.settings | {"candidates": prepared}
    )

    def loss(c: Drawn) -> Tensor:
        return c.loss(backend=backend)

    expected, compiled = evaluate(case, backend=backend), torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = case.leaves()
    value = compiled(leaves)
    value.backward()
    assert_near(value, expected.loss, torch.float32)
    for name, gradient in leaves.gradients().items():
        assert_near(gradient, expected.gradients[name], torch.float32, name)
    raw = replace(case, settings=case.settings | {"candidates": IDS.to(device)})
    with pytest.raises(
        Exception, match=r"before compiling, call once candidates = interactions.candidates\(candidates\)"
    ):
        torch.compile(loss, fullgraph=True, backend="aot_eager")(raw)


def test_the_modules(kernels: None, device: torch.device) -> None:
    case = _case().to(torch.float32, device)
    known = case.interactions.to(device)
    inputs = (case.queries, case.items, case.query_ids, case.pos_ids)
    settings = {"distribution": "popularity", "popularity_smoothing": 0.5}
    criterion = CWSampledLoss(case.interactions, 19, candidates=MASK, **settings)
    expected = sampled_cw_loss(*inputs, known, 19, seed=5, candidates=MASK.to(device), **settings)
    for made in (criterion, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(made(*inputs, seed=5), expected)
    assert "candidates=Candidates(14 of 50 items)" in repr(criterion)
    batch, who = (case.queries, case.items, case.pos_ids), {"query_ids": case.query_ids, "seed": 5}
    mixed = {"num_negatives": 9, "candidates": MASK.to(device)}
    expected = cw_loss_in_batch(*batch, interactions=known, **who, **mixed)
    assert torch.equal(CWInBatchLoss(case.interactions, **mixed | {"candidates": MASK})(*batch, **who), expected)
    assert torch.equal(
        cw_loss_in_batch(*batch, item_counts=known.item_counts, interactions=known, **who, **mixed), expected
    )


# ---- preparing them ----------------------------------------------------------------------------------------


def test_candidates_are_prepared_once() -> None:
    interactions = make_interactions()
    mask = MASK.clone()
    prepared = interactions.candidates(mask)
    assert isinstance(prepared, Candidates) and interactions.candidates(mask) is prepared
    assert interactions.candidates(prepared) is prepared
    assert prepared.ids.tolist() == MASK.nonzero().flatten().tolist() == interactions.candidates(IDS).ids.tolist()
    mask[1] = True
    assert interactions.candidates(mask).ids.tolist() == mask.nonzero().flatten().tolist(), "written to since"
    assert not prepared.is_candidate[1]


def test_candidates_made_in_inference_mode() -> None:
    interactions = make_interactions()
    with torch.inference_mode():
        mask = MASK.clone()
        assert torch.equal(interactions.candidates(mask).ids, interactions.candidates(MASK).ids)
        mask[1] = True
        assert len(interactions.candidates(mask)) == 15


def test_the_known_positives_among_them() -> None:
    interactions = make_interactions()
    prepared = interactions.candidates(IDS.int())
    ids = prepared.ids.tolist()
    expected = [sorted(ids.index(i) for i in known & set(ids)) for known in histories(interactions)]
    bounds = prepared.known.starts.tolist()
    assert [prepared.known.items[a:b].tolist() for a, b in zip(bounds, bounds[1:])] == expected


def _draw(candidates: Any, **more: Any) -> Tensor:
    return draw_negatives(torch.tensor([1]), make_interactions(), 3, candidates=candidates, **more)


@pytest.mark.parametrize(
    ("candidates", "error", "message"),
    [
        ([1, 2], TypeError, r"candidates must be a torch.Tensor, got list"),
        (torch.ones(50), TypeError, r"candidates must have dtype bool, int32, int64, got float32"),
        (torch.ones(49).bool(), ValueError, r"candidates must be a mask of shape \[50\].* got bool of shape \(49,\)"),
        (torch.ones(2, 2).int(), ValueError, r"candidates must be .* ids of shape \[C\], got int32 of shape \(2, 2\)"),
        (torch.tensor([3, 50]), IndexError, r"candidates must be in \[0, 50\), got 50"),
        (torch.tensor([3, -1]), IndexError, r"candidates must be in \[0, 50\), got -1"),
        (torch.zeros(50).bool(), ValueError, r"candidates must leave at least one item, got none of 50"),
        (torch.tensor([], dtype=torch.int64), ValueError, r"candidates must leave at least one item, got none of 50"),
        (torch.arange(9), ValueError, r"query_ids: query 1 has all 9 candidates as known positives"),
        (make_interactions().candidates(MASK), ValueError, r"candidates must be prepared by the same interactions"),
    ],
)
def test_bad_candidates(candidates: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _draw(candidates)


def test_a_module_without_interactions_takes_no_candidates() -> None:
    with pytest.raises(ValueError, match="interactions must be given with candidates, which they prepare, got None"):
        CWInBatchLoss(num_negatives=3, candidates=MASK, log_q_correction=False)


def test_candidates_none_of_which_occurs() -> None:
    interactions = Interactions([0], [3], num_queries=1, num_items=9)
    popular = {"distribution": "popularity", "candidates": torch.tensor([1, 2])}
    with pytest.raises(ValueError, match="no candidate occurs in any interaction"):
        draw_negatives(torch.tensor([0]), interactions, 3, **popular)
    smoothed = draw_negatives(torch.tensor([0]), interactions, 64, popularity_smoothing=1, **popular)
    assert set(smoothed.flatten().tolist()) == {1, 2}


@pytest.mark.cpu_kernels
def test_the_op_reads_no_further_than_its_table(kernels: None) -> None:
    draws = [None] * 3 + [torch.tensor(1), 0, 4, *[None] * 5]
    with pytest.raises(IndexError, match=r"candidates must be in \[0, 9\), got 9"):
        torch.ops.cw_ext.draw_negatives(1, 9, *draws, torch.tensor([3, 9], dtype=torch.int32))

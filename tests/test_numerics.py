"""Extreme scores and temperatures, and numbers that are none, each in its own row."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
from cases import (
    Scores,
    against_truth,
    assert_near,
    evaluate,
    exact,
    generator,
    make_embeddings,
    make_scores,
    tolerance,
)
from torch import Tensor

from cw_ext import (
    Interactions,
    cw_loss,
    cw_loss_from_embeddings,
    cw_loss_full,
    cw_loss_in_batch,
    sampled_cw_loss,
)

INF, NAN = math.inf, math.nan

WEIGHTINGS: list[dict[str, Any]] = [
    {},
    {"detach_weights": False},
    {"weighting": "none"},
    {"weighting": "exponential"},
    {"weighting": "linear"},
    {"normalize_weights": True, "detach_weights": False},
    {"prior": 0.1, "include_positive": True},
    {"prior": 0.1, "min_margin": -1.0},
    {"prior": 0.1, "confidence_temperature": 1.0},
    {"surrogate": "tanh", "prior": 0.1},
    {"surrogate": "atan", "weighting": "none"},
    {"surrogate": "relu", "weighting": "none"},
]
_ids = ["-".join(f"{k}={v}" for k, v in w.items()) or "defaults" for w in WEIGHTINGS]


def _truth(case: Scores, **arguments: Any) -> tuple[Tensor, list[bool]]:
    prior = arguments.pop("prior", 0.0)
    rows = [
        oracle.row(
            oracle.Inputs(
                case.pos[b].item(),
                case.neg[b].tolist(),
                () if case.extra is None else case.extra[b].tolist(),
                prior=prior,
            ),
            **arguments,
        )
        for b in range(len(case.pos))
    ]
    return exact([float(r.loss) for r in rows]), [r.live for r in rows]


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 100.0])
@pytest.mark.parametrize("arguments", WEIGHTINGS, ids=_ids)
def test_extreme_scores(backend: str, arguments: dict[str, Any], temperature: float) -> None:
    """±1e4 in fp32: exponents of 1e7. The loss is right to fp32's digits, and every gradient is a number."""
    case = make_scores((6,), 9, 2, seed=61, spread=1e4).to(torch.float32)
    case.neg[1] = -1e4  # all easy
    case.pos[1] = 1e4
    case.neg[2] = 1e4  # all hard, and all the same
    case.pos[2] = -1e4
    case.neg[3] = case.pos[3]  # no margin
    case.extra[4] = 1e4
    case.pos[4] = -1e4
    arguments = arguments | {"temperature": temperature}
    expected, live = _truth(case, **arguments)
    for dtype in (torch.float32, torch.float64):
        result = evaluate(case.to(dtype), torch.ones(6), backend=backend, **arguments)
        # Row by row: a row of size 1 beside one of 1e7 is held to its own digits.
        for b in range(6):
            slack = tolerance(dtype)
            assert_near(result.loss[b], expected[b], dtype, f"row {b}", slack=slack)
        for name, gradient in result.gradients.items():
            assert gradient.isfinite().all(), f"{name} {dtype}: {gradient}"
            assert not gradient[[not alive for alive in live]].any(), f"{name}: a dead row has a gradient"


@pytest.mark.parametrize("arguments", WEIGHTINGS, ids=_ids)
def test_small_temperature(kernels: None, device: torch.device, arguments: dict[str, Any]) -> None:
    """τ = 1e-3 on ordinary scores: one negative decides, and which one must not be lost."""
    case = make_scores((6,), 33, 2, seed=62)
    for dtype in (torch.float32, torch.float64):
        # Exponents of the size of 1e3, in gradients of that size: roundings are 1e3 times as large.
        against_truth(case, dtype, device, torch.ones(6), cancelled=1e4, exponents=1e3, temperature=1e-3, **arguments)


def test_easy_negatives_keep_their_digits(backend: str) -> None:
    """Masses far below the smallest number of the dtype: exp(−1000) and the like, in log space."""
    neg = -torch.arange(100.0, 105.0).unsqueeze(0)
    case = Scores(torch.zeros(1), neg)
    for arguments in ({}, {"weighting": "none"}, {"weighting": "exponential"}, {"prior": 0.0, "floor": 1e-6}):
        expected, _ = _truth(case, **arguments)
        assert_near(case.loss(reduction="none", backend=backend, **arguments), expected, torch.float32)


@pytest.mark.parametrize("closeness", [1e-2, 1e-4])
def test_correction_close_to_everything(backend: str, closeness: float) -> None:
    """A − πC with πC = (1 − δ)·A and no floor in the way: of the relative error of A, 1/δ is left."""
    n = torch.linspace(-0.3, 0.3, 7, dtype=torch.float64)
    mean = torch.exp(n / 0.1).mean().log() * 0.1  # one extra positive as heavy as the negatives' mean
    case = Scores(exact([0.0]), n.unsqueeze(0), mean.reshape(1, 1))
    prior = 1 - closeness
    arguments = {"weighting": "none", "prior": prior, "floor": 1e-9}
    expected, _ = _truth(case, **arguments)
    loss = case.loss(reduction="none", backend=backend, **arguments)
    assert_near(loss, expected, torch.float64, slack=tolerance(torch.float64) / closeness)


def _poisoned(case: Scores, name: str, value: float) -> Scores:
    """The value in row 2 of one input."""
    changed = case.map(torch.clone)
    tensor = getattr(changed, name)
    tensor[2] = value if tensor.dim() == 1 else tensor[2].index_fill(0, torch.tensor([1]), value)
    return changed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("name", "value"),
    [("pos", NAN), ("pos", INF), ("pos", -INF), ("neg", NAN), ("neg", INF), ("extra", NAN), ("extra", INF)],
)
@pytest.mark.parametrize("n", [5, 70])
def test_a_spoiled_row_spoils_no_other(backend: str, name: str, value: float, dtype: torch.dtype, n: int) -> None:
    case = make_scores((5,), n, 2, seed=63, log_q=True).to(dtype)
    case = replace(case, log_q=case.log_q.masked_fill(case.log_q == -INF, 0.0))
    others = [0, 1, 3, 4]
    for arguments in WEIGHTINGS:
        expected = evaluate(case, torch.ones(5), backend=backend, **arguments)
        result = evaluate(_poisoned(case, name, value), torch.ones(5), backend=backend, **arguments)
        assert result.loss.isnan().tolist() == [False, False, True, False, False], arguments
        assert torch.equal(result.loss[others], expected.loss[others])
        for its_name, gradient in result.gradients.items():
            assert torch.equal(gradient[others], expected.gradients[its_name][others]), its_name


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("n", [5, 70])
def test_a_masked_score_may_be_anything(backend: str, value: float, n: int) -> None:
    """Nothing comes of it, and a row with all of its negatives masked may have a NaN for a positive."""
    case = make_scores((4,), n, 2, seed=64, log_q=True).to(torch.float32)
    case.log_q[3] = -INF
    poisoned = case.map(torch.clone)
    poisoned.neg[case.log_q == -INF] = value
    poisoned.pos[3] = NAN
    poisoned.extra[3] = NAN
    for arguments in WEIGHTINGS:
        expected = evaluate(case, torch.ones(4), backend=backend, **arguments)
        result = evaluate(poisoned, torch.ones(4), backend=backend, **arguments)
        assert torch.equal(result.loss, expected.loss), arguments
        assert result.loss[3] == 0
        for name, gradient in result.gradients.items():
            assert torch.equal(gradient, expected.gradients[name]), f"{name} {arguments}"
        mean = poisoned.loss(backend=backend, **arguments)
        assert_near(mean, expected.loss[:3].mean(), torch.float32)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_live_row(backend: str, reduction: str) -> None:
    """All masked, all without mass, all of weight zero: loss 0 and zero gradients, row weights or not."""
    base = make_scores((3,), 4, 2, seed=65, row_weights=True)
    masked = replace(base, log_q=torch.full((3, 4), -INF, dtype=torch.float64))
    without_mass = replace(base, neg=torch.full((3, 4), -INF, dtype=torch.float64))
    too_hard = replace(base, neg=base.pos.unsqueeze(1) + torch.full((3, 4), 1.5, dtype=torch.float64))
    for case, arguments in (
        (masked, {"prior": 0.1, "confidence_temperature": 1.0}),
        (without_mass, {"prior": 0.1}),
        (without_mass, {"normalize_weights": True, "weighting": "exponential"}),
        (too_hard, {"weighting": "linear"}),
        (too_hard, {"weighting": "linear", "normalize_weights": True, "detach_weights": False, "prior": 0.1}),
    ):
        result = evaluate(case, reduction=reduction, backend=backend, **arguments)
        assert not result.loss.any(), arguments
        assert all(not g.any() and g.isfinite().all() for g in result.gradients.values()), arguments


def test_a_nan_in_a_table_stays_with_its_rows(backend: str, device: torch.device) -> None:
    """Embeddings: a NaN item makes the rows that use it NaN, and no other row, query or item."""
    case = make_embeddings(6, 5, 8, 60, 2, seed=66).to(torch.float32, device)
    bad = int(case.neg_ids[2, 3])
    uses_it = torch.stack(
        [
            (case.pos_ids == bad),
            (case.neg_ids == bad).any(1),
            (case.extra_ids == bad).any(1),
        ]
    ).any(0)
    clean = ~uses_it
    assert clean.sum() >= 3
    poisoned = case.map(torch.clone)
    poisoned.items[bad, 1] = NAN
    weight = torch.ones(6, device=device)
    expected = evaluate(case, weight * clean, backend=backend, prior=0.1)
    result = evaluate(poisoned, weight, backend=backend, prior=0.1)
    assert torch.equal(result.loss.isnan(), uses_it)
    assert_near(result.loss[clean], expected.loss[clean], torch.float32)
    assert_near(result.gradients["queries"][clean], expected.gradients["queries"][clean], torch.float32)
    spoiled = torch.cat([ids[uses_it].flatten() for ids in (case.pos_ids, case.neg_ids, case.extra_ids)])
    kept = torch.ones(60, dtype=torch.bool, device=device)
    kept[spoiled] = False
    assert_near(result.gradients["items"][kept], expected.gradients["items"][kept], torch.float32)


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_masked_item_may_be_anything(backend: str, device: torch.device, value: float) -> None:
    """Embeddings: by −inf in the weights, and as item 0, which padding ids must not read into the result."""
    case = make_embeddings(4, 9, 8, 30, 2, seed=67, padding=True, log_q=True).to(torch.float32, device)
    case = case.map(lambda t: t.clamp(min=1) if t is case.neg_ids or t is case.extra_ids else t)
    case.pos_ids.clamp_(min=1)
    case.neg_ids[:, 2], case.extra_ids[:, 0], case.pos_ids[3] = -1, -1, -1
    case.neg_ids[:, 4] = 29
    case.neg_ids[case.neg_ids == 29] = 28
    case.pos_ids[case.pos_ids == 29] = 28
    case.extra_ids[case.extra_ids == 29] = 28
    case.neg_ids[:, 4] = 29
    case.log_q[:, 4] = -INF
    poisoned = case.map(torch.clone)
    poisoned.items[0] = value
    poisoned.items[29, 3] = value
    weight = torch.ones(4, device=device)
    for similarity in ("half_cosine", "dot"):
        arguments = {
            "similarity": similarity,
            "prior": 0.1,
            "backend": backend,
            "confidence_temperature": 1.0,
        }
        expected = evaluate(case, weight, **arguments)
        result = evaluate(poisoned, weight, **arguments)
        assert_near(result.loss, expected.loss, torch.float32)
        assert_near(result.gradients["queries"], expected.gradients["queries"], torch.float32)
        live = slice(1, 29)
        assert_near(result.gradients["items"][live], expected.gradients["items"][live], torch.float32)


def test_half_precision_to_its_limits(backend: str) -> None:
    """fp16's largest and smallest numbers are numbers."""
    for pos, neg in ((65504.0, -65504.0), (-65504.0, 65504.0), (6e-8, -6e-8)):
        case = Scores(torch.tensor([pos], dtype=torch.float16), torch.tensor([[neg, 0.5 * neg]], dtype=torch.float16))
        expected, _ = _truth(case)
        result = evaluate(case, torch.ones(1), backend=backend)
        assert_near(result.loss, expected, torch.float32, slack=tolerance(torch.float32))
        assert all(g.isfinite().all() for g in result.gradients.values())


def test_long_rows_sum_well(backend: str) -> None:
    """2^20 negatives in fp32: the sum of as many terms keeps the dtype's digits."""
    n = 1 << 20
    neg = torch.rand((1, n), generator=generator(68)) - 0.5
    pos = torch.tensor([0.1])
    loss = cw_loss(pos, neg, weighting="none", reduction="none", backend=backend)
    expected = torch.logsumexp((neg.double() - pos.double()) / 0.1, 1)
    assert_near(loss, expected, torch.float32)


def test_the_denominators_gradient_sums_well(backend: str) -> None:
    """As many terms of one sign, where the weights have a gradient and divide: against the same in fp64."""
    pos, neg = torch.rand(4, generator=generator(5)) - 0.5, 0.8 * (torch.rand(4, 50_000, generator=generator(6)) - 0.5)

    def of(dtype: torch.dtype) -> Tensor:
        scores = pos.to(dtype, copy=True).requires_grad_()
        arguments: dict[str, Any] = {"weighting": "linear", "detach_weights": False, "normalize_weights": True}
        cw_loss(scores, neg.to(dtype), temperature=0.2, backend=backend, **arguments).backward()
        return scores.grad.double()

    exact = of(torch.float64)
    assert (of(torch.float32) - exact).abs().max() < tolerance(torch.float32) * exact.abs().max()


@pytest.mark.parametrize("rest", [2.0**-25, 1e-9, 2.0**-50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_float_prior_near_one(backend: str, device: torch.device, dtype: torch.dtype, rest: float) -> None:
    """1 − π of the double that was given: in fp32 this prior is 1."""
    scores = make_scores((5,), 9, 2, seed=71).to(dtype, device)
    table = make_embeddings(5, 9, 8, 30, 2, seed=72).to(dtype, device)
    shared = make_embeddings(5, 9, 8, 30, 2, seed=73, shared=True).to(dtype, device)
    for case in (scores, table, shared):
        truth = evaluate(case.to(torch.float64, "cpu"), torch.ones(5), backend="reference", prior=1 - rest, floor=1.0)
        half = evaluate(case.to(torch.float64, "cpu"), torch.ones(5), backend="reference", prior=0.5, floor=1.0)
        # With this floor nothing but 1 − π differs.
        assert_near(truth.loss, half.loss - math.log1p(-(1 - rest)) + math.log(0.5), torch.float64)
        result = evaluate(case, torch.ones(5, device=device), backend=backend, prior=1 - rest, floor=1.0)
        assert_near(result.loss, truth.loss, dtype)
        for name, gradient in result.gradients.items():
            assert_near(gradient, truth.gradients[name], dtype, name)


def test_a_tensor_prior_that_rounds_to_one(backend: str) -> None:
    case = make_scores((2,), 9, seed=74).to(torch.float32)
    largest = torch.tensor(1 - 2.0**-24)
    truth = case.to(torch.float64).loss(prior=largest.double(), backend="reference")
    assert_near(case.loss(prior=largest, backend=backend), truth, torch.float32)
    with pytest.raises(ValueError, match=r"prior must be in \[0, 1\), got 0.99.* which is 1 in torch.float32"):
        case.loss(prior=exact([0.5, 1 - 1e-9]), backend=backend)
    with pytest.raises(ValueError, match=r"prior must be in \[0, 1\), got 1.0$"):
        case.loss(prior=torch.tensor([0.5, 1.0]), backend=backend)
    assert case.to(torch.float64).loss(prior=exact([0.5, 1 - 1e-9]), backend=backend).isfinite()


@pytest.mark.parametrize("form", ["own ids", "shared ids", "masked", "sampled", "in-batch", "full"])
@pytest.mark.parametrize("create_graph", [False, True], ids=["", "graph"])
def test_rows_without_negatives_may_hold_nan(backend: str, device: torch.device, form: str, create_graph: bool) -> None:
    """The query of a row of padding, and of one whose negatives are all masked out, makes no gradient NaN."""
    g = generator(5)
    queries, items = torch.randn(4, 8, generator=g), torch.randn(20, 8, generator=g)
    queries[3] = NAN
    queries, items = queries.to(device).requires_grad_(), items.to(device).requires_grad_()
    pos_ids, query_ids = torch.tensor([0, 1, 2, -1], device=device), torch.arange(4, device=device)
    neg_ids = torch.randint(3, 20, (4, 5), generator=g).to(device)
    known = Interactions([0, 1], [5, 6], num_queries=4, num_items=20).to(device)
    match form:
        case "own ids":
            loss = cw_loss_from_embeddings(queries, items, pos_ids, neg_ids, backend=backend)
        case "shared ids":
            loss = cw_loss_from_embeddings(queries, items, pos_ids, neg_ids[0], backend=backend)
        case "masked":
            log_q = torch.zeros(4, 5, device=device)
            log_q[3] = -INF
            own = (pos_ids.clamp(min=0), neg_ids)
            loss = cw_loss_from_embeddings(queries, items, *own, neg_log_weights=log_q, backend=backend)
        case "sampled":
            loss = sampled_cw_loss(queries, items, query_ids, pos_ids, known, 5, seed=1, shared=True, backend=backend)
        case "in-batch":
            loss = cw_loss_in_batch(queries, items, pos_ids, log_q_correction=False, backend=backend)
        case _:
            loss = cw_loss_full(queries, items, pos_ids, backend=backend)
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, (queries, items), create_graph=create_graph):
        assert gradient.isfinite().all()

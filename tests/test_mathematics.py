"""What follows from the formula alone: slopes, the kink at the floor, limits, bounds and expectations.

h(d) = ω(d)·exp(d/τ) is what a negative with margin d adds to the negative mass, so that A is a mean of h over the
negatives and C one over extra positives. Losses are compared with one another or with a formula on paper; where A and
C themselves are needed they come from the oracle.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPE_IDS,
    DTYPES,
    VARIANTS,
    Case,
    Scores,
    assert_near,
    evaluate,
    exact,
    generator,
    loss_dtype,
    make_embeddings,
    make_scores,
    tolerance,
)
from drawing import Drawn, make_drawn
from torch import Tensor

from cw_ext import Interactions, cw_loss, cw_loss_from_embeddings, sampled_cw_loss

TAU = 0.25
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
each_float = pytest.mark.parametrize("dtype", DTYPES[:2], ids=DTYPE_IDS[:2])
each_variant = pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS.keys())


# ---- slopes of the loss ------------------------------------------------------------------------------------
#
# A floor, a prior, the InfoNCE form and external weights are increasing functions of A: in a negative's score the
# loss rises and falls with h. From (log h)′:
#
#   none          1/τ                    h rises everywhere, as it does for every surrogate
#   sigmoid       1/τ − σ(d/ρ)/ρ         everywhere if ρ ≥ τ; else up to d = ρ·logit(ρ/τ), and falls from there
#   exponential   1/τ − 1/ρ              everywhere if 1/ρ < 1/τ (every ρ < 0 among them); for ρ < τ it falls everywhere
#   linear        1/τ − 1/(ρ − d)        up to d = ρ − τ; falls from there to d = ρ, where h is 0 and stays so
#
# With weights that are divided by their sum (normalize_weights) A itself weighs against it: ∂A/∂s_j has the sign of
# h′(d_j) − A·ω′(d_j). Where ω falls that can only help. Where it rises (ρ < 0) an easy negative makes the mean smaller:
# with b = 1/|ρ|, the loss falls in its score as long as exp(d_j/τ) < A·b/(b + 1/τ).

# (weighting, ρ, where h changes its direction): margins below rise, those above fall. None: h rises everywhere.
TURNS: dict[str, tuple[str, float | None, float | None]] = {
    "none": ("none", None, None),
    "sigmoid, ρ = τ": ("sigmoid", TAU, None),
    "sigmoid, ρ > τ": ("sigmoid", 1.5 * TAU, None),
    "sigmoid, ρ < τ": ("sigmoid", 0.6 * TAU, 0.6 * TAU * math.log(0.6 / 0.4)),
    "exponential, ρ > τ": ("exponential", 1.2 * TAU, None),
    "exponential, ρ < τ": ("exponential", 0.8 * TAU, -math.inf),
    "exponential, ρ < 0": ("exponential", -0.3, None),
    "linear": ("linear", 0.6, 0.6 - TAU),
    "linear, ρ < τ": ("linear", 0.1, 0.1 - TAU),
}
each_turn = pytest.mark.parametrize(("weighting", "rho", "turn"), TURNS.values(), ids=TURNS.keys())

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "corrected": {"prior": 0.1, "floor": 0.01},
    "at the floor": {"prior": 0.9, "floor": 0.8},
    "InfoNCE": {"prior": 0.1, "floor": 0.01, "include_positive": True},
}


def _moving(margins: Tensor, others: int, seed: int) -> Scores:
    """A row for each margin of its first negative; the rest is the same in every row, extra positives included."""
    rest = make_scores((1,), others, 2, seed=seed, log_q=True, spread=0.3)
    rows = margins.shape[0]
    pos = rest.pos.expand(rows)
    neg = torch.cat([(pos + margins).unsqueeze(1), rest.neg.expand(rows, others)], 1)
    assert rest.extra is not None and rest.log_q is not None
    log_q = torch.cat([torch.zeros(rows, 1, dtype=torch.float64), rest.log_q.expand(rows, others)], 1)
    return Scores(pos, neg, rest.extra.expand(rows, 2), log_q)


@each_turn
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_the_loss_in_a_negatives_score(
    backend: str, form: dict[str, Any], weighting: Any, rho: float | None, turn: float | None
) -> None:
    """It rises and falls with h, as derived above: loss by loss along a grid, and in the sign of its gradient."""
    margins = torch.linspace(-1.0, 1.0, 401, dtype=torch.float64)
    arguments = {"temperature": TAU, "weighting": weighting, "weight_temperature": rho, "backend": backend} | form
    case = _moving(margins, 5, seed=1)
    result = evaluate(case, torch.ones(401), detach_weights=False, **arguments)
    step = result.loss.diff()
    slope = result.gradients["neg"][:, 0]
    # A linear weight is nothing from d = ρ on. A step over ρ, or over the turn, shows nothing.
    end = rho if weighting == "linear" and rho is not None else math.inf
    turn = math.inf if turn is None else turn
    slack = 1e-13
    for part, low, high in ((1, -math.inf, turn), (-1, turn, end), (0, end, math.inf)):
        inside = (margins > low + 0.01) & (margins < high - 0.01)
        both = inside[1:] & inside[:-1]
        assert torch.all(step[both] * part > 0 if part else step[both].abs() <= slack), f"{part}: losses"
        assert torch.all(slope[inside] * part > 0 if part else slope[inside] == 0), f"{part}: gradients"
    # All that TURNS names is met.
    assert (step.min() < -slack) == (turn < 1)
    assert (step.max() > slack) == (turn > -1)


@pytest.mark.parametrize("rho", [-0.2, -1.0, 0.3, 0.9])
def test_normalized_weights_that_rise_let_an_easy_negative_lower_the_loss(backend: str, rho: float) -> None:
    """exp(d_j/τ) against A·b/(b + 1/τ), the A of the row itself (π = 0: the loss is log N·A). For ρ > 0, never."""
    margins = torch.linspace(-1.5, 1.0, 301, dtype=torch.float64)
    case = replace(_moving(margins, 5, seed=2), extra=None, log_q=None)
    arguments: dict[str, Any] = {"temperature": TAU, "weighting": "exponential", "weight_temperature": rho}
    arguments |= {"normalize_weights": True, "detach_weights": False, "backend": backend}
    result = evaluate(case, torch.ones(301), **arguments)
    mass = result.loss.exp() / 6
    b = max(0.0, -1 / rho)
    rises = (margins / TAU).exp() > mass * b / (b + 1 / TAU)
    assert rises.any() and rises.all() == (rho > 0)
    assert torch.equal(result.gradients["neg"][:, 0] > 0, rises)
    # And from one loss to the next, except for the step over the turn.
    step = result.loss.diff()
    assert torch.all(step[rises[:-1] & rises[1:]] > 0) and torch.all(step[~rises[:-1] & ~rises[1:]] < 0)


@each_variant
@each_float
def test_detached_weights_push_every_negative_down(backend: str, arguments: dict[str, Any], dtype: torch.dtype) -> None:
    """With ω a constant, exp(d/τ) is all that moves, and it and all surrogates rise: no negative's gradient is below 0
    and no extra positive's above, whatever the weighting, the floor or the confidence (which multiplies it by c > 0).
    The positive's own is not above 0 either without confidence, but for surrogates with a correction: flat where the
    negatives are and steep at the extra positives, they can turn it, as weights can below."""
    arguments = arguments | {"detach_weights": True}
    for seed in range(10):
        case = make_scores((30,), 9, 3, seed=100 + seed, log_q=True, spread=1.0).to(dtype)
        gradients = evaluate(case, torch.ones(30), backend=backend, **arguments).gradients
        assert gradients["neg"].min() >= 0
        assert gradients["extra"].max() <= 0
        turned = "surrogate" in arguments and "prior" in arguments
        if not turned and "confidence_temperature" not in arguments:
            assert gradients["pos"].max() <= 0


@pytest.mark.parametrize("weighting", ["none", "sigmoid", "exponential", "linear"])
@each_float
def test_the_pull_on_the_positive(backend: str, weighting: Any, dtype: torch.dtype) -> None:
    """With ω a constant and extra positives, s⁺ moves all exponents alike: A − πC and ε·A are both exp(−s⁺/τ) times
    something, so the gradient of log(N·G) in s⁺ is −1/τ whether the floor binds or not. Without extra positives C
    does not move, and the pull is A/(A − πC) times that, which the floor keeps to 1/ε."""
    case = make_scores((200,), 9, 3, seed=3, log_q=True).to(dtype)
    arguments: dict[str, Any] = {"temperature": TAU, "weighting": weighting, "prior": 0.3, "floor": 0.2}
    pull = evaluate(case, torch.ones(200), backend=backend, **arguments).gradients["pos"] * -TAU
    # The sum of gradients of size 1/ε that are each rounded.
    assert_near(pull, torch.ones(200), dtype, slack=10 * tolerance(dtype))
    alone = replace(case, extra=None)
    pull = evaluate(alone, torch.ones(200), backend=backend, **arguments).gradients["pos"] * -TAU
    rounding = 10 * tolerance(dtype)
    assert pull.min() >= 1 - rounding and pull.max() <= (1 + rounding) / 0.2
    assert pull.max() > 1.01


@pytest.mark.parametrize("detach_weights", [True, False])
def test_the_loss_in_the_positives_score(backend: str, detach_weights: bool) -> None:
    """Whether the loss falls in s⁺: without a prior wherever h rises; with one and no extra positives too, as C is
    then a constant; with extra positives where mean h′(d_j) > π·mean h′(e_k) (or the floor binds). For ω = 1 that is
    A > πC, so always. For sigmoid weights with ρ = τ, h is σ(d/τ), and hard negatives, of which it is flat, can leave
    the extra positives to decide: then the loss *rises* in s⁺. The gradient with detached weights does not follow."""
    arguments: dict[str, Any] = {"temperature": TAU, "floor": 1e-3, "detach_weights": detach_weights}
    shifts = torch.linspace(-0.2, 0.2, 41, dtype=torch.float64)
    row = make_scores((1,), 7, seed=4, spread=0.3).map(lambda t: t.expand(41, *t.shape[1:]))
    case = replace(row, pos=row.pos + shifts, extra=row.pos.unsqueeze(1).expand(41, 2))

    def falls(case: Scores, **more: Any) -> bool:
        losses = case.loss(reduction="none", backend=backend, **(arguments | more))
        return bool((losses.diff() < 0).all())

    for weighting in ("none", "sigmoid"):
        assert falls(case, weighting=weighting)
        assert falls(replace(case, extra=None), weighting=weighting, prior=0.2)
    assert falls(case, weighting="none", prior=0.2)
    assert falls(case, weighting="sigmoid", prior=0.99, floor=1.0)

    hard = replace(case, neg=case.neg + 4)
    result = evaluate(hard, torch.ones(41), prior=0.4, backend=backend, **arguments)
    assert (result.loss.diff() > 0).all()

    def slope(margins: Tensor) -> Tensor:  # of σ(d/τ), without 1/τ
        return (torch.sigmoid(margins / TAU) * torch.sigmoid(-margins / TAU)).mean(1)

    assert hard.extra is not None
    d, e = (x - hard.pos.unsqueeze(1) for x in (hard.neg, hard.extra))
    assert (slope(d) < 0.4 * slope(e)).all()
    assert ((result.gradients["pos"] > 0) == (not detach_weights)).all()


@each_turn
@pytest.mark.parametrize("arguments", [{}, {"min_margin": -2.0}, {"include_positive": True}], ids=str)
def test_the_loss_in_a_further_positives_score(
    backend: str, arguments: dict[str, Any], weighting: Any, rho: float | None, turn: float | None
) -> None:
    """Against h: C is a mean of it, and the loss falls in C until the floor binds, from where on it is constant."""
    margins = torch.linspace(-1.0, 1.0, 401, dtype=torch.float64)
    pos = torch.full((401,), 0.2, dtype=torch.float64)
    # Two extra positives, the first at its margin and the other at the positive; and negatives a little above that.
    case = Scores(pos, (pos + 0.05).unsqueeze(1).expand(401, 5), torch.stack([pos + margins, pos], 1))
    arguments = arguments | {"temperature": TAU, "weighting": weighting, "weight_temperature": rho, "prior": 0.15}
    result = evaluate(case, torch.ones(401), detach_weights=False, backend=backend, **arguments)
    step, slope = result.loss.diff(), result.gradients["extra"][:, 0]
    end = rho if weighting == "linear" and rho is not None else math.inf
    turn = math.inf if turn is None else turn
    free = slope != 0
    for part, low, high in ((-1, -math.inf, turn), (1, turn, end)):
        inside = (margins > low + 0.01) & (margins < high - 0.01) & free
        both = inside[1:] & inside[:-1]
        assert torch.all(step[both] * part > 0) and torch.all(slope[inside] * part > 0)
    bound = ~free[1:] & ~free[:-1]
    assert torch.all(step[bound].abs() <= 1e-13)
    assert free.any()


@each_float
def test_slopes_of_the_items(backend: str, dtype: torch.dtype) -> None:
    """From embeddings, where each item has one role: along its query a negative's item is pushed back, a positive's or
    an extra positive's drawn near (similarity "dot", in which an item's gradient is a multiple of its query)."""
    n, m, dim = 12, 3, 8
    g = generator(6)
    queries = torch.randn(1, dim, generator=g, dtype=torch.float64).to(dtype)
    items = (torch.randn(1 + n + m, dim, generator=g, dtype=torch.float64) / 4).to(dtype).requires_grad_()
    pos, neg, extra = torch.arange(1 + n + m).split([1, n, m])
    loss = cw_loss_from_embeddings(
        queries,
        items,
        pos,
        neg.unsqueeze(0),
        extra_pos_ids=extra.unsqueeze(0),
        similarity="dot",
        temperature=1.0,
        prior=0.1,
        backend=backend,
    )
    (gradient,) = torch.autograd.grad(loss, items)
    along = gradient @ queries[0]
    assert along[neg].min() > 0 and along[extra].max() < 0 and along[pos] < 0
    assert_near(gradient, torch.outer(along / queries.norm() ** 2, queries[0]), dtype)


# ---- the kink at the floor ---------------------------------------------------------------------------------


def _masses(case: Scores, weighting: str) -> tuple[float, float]:
    """A and C of a case's first row, from the oracle: exp of the loss of a row without a prior is N·A, or M·C."""
    assert case.extra is not None
    found = []
    for scores in (case.neg[0], case.extra[0]):
        values = [x for x in scores.tolist() if x > -math.inf]
        row = oracle.row(oracle.Inputs(case.pos[0].item(), values), temperature=TAU, weighting=weighting)
        found.append(float(row.loss.exp() / len(values)))
    return found[0], found[1]


# Away from the kink on both sides, relative to where it is.
DISTANCES = 10.0 ** -torch.arange(2, 9, dtype=torch.float64)


def _at_kink(seed: int, floor: float, weighting: str) -> tuple[Scores, float, float]:
    """A row, the π at which its floor begins to bind, where A − πC = ε·A, and C/A."""
    case = make_scores((1,), 9, 3, seed=seed)
    case = replace(case, extra=case.extra + 0.4)  # C > A, so that there is such a π
    a, c = _masses(case, weighting)
    return case, (1 - floor) * a / c, c / a


@pytest.mark.parametrize("weighting", ["none", "sigmoid", "linear"])
@pytest.mark.parametrize("floor", [0.05, 0.3, 0.9])
@pytest.mark.parametrize("include_positive", [False, True])
def test_the_loss_is_continuous_where_the_floor_begins_to_bind(
    backend: str, weighting: Any, floor: float, include_positive: bool
) -> None:
    """In π: the loss on both sides differs by less than the steepest slope on either, and so vanishes linearly."""
    for seed in range(5):
        case, kink, ratio = _at_kink(seed, floor, weighting)
        assert kink < 0.95
        priors = torch.cat([kink * (1 - DISTANCES), kink * (1 + DISTANCES)])
        rows = case.map(lambda t: t.expand(len(priors), *t.shape[1:]).clone())
        arguments = {"temperature": TAU, "weighting": weighting, "floor": floor, "backend": backend}
        result = evaluate(
            replace(rows, prior=priors), torch.ones(len(priors)), include_positive=include_positive, **arguments
        )
        below, above = result.loss.split(len(DISTANCES))
        # |dL/dπ| = |1/(1 − π) − (C/A)/(1 − πC/A)|, with 1 − πC/A ≥ ε; InfoNCE's form is flatter.
        steepest = 1 / (1 - priors.max().item()) + ratio / floor
        rounding = 64 * torch.finfo(torch.float64).eps * (1 + below.abs().max())
        assert torch.all((above - below).abs() <= 2 * DISTANCES * kink * steepest + rounding)
        assert result.gradients["extra"][0].abs().max() > 0, "free below"
        assert not result.gradients["extra"][len(DISTANCES) :].any(), "bound above"


@pytest.mark.parametrize("weighting", ["none", "sigmoid"])
@pytest.mark.parametrize("floor", [0.05, 0.3, 0.9])
def test_the_loss_is_continuous_in_the_scores_at_the_floor(backend: str, weighting: Any, floor: float) -> None:
    """The same with the extra positives moved through the kink by ±δ: log C moves by at most δ/τ, and with it L by
    (1/ε − 1)·δ/τ on the free side, to first order; on the other side the floor holds it."""
    for seed in range(5):
        case, kink, _ = _at_kink(seed, floor, weighting)
        moves = torch.cat([-DISTANCES, DISTANCES]) * TAU * floor / 4
        rows = case.map(lambda t: t.expand(len(moves), *t.shape[1:]).clone())
        moved = replace(rows, extra=rows.extra + moves.unsqueeze(1), prior=torch.full_like(moves, kink))
        loss = moved.loss(temperature=TAU, weighting=weighting, floor=floor, reduction="none", backend=backend)
        free, bound = loss.split(len(DISTANCES))
        rounding = 64 * torch.finfo(torch.float64).eps * (1 + loss.abs().max()) / floor
        assert (bound - bound[-1]).abs().max() <= rounding
        assert torch.all(free >= bound - rounding)
        assert torch.all(free - bound <= (1 / floor - 1) * moves.abs()[: len(DISTANCES)] / TAU + rounding)


@pytest.mark.parametrize("weighting", ["none", "sigmoid", "linear"])
@pytest.mark.parametrize("floor", [0.05, 0.3, 0.9])
def test_the_gradient_jumps_by_the_floor_where_it_begins_to_bind(backend: str, weighting: Any, floor: float) -> None:
    """Just below, a negative's gradient is 1/ε of what it is just above, and no more: A/(A − πC) is 1/ε there. That of
    the extra positives ends (it was −(1/ε − 1)·w_k/τ, with w the softmax of their shares in C), and that of the
    positive does not jump at all."""
    for seed in range(5):
        case, kink, _ = _at_kink(seed, floor, weighting)
        rows = case.map(lambda t: t.expand(2, *t.shape[1:]).clone())
        priors = exact([kink * (1 - 1e-9), kink * (1 + 1e-9)])
        arguments = {"temperature": TAU, "weighting": weighting, "floor": floor, "backend": backend}
        gradients = evaluate(replace(rows, prior=priors), torch.ones(2), **arguments).gradients
        (free, bound), (free_extra, bound_extra) = gradients["neg"], gradients["extra"]
        # The distance 1e-9 to the kink is left in what is computed from A − πC.
        assert torch.allclose(free, bound / floor, rtol=1e-7)
        assert (free - bound).abs().max() <= (1 / floor - 1) * bound.max() * (1 + 1e-7)
        assert free_extra.sum().item() == pytest.approx(-(1 / floor - 1) / TAU, rel=1e-6)
        assert not bound_extra.any()
        assert torch.allclose(gradients["pos"], torch.full((2,), -1 / TAU, dtype=torch.float64), rtol=1e-9)


@pytest.mark.parametrize("include_positive", [False, True])
def test_an_absolute_floor(backend: str, include_positive: bool) -> None:
    """min_margin = τ·log(A − πC) is where it begins to bind. The loss in m: constant below, of slope 1/τ above, and
    continuous between. The gradient of the scores ends there; what ends is at most A·exp(−m/τ)/τ, this floor's 1/ε."""
    prior = 0.1
    for seed in range(5):
        case = make_scores((1,), 9, 3, seed=20 + seed)
        a, c = _masses(case, "sigmoid")
        assert a > prior * c
        kink = TAU * math.log(a - prior * c)
        arguments: dict[str, Any] = {"temperature": TAU, "prior": prior, "include_positive": include_positive}
        arguments |= {"backend": backend}
        at_kink = case.loss(min_margin=kink, **arguments)
        n_g = 9 * (a - prior * c) / (1 - prior)
        share = n_g / (1 + n_g) if include_positive else 1.0
        for distance in DISTANCES.tolist():
            below, above = (evaluate(case, torch.ones(1), min_margin=kink + s * distance, **arguments) for s in (-1, 1))
            rounding = 64 * torch.finfo(torch.float64).eps * (1 + at_kink.abs().item())
            assert (below.loss - at_kink).abs() <= rounding, "it does not bind"
            rise = (above.loss - at_kink).item()
            assert abs(rise - share * distance / TAU) <= (distance / TAU) ** 2 + rounding
            assert not any(above.gradients[name].any() for name in ("pos", "neg", "extra"))
            assert 0 < below.gradients["neg"].sum() <= share * a / (a - prior * c) / TAU * (1 + 1e-9)


# ---- the prior and the threshold ---------------------------------------------------------------------------


def test_the_loss_in_the_prior(backend: str) -> None:
    """dL/dπ has the sign of A − C while the correction is free, and is 1/(1 − π) where the floor binds. So a row whose
    positives look harder than its negatives (C > A) has its least loss just at the kink, π = (1 − ε)·A/C, and any
    other rises from the start."""
    floor = 0.3
    priors = torch.linspace(0, 0.98, 197, dtype=torch.float64)
    arguments = {"temperature": TAU, "floor": floor, "backend": backend}
    kinds = set()
    for seed in range(12):
        row = make_scores((1,), 9, 3, seed=seed)
        row = replace(row, extra=row.extra + (seed % 3 - 1) * 0.3)
        a, c = _masses(row, "sigmoid")
        kink = (1 - floor) * a / c
        rows = row.map(lambda t: t.expand(len(priors), *t.shape[1:]).clone())
        result = evaluate(replace(rows, prior=priors), torch.ones(len(priors)), **arguments)
        slope, free = result.gradients["prior"], priors < kink
        kinds.add(c > a)
        assert torch.all(slope[free] * (a - c) > 0)
        assert torch.allclose(slope[~free], 1 / (1 - priors[~free]), rtol=1e-12)
        assert (priors[result.loss.argmin()] - (kink if c > a else 0)).abs() <= 0.98 / 196
        if c > a:
            least = math.log(9 * floor * a / (1 - kink))
            assert result.loss.min() >= least - 1e-12
    assert kinds == {True, False}


def test_a_floor_of_one_takes_nothing_away(backend: str) -> None:
    """max(A − πC, A) is A: what is left of the correction is −log(1 − π)."""
    case = make_scores((50,), 9, 3, seed=7, log_q=True)
    prior = torch.linspace(0, 0.95, 50, dtype=torch.float64)
    for weighting in ("none", "sigmoid", "exponential", "linear"):
        plain = case.loss(weighting=weighting, reduction="none", backend=backend)
        floored = replace(case, prior=prior).loss(weighting=weighting, floor=1.0, reduction="none", backend=backend)
        assert_near(floored, plain - torch.log1p(-prior), torch.float64)


def _case_of(level: str) -> Case | Drawn:
    """A case of 6 rows of each function, with a prior and a threshold for each row."""
    case: Case | Drawn
    match level:
        case "scores":
            case = make_scores((6,), 11, 2, seed=8, log_q=True)
        case "ids":
            case = make_embeddings(6, 11, 4, 9, 2, seed=9, padding=True, scale=0.5)
        case "sampled":
            case = make_drawn("sampled", 6, 4, 2, seed=10, num_negatives=11)
        case _:
            case = make_drawn(level, 6, 4, 2, seed=11)
    rows = torch.arange(6, dtype=torch.float64)
    return replace(case, prior=0.02 + rows / 60, threshold=rows / 10 - 0.2)


LEVELS = ["scores", "ids", "sampled", "in_batch", "full"]
each_level = pytest.mark.parametrize("level", LEVELS)


def _seeded(level: str) -> dict[str, Any]:
    return {"seed": 12} if level == "sampled" else {}


@each_level
def test_gradients_of_priors_and_thresholds(backend: str, level: str) -> None:
    """Against central differences of the loss; and c falls in β, so that β's gradient has the sign of −L."""
    case = _case_of(level)
    arguments: dict[str, Any] = {"temperature": 0.5, "confidence_temperature": 0.7, "backend": backend}
    arguments |= _seeded(level)
    weight = torch.randn(6, generator=generator(13), dtype=torch.float64)
    gradients = evaluate(case, weight, **arguments).gradients
    for name in ("prior", "threshold"):
        value = getattr(case, name)
        h = 1e-5
        up, down = (replace(case, **{name: value + s * h}).loss(reduction="none", **arguments) for s in (1, -1))
        difference = weight * (up - down) / (2 * h)
        assert_near(gradients[name], difference, torch.float64, name, slack=1e-8)
        assert gradients[name].abs().max() > 1e-3
    loss = case.loss(reduction="none", **arguments)
    assert torch.equal(gradients["threshold"].sign(), -(weight * loss).sign())


# ---- reductions --------------------------------------------------------------------------------------------


@each_level
def test_reductions_agree(backend: str, level: str) -> None:
    """Σ none = sum = mean · live rows; and with row weights, Σ w·none = sum = mean · Σ w over live rows."""
    case = _case_of(level)
    arguments: dict[str, Any] = {"confidence_temperature": 2.0, "temperature": 0.5, "backend": backend}
    arguments |= _seeded(level)
    plain = case.loss(reduction="none", **arguments)
    weights = torch.rand(6, generator=generator(14), dtype=torch.float64) + 0.1
    # A row is live if it has negatives; those without have a loss of exactly 0.
    live = (plain != 0).double()
    for w, given in ((torch.ones(6, dtype=torch.float64), None), (weights, weights)):
        weighted = replace(case, row_weights=given)
        rows, total, mean = (weighted.loss(reduction=r, **arguments) for r in ("none", "sum", "mean"))
        assert_near(rows, w * plain, torch.float64)
        assert_near(total, rows.sum(), torch.float64)
        assert_near(mean * (w * live).sum(), total, torch.float64)
    if level == "ids":
        assert live.sum() == 5, "a padded row is among them"


@each_level
def test_row_weights_are_linear(backend: str, level: str) -> None:
    """In "none" and "sum", gradients included; the mean knows no scale of them."""
    case = _case_of(level)
    arguments: dict[str, Any] = {"temperature": 0.5, "backend": backend} | _seeded(level)
    g = generator(15)
    v, w = (torch.rand(6, generator=g, dtype=torch.float64) for _ in range(2))
    names = [f for f in ("pos", "neg", "queries", "items") if hasattr(case, f)]

    def result(weights: Tensor, reduction: str) -> Any:
        return evaluate(replace(case, row_weights=weights), names=names, reduction=reduction, **arguments)

    for reduction in ("none", "sum"):
        first, second, both = (result(x, reduction) for x in (v, w, 2 * v - 3 * w))
        assert_near(both.loss, 2 * first.loss - 3 * second.loss, torch.float64, slack=1e-12)
        for name in names:
            expected = 2 * first.gradients[name] - 3 * second.gradients[name]
            assert_near(both.gradients[name], expected, torch.float64, name, slack=1e-12)
    assert_near(result(7 * v, "mean").loss, result(v, "mean").loss, torch.float64)


# ---- exact values, limits and bounds -----------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("include_positive", [False, True], ids=["sl", "infonce"])
def test_the_softmax_losses(backend: str, dtype: torch.dtype, include_positive: bool) -> None:
    """π = 0 and ω = 1: torch's logsumexp, or its cross-entropy with the positive as one of the classes, and their
    gradients, on the same rounded scores. To a few roundings of what it is computed in, and of the gradient's dtype."""
    case = make_scores((50,), 33, seed=16).to(dtype)
    result = evaluate(
        case, torch.ones(50), temperature=TAU, weighting="none", include_positive=include_positive, backend=backend
    )
    pos, neg = (t.double().requires_grad_() for t in (case.pos, case.neg))
    if include_positive:
        logits = torch.cat([pos.unsqueeze(1), neg], 1) / TAU
        expected = F.cross_entropy(logits, torch.zeros(50, dtype=torch.int64), reduction="none")
    else:
        expected = torch.logsumexp((neg - pos.unsqueeze(1)) / TAU, 1)
    gradients = torch.autograd.grad(expected.sum(), (pos, neg))
    assert result.loss.dtype == loss_dtype(dtype)
    error = (result.loss - expected).abs()
    assert torch.all(error <= 8 * torch.finfo(loss_dtype(dtype)).eps * (1 + expected.abs()))
    for name, gradient in zip(("pos", "neg"), gradients):
        few = 64 * torch.finfo(loss_dtype(dtype)).eps + torch.finfo(dtype).eps
        assert torch.all((result.gradients[name] - gradient).abs() <= few * gradient.abs()), name


@pytest.mark.parametrize("count", [1, 4, 9])
def test_masked_negatives_do_not_count(backend: str, count: int) -> None:
    """N is the number of those that are left: negatives of one margin d have the loss d/τ + log N."""
    neg = torch.full((3, 9), 0.5, dtype=torch.float64)
    log_q = torch.full((3, 9), -math.inf, dtype=torch.float64)
    for b in range(3):
        log_q[b, torch.randperm(9, generator=generator(b))[:count]] = 0.7
    pos = exact([0.4, 0.5, 0.7])
    loss = cw_loss(
        pos, neg, neg_log_weights=log_q, temperature=TAU, weighting="none", reduction="none", backend=backend
    )
    assert_near(loss, (0.5 - pos) / TAU + math.log(count), torch.float64)


TEMPERATURES = [1e-3, 0.01, 0.1, 1.0, 100.0, 1e4]


@each_float
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_softmax_lies_between_the_maximum_and_the_mean(
    backend: str, dtype: torch.dtype, temperature: float
) -> None:
    """max d/τ ≤ L ≤ max d/τ + log N, and L ≥ mean d/τ + log N (Jensen's inequality). So τ·L → max d for τ → 0, and
    L → log N for τ → ∞, each at a rate that the bounds give."""
    case = make_scores((100,), 20, seed=17, spread=1.0).to(dtype)
    loss = case.loss(temperature=temperature, weighting="none", reduction="none", backend=backend).double()
    margins = case.neg.double() - case.pos.double().unsqueeze(1)
    largest, mean, log_n = margins.amax(1), margins.mean(1), math.log(20)
    rounding = 4 * torch.finfo(dtype).eps * (1 + margins.abs().max().item() / temperature)
    assert torch.all(loss >= largest / temperature - rounding)
    assert torch.all(loss >= mean / temperature + log_n - rounding)
    assert torch.all(loss <= largest / temperature + log_n + rounding)


@each_float
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_sigmoid_weights_bound_the_loss(backend: str, dtype: torch.dtype, temperature: float) -> None:
    """With ρ = τ, h(d) = σ(d/τ) lies between exp(min(d, 0)/τ)/2 and exp(min(d, 0)/τ): no negative weighs more than one
    however it scores, and L ≤ log N − log(1 − π). For τ → 0, τ·L → min(0, max d); for τ → ∞ each is half a negative,
    and L → log(N/2)."""
    case = make_scores((100,), 20, 2, seed=18, spread=1.0).to(dtype)
    loss = case.loss(temperature=temperature, reduction="none", backend=backend).double()
    margins = case.neg.double() - case.pos.double().unsqueeze(1)
    easy, log_n = margins.clamp(max=0) / temperature, math.log(20)
    rounding = 4 * torch.finfo(dtype).eps * (1 + margins.abs().max().item() / temperature)
    assert torch.all(loss >= easy.amax(1) - math.log(2) - rounding)
    assert torch.all(loss >= easy.mean(1) + log_n - math.log(2) - rounding)
    assert torch.all(loss <= easy.amax(1) + log_n + rounding)
    assert torch.all(loss <= log_n + rounding)
    if temperature >= 100:  # σ is 1/2 ± d/4τ
        assert (loss - math.log(10)).abs().max() <= margins.abs().max() / (2 * temperature) + rounding
    corrected = case.loss(temperature=temperature, prior=0.2, reduction="none", backend=backend)
    assert torch.all(corrected <= log_n - math.log(0.8) + rounding)


# ---- expectations ------------------------------------------------------------------------------------------

# Two-sided, of a normal deviate: one false alarm in 1.7 million tests. All seeds are fixed.
Z = 5.0


def _omega(weighting: str, margins: Tensor, rho: float) -> Tensor:
    match weighting:
        case "sigmoid":
            return 1 / (1 + torch.exp(margins / rho))
        case "exponential":
            return torch.exp(-margins / rho)
        case "linear":
            return (1 - margins / rho).clamp(min=0)
        case _:
            return torch.ones_like(margins)


@pytest.mark.parametrize("weighting", ["none", "sigmoid", "exponential", "linear"])
def test_drawn_negatives_are_corrected_to_the_true_ones(backend: str, weighting: Any) -> None:
    """A whole catalogue as the known mixture: of the items that a query is not known to like, the share π is liked all
    the same. The loss draws its negatives from all of these and gets extra positives drawn from the liked ones;
    exp(L)/N = (A − πC)/(1 − π) then has the mean of h over the items that are not liked, a plain sum. With half of π,
    twice as much or none it has not, and the same test says so."""
    g = generator(19)
    liked, not_liked, known, rows, n, m = 30, 270, 20, 4000, 60, 20
    prior = liked / (liked + not_liked)
    scores = torch.cat([torch.randn(liked, generator=g) * 0.1 + 0.3, torch.randn(not_liked, generator=g) * 0.15])
    # Those known to be liked must not be drawn, and score so high that a single draw would be noticed.
    items = torch.cat([scores.double(), torch.full((known,), 3.0, dtype=torch.float64)]).unsqueeze(1)
    num_items = liked + not_liked + known
    known_ids = torch.arange(num_items - known, num_items)
    interactions = Interactions(torch.zeros_like(known_ids), known_ids, num_queries=1, num_items=num_items)
    position, tau, rho = 0.35, 0.3, 0.8
    items = torch.cat([items[:-1], exact([[position]])])  # the last known one is the rows' positive
    margins = items[: liked + not_liked, 0] - position
    h = _omega(weighting, margins, rho) * torch.exp(margins / tau)
    truth, of_liked = h[liked:].mean(), h[:liked].mean()

    def z(assumed: float) -> float:
        loss = sampled_cw_loss(
            torch.ones(rows, 1, dtype=torch.float64),
            items,
            torch.zeros(rows, dtype=torch.int64),
            torch.full((rows,), num_items - 1),
            interactions,
            n,
            seed=20,
            extra_pos_ids=torch.randint(liked, (rows, m), generator=generator(21)),
            similarity="dot",
            temperature=tau,
            weighting=weighting,
            weight_temperature=None if weighting == "none" else rho,
            prior=assumed,
            floor=1e-6,
            reduction="none",
            backend=backend,
        )
        found = loss.exp() / n
        assert found.min() > 1e-3 * truth, "the floor, which would make a bias, binds nowhere"
        return float((found.mean() - truth) / (found.std() / math.sqrt(rows)))

    assert of_liked > 1.2 * truth
    assert abs(z(prior)) < Z
    assert z(prior / 2) > Z and z(0.0) > z(prior / 2) > Z and z(2 * prior) < -Z

"""Estimated false negatives: against the posterior of known distributions, and against definitions written out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import DTYPE_IDS, DTYPES, assert_near, exact, make_embeddings, make_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from cw_ext import FalseNegatives, cw_loss, cw_loss_from_embeddings
from cw_ext.false_negatives import DelayedKind, cvir_log_weights, delayed_weights

INF, NAN = math.inf, math.nan
FAMILIES = ("normal", "isotonic")
each_family = pytest.mark.parametrize("family", FAMILIES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
_random = settings(max_examples=300, deadline=None, derandomize=True)

# Scores of positives and negatives, and shares of positives among the unlabeled.
APART = (stats.norm(0.0, 0.1), stats.norm(-0.2, 0.1))
MIXTURES = {
    "alike in deviation": APART,
    "positives wider": (stats.norm(0.3, 0.2), stats.norm(-0.1, 0.1)),
    "negatives wider": (stats.norm(2.0, 1.0), stats.norm(-1.0, 1.5)),
}
SHARES = (0.02, 0.1, 0.5, 0.9)


def _draw(mixture: tuple[Any, Any], share: float, n_p: int, n_u: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive, negative = mixture
    hidden = rng.binomial(n_u, share)
    unlabeled = [positive.rvs(hidden, random_state=rng), negative.rvs(n_u - hidden, random_state=rng)]
    return positive.rvs(n_p, random_state=rng), rng.permutation(np.concatenate(unlabeled))


def _posterior(mixture: tuple[Any, Any], share: float, x: np.ndarray) -> np.ndarray:
    positive, negative = (part * dist.pdf(x) for part, dist in zip((share, 1 - share), mixture))
    return positive / (positive + negative)


def _fit(family: str, share: float = 0.1, n: int = 4000, **arguments: Any) -> FalseNegatives:
    return FalseNegatives.fit(*_draw(APART, share, n, 10 * n), share, family=family, **arguments)


# ---- the estimate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", MIXTURES)
@each_family
def test_the_posterior_of_known_normals(family: str, name: str, share: float) -> None:
    """Between the two means and beyond, where the posterior rises; each x weighs as much as it is drawn."""
    mixture = MIXTURES[name]
    estimate = FalseNegatives.fit(*_draw(mixture, share, 100_000, 200_000), share, family=family)
    _, x = _draw(mixture, share, 1, 50_000, seed=1)
    truth = _posterior(mixture, share, x)
    # The posterior's running maximum; where the positives are wider, it falls at first, and the maximum is not meant.
    grid = np.linspace(x.min(), x.max(), 2001)
    on_grid = _posterior(mixture, share, grid)
    turn = grid[on_grid.argmin()] if name == "positives wider" else grid[0]
    rising = np.maximum.accumulate(np.where(grid >= turn, on_grid, on_grid.min()))
    expected = np.interp(x, grid, rising)
    error = np.abs(estimate.probability(torch.from_numpy(x)).numpy() - expected)
    assert error.mean() < 0.01
    assert np.abs(expected - truth).mean() < 0.01, "so that the comparison is one with the posterior itself"


@pytest.mark.parametrize(("share", "shift", "bias"), [(0.1, 0, 0), (0.5, 0, 0), (0.1, 0.05, -0.1), (0.5, 0.05, 11)])
@pytest.mark.parametrize("family", ["isotonic", "normal"])
def test_the_mass_of_the_true_negatives(family: str, share: float, shift: float, bias: float) -> None:
    """Bias and deviation, in percent, of Σ (1 − p)f/Σ (1 − p) in rows of 1000, f = σ(−d/τ)·exp(d/τ).

    Without weights the bias is +22 at π = .1 and +111 at π = .5. The known positives score `shift` above the hidden
    ones in the last two cases; the bias is then that of min(1, π f⁺/f_u) with the shifted f⁺, here by quadrature, and
    the normal family's, whose f_u contains that f⁺ too, is another one.
    """
    known = (stats.norm(shift, 0.1), APART[1])
    positives, _ = _draw(known, share, 50_000, 1)
    _, unlabeled = _draw(APART, share, 1, 300_000)
    estimate = FalseNegatives.fit(positives, unlabeled, share, family=family)
    rows = torch.from_numpy(_draw(APART, share, 1, 2_000_000, seed=2)[1]).reshape(2000, 1000)
    f = torch.sigmoid(-rows / 0.1) * (rows / 0.1).exp()
    x = np.linspace(-1.2, 1.0, 100_001)
    f_x = np.exp(x / 0.1) / (1 + np.exp(x / 0.1))
    truth = (f_x * APART[1].pdf(x)).sum() / APART[1].pdf(x).sum()

    weights = estimate.log_weights(rows).exp()
    found = 100 * ((weights * f).sum(1) / weights.sum(1) / truth - 1)
    f_u = share * APART[0].pdf(x) + (1 - share) * APART[1].pdf(x)
    rest = f_u * (1 - np.minimum(1, share * known[0].pdf(x) / f_u))
    limit = 100 * ((rest * f_x).sum() / rest.sum() / truth - 1)
    assert limit == pytest.approx(bias, abs=0.1)
    if family == "normal" and shift:
        assert abs(found.mean().item()) < (2 if share == 0.1 else 10)
    else:
        assert found.mean().item() == pytest.approx(limit, abs=0.7)
    assert found.std().item() == pytest.approx(2.4, abs=0.3)
    plain = 100 * (f.mean() / truth - 1)
    assert plain == pytest.approx(22 if share == 0.1 else 111, abs=1)


@each_family
def test_its_mean_over_the_unlabeled_is_the_prior(family: str) -> None:
    for share in SHARES:
        positives, unlabeled = _draw(APART, share, 30_000, 50_000)
        estimate = FalseNegatives.fit(positives, unlabeled, share, family=family)
        assert estimate.probability(torch.from_numpy(unlabeled)).mean().item() == pytest.approx(share, abs=0.01)


SKEWED = {
    "two betas": (stats.beta(5, 2, loc=-0.5), stats.beta(2, 5, loc=-0.5)),
    "long tail": (stats.norm(0.2, 0.1), stats.gamma(2, scale=0.05, loc=-0.2)),
    "heavy tails": (stats.norm(0.0, 0.1), stats.t(4, loc=-0.2, scale=0.08)),
}


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("name", SKEWED)
def test_scores_that_are_not_normal(name: str, share: float) -> None:
    """Isotonic finds the true negatives' mass; normal takes no more for positives than there are, and is nearer to it
    than no weights by far."""
    positives, unlabeled = _draw(SKEWED[name], share, 20_000, 300_000, seed=4)
    scores = torch.from_numpy(unlabeled)
    f = torch.sigmoid(-scores / 0.1) * (scores / 0.1).exp()
    negatives = SKEWED[name][1].rvs(500_000, random_state=5)
    truth = (np.exp(negatives / 0.1) / (1 + np.exp(negatives / 0.1))).mean()
    plain = f.mean().item() / truth - 1
    for family in FAMILIES:
        estimate = FalseNegatives.fit(positives, unlabeled, share, family=family)
        weights = estimate.log_weights(scores).exp()
        assert 1 - weights.mean().item() <= share + 1e-9
        bias = ((weights * f).sum() / weights.sum()).item() / truth - 1
        assert abs(bias) < (0.025 if family == "isotonic" else 0.15 * plain), family


@each_family
def test_no_positives_no_weights(family: str) -> None:
    """π = 0 and γ = 0 are the loss without weights, bit for bit."""
    case = make_scores((6,), 40)
    plain = cw_loss(case.pos, case.neg)
    none, some = _fit(family, 0.0), _fit(family)
    assert not none.probability(case.neg).any()
    for weights in (none.log_weights(case.neg), some.log_weights(case.neg, strength=0)):
        assert not weights.any() and torch.equal(cw_loss(case.pos, case.neg, neg_log_weights=weights), plain)
    for curve in (none.curve(), some.curve(strength=0.0)):
        assert torch.equal(cw_loss(case.pos, case.neg, score_curve=curve), plain)


@each_family
def test_an_indicator_where_nothing_overlaps(family: str) -> None:
    far = (stats.norm(1.0, 0.01), stats.norm(-1.0, 0.01))
    estimate = FalseNegatives.fit(*_draw(far, 0.2, 1000, 5000), 0.2, family=family)
    positives, negatives = (torch.from_numpy(d.rvs((3, 50), random_state=i)) for i, d in enumerate(far))
    # Of 1000 positives and as many hidden ones, the quotient of their shares is 1 but for sampling.
    p = estimate.probability(positives)
    assert p.mean() > 0.95 and (p > (0.999 if family == "normal" else 0.8)).all()
    assert (estimate.probability(negatives) < 1e-9).all()


def test_those_that_are_positives_are_masked() -> None:
    """p = 1 exactly: the loss is that without them."""
    estimate = FalseNegatives.fit([0.5, 0.6], [0.55, -0.5, -0.6, -0.4], 0.5, family="isotonic")
    pos, neg = exact([0.2]), exact([[0.55, -0.5, 0.6, -0.45]])
    weights = estimate.log_weights(neg)
    assert weights.tolist() == [[-INF, 0, -INF, 0]]
    assert_near(cw_loss(pos, neg, neg_log_weights=weights), cw_loss(pos, neg[:, [1, 3]]), torch.float64)


def test_scores_that_tell_nothing() -> None:
    """Positives that score no higher than negatives: p is π for all."""
    x = torch.linspace(-1, 1, 9)
    for mixture in ((stats.norm(-0.2, 0.1), stats.norm(0.1, 0.2)), (stats.norm(-0.2, 0.2), stats.norm(0.1, 0.1))):
        estimate = FalseNegatives.fit(*_draw(mixture, 0.3, 2000, 5000), 0.3)
        assert torch.allclose(estimate.probability(x), torch.tensor(0.3))
        # Isotonic regression puts everything, or nearly, into one block.
        estimate = FalseNegatives.fit(*_draw(mixture, 0.3, 2000, 5000), 0.3, family="isotonic")
        assert (estimate.probability(torch.linspace(-0.4, 0.2, 9)) - 0.3).abs().max() < 0.02


def test_a_prior_far_too_high_still_gives_a_probability() -> None:
    """Moments would leave the negatives a variance below zero."""
    for family in FAMILIES:
        positives, unlabeled = _draw((stats.norm(0.4, 0.3), stats.norm(-0.2, 0.1)), 0.0, 2000, 5000)
        p = FalseNegatives.fit(positives, unlabeled, 0.9, family=family).probability(torch.linspace(-3, 3, 999))
        assert ((p >= 0) & (p <= 1)).all() and (p.diff() >= 0).all()


def test_a_single_score_does_not_draw_the_negatives_to_it() -> None:
    """All negatives share one score, where the likelihood has no bound."""
    positives, unlabeled = _draw(APART, 1.0, 2000, 4000)
    unlabeled[:2000] = -0.3
    p = FalseNegatives.fit(positives, unlabeled, 0.5).probability(torch.linspace(-0.3, 1, 999))
    assert p.isfinite().all() and (p.diff() >= 0).all() and p[0] < 0.01 and p[-1] > 0.9


# ---- isotonic regression -------------------------------------------------------------------------------------------


def _by_definition(positives: list[float], unlabeled: list[float], prior: float) -> dict[float, float]:
    """max over i ≤ k of min over j ≥ k of the quotient of the places i to j, at each place."""
    places = sorted({*positives, *unlabeled})
    a = [positives.count(x) / len(positives) for x in places]
    b = [unlabeled.count(x) / len(unlabeled) for x in places]

    def quotient(i: int, j: int) -> float:
        below = sum(b[i : j + 1])
        return sum(a[i : j + 1]) / below if below else INF

    n = len(places)
    values = [max(min(quotient(i, j) for j in range(k, n)) for i in range(k + 1)) for k in range(n)]
    return {x: min(1.0, prior * v) if prior else 0.0 for x, v in zip(places, values)}


_scores = st.lists(st.integers(-4, 4).map(lambda k: k / 4), min_size=1, max_size=14)


@_random
@given(positives=_scores, unlabeled=_scores, prior=st.sampled_from([0.0, 0.1, 0.5, 0.95]))
def test_isotonic_is_what_its_definition_says(positives: list[float], unlabeled: list[float], prior: float) -> None:
    estimate = FalseNegatives.fit(positives, unlabeled, prior, family="isotonic")
    expected = _by_definition(positives, unlabeled, prior)
    places, values = exact(list(expected)), exact(list(expected.values()))
    assert torch.allclose(estimate.probability(places), values, rtol=1e-12, atol=0)
    assert (estimate.low, estimate.high) == (places[0].item(), places[-1].item())
    # Between two places straight lines, beyond them the ends' values.
    x = torch.linspace(-1.5, 1.5, 101, dtype=torch.float64)
    between = np.interp(x.numpy(), places.numpy(), values.numpy())
    assert np.allclose(estimate.probability(x).numpy(), between, rtol=1e-12, atol=1e-15)


def test_isotonic_where_one_block_swallows_its_neighbours_one_by_one() -> None:
    # Odds rise from place to place, but for the highest, whose many unlabeled scores take in one more at each pass.
    number = 80
    positives = [float(k) for k in range(number) for _ in range(k + 1)]
    unlabeled = [float(k) for k in range(number)] + [float(number)] * 4000
    estimate = FalseNegatives.fit(positives, unlabeled, 0.5, family="isotonic")
    expected = _by_definition(positives, unlabeled, 0.5)
    places, values = exact(list(expected)), exact(list(expected.values()))
    assert torch.allclose(estimate.probability(places), values, rtol=1e-12, atol=0)


def test_isotonic_against_scikit_learn() -> None:
    isotonic = pytest.importorskip("sklearn.isotonic")
    positives, unlabeled = _draw(APART, 0.3, 700, 3000)
    positives, unlabeled = positives.round(2), unlabeled.round(2)
    estimate = FalseNegatives.fit(positives, unlabeled, 0.3, family="isotonic")
    x, labels = np.concatenate([positives, unlabeled]), np.repeat([1.0, 0.0], [700, 3000])
    weights = np.repeat([1 / 700, 1 / 3000], [700, 3000])
    share = isotonic.IsotonicRegression().fit(x, labels, weights).predict(x)
    with np.errstate(divide="ignore"):
        expected = np.minimum(1.0, 0.3 * share / (1 - share))
    assert np.allclose(estimate.probability(torch.from_numpy(x)).numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("transform", [np.exp, np.arctan, lambda x: x**3], ids=["exp", "atan", "cube"])
def test_only_the_order_matters_to_isotonic(transform: Callable[[np.ndarray], np.ndarray]) -> None:
    positives, unlabeled = (x.round(3) for x in _draw(APART, 0.3, 500, 1000))
    plain = FalseNegatives.fit(positives, unlabeled, 0.3, family="isotonic")
    mapped = FalseNegatives.fit(transform(positives), transform(unlabeled), 0.3, family="isotonic")
    x = torch.from_numpy(unlabeled)
    assert torch.equal(plain.probability(x), mapped.probability(torch.from_numpy(transform(unlabeled))))


@pytest.mark.parametrize(("scale", "offset"), [(10.0, 0.0), (1e-6, 3e-6), (1e9, -1e9)])
def test_units_do_not_matter_to_normal(scale: float, offset: float) -> None:
    positives, unlabeled = _draw(APART, 0.3, 500, 1000)
    plain = FalseNegatives.fit(positives, unlabeled, 0.3)
    mapped = FalseNegatives.fit(scale * positives + offset, scale * unlabeled + offset, 0.3)
    x = torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    assert torch.allclose(plain.probability(x), mapped.probability(scale * x + offset), rtol=1e-4)


# ---- what goes in and comes out ------------------------------------------------------------------------------------


@each_family
@each_dtype
def test_values_of_every_dtype(family: str, dtype: torch.dtype, device: torch.device) -> None:
    estimate = _fit(family, 0.3)
    x = torch.linspace(-2, 2, 4000, dtype=torch.float64, device=device).to(dtype).reshape(2, 2000).requires_grad_()
    p, weights = estimate.probability(x), estimate.log_weights(x, strength=2.0)
    wide = torch.promote_types(dtype, torch.float32)
    assert p.dtype == weights.dtype == wide and p.shape == weights.shape == x.shape
    assert not p.requires_grad and not weights.requires_grad
    assert ((p >= 0) & (p <= 1)).all() and (p.flatten().diff() >= 0).all()
    assert (weights.flatten()[1:] <= weights.flatten()[:-1]).all()
    exactly = estimate.probability(x.detach().double())
    assert torch.allclose(p.double(), exactly, atol=1e-9 if dtype == torch.float64 else 2e-5)
    kept = exactly < 0.999
    assert torch.allclose(weights.double()[kept], 2 * torch.log1p(-exactly[kept]), atol=1e-9 if wide == dtype else 1e-3)


@each_family
def test_scores_that_are_not_finite(family: str) -> None:
    estimate = _fit(family, 0.3)
    x = torch.tensor([NAN, -INF, INF, -1e30, 1e30])
    p, weights = estimate.probability(x), estimate.log_weights(x)
    assert p.isnan().tolist() == weights.isnan().tolist() == [True, False, False, False, False]
    assert (p[1], p[2]) == (p[3], p[4]) and p[2] > 0.99
    assert estimate.log_weights(x, strength=0).isnan().tolist() == [True, False, False, False, False]


@each_family
def test_far_away_log_weights_of_the_normal_family_stay_finite(family: str) -> None:
    """1 − p is computed without a difference."""
    weights = _fit(family, 0.3).log_weights(exact([1.0, 3.0]))
    if family == "normal":
        assert weights.isfinite().all() and weights[1] < -30
    else:
        assert weights[0] == weights[1]


@each_family
@each_dtype
def test_samples_of_every_kind(family: str, dtype: torch.dtype, device: torch.device) -> None:
    """Exact in every dtype; padding of either sample is left out."""
    eighths = np.random.default_rng(3).integers(-20, 20, size=(2, 300)) / 8
    positives, unlabeled = eighths[0] + 1, eighths[1]
    expected = FalseNegatives.fit(positives, unlabeled, 0.3, family=family)
    padded = [
        torch.tensor([-INF, *sample], dtype=dtype, device=device).reshape(7, 43).requires_grad_()
        for sample in (positives, unlabeled)
    ]
    found = FalseNegatives.fit(*padded, 0.3, family=family)
    x = torch.linspace(-4, 4, 99, dtype=torch.float64)
    assert torch.allclose(found.probability(x.to(device)), expected.probability(x).to(device), rtol=1e-9)
    assert found.curve().log_weights.device == padded[0].device
    assert repr(found) == f"FalseNegatives(prior=0.3, family={family!r}, low=-2.5, high=3.375)"


@each_family
def test_in_a_compiled_function(family: str, kernels: None) -> None:
    estimate, counter = _fit(family, 0.3), CompileCounter()
    x = torch.randn(4, 9)
    compiled = torch.compile(lambda x: estimate.log_weights(x, strength=0.5), backend=counter, fullgraph=True)
    assert torch.equal(compiled(x), estimate.log_weights(x, strength=0.5)) and counter.frame_count == 1


# ---- the curve -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 0.3])
@each_family
def test_the_curve_is_the_log_weights(family: str, strength: float) -> None:
    estimate = _fit(family, 0.3)
    curve = estimate.curve(knots=65, strength=strength)
    assert (curve.on, curve.log_weights.dtype) == ("score", torch.float32)
    assert (curve.low, curve.high) == pytest.approx((estimate.low, estimate.high))
    places = torch.linspace(curve.low, curve.high, 65, dtype=torch.float64)
    assert torch.equal(curve.log_weights, estimate.log_weights(places, strength=strength).float())
    if family == "normal":
        x = torch.linspace(curve.low, curve.high, 5001, dtype=torch.float64)
        error = (curve(x) - estimate.log_weights(x, strength=strength)).abs().max()
        assert error < strength * ((curve.high - curve.low) / 64) ** 2 / 8 / (4 * 0.05**2) * 1.2  # ρ = σ²/(μ⁺ − μ⁻)


def test_the_curve_in_the_kernels(backend: str) -> None:
    """For scores and embeddings it is the loss with the same weights given; beyond the fitted scores, the end's."""
    estimate = _fit("normal", 0.3)
    scores, case = make_scores((6,), 40), make_embeddings(6, 40, 8, 30)
    curve = estimate.curve(knots=4097)
    weights = estimate.log_weights(scores.neg.clamp(curve.low, curve.high))
    assert weights.min() < -1 < weights.max()

    found = cw_loss(scores.pos, scores.neg, score_curve=curve, backend=backend)
    expected = cw_loss(scores.pos, scores.neg, neg_log_weights=weights, backend=backend)
    assert torch.allclose(found, expected, rtol=1e-4)

    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (case.queries, case.items)]
    half_cosines = (unit[0].unsqueeze(1) * unit[1][case.neg_ids]).sum(-1) / 2
    ids = (case.queries, case.items, case.pos_ids, case.neg_ids)
    found = cw_loss_from_embeddings(*ids, score_curve=curve, backend=backend)
    weights = estimate.log_weights(half_cosines.clamp(curve.low, curve.high))
    expected = cw_loss_from_embeddings(*ids, neg_log_weights=weights, backend=backend)
    assert torch.allclose(found, expected, rtol=1e-4)


def test_a_curve_of_scores_that_are_all_alike() -> None:
    estimate = FalseNegatives.fit([0.5], [0.5, 0.5], 0.25, family="isotonic")
    assert estimate.probability(exact([-1.0, 0.5, 2.0])).tolist() == [0.25] * 3
    assert torch.allclose(estimate.curve(3).log_weights, torch.tensor(math.log(0.75)))


# ---- the rank, and delays ------------------------------------------------------------------------------------------


@_random
@given(
    rows=st.lists(st.lists(st.sampled_from([-INF, -1.0, 0.0, 0.5, 2.0, NAN]), min_size=7, max_size=7), max_size=3),
    prior=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.99]),
)
def test_cvir_leaves_out_the_highest(rows: list[list[float]], prior: float) -> None:
    scores = torch.tensor(rows).reshape(-1, 7)
    expected = torch.zeros_like(scores)
    for r, row in enumerate(rows):
        live = [j for j, s in enumerate(row) if s > -INF]
        for j in sorted(live, key=lambda j: (-row[j], j))[: int(prior * len(live))]:
            expected[r, j] = -INF
    assert torch.equal(cvir_log_weights(scores, prior), expected)


@each_dtype
def test_cvir_takes_any_shape_and_dtype(dtype: torch.dtype, device: torch.device) -> None:
    scores = torch.randn(2, 3, 50, device=device).to(dtype).requires_grad_()
    weights = cvir_log_weights(scores, 0.29)
    assert weights.dtype == torch.promote_types(dtype, torch.float32) and not weights.requires_grad
    masked = weights == -INF
    assert (masked.sum(-1) == 14).all() and not weights[~masked].any()
    lowest_dropped = torch.where(masked, scores, INF).amin(-1)
    assert (lowest_dropped >= torch.where(masked, -INF, scores).amax(-1)).all()
    tied = torch.zeros(2, 5000, device=device, dtype=dtype)
    assert (cvir_log_weights(tied, 0.5) == -INF).int().diff().nonzero().tolist() == [[0, 2499], [1, 2499]]
    assert cvir_log_weights(torch.zeros(0, 5, device=device), 0.5).shape == (0, 5)
    assert cvir_log_weights(torch.zeros(3, 0, device=device), 0.5).shape == (3, 0)


@each_dtype
def test_delays_have_the_mature_loss_as_their_mean(dtype: torch.dtype, device: torch.device) -> None:
    """IP + (1 − z) RN + z FN + DP over all that can be observed of each x, each event as often as it happens."""
    rng = np.random.default_rng(0)
    f_ip, f_dp = rng.dirichlet([1, 1, 2], size=200)[:, :2].T
    f_dp = torch.from_numpy(f_dp).to(dtype).double().numpy()  # as the weights see it
    f = f_ip + f_dp
    z = f_dp / (f_dp + 1 - f)
    loss_pos, loss_neg = rng.exponential(size=(2, 200))
    weight = {
        kind: delayed_weights(
            torch.full((200,), int(kind), device=device), torch.from_numpy(f_dp).to(device, dtype).requires_grad_()
        )
        for kind in DelayedKind
    }
    assert all(w.dtype == torch.promote_types(dtype, torch.float32) and not w.requires_grad for w in weight.values())
    ip, rn, fn, dp = (weight[DelayedKind(k)].double().cpu().numpy() for k in range(4))
    observed = f_ip * ip * loss_pos + (1 - f_ip) * (z * fn * loss_pos + (1 - z) * rn * loss_neg) + f_dp * dp * loss_pos
    mature = f * loss_pos + (1 - f) * loss_neg
    assert np.allclose(observed, mature, rtol=1e-6)
    # DEFUSE's own, 1 + f_dp times as large.
    expected = np.stack([1 + f_dp, 1 + f_dp, f_dp, np.ones(200)])
    assert np.allclose(np.stack([ip, rn, fn, dp]) * (1 + f_dp), expected, rtol=1e-6)


def test_delays_of_padding(device: torch.device) -> None:
    kinds = torch.tensor([0, -1, 3], dtype=torch.int32, device=device)
    weights = delayed_weights(kinds, torch.tensor([1.0, NAN, 1.0], device=device))
    assert weights.tolist() == [1.0, 0.0, 0.5]
    assert delayed_weights(kinds[:0], weights[:0]).shape == (0,)


# ---- wrong calls ---------------------------------------------------------------------------------------------------

GOOD = [0.1, 0.2]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"positive_scores": []}, ValueError, r"positive_scores must hold at least one score, got shape \(0,\)"),
        ({"positive_scores": [-INF, -INF]}, ValueError, "positive_scores must hold at least one score besides padding"),
        ({"positive_scores": [0.3] * 3}, ValueError, r"positive_scores must hold at least two diff.*got only 0\.3"),
        ({"unlabeled_scores": [0.3]}, ValueError, "unlabeled_scores must hold at least two different .*'normal'"),
        ({"unlabeled_scores": [0.3, INF]}, ValueError, r"unlabeled_scores must hold no \+inf, got 1 among 2 scores"),
        ({"unlabeled_scores": [0.3, NAN]}, ValueError, "unlabeled_scores must hold no NaN, got 1 among 2 scores"),
        ({"unlabeled_scores": [0.3, 1e300]}, ValueError, r"unlabeled_scores .* squares fp64 can hold, got 1e\+300"),
        ({"unlabeled_scores": torch.arange(3)}, TypeError, "unlabeled_scores must hold floating-point scores, got int"),
        *(({"prior": value}, ValueError, rf"prior must be in \[0, 1\), got {value}") for value in (1.0, 1.5)),
        ({"prior": -0.1}, ValueError, r"prior must be in \[0, 1\), got -0.1"),
        ({"prior": NAN}, ValueError, r"prior must be a number in \[0, 1\), got nan"),
        ({"prior": "auto"}, TypeError, r"prior must be a number in \[0, 1\), got str"),
        ({"family": "gamma"}, ValueError, "family must be one of 'normal', 'isotonic', got 'gamma'"),
        ({"positive_scores": [1e-200, 2e-200]}, ValueError, "positive_scores must hold scores whose squares fp64 can"),
    ],
)
def test_a_wrong_fit(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"positive_scores": GOOD, "unlabeled_scores": GOOD, "prior": 0.1} | changed
    with pytest.raises(error, match=message):
        FalseNegatives.fit(**arguments)


SCORES = torch.zeros(2, 3)
KINDS, F_DP = torch.tensor([0, 3]), torch.tensor([0.1, 0.2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: e.probability(SCORES.long()), TypeError, "scores must have dtype .* got int64"),
        (lambda e: e.probability([0.1]), TypeError, "scores must be a torch.Tensor, got list"),
        (lambda e: e.log_weights(SCORES, strength=-1), ValueError, "strength must be a number ≥ 0, got -1"),
        (lambda e: e.curve(1), ValueError, r"knots must be an integer in \[2, 16777216\], got 1"),
        (lambda e: e.curve(strength=INF), ValueError, "strength must be a number ≥ 0, got inf"),
        (lambda e: cvir_log_weights(SCORES[0, 0], 0.1), ValueError, r"neg_scores must have shape \[..., N\], got \(\)"),
        (lambda e: cvir_log_weights(SCORES.int(), 0.1), TypeError, "neg_scores must have dtype .* got int32"),
        (lambda e: cvir_log_weights(SCORES, 1.0), ValueError, r"prior must be in \[0, 1\), got 1.0"),
        (lambda e: delayed_weights(F_DP, F_DP), TypeError, "kinds must have dtype int32, int64, got float32"),
        (lambda e: delayed_weights(KINDS, KINDS), TypeError, "f_dp must have dtype .* got int64"),
        (lambda e: delayed_weights(KINDS, F_DP[:1]), ValueError, r"f_dp must have shape \(2,\), one .* got \(1,\)"),
        (lambda e: delayed_weights(KINDS[0], F_DP), ValueError, r"kinds must have shape \[B\], got \(\)"),
        (lambda e: delayed_weights(KINDS + 1, F_DP), IndexError, r"kinds must be in \[0, 4\), or −1 .* got 4"),
        (lambda e: delayed_weights(KINDS, F_DP + 0.9), ValueError, r"f_dp must be in \[0, 1\], got 1\.1"),
        (lambda e: delayed_weights(KINDS, F_DP * NAN), ValueError, r"f_dp must be in \[0, 1\], got nan"),
    ],
)
def test_wrong_calls(call: Callable[[FalseNegatives], Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(_fit("normal", n=10))

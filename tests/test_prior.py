"""The share of positives by Best Bin Estimation: mixtures of known share, and a loop over all thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cw_ext import cw_loss
from cw_ext.prior import estimate_prior

_random = settings(max_examples=300, deadline=None, derandomize=True)

INF, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Mixture:
    """How positives and negatives are scored."""

    positive: Any
    negative: Any

    def draw(self, share: float, n_p: int, n_u: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores of n_p positives, and of n_u unlabeled samples, each a positive with probability `share`."""
        rng = np.random.default_rng(seed)
        hidden = rng.binomial(n_u, share)
        unlabeled = [
            self.positive.rvs(hidden, random_state=rng),
            self.negative.rvs(n_u - hidden, random_state=rng),
        ]
        return self.positive.rvs(n_p, random_state=rng), rng.permutation(np.concatenate(unlabeled))

    def limit(self, share: float, threshold: float) -> float:
        """What q_u/q_p at the threshold tends to."""
        return share + (1 - share) * self.negative.sf(threshold) / self.positive.sf(threshold)


# Mixtures with a bin of positives that is free of negatives, or as good as.
PURE = {
    "Gaussians far apart": Mixture(stats.norm(6, 1), stats.norm(0, 1)),
    "Gaussians that touch": Mixture(stats.norm(4, 1), stats.norm(0, 1)),
    "Gaussians that overlap": Mixture(stats.norm(3, 1), stats.norm(0, 1)),
    "wide over narrow": Mixture(stats.norm(1, 3), stats.norm(0, 0.3)),
    "uniform, the upper half is pure": Mixture(stats.uniform(0, 1), stats.uniform(0, 0.5)),
    "beta, the upper part is pure": Mixture(stats.beta(5, 2), stats.beta(2, 5, scale=0.7)),
    "beta, nothing is pure but the end": Mixture(stats.beta(8, 2), stats.beta(2, 8)),
}
IMPURE = {
    "the same": Mixture(stats.norm(0, 1), stats.norm(0, 1)),
    "hardly apart": Mixture(stats.norm(1, 1), stats.norm(0, 1)),
    "negatives on both sides": Mixture(stats.norm(0, 1), stats.norm(0, 2)),
}
SHARES = (0.0, 0.01, 0.05, 0.2, 0.5, 0.9)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("mixture", PURE.values(), ids=PURE.keys())
def test_known_shares(mixture: Mixture, share: float) -> None:
    estimate = estimate_prior(*mixture.draw(share, 100_000, 100_000, seed=1))
    assert estimate.prior == pytest.approx(share, abs=0.01)
    assert estimate.low <= share <= estimate.high
    assert estimate.high - estimate.low <= 0.05


def _counted(mixture: Mixture, share: float, draws: int) -> tuple[float, float, float]:
    """How often the interval holds the share, its upper end does, and the interval holds the limit of the quotient."""
    holds = np.zeros(3)
    for seed in range(draws):
        e = estimate_prior(*mixture.draw(share, 3000, 2000, seed), confidence=0.9)
        # Rounding makes more than 1 of a limit that is 1.
        limit = min(1.0, mixture.limit(share, e.threshold))
        holds += [e.low <= share <= e.high, share <= e.high, e.low <= limit <= e.high]
    return tuple(holds / draws)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("mixture", PURE.values(), ids=PURE.keys())
def test_the_interval_holds_the_share(mixture: Mixture, share: float) -> None:
    of_share, above, of_limit = _counted(mixture, share, draws=50)
    assert of_share >= 0.9 and above >= 0.9 and of_limit >= 0.9


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("mixture", IMPURE.values(), ids=IMPURE.keys())
def test_what_the_interval_holds_without_a_pure_bin(mixture: Mixture, share: float) -> None:
    """The upper bound, and the quotient at the threshold, although that was chosen for a small quotient."""
    _, above, of_limit = _counted(mixture, share, draws=50)
    assert above >= 0.9 and of_limit >= 0.9


def test_without_a_pure_bin_the_share_is_not_to_be_seen() -> None:
    """Positives and negatives that are scored alike could all be positives."""
    estimate = estimate_prior(*IMPURE["the same"].draw(0.2, 100_000, 100_000, seed=2))
    assert estimate.prior > 0.98 and estimate.low > 0.2 and estimate.high == 1


def test_the_interval_shrinks_with_the_root_of_the_samples() -> None:
    mixture = PURE["Gaussians far apart"]

    def width(n: int, **arguments: float) -> float:
        estimate = estimate_prior(*mixture.draw(0.3, n, n, seed=3), **arguments)
        return estimate.high - estimate.low

    assert width(1_000) / width(100_000) == pytest.approx(10, rel=0.1)
    # √log(4/δ), as long as the bin stays the same
    expected = math.sqrt(math.log(4 / 0.5) / math.log(4 / 0.01))
    assert width(100_000, confidence=0.5) / width(100_000, confidence=0.99) == pytest.approx(expected, rel=0.05)


def _error(count: int, confidence: float) -> float:
    return math.sqrt(math.log(4 / (1 - confidence)) / (2 * count))


def _share_from(scores: list[float], threshold: float) -> Fraction:
    return Fraction(sum(s >= threshold for s in scores), len(scores))


def _bound(positives: list[float], unlabeled: list[float], threshold: float, confidence: float) -> float:
    """The quantity that algorithm 1 minimises; infinite for an empty bin."""
    q_p, q_u = _share_from(positives, threshold), _share_from(unlabeled, threshold)
    errors = _error(len(positives), confidence) + _error(len(unlabeled), confidence)
    return float(q_u / q_p) + 1.01 / float(q_p) * errors if q_p else INF


# Few values, so that scores tie within a sample and between the two.
_scores = st.lists(st.one_of(st.integers(-3, 3).map(float), st.sampled_from([-INF, INF, 0.5])), min_size=1, max_size=30)


@_random
@given(positives=_scores, unlabeled=_scores, confidence=st.sampled_from([1e-6, 0.1, 0.5, 0.95, 0.999]))
def test_against_a_loop_over_all_thresholds(positives: list[float], unlabeled: list[float], confidence: float) -> None:
    estimate = estimate_prior(positives, unlabeled, confidence=confidence)
    between = [x + 0.25 for x in (*positives, *unlabeled)]
    smallest = min(_bound(positives, unlabeled, c, confidence) for c in (*positives, *unlabeled, *between, -INF, INF))
    assert _bound(positives, unlabeled, estimate.threshold, confidence) == pytest.approx(smallest, rel=1e-12)

    assert estimate.threshold in positives
    q_p, q_u = (float(_share_from(scores, estimate.threshold)) for scores in (positives, unlabeled))
    e_p, e_u = _error(len(positives), confidence), _error(len(unlabeled), confidence)
    assert estimate.prior == pytest.approx(q_u / q_p, rel=1e-12)
    assert estimate.low == pytest.approx(max(0, (q_u - e_u) / (q_p + e_p)), rel=1e-12)
    assert estimate.high == pytest.approx(min(1, (q_u + e_u) / (q_p - e_p)) if q_p > e_p else 1, rel=1e-12)
    assert 0 <= estimate.low <= estimate.prior <= estimate.high <= 1


@pytest.mark.parametrize(("both_errors", "threshold", "prior"), [(0.398, 1.0, 0.5), (0.394, 2.0, 0.1)])
def test_how_much_the_sampling_error_weighs(both_errors: float, threshold: float, prior: float) -> None:
    """Two bins, q_u/q_p = 0.5/1 and 0.05/0.5: the larger one is preferred where 1.01 errors are above 0.4."""
    positives = [1.0] * 50 + [2.0] * 50
    unlabeled = [0.0] * 50 + [1.0] * 45 + [2.0] * 5
    confidence = 1 - 4 * math.exp(-200 * (both_errors / 2) ** 2)  # both_errors = 2·√(log(4/δ)/200)
    estimate = estimate_prior(positives, unlabeled, confidence=confidence)
    assert (estimate.threshold, estimate.prior) == (threshold, prior)


@pytest.mark.parametrize(
    ("positives", "unlabeled", "prior", "threshold"),
    [
        ([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 1.0, 2.0], 0.5, 1.0),
        ([1.0, 2.0], [0.0, -5.0, 0.5], 0.0, 1.0),
        ([1.0, 2.0], [2.0, 2.0], 1.0, 1.0),
        ([7.0], [7.0], 1.0, 7.0),
        ([INF, INF], [-INF, INF, -INF, 0.0], 0.25, INF),
        ([-INF], [-INF, 0.0], 1.0, -INF),
    ],
)
def test_by_hand(positives: list[float], unlabeled: list[float], prior: float, threshold: float) -> None:
    estimate = estimate_prior(positives, unlabeled)
    assert (estimate.prior, estimate.threshold) == (prior, threshold)


@pytest.mark.parametrize(
    "transform", [np.exp, np.arctan, lambda x: x**3 - 100, lambda x: 1e300 * x], ids=["exp", "atan", "cube", "scale"]
)
def test_only_the_order_matters(transform: Callable[[np.ndarray], np.ndarray]) -> None:
    # Rounded, so that no transform makes ties of scores that were apart.
    positives, unlabeled = (x.round(3) for x in PURE["Gaussians that overlap"].draw(0.3, 3000, 5000, seed=4))
    plain, mapped = estimate_prior(positives, unlabeled), estimate_prior(transform(positives), transform(unlabeled))
    assert (mapped.prior, mapped.low, mapped.high) == (plain.prior, plain.low, plain.high)
    assert mapped.threshold == transform(np.array([plain.threshold]))[0]


# Exact in every dtype, with ties, and in an order of no kind.
EIGHTHS = np.random.default_rng(5).integers(-40, 40, size=(2, 600)) / 8
POSITIVES, UNLABELED = EIGHTHS[0, :400] + 2, EIGHTHS[1]
EXPECTED = estimate_prior(POSITIVES.tolist(), UNLABELED.tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors(dtype: torch.dtype, device: torch.device) -> None:
    positives = torch.tensor(POSITIVES, dtype=dtype, device=device, requires_grad=True)
    unlabeled = torch.tensor(UNLABELED, dtype=dtype, device=device)
    assert estimate_prior(positives, unlabeled) == EXPECTED
    assert estimate_prior(positives.reshape(20, 20).T, unlabeled.reshape(3, 10, 20)) == EXPECTED
    assert estimate_prior(positives, UNLABELED) == EXPECTED  # of two dtypes, and perhaps two devices
    assert estimate_prior(POSITIVES, unlabeled) == EXPECTED
    assert positives.tolist() == POSITIVES.tolist() and unlabeled.tolist() == UNLABELED.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble, ">f4"])
def test_arrays(dtype: Any) -> None:
    positives, unlabeled = POSITIVES.astype(dtype), UNLABELED.astype(dtype)
    unlabeled.flags.writeable = False
    assert estimate_prior(positives[::-1], unlabeled.reshape(20, 30)) == EXPECTED
    assert estimate_prior(tuple(positives), list(unlabeled)) == EXPECTED
    assert positives.tolist() == POSITIVES.tolist()


def test_neighbours_in_fp32_are_no_ties() -> None:
    """fp32 against fp64 is compared as the numbers that they are."""
    just_below = torch.tensor([0.1], dtype=torch.float64)  # fp32's 0.1 is larger
    assert estimate_prior(torch.tensor([0.1]), just_below).prior == 0
    assert estimate_prior(just_below, torch.tensor([0.1])).prior == 1


@pytest.mark.parametrize("mixture", [PURE["Gaussians far apart"], IMPURE["the same"]], ids=["0.05", "not to be seen"])
def test_as_the_prior_of_the_loss(mixture: Mixture) -> None:
    estimate = estimate_prior(*mixture.draw(0.05, 1000, 1000, seed=6))
    pos = torch.tensor([0.3, -0.1])
    neg = torch.tensor([[0.1, 0.2, -0.4], [0.0, 0.3, 0.1]])
    assert cw_loss(pos, neg, prior=min(estimate.prior, 0.99)).isfinite()


GOOD = [0.1, 0.2]


@pytest.mark.parametrize(
    ("positives", "unlabeled", "arguments", "error", "message"),
    [
        ([], GOOD, {}, ValueError, r"positive_scores must hold at least one score, got shape \(0,\)"),
        (GOOD, torch.zeros(0, 3), {}, ValueError, r"unlabeled_scores must hold at least one score, got shape \(0, 3\)"),
        ([0.1, NAN], GOOD, {}, ValueError, r"positive_scores must hold no NaN, got 1 among 2 scores"),
        (GOOD, torch.tensor([NAN, 1, NAN]), {}, ValueError, r"unlabeled_scores must hold no NaN, got 2 among 3 scores"),
        (torch.arange(3), GOOD, {}, TypeError, r"positive_scores must hold floating-point scores, got int64"),
        (GOOD, [1, 2], {}, TypeError, r"unlabeled_scores must hold floating-point scores, got int64"),
        (GOOD, [1j], {}, TypeError, r"unlabeled_scores must hold floating-point scores, got complex128"),
        (GOOD, "scores", {}, TypeError, r"unlabeled_scores must hold floating-point scores, got <U6"),
        (None, GOOD, {}, TypeError, r"positive_scores must hold floating-point scores, got object"),
        (GOOD, [GOOD, [0.1]], {}, ValueError, r"unlabeled_scores must be an array .*, got sequences of different len"),
        *(
            (GOOD, GOOD, {"confidence": value}, ValueError, rf"confidence must be in \(0, 1\), got {value}")
            for value in (0, 1, 1.0, -0.5, 95, NAN, INF)
        ),
        (GOOD, GOOD, {"confidence": "0.95"}, TypeError, r"confidence must be a number in \(0, 1\), got str"),
        (GOOD, GOOD, {"confidence": True}, TypeError, r"confidence must be a number in \(0, 1\), got bool"),
    ],
)
def test_bad_input(
    positives: Any, unlabeled: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        estimate_prior(positives, unlabeled, **arguments)

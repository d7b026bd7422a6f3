"""Estimate the share of positives among the negatives, the loss's `prior`, from scores (Best Bin Estimation)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from cw_ext.score_samples import Scores, sorted_scores

# By how much the paper's selection overstates the sampling error, its γ.
_MARGIN = 0.01


@dataclass(frozen=True)
class PriorEstimate:
    """An estimated share of positives and its confidence interval, as returned by :func:`estimate_prior`.

    >>> import torch
    >>> from cw_ext.prior import estimate_prior
    >>> estimate = estimate_prior(torch.linspace(0.5, 1, 1000), torch.linspace(0, 1, 1000))
    >>> 0 <= estimate.low <= estimate.prior <= estimate.high <= 1
    True

    Attributes:
        prior: the estimate, in [0, 1].
        low: the lower end of the interval, 0 ≤ low ≤ prior. :func:`estimate_prior` describes what it covers.
        high: its upper end, prior ≤ high ≤ 1.
        threshold: the lowest score of the best bin, which is one of the positive scores. The estimate is the share of
            the unlabeled scores ≥ threshold divided by the share of the positive scores ≥ threshold.
    """

    prior: float
    low: float
    high: float
    threshold: float


def estimate_prior(positive_scores: Scores, unlabeled_scores: Scores, *, confidence: float = 0.95) -> PriorEstimate:
    """Estimate the share α of positives among unlabeled samples, by Best Bin Estimation (BBE).

    Use it to choose the loss's prior π from held-out data:

    >>> import torch
    >>> from cw_ext import cw_loss
    >>> from cw_ext.prior import estimate_prior
    >>> generator = torch.Generator().manual_seed(0)
    >>> held_out = 0.3 + 0.1 * torch.randn(500, generator=generator)  # scores of held-out positives
    >>> drawn = 0.1 * torch.randn(5000, generator=generator)  # scores of the loss's negatives,
    >>> drawn[:500] += 0.3  # a tenth of which are positives
    >>> estimate = estimate_prior(held_out, drawn)
    >>> print(f"{estimate.prior:.2f}, between {estimate.low:.2f} and {estimate.high:.2f}")
    0.11, between 0.08 and 0.15
    >>> loss = cw_loss(torch.rand(8), torch.rand(8, 50), prior=min(estimate.prior, 0.99))  # must be below 1

    Hold both samples out of training. The known positives must score as the positives hidden among the negatives do,
    and `unlabeled_scores` must be of negatives drawn as the loss draws them, as π is the share of positives among
    those.

    With q_p(c) and q_u(c) the shares of the positive and of the unlabeled scores ≥ c, and δ = 1 − confidence, the
    estimate is q_u/q_p at the threshold c with the smallest

        q_u(c)/q_p(c) + (1 + γ)/q_p(c) · (√(log(4/δ)/2n_u) + √(log(4/δ)/2n_p)),  γ = 0.01

    (Garg, Wu, Smola, Balakrishnan and Lipton, NeurIPS 2021, arXiv 2111.00980, algorithm 1).

    When the estimate is right. Negatives that score above the threshold are counted as positives: for many samples,
    q_u/q_p tends to α + (1 − α)·q_n(c)/q_p(c), where q_n(c) is the share of the true negatives ≥ c. So the estimate is
    right if a fair part of the positives scores above nearly all negatives. Without such a bin, α has an upper bound
    but no estimate, and scores that cannot separate positives from unlabeled samples give 1. The paper's choice of the
    bin tolerates a few negatives in it, of the order of the sampling error. The estimate is then too high by this
    amount, which can be a large part of a small α.

    What the interval covers. With a probability of at least `confidence`, for any distributions, [low, high] contains
    the limit of q_u/q_p at the chosen threshold. This follows from the inequality of Dvoretzky, Kiefer and Wolfowitz
    with Massart's constant for both samples. It holds for all thresholds at once, so also for a threshold chosen from
    the data. Hence α ≤ high always, but α ≥ low only if the bin has nearly no negatives. The interval assumes
    independent scores: many scores of few queries carry less information than their number suggests.

    Args:
        positive_scores: scores of known positives, any shape with n_p ≥ 1 scores: a tensor on any device, an array or a
            sequence, of any floating dtype. Only their order matters. ±∞ are ordinary scores, so remove padding.
        unlabeled_scores: n_u ≥ 1 scores of unlabeled samples, in the same form.
        confidence: of the interval, in (0, 1). Through δ it also affects the size of the bin.

    Returns:
        The estimate, computed in O(n log n) on the device of `positive_scores`. This waits for the device.

    Raises:
        TypeError, ValueError: scores are not floating-point, are empty or contain NaN, or the confidence is outside
            (0, 1). The message names the argument, what was expected, and what it got.
    """
    if isinstance(confidence, bool) or not isinstance(confidence, Real):
        raise TypeError(f"confidence must be a number in (0, 1), got {type(confidence).__name__}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    positives = sorted_scores("positive_scores", positive_scores)
    unlabeled = sorted_scores("unlabeled_scores", unlabeled_scores).to(positives.device)

    # Thresholds between two positive scores are not needed: q_p is constant up to the higher one, and q_u only falls.
    q_p = _shares_from(positives, positives)
    q_u = _shares_from(unlabeled, positives)
    error_p = _uniform_error(positives.numel(), confidence)
    error_u = _uniform_error(unlabeled.numel(), confidence)
    best = ((q_u + (1 + _MARGIN) * (error_u + error_p)) / q_p).argmin()
    threshold, p, u = torch.stack((positives[best], q_p[best], q_u[best])).tolist()
    # At most 1 without a clamp: the lowest positive score has q_p = 1 and so q_u/q_p ≤ 1, and a smaller bin, whose
    # sampling error weighs more, is only preferred for a smaller quotient.
    return PriorEstimate(
        prior=u / p,
        low=max(0.0, (u - error_u) / (p + error_p)),
        high=min(1.0, (u + error_u) / (p - error_p)) if p > error_p else 1.0,
        threshold=threshold,
    )


def _shares_from(scores: Tensor, thresholds: Tensor) -> Tensor:
    """The share of the sorted scores that is ≥ each threshold."""
    below = torch.searchsorted(scores, thresholds)
    return (scores.numel() - below).double() / scores.numel()


def _uniform_error(count: int, confidence: float) -> float:
    """The largest distance of the shares of `count` samples from their limits, with probability 1 − δ/2."""
    return math.sqrt(math.log(4 / (1 - confidence)) / (2 * count))

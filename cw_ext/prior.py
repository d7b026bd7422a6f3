"""Best Bin Estimation: the share of positives among unlabeled samples, for the loss's `prior`, from scores."""

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
    """An estimated share of positives, with its confidence interval.

    Attributes:
        prior: the estimate, in [0, 1].
        low, high: the interval, 0 ≤ low ≤ prior ≤ high ≤ 1; see :func:`estimate_prior` for what it covers.
        threshold: the lowest score of the best bin, one of the positive scores: the estimate is the share of the
            unlabeled scores ≥ threshold over the share of the positive ones.
    """

    prior: float
    low: float
    high: float
    threshold: float


def estimate_prior(positive_scores: Scores, unlabeled_scores: Scores, *, confidence: float = 0.95) -> PriorEstimate:
    """The share α of positives among unlabeled samples, by Best Bin Estimation (BBE).

    With q_p(c) and q_u(c) the shares of the positive and of the unlabeled scores ≥ c, and δ = 1 − confidence, the
    estimate is q_u/q_p at the threshold c with the smallest

        q_u(c)/q_p(c) + (1 + γ)/q_p(c) · (√(log(4/δ)/2n_u) + √(log(4/δ)/2n_p)),  γ = 0.01

    (Garg, Wu, Smola, Balakrishnan and Lipton, NeurIPS 2021, arXiv 2111.00980, algorithm 1).

    The samples must be held out from training, and the positives scored as the ones hidden among the unlabeled
    are. For the loss, `unlabeled_scores` are those of the negatives that it draws, since its prior is the share of
    positives among these; it must be below 1:

        estimate = estimate_prior(positive_scores, negative_scores)
        loss = cw_loss(pos_scores, neg_scores, prior=min(estimate.prior, 0.99))

    What can be known. Negatives that score above the threshold are counted as positives: in the limit of many
    samples, q_u/q_p is α + (1 − α)·q_n(c)/q_p(c), with q_n(c) the share of the negatives ≥ c. The estimate is
    therefore right if a fair part of the positives scores above (nearly) all negatives; without such a bin, α has
    an upper bound but no estimate, and scores that cannot tell positives from unlabeled give 1. The paper's
    choice of the bin tolerates a few negatives in it, of the order of the sampling error: the estimate then comes
    out high by as much, which for a small α may be a large part of it.

    What the interval covers. With probability ≥ confidence, whatever the distributions, [low, high] holds
    the limit of q_u/q_p at the chosen threshold: it follows from the inequality of Dvoretzky, Kiefer and Wolfowitz
    with Massart's constant for both samples, which holds for all thresholds at once and so for one chosen by looking.
    Hence α ≤ high in every case, while α ≥ low needs a bin (nearly) without negatives. The interval is for
    independent scores: many scores of few queries are worth less than their number suggests.

    Args:
        positive_scores: of known positives, any shape of n_p ≥ 1 scores: a tensor on any device, an array or a
            sequence, of any floating dtype. ±∞ is a score like any other. Only the order of the scores matters.
        unlabeled_scores: of unlabeled samples, n_u ≥ 1 of them, likewise.
        confidence: of the interval, in (0, 1); it also sets how large a bin is preferred, by δ.

    Returns:
        The estimate, computed in O(n log n) on the device of `positive_scores`, which is waited for.

    Raises:
        TypeError, ValueError: the message contains the argument, what was expected and what came: scores that are not
            floating-point, none at all or a NaN among them; a confidence outside (0, 1).
    """
    if isinstance(confidence, bool) or not isinstance(confidence, Real):
        raise TypeError(f"confidence must be a number in (0, 1), got {type(confidence).__name__}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    positives = sorted_scores("positive_scores", positive_scores)
    unlabeled = sorted_scores("unlabeled_scores", unlabeled_scores).to(positives.device)

    # No thresholds between two positive scores are needed: up to the higher one q_p stays, and q_u can only fall.
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
    """How far the shares of `count` samples are at most from their limits, anywhere, with probability 1 − δ/2."""
    return math.sqrt(math.log(4 / (1 - confidence)) / (2 * count))

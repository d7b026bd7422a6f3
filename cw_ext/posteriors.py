"""The probability of being a positive as a function of the score: the model of each family and its fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# The normal family's search ends when a step changes nothing by more than this part of the scores' deviation.
_TOLERANCE, _MOST_STEPS = 1e-6, 1000
# The most that log odds are lowered by, and the number of bisections.
_MOST_LOWERED, _HALVINGS = 50.0, 40
# The negatives' deviation is at least this part of the unlabeled scores' deviation: a density around one single score
# would have the highest likelihood.
_LEAST_DEVIATION = 0.01
# Passes of the isotonic family's pooling before it goes from left to right.
_MOST_PASSES = 50
# A score this many deviations from the middle is practically infinite, and its square is still finite in fp32.
_FURTHEST = 1e12


@dataclass(frozen=True)
class Normal:
    """The posterior of two normal densities: log p/(1 − p) = constant + t·(slope + t·bend), t = (s − middle)/scale."""

    middle: float
    scale: float
    constant: float
    slope: float
    bend: float
    rising: tuple[float, float]  # the range of t where it rises
    device: torch.device

    def logit(self, s: Tensor) -> Tensor:
        t = ((s - self.middle) / self.scale).clamp(*self.rising)
        return self.constant + t * (self.slope + t * self.bend)

    def probability(self, s: Tensor) -> Tensor:
        return torch.sigmoid(self.logit(s))

    def log_rest(self, s: Tensor) -> Tensor:
        return F.logsigmoid(-self.logit(s))


@dataclass(frozen=True, eq=False)
class Isotonic:
    """p at M ≥ 2 increasing scores, both fp64, and linear between them."""

    places: Tensor
    values: Tensor

    @property
    def device(self) -> torch.device:
        return self.places.device

    def _at(self, s: Tensor) -> Tensor:
        places, values = self.places.to(s.device), self.values.to(s.device)
        nan = s.isnan()
        x = torch.where(nan, places[0], s.double().clamp(places[0], places[-1]))
        k = (torch.searchsorted(places, x, right=True) - 1).clamp(0, len(places) - 2)
        p = torch.lerp(values[k], values[k + 1], (x - places[k]) / (places[k + 1] - places[k]))
        return torch.where(nan, torch.nan, p)

    def probability(self, s: Tensor) -> Tensor:
        return self._at(s).to(s.dtype)

    def log_rest(self, s: Tensor) -> Tensor:
        return torch.log1p(-self._at(s)).to(s.dtype)


def fit_normal(positives: Tensor, unlabeled: Tensor, prior: float) -> Normal:
    """Fit it to sorted samples in fp64, with π in [0, 1)."""
    mean, deviation = _moments("positive_scores", positives)
    neg_mean, neg_deviation = _negatives_moments(mean, deviation, unlabeled, prior)
    log_odds = math.log(prior) - math.log1p(-prior) if prior > 0 else -math.inf
    if prior == 0 or neg_mean >= mean:
        return Normal(0.0, 1.0, log_odds, 0.0, 0.0, (0.0, 0.0), positives.device)
    # −(s − μ⁺)²/2σ⁺² + (s − μ⁻)²/2σ⁻², written around the middle of the means, where neither square is large, and in
    # units of σ⁺.
    half = (mean - neg_mean) / 2 / deviation
    narrower = (deviation / neg_deviation) ** 2
    bend, slope = (narrower - 1) / 2, half * (narrower + 1)
    constant = log_odds + math.log(neg_deviation / deviation) + half**2 * bend
    turn = -slope / (2 * bend) if bend else math.inf
    rising = (max(-_FURTHEST, turn), _FURTHEST) if bend > 0 else (-_FURTHEST, min(_FURTHEST, turn))
    model = Normal((mean + neg_mean) / 2, deviation, constant, slope, bend, rising, positives.device)
    return _lowered(model, unlabeled, prior)


def _lowered(model: Normal, unlabeled: Tensor, prior: float) -> Normal:
    """Subtract a constant from the log odds, by bisection, if the mean of p over the unlabeled scores is above π.

    Otherwise the weights would remove more than the positives: for scores that are not normal, and past the turning
    point.
    """
    logit = model.logit(unlabeled)
    if not torch.sigmoid(logit).mean() > prior:
        return model
    by, most = 0.0, _MOST_LOWERED
    for _ in range(_HALVINGS):
        middle = (by + most) / 2
        if torch.sigmoid(logit - middle).mean() > prior:
            by = middle
        else:
            most = middle
    return replace(model, constant=model.constant - most)


def _moments(name: str, scores: Tensor) -> tuple[float, float]:
    if scores[0] == scores[-1]:
        only = scores[0].item()
        raise ValueError(f"{name} must hold at least two different scores for family='normal', got only {only}")
    mean, deviation = scores.mean().item(), scores.std(correction=0).item()
    if not 0 < deviation < math.inf:
        raise ValueError(f"{name} must hold scores whose squares fp64 can hold, got {scores[-1].item()}")
    return mean, deviation


def _negatives_moments(mean: float, deviation: float, unlabeled: Tensor, prior: float) -> tuple[float, float]:
    """Mean and deviation of f⁻, by expectation maximisation with fixed π and f⁺.

    Solving μ_u = πμ⁺ + (1 − π)μ⁻ for the moments would not do: if f⁺ or π is slightly wrong, the variance that remains
    for the negatives can be negative.
    """
    neg_mean, neg_deviation = whole_mean, whole_deviation = _moments("unlabeled_scores", unlabeled)
    if prior == 0:
        return whole_mean, whole_deviation
    log_odds = math.log(prior) - math.log1p(-prior)
    positive = log_odds - math.log(deviation) - ((unlabeled - mean) / deviation).square() / 2
    for _ in range(_MOST_STEPS):
        negative = -math.log(neg_deviation) - ((unlabeled - neg_mean) / neg_deviation).square() / 2
        share = torch.sigmoid(negative - positive)
        total = share.sum()
        new_mean = (share * unlabeled).sum() / total
        new_deviation = ((share * (unlabeled - new_mean).square()).sum() / total).sqrt()
        before = neg_mean, neg_deviation
        neg_mean = new_mean.item()
        neg_deviation = max(new_deviation.item(), _LEAST_DEVIATION * whole_deviation)
        moved = max(abs(neg_mean - before[0]), abs(neg_deviation - before[1]))
        if not moved > _TOLERANCE * whole_deviation:
            break
    return neg_mean, neg_deviation


def fit_isotonic(positives: Tensor, unlabeled: Tensor, prior: float) -> Isotonic:
    """Fit it to sorted samples in fp64, with π in [0, 1)."""
    samples = [sample.cpu().numpy() for sample in (positives, unlabeled)]
    places = np.unique(np.concatenate(samples))
    of_positives, of_unlabeled = (
        np.bincount(np.searchsorted(places, sample), minlength=len(places)) for sample in samples
    )
    starts, of_positives, of_unlabeled = _pool(of_positives, of_unlabeled)
    with np.errstate(divide="ignore"):  # a block of positives alone
        quotient = (of_positives / len(positives)) / (of_unlabeled / len(unlabeled))
    values = np.minimum(1.0, prior * quotient) if prior > 0 else np.zeros(len(starts))
    # The value of a block holds from its first score to its last.
    first, last = places[starts], places[np.append(starts[1:], len(places)) - 1]
    ends, index = np.unique(np.stack([first, last], 1).ravel(), return_index=True)
    heights = np.repeat(values, 2)[index]
    if len(ends) == 1:
        ends, heights = np.append(ends, np.nextafter(ends, np.inf)), np.repeat(heights, 2)
    as_tensor = (torch.from_numpy(array).to(positives.device) for array in (ends, heights))
    return Isotonic(*as_tensor)


def _pool(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge neighbours until above/below rises from block to block. Returns each block's start and its two sums.

    Each pass merges all neighbours that do not rise. For most samples a few passes are enough. If one block absorbs its
    neighbours one by one, the rest is done from left to right. The counts are integers, so the sums are exact.
    """
    starts = np.arange(len(above))
    for _ in range(_MOST_PASSES):
        rises = above[:-1] * below[1:] < above[1:] * below[:-1]
        if rises.all():
            return starts, above, below
        kept = np.flatnonzero(np.append(True, rises))
        starts, above, below = starts[kept], np.add.reduceat(above, kept), np.add.reduceat(below, kept)
    return _pool_in_order(starts, above, below)


def _pool_in_order(
    starts: np.ndarray, above: np.ndarray, below: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    blocks: list[tuple[int, int, int]] = []
    for start, a, b in zip(starts.tolist(), above.tolist(), below.tolist(), strict=True):
        while blocks and blocks[-1][1] * b >= a * blocks[-1][2]:
            start, left_a, left_b = blocks.pop()
            a, b = a + left_a, b + left_b
        blocks.append((start, a, b))
    columns = np.array(blocks).T
    return columns[0], columns[1], columns[2]

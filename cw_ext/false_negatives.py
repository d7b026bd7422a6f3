"""How likely a negative is a positive in truth, as a function of its score, and the weights that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cw_ext import checks
from cw_ext.score_curve import ScoreCurve
from cw_ext.score_samples import Scores, sorted_scores

Family = Literal["normal", "isotonic"]

# Steps of the normal family's search end when none moves it by more than this part of the scores' deviation.
_TOLERANCE, _MOST_STEPS = 1e-6, 1000
# By how much log odds may be lowered, and how often that is halved.
_MOST_LOWERED, _HALVINGS = 50.0, 40
# The negatives' deviation is at least this part of the unlabeled scores': one around a single score would be the
# likeliest of all.
_LEAST_DEVIATION = 0.01
# As many deviations away from the middle a score is as good as infinite, and its square is still finite in fp32.
_FURTHEST = 1e12
# fp32, in which the loss sees most scores, tells no more places apart.
_MOST_KNOTS = 2**24


class DelayedKind(IntEnum):
    """What an observation in a stream with delayed positives is."""

    IMMEDIATE_POSITIVE = 0  # it became positive while one waited for it
    REAL_NEGATIVE = 1  # observed as a negative, and stays one
    FAKE_NEGATIVE = 2  # observed as a negative, and will come back
    DELAYED_POSITIVE = 3  # a fake negative that came back, observed for the second time


@dataclass(frozen=True, eq=False, repr=False)  # a comparison of tensors is not a bool
class FalseNegatives:
    """The probability p_FN that a negative is a positive in truth, estimated as a function of its score.

    With f⁺ the density of the positives' scores, f_u that of the unlabeled items' and π the share of positives among
    the unlabeled, p_FN(s) = min(1, π f⁺(s)/f_u(s)), fitted so that it does not decrease in s. The weights 1 − p_FN
    leave of each unlabeled item the part that is a true negative: Σ (1 − p_FN) g / Σ (1 − p_FN) tends to the mean
    of g over true negatives, whatever g, where f⁺ and π are right. Use them with `prior=0`, since the loss's own
    correction would take the same positives out again. (Posterior weights are in arXiv 2111.00980, 2002.10261 and
    2308.04380; see the documentation for what differs.)

    Two families:

    - ``"normal"``: f⁺ is normal with the moments of the positive scores, f_u the mixture π f⁺ + (1 − π) f⁻, and f⁻ the
      normal density that makes the unlabeled scores likeliest (by expectation maximisation). Smooth, and p_FN < 1 for
      every finite score. Where the deviations differ, the ratio f⁺/f⁻ has a turning point; p_FN rises on the side of
      it that holds both means, and keeps its value at the turning point on the other side. If f⁻ comes out with a
      mean that is not below that of f⁺, the scores tell nothing and p_FN is π for all. Where the mean of p_FN over the
      unlabeled scores would be above π, which it is not for scores that are normal, its log odds are lowered by a
      constant until it is π.
    - ``"isotonic"``: the non-decreasing f⁺/f_u that makes both samples likeliest, without a shape given: isotonic
      regression of "is a positive" on the pooled samples, each sample weighing as much as the other (by pooling of
      adjacent violators), turned from odds into the quotient. Piecewise linear between the samples' scores. Needs
      more scores than the normal family, a thousand positives or more; at the highest ones p_FN may reach 1.

    Made by :meth:`fit`.

    Attributes:
        prior: π.
        family: "normal" or "isotonic".
        low, high: the lowest and the highest score that it was fitted on, without padding.

    >>> estimate = FalseNegatives.fit(held_out_pos_scores, drawn_neg_scores, prior=0.1)
    >>> loss = cw_loss_from_embeddings(..., prior=0.0, score_curve=estimate.curve())  # inside the kernels
    >>> loss = cw_loss(pos_scores, neg_scores, neg_log_weights=estimate.log_weights(neg_scores))  # the same on scores
    """

    prior: float
    family: Family
    low: float
    high: float
    _model: _Normal | _Isotonic

    @classmethod
    def fit(
        cls, positive_scores: Scores, unlabeled_scores: Scores, prior: float, *, family: Family = "normal"
    ) -> FalseNegatives:
        """Estimate p_FN.

        Scores move with training, so fit anew from time to time, such as each epoch.

        Args:
            positive_scores: of positives that training has not used, any shape: a tensor on any device, an array or a
                sequence, of any floating dtype. Scores that training has pushed up would hide the false negatives,
                which it has not. On the scale of the scores as the loss sees them (½·cosine by default). −∞ is
                padding and is left out.
            unlabeled_scores: of items drawn as the loss draws its negatives, likewise.
            prior: π, the share of positives among the unlabeled, in [0, 1); `cw_ext.prior.estimate_prior` finds it.
            family: "normal" or "isotonic", see above.

        Returns:
            The estimate, fitted in fp64 on the device of `positive_scores`, which is waited for.

        Raises:
            TypeError, ValueError: the message contains the argument, what was expected and what came: scores that are
                not floating-point, none at all, a NaN or +∞ among them, for "normal" no two that differ, or some
                whose squares exceed fp64; a prior outside [0, 1).
        """
        prior = checks.non_negative_number("prior", prior)
        if prior >= 1:
            raise ValueError(f"prior must be in [0, 1), got {prior}")
        checks.choice("family", family, get_args(Family))
        positives = _sample("positive_scores", positive_scores)
        unlabeled = _sample("unlabeled_scores", unlabeled_scores).to(positives.device)
        low = min(positives[0].item(), unlabeled[0].item())
        high = max(positives[-1].item(), unlabeled[-1].item())
        model = (_fit_normal if family == "normal" else _fit_isotonic)(positives, unlabeled, prior)
        return cls(prior, family, low, high, model)

    def __repr__(self) -> str:
        return f"FalseNegatives(prior={self.prior}, family={self.family!r}, low={self.low:.4g}, high={self.high:.4g})"

    @torch.no_grad()
    def probability(self, scores: Tensor) -> Tensor:
        """p_FN at the scores.

        Args:
            scores: any shape, fp16, bf16, fp32 or fp64, on any device; on the one of the fitted scores nothing is
                copied. They get no gradient.

        Returns:
            The shape of `scores`, in [0, 1] and not decreasing in s; fp64 for fp64, else fp32. NaN where a score is.
        """
        return self._model.probability(_computed(scores))

    @torch.no_grad()
    def log_weights(self, scores: Tensor, *, strength: float = 1.0) -> Tensor:
        """γ·log(1 − p_FN) at the scores, for `neg_log_weights`.

        Args:
            scores: [..., N], as above.
            strength: γ ≥ 0; 0 gives weights of exactly 1.

        Returns:
            The shape and dtype of :meth:`probability`, ≤ 0. −∞, which masks out, where p_FN is 1; NaN where a score is.
        """
        strength = checks.non_negative_number("strength", strength)
        return self._log_weights(_computed(scores), strength)

    @torch.no_grad()
    def curve(self, knots: int = 257, strength: float = 1.0) -> ScoreCurve:
        """The same weights as a curve, for `score_curve`: the kernels apply it, without a look-up of their own.

        Args:
            knots: K places, 2 ≤ K ≤ 2**24, equally far apart from the lowest fitted score to the highest. Between
                them the log weight is a straight line, and beyond them it stays as it is at the ends. Where p_FN is 1
                at a knot, the weights are 0 up to its neighbours.
            strength: γ ≥ 0.

        Returns:
            The curve, on the scores, with log weights in fp32 on the device of the fitted scores.
        """
        checks.whole_number("knots", knots, 2, _MOST_KNOTS)
        strength = checks.non_negative_number("strength", strength)
        # A curve has to have a length, also where all scores are alike.
        half = max((self.high - self.low) / 2, 1e-6 * max(1.0, abs(self.high)))
        middle = (self.low + self.high) / 2
        low, high = middle - half, middle + half
        places = torch.linspace(low, high, knots, dtype=torch.float64, device=self._model.device)
        return ScoreCurve(low, high, self._log_weights(places, strength).float())

    def _log_weights(self, x: Tensor, strength: float) -> Tensor:
        if strength == 0:  # 0·−∞ is not 0
            return torch.where(x.isnan(), x, 0.0)
        return strength * self._model.log_rest(x)


def cvir_log_weights(neg_scores: Tensor, prior: float) -> Tensor:
    """Leave the highest-scored negatives of each row out, as CVIR does (arXiv 2111.00980, algorithm 2).

    Of a row's N negatives the ⌊πN⌋ that score highest are taken for the positives among them. Per row, since queries'
    scores can seldom be compared (the paper ranks all samples at once). Biased where positives and negatives overlap:
    the positives that score low stay, and the negatives that score high go. Use it with `prior=0` in the loss.

    Args:
        neg_scores: [..., N], fp16, bf16, fp32 or fp64. −∞ is padding: it does not count in N. They get no gradient.
        prior: π in [0, 1).

    Returns:
        [..., N] for `neg_log_weights`: −∞ for those left out, else 0; fp64 for fp64, else fp32. Of equal scores at
        the limit the first ones are left out. A NaN is not ranked, and keeps the weight 1, so that the loss shows it.

    Raises:
        TypeError, ValueError: the message contains the argument, what was expected and what came.

    >>> cw_loss(pos_scores, neg_scores, neg_log_weights=cvir_log_weights(neg_scores, estimate.prior))
    """
    checks.has_dtype("neg_scores", neg_scores, checks.FLOATING)
    if neg_scores.dim() == 0:
        raise ValueError("neg_scores must have shape [..., N], got ()")
    prior = checks.non_negative_number("prior", prior)
    if prior >= 1:
        raise ValueError(f"prior must be in [0, 1), got {prior}")
    scores = neg_scores.detach()
    ranked = torch.where(scores.isnan(), -torch.inf, scores)
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    count = (ranked > -torch.inf).sum(-1, keepdim=True)
    dropped = (count.double() * prior).floor()  # in fp64, as numbers in Python are
    rank = torch.arange(scores.shape[-1], device=scores.device)
    weights = torch.where(rank < dropped, -torch.inf, 0.0).to(torch.promote_types(scores.dtype, torch.float32))
    return torch.empty_like(weights).scatter_(-1, order, weights)


def delayed_weights(kinds: Tensor, f_dp: Tensor) -> Tensor:
    """Weights of the rows of a stream in which positives come late, for `row_weights`: DEFUSE's (arXiv 2202.06472).

    Positives that are not there after some waiting are observed as negatives first (fake ones), and for a second time
    when they come. With f_dp(x) the probability that x is such a delayed positive, DEFUSE weighs immediate positives
    and real negatives 1 + f_dp, fake negatives, as positives, f_dp, and delayed positives 1. Here all four are divided
    by 1 + f_dp. Then each x counts as often as it is observed for the first time, and the mean over the stream
    is exactly the loss on the labels as they will be in the end; without it, x counts 1 + f_dp(x) times.

    Which observed negatives are fake is not known. With z(x) the probability that one is, each counts as both:
    with z times the fake one's weight as a positive, and with 1 − z times the real one's as a negative. z is
    f_dp/(f_dp + 1 − f), f the probability of being positive in the end. In a ranking loss, rows are the positives
    (immediate, fake, delayed), and log(1 − z) belongs into the `neg_log_weights` of observed negatives.

    Args:
        kinds: [B], int32 or int64, of :class:`DelayedKind`: 0 immediate positive, 1 real negative, 2 fake negative,
            3 delayed positive. −1 is padding, with weight 0.
        f_dp: [B] in [0, 1], fp16, bf16, fp32 or fp64; checked on the CPU outside torch.compile. It gets no gradient.
            Anything where the row is padding.

    Returns:
        [B], in fp64 for fp64, else fp32.

    Raises:
        TypeError, ValueError: the message contains the argument, what was expected and what came.
        IndexError: a kind out of range, on the CPU.

    >>> weights = delayed_weights(torch.tensor([0, 2, 3]), torch.tensor([0.25, 0.25, 0.25]))  # 1, .2 and .8
    """
    checks.has_dtype("kinds", kinds, checks.INTEGER)
    checks.has_dtype("f_dp", f_dp, checks.FLOATING)
    checks.matches("f_dp", f_dp, "kinds", kinds, dtype=False)
    if kinds.dim() != 1:
        raise ValueError(f"kinds must have shape [B], got {tuple(kinds.shape)}")
    checks.has_shape("f_dp", f_dp, tuple(kinds.shape), "one probability per row of kinds")
    checks.ids_in_range("kinds", kinds, len(DelayedKind))
    probability = torch.where(kinds < 0, 0.0, _computed(f_dp))
    checks.in_range("f_dp", probability, probability.dtype, "in [0, 1]", lambda p: (p >= 0) & (p <= 1))
    once = 1 / (1 + probability)
    weights = torch.where(kinds == DelayedKind.FAKE_NEGATIVE, probability * once, 1.0)
    weights = torch.where(kinds == DelayedKind.DELAYED_POSITIVE, once, weights)
    return torch.where(kinds < 0, 0.0, weights)


@dataclass(frozen=True)
class _Normal:
    """The posterior of two normal densities: log p/(1 − p) = constant + t·(slope + t·bend), t = (s − middle)/scale."""

    middle: float
    scale: float
    constant: float
    slope: float
    bend: float
    rising: tuple[float, float]  # where it does, in t
    device: torch.device

    def logit(self, s: Tensor) -> Tensor:
        t = ((s - self.middle) / self.scale).clamp(*self.rising)
        return self.constant + t * (self.slope + t * self.bend)

    def probability(self, s: Tensor) -> Tensor:
        return torch.sigmoid(self.logit(s))

    def log_rest(self, s: Tensor) -> Tensor:
        return F.logsigmoid(-self.logit(s))


@dataclass(frozen=True, eq=False)
class _Isotonic:
    """p at places [M], M ≥ 2, in increasing order, both fp64; straight lines between them."""

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


def _computed(scores: Tensor) -> Tensor:
    """Without gradient, in the dtype that is computed in."""
    checks.has_dtype("scores", scores, checks.FLOATING)
    return scores.detach().to(torch.promote_types(scores.dtype, torch.float32))


def _sample(name: str, scores: Scores) -> Tensor:
    """In increasing order and fp64, without padding."""
    values = sorted_scores(name, scores)
    if values[-1] == torch.inf:
        raise ValueError(f"{name} must hold no +inf, got {int((values == torch.inf).sum())} among {len(values)} scores")
    values = values[values > -torch.inf]
    if len(values) == 0:
        raise ValueError(f"{name} must hold at least one score besides padding, got nothing but −inf")
    return values


def _fit_normal(positives: Tensor, unlabeled: Tensor, prior: float) -> _Normal:
    mean, deviation = _moments("positive_scores", positives)
    neg_mean, neg_deviation = _negatives_moments(mean, deviation, unlabeled, prior)
    log_odds = math.log(prior) - math.log1p(-prior) if prior > 0 else -math.inf
    if prior == 0 or neg_mean >= mean:
        return _Normal(0.0, 1.0, log_odds, 0.0, 0.0, (0.0, 0.0), positives.device)
    # −(s − μ⁺)²/2σ⁺² + (s − μ⁻)²/2σ⁻², written around the middle of the means, where neither square is large, and in
    # units of σ⁺.
    half = (mean - neg_mean) / 2 / deviation
    narrower = (deviation / neg_deviation) ** 2
    bend, slope = (narrower - 1) / 2, half * (narrower + 1)
    constant = log_odds + math.log(neg_deviation / deviation) + half**2 * bend
    turn = -slope / (2 * bend) if bend else math.inf
    rising = (max(-_FURTHEST, turn), _FURTHEST) if bend > 0 else (-_FURTHEST, min(_FURTHEST, turn))
    model = _Normal((mean + neg_mean) / 2, deviation, constant, slope, bend, rising, positives.device)
    return _lowered(model, unlabeled, prior)


def _lowered(model: _Normal, unlabeled: Tensor, prior: float) -> _Normal:
    """With the log odds lowered by a constant, by bisection, where p is above π in the mean over the unlabeled scores.

    Otherwise more would be taken for positives than there are: where scores are not normal, and past the turning point.
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
    mean, deviation = scores.mean().item(), scores.std(correction=0).item()
    if deviation == 0:
        raise ValueError(f"{name} must hold at least two different scores for family='normal', got {mean} alone")
    if deviation == math.inf:
        raise ValueError(f"{name} must hold scores whose squares fp64 can hold, got {scores[-1].item()}")
    return mean, deviation


def _negatives_moments(mean: float, deviation: float, unlabeled: Tensor, prior: float) -> tuple[float, float]:
    """Mean and deviation of f⁻, by expectation maximisation with π and f⁺ as they are.

    Not from moments, as μ_u = πμ⁺ + (1 − π)μ⁻ would suggest: where f⁺ or π is a little off, the variance that is left
    for the negatives may be negative.
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


def _fit_isotonic(positives: Tensor, unlabeled: Tensor, prior: float) -> _Isotonic:
    samples = [sample.cpu().numpy() for sample in (positives, unlabeled)]
    places = np.unique(np.concatenate(samples))
    of_positives, of_unlabeled = (
        np.bincount(np.searchsorted(places, sample), minlength=len(places)) for sample in samples
    )
    starts, of_positives, of_unlabeled = _pool(of_positives, of_unlabeled)
    with np.errstate(divide="ignore"):  # a block of positives alone
        quotient = (of_positives / len(positives)) / (of_unlabeled / len(unlabeled))
    values = np.minimum(1.0, prior * quotient) if prior > 0 else np.zeros(len(starts))
    # A block has its value from its first score to its last.
    first, last = places[starts], places[np.append(starts[1:], len(places)) - 1]
    ends, index = np.unique(np.stack([first, last], 1).ravel(), return_index=True)
    heights = np.repeat(values, 2)[index]
    if len(ends) == 1:
        ends, heights = np.append(ends, np.nextafter(ends, np.inf)), np.repeat(heights, 2)
    as_tensor = (torch.from_numpy(array).to(positives.device) for array in (ends, heights))
    return _Isotonic(*as_tensor)


def _pool(above: np.ndarray, below: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours put together until above/below rises from block to block: where each starts, and its two sums.

    Each pass puts together all neighbours that do not rise. The counts are integers, and so exact.
    """
    starts = np.arange(len(above))
    while True:
        rises = above[:-1] * below[1:] < above[1:] * below[:-1]
        if rises.all():
            return starts, above, below
        kept = np.flatnonzero(np.append(True, rises))
        starts, above, below = starts[kept], np.add.reduceat(above, kept), np.add.reduceat(below, kept)

"""How likely a negative is a positive in truth, as a function of its score, and the weights that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, get_args

import torch
from torch import Tensor

from cw_ext import checks
from cw_ext.posteriors import Isotonic, Normal, fit_isotonic, fit_normal
from cw_ext.score_curve import ScoreCurve
from cw_ext.score_samples import Scores, sorted_scores

Family = Literal["normal", "isotonic"]

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
    _model: Normal | Isotonic

    @classmethod
    def fit(
        cls, positive_scores: Scores, unlabeled_scores: Scores, prior: float, *, family: Family = "normal"
    ) -> FalseNegatives:
        """Estimate p_FN.

        Scores move with training, so fit anew from time to time, such as each epoch.

        Args:
            positive_scores: of positives that training has not used, any shape: a tensor on any device, an array or a
                sequence, of any floating dtype. Scores that training has pushed up would hide the false negatives,
                which it has not; and false negatives that it has pushed down, such as the same few items drawn for a
                query again and again, no longer score as positives and cannot be found by their scores. On the scale
                of the scores as the loss sees them (½·cosine by default). −∞ is padding and is left out.
            unlabeled_scores: of unknown items that were drawn uniformly, likewise; not of negatives that a sampler
                chose by their scores, for which p_FN at a score is the same.
            prior: π, the share of positives among the unlabeled, in [0, 1); `cw_ext.prior.estimate_prior` finds it.
            family: "normal" or "isotonic", see above.

        Returns:
            The estimate, fitted in fp64 on the device of `positive_scores`, which is waited for.

        Raises:
            TypeError, ValueError: the message contains the argument, what was expected and what came: scores that are
                not floating-point, none at all, a NaN or +∞ among them, for "normal" no two that differ, or some
                whose squares exceed fp64; a prior outside [0, 1).
        """
        prior = _share("prior", prior)
        checks.choice("family", family, get_args(Family))
        positives = _sample("positive_scores", positive_scores)
        unlabeled = _sample("unlabeled_scores", unlabeled_scores).to(positives.device)
        low = min(positives[0].item(), unlabeled[0].item())
        high = max(positives[-1].item(), unlabeled[-1].item())
        model = (fit_normal if family == "normal" else fit_isotonic)(positives, unlabeled, prior)
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
        prior: π in [0, 1). πN is rounded down as fp64 has it: .29 of 100 are 28.

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
    prior = _share("prior", prior)
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


def _share(name: str, value: object) -> float:
    share = checks.number(name, value, "in [0, 1)")
    if not 0 <= share < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return share


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

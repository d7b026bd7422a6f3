"""The probability that a negative is really a positive, as a function of its score, and weights computed from it."""

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

# fp32, the dtype of most scores in the loss, cannot distinguish more places.
_MOST_KNOTS = 2**24


class DelayedKind(IntEnum):
    """The kinds of observations in a stream where some positives arrive late. See :func:`delayed_weights`.

    >>> from cw_ext.false_negatives import DelayedKind
    >>> int(DelayedKind.FAKE_NEGATIVE)
    2
    """

    IMMEDIATE_POSITIVE = 0  # a positive that arrived during the waiting time
    REAL_NEGATIVE = 1  # observed as a negative, and really one
    FAKE_NEGATIVE = 2  # observed as a negative; the positive arrives later
    DELAYED_POSITIVE = 3  # a fake negative, observed again when its positive arrives


@dataclass(frozen=True, eq=False, repr=False)  # a comparison of tensors is not a bool
class FalseNegatives:
    """The probability p_FN that a negative is really a positive, estimated as a function of its score.

    Weight each negative by 1 − p_FN to count doubtful negatives less. Make an estimate with :meth:`fit`, from the
    scores of held-out positives and of randomly drawn items. Then pass :meth:`curve` or :meth:`log_weights` to the
    loss, with `prior=0`: the loss's own correction would remove the same positives a second time.

    >>> import torch
    >>> from cw_ext import FalseNegatives, cw_loss
    >>> generator = torch.Generator().manual_seed(0)
    >>> held_out = 0.3 + 0.1 * torch.randn(500, generator=generator)  # scores of held-out positives
    >>> drawn = 0.1 * torch.randn(5000, generator=generator)  # scores of items drawn at random,
    >>> drawn[:500] += 0.3  # a tenth of which are positives
    >>> estimate = FalseNegatives.fit(held_out, drawn, prior=0.1)
    >>> estimate.probability(torch.tensor([0.0, 0.2, 0.4]))
    tensor([0.00, 0.33, 1.00])
    >>> pos_scores, neg_scores = torch.rand(8), torch.rand(8, 50)
    >>> loss = cw_loss(pos_scores, neg_scores, score_curve=estimate.curve())

    With f⁺ the density of the positives' scores, f_u the density of the unlabeled items' scores, and π the share of
    positives among the unlabeled items, p_FN(s) = min(1, π f⁺(s)/f_u(s)). The fit does not decrease with s. If f⁺ and π
    are correct, the weighted mean Σ (1 − p_FN) g / Σ (1 − p_FN) of any function g of the score tends to the mean of g
    over the true negatives. (Posterior weights are in arXiv 2111.00980, 2002.10261 and 2308.04380. The documentation
    describes the differences.)

    There are two families:

    - ``"normal"``: f⁺ is the normal density with the mean and deviation of the positive scores. f_u is the mixture
      π f⁺ + (1 − π) f⁻, where the normal density f⁻ has the maximum likelihood (found by expectation maximisation).
      p_FN is smooth, and below 1 for every finite score. If the deviations differ, the ratio f⁺/f⁻ has a turning point:
      p_FN rises on the side of both means, and is constant on the other side. If the mean of f⁻ is not below that of
      f⁺, the scores carry no information, and p_FN is π everywhere. If the mean of p_FN over the unlabeled scores would
      be above π (not for normal scores), a constant is subtracted from its log odds so that it is π.
    - ``"isotonic"``: the non-decreasing f⁺/f_u with the maximum likelihood, without a given shape. It is the isotonic
      regression of "is a positive" on both samples together, each with the same total weight (by the pool adjacent
      violators algorithm), converted from odds to the ratio. p_FN is piecewise linear between the scores. This family
      needs more scores than the normal one, at least a thousand positives. At the highest scores p_FN may reach 1.

    Attributes:
        prior: π.
        family: "normal" or "isotonic".
        low: the lowest score of the fit, without padding.
        high: the highest score of the fit, without padding.
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
        """Estimate p_FN from two samples of scores.

        Scores change during training, so fit again from time to time, for example before each epoch.

        Args:
            positive_scores: scores of positives that training has not used, any shape: a tensor on any device, an array
                or a sequence, of any floating dtype. They must be on the scale of the scores in the loss (½·cosine by
                default). −∞ is padding and is left out. Do not use training positives: training has raised their
                scores, so they no longer look like false negatives. False negatives that training has pushed down,
                such as the same few items drawn again and again for a query, cannot be found by their scores either.
            unlabeled_scores: scores of items that the query has not interacted with, drawn uniformly, in the same form.
                Use uniform items even if training draws negatives by their scores: p_FN at a score is the same.
            prior: π, the share of positives among the unlabeled items, in [0, 1). You can estimate it with
                :func:`cw_ext.prior.estimate_prior`.
            family: "normal" or "isotonic", see above.

        Returns:
            The estimate, fitted in fp64 on the device of `positive_scores`. This waits for the device.

        Raises:
            TypeError, ValueError: an argument is invalid: scores that are not floating-point, are empty or contain NaN
                or +∞; for "normal", scores that are all equal or whose squares overflow fp64; a prior outside [0, 1).
                The message names the argument, what was expected, and what it got.
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
            scores: any shape, fp16, bf16, fp32 or fp64, on any device; the device of the fitted scores avoids a copy.
                They get no gradient.

        Returns:
            Values in [0, 1] with the shape of `scores`, fp64 for fp64 scores, else fp32. They do not decrease with the
            score. NaN for a score of NaN.
        """
        return self._model.probability(_computed(scores))

    @torch.no_grad()
    def log_weights(self, scores: Tensor, *, strength: float = 1.0) -> Tensor:
        """The weights (1 − p_FN)^γ of negatives as logarithms, for the `neg_log_weights` argument of the loss.

        Args:
            scores: [..., N], as for :meth:`probability`.
            strength: γ ≥ 0. With 0 all weights are exactly 1.

        Returns:
            γ·log(1 − p_FN), with the shape and dtype of :meth:`probability`. −∞, which leaves the negative out, where
            p_FN is 1. NaN for a score of NaN.
        """
        strength = checks.non_negative_number("strength", strength)
        return self._log_weights(_computed(scores), strength)

    @torch.no_grad()
    def curve(self, knots: int = 257, strength: float = 1.0) -> ScoreCurve:
        """The same weights as a function of the score, for the `score_curve` argument of the loss.

        The kernels compute the weights from the scores, so you need no scores of the negatives yourself.

        Args:
            knots: K, 2 ≤ K ≤ 2**24, the number of evenly spaced scores from the lowest fitted one to the highest at
                which the log weight is stored. It is linear in between and constant beyond the ends. If p_FN is 1 at a
                knot, the weights are 0 up to its neighbours.
            strength: γ ≥ 0, as for :meth:`log_weights`.

        Returns:
            The curve, on the scores, with log weights in fp32 on the device of the fitted scores.
        """
        checks.whole_number("knots", knots, 2, _MOST_KNOTS)
        strength = checks.non_negative_number("strength", strength)
        # A curve needs a length even if all scores are equal.
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
    """Leave out the highest-scoring negatives of each row, as CVIR does (arXiv 2111.00980, algorithm 2).

    The ⌊πN⌋ highest of a row's N negatives are treated as its false negatives. This is done per row, since scores of
    different queries are rarely comparable (the paper ranks all samples together). The result is biased where the
    scores of positives and negatives overlap: false negatives with low scores stay, and true negatives with high scores
    are left out. Use it with `prior=0` in the loss.

    Args:
        neg_scores: [..., N], fp16, bf16, fp32 or fp64. −∞ is padding and does not count in N. They get no gradient.
        prior: π in [0, 1). πN is computed in fp64 and rounded down: .29 of 100 is 28.

    Returns:
        [..., N] for `neg_log_weights`: −∞ for the negatives left out, 0 for the others; fp64 for fp64 scores, else
        fp32. Of equal scores at the limit, the first ones are left out. A NaN is not ranked and keeps the weight 1, so
        that it shows in the loss.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.

    >>> import torch
    >>> from cw_ext import cw_loss
    >>> from cw_ext.false_negatives import cvir_log_weights
    >>> pos_scores = torch.tensor([0.2])
    >>> neg_scores = torch.tensor([[0.1, 0.4, -0.2, 0.3, 0.0]])
    >>> weights = cvir_log_weights(neg_scores, prior=0.4)  # leaves out 2 of 5
    >>> weights
    tensor([[0., -inf, 0., -inf, 0.]])
    >>> loss = cw_loss(pos_scores, neg_scores, neg_log_weights=weights)
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
    """Row weights for a stream where some positives arrive late, after DEFUSE (arXiv 2202.06472).

    A positive that has not arrived within the waiting time is first observed as a (fake) negative, and a second time
    when it arrives. Let f_dp(x) be the probability that x is such a delayed positive. DEFUSE's weights are 1 + f_dp for
    immediate positives and real negatives, f_dp for fake negatives (as positives), and 1 for delayed positives. Here
    all four are divided by 1 + f_dp. So each x counts once, and the mean over the stream is exactly the loss on the
    final labels. Without the division, x counts 1 + f_dp(x) times.

    You don't know which observed negatives are fake. Let z(x) be the probability that one is. Then each counts as both:
    as a positive with z times the weight of a fake negative, and as a negative with 1 − z times the weight of a real
    one. z is f_dp/(f_dp + 1 − f), where f is the probability that the final label is positive. In a ranking loss the
    rows are the positives (immediate, fake, delayed), and log(1 − z) goes into `neg_log_weights` of observed negatives.

    Args:
        kinds: [B], int32 or int64, values of :class:`DelayedKind`: 0 immediate positive, 1 real negative, 2 fake
            negative, 3 delayed positive. −1 is padding, with weight 0.
        f_dp: [B] in [0, 1], fp16, bf16, fp32 or fp64, checked on the CPU outside torch.compile. It gets no gradient.
            In rows of padding its value does not matter.

    Returns:
        [B] for `row_weights`, in fp64 for fp64, else fp32.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
        IndexError: a kind is out of range (checked on the CPU).

    >>> import torch
    >>> from cw_ext.false_negatives import delayed_weights
    >>> delayed_weights(torch.tensor([0, 2, 3]), torch.tensor([0.25, 0.25, 0.25]))
    tensor([1.0, 0.2, 0.8])
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
    share = checks.number(name, value, "a number in [0, 1)")
    if not 0 <= share < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return share


def _computed(scores: Tensor) -> Tensor:
    """Without gradient, in the dtype of the computation."""
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

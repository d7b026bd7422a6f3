"""By which weights `Scored` draws: functions of the candidates' scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cw_ext import checks

# (scores [B, K], pos_scores [B]) -> [B, K], the logarithms of the weights; −inf is never drawn.
LogWeight = Callable[[Tensor, Tensor], Tensor]

# FNE's constants: pairs in the assumed population, and the probability from which on the weight follows it.
_POPULATION = 10_000
_LEAST_PROBABILITY = 1e-3


def softmax(temperature: float) -> LogWeight:
    """Weights exp(s/τ_s): negatives as the model itself would choose items, as GenNi (arXiv 2208.03645) has them. At
    τ_s = τ/α this is the target p^α of MCNS (arXiv 2005.09863), where p is the model's softmax at τ.

    Args:
        temperature: τ_s > 0. Towards ∞ the candidates are equally likely, towards 0 the hardest is drawn, which is
            dynamic negative sampling.

    >>> sampler = Scored(interactions, 10, num_candidates=100, log_weight=softmax(0.1))
    """
    return _Softmax(checks.positive_number("temperature", temperature))


def fne(moments: Sequence[float], margin: float) -> LogWeight:
    """The weights by which FNE (arXiv 2308.04380; LuminosityX/FNE) draws a hard negative that is hardly a false one.

    With the normal densities f⁺ of matched pairs' scores and f⁻ of hard negatives', a score is a positive's with
    p = f⁺(s)/(f⁺(s) + 9,999·f⁻(s)). The weight is exp(−p/2) where p > .001, else exp(−(s − s⁺)²/2), and 0 for
    s ≤ μ⁺ − margin; where that leaves no candidate, the hardest is drawn. As exp(−p/2) ≥ .61, even a sure false
    negative can be drawn.

    Args:
        moments: μ⁺, σ⁺, μ⁻, σ⁻, the means and the deviations (> 0). FNE starts them anew each epoch and uses them
            once 200 pairs were seen: set `sampler.log_weight` to the new ones.
        margin: how far below μ⁺ a negative may score, > 0. FNE's scores are cosines: similarity="cosine".

    >>> sampler = Scored(interactions, 1, log_weight=fne((0.6, 0.1, 0.3, 0.1), 0.2), similarity="cosine")
    """
    if not isinstance(moments, Sequence) or len(moments) != 4:
        raise ValueError(f"moments must be four numbers, μ⁺, σ⁺, μ⁻ and σ⁻, got {moments!r}")
    pos_mean, neg_mean = (checks.number("moments", moments[k], "four numbers") for k in (0, 2))
    pos_deviation, neg_deviation = (checks.positive_number("moments' deviations", moments[k]) for k in (1, 3))
    return _Fne(pos_mean, pos_deviation, neg_mean, neg_deviation, checks.positive_number("margin", margin))


# Objects, not functions within functions, so that a sampler can be pickled.
@dataclass(frozen=True)
class _Softmax:
    temperature: float

    def __call__(self, scores: Tensor, pos_scores: Tensor) -> Tensor:
        return scores / self.temperature


@dataclass(frozen=True)
class _Fne:
    pos_mean: float
    pos_deviation: float
    neg_mean: float
    neg_deviation: float
    margin: float

    def __call__(self, scores: Tensor, pos_scores: Tensor) -> Tensor:
        pos_z = (scores - self.pos_mean) / self.pos_deviation
        neg_z = (scores - self.neg_mean) / self.neg_deviation
        log_ratio = math.log(self.neg_deviation / self.pos_deviation / (_POPULATION - 1))
        p = ((neg_z**2 - pos_z**2) / 2 + log_ratio).sigmoid()
        weights = torch.where(p > _LEAST_PROBABILITY, -p / 2, -((scores - pos_scores.unsqueeze(-1)) ** 2) / 2)
        weights = torch.where(scores <= self.pos_mean - self.margin, -torch.inf, weights)
        is_nan = scores.isnan()
        none_left = ((weights == -torch.inf) | is_nan).all(-1, keepdim=True)
        hardest = scores.masked_fill(is_nan, -torch.inf).amax(-1, keepdim=True)
        return torch.where(none_left & (scores == hardest), 0.0, weights)

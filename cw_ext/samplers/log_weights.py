"""The weights by which `Scored` draws, as functions of the candidates' scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cw_ext import checks

# (scores [B, K], pos_scores [B]) -> [B, K], the logarithms of the weights. −inf is never drawn.
LogWeight = Callable[[Tensor, Tensor], Tensor]

# FNE's constants: the number of pairs in the assumed population, and the lowest probability that the weight uses.
_POPULATION = 10_000
_LEAST_PROBABILITY = 1e-3


def softmax(temperature: float) -> LogWeight:
    """Weights exp(s/τ_s): negatives are drawn as the model itself would choose items, as in GenNi (arXiv 2208.03645).

    With τ_s = τ/α this is the target p^α of MCNS (arXiv 2005.09863), where p is the model's softmax at τ.

    >>> from cw_ext import Interactions, samplers
    >>> known = Interactions([0, 0, 1], [5, 2, 7], num_queries=2, num_items=300)
    >>> sampler = samplers.Scored(known, 10, num_candidates=100, log_weight=samplers.softmax(0.1))

    Args:
        temperature: τ_s > 0. For large values all candidates are equally likely. Towards 0 the hardest candidate is
            drawn, which is dynamic negative sampling.
    """
    return _Softmax(checks.positive_number("temperature", temperature))


def fne(moments: Sequence[float], margin: float) -> LogWeight:
    """The weights of FNE (arXiv 2308.04380; LuminosityX/FNE), for hard negatives that are probably not false ones.

    FNE fits normal densities: f⁺ to the scores of matched pairs, and f⁻ to the scores of hard negatives. The
    probability that a score is a positive's is p = f⁺(s)/(f⁺(s) + 9,999·f⁻(s)). The weight is exp(−p/2) if p > .001,
    else exp(−(s − s⁺)²/2), and 0 for s ≤ μ⁺ − margin. If that leaves no candidate, the hardest one is drawn. As
    exp(−p/2) ≥ .61, even a certain false negative can be drawn.

    >>> from cw_ext import Interactions, samplers
    >>> known = Interactions([0, 0, 1], [5, 2, 7], num_queries=2, num_items=300)
    >>> log_weight = samplers.fne((0.6, 0.1, 0.3, 0.1), margin=0.2)
    >>> sampler = samplers.Scored(known, 1, log_weight=log_weight, similarity="cosine")

    Args:
        moments: μ⁺, σ⁺, μ⁻, σ⁻, the means and the deviations (> 0). FNE estimates them again in each epoch and uses
            them after 200 pairs: set `sampler.log_weight` to the new weights.
        margin: > 0, how far below μ⁺ a negative may score. FNE's scores are cosines, so use similarity="cosine".
    """
    if not isinstance(moments, Sequence) or len(moments) != 4:
        raise ValueError(f"moments must be four numbers, μ⁺, σ⁺, μ⁻ and σ⁻, got {moments!r}")
    pos_mean, neg_mean = (checks.number("moments", moments[k], "four numbers") for k in (0, 2))
    pos_deviation, neg_deviation = (checks.positive_number("moments' deviations", moments[k]) for k in (1, 3))
    return _Fne(pos_mean, pos_deviation, neg_mean, neg_deviation, checks.positive_number("margin", margin))


# Classes instead of inner functions, so that a sampler can be pickled.
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

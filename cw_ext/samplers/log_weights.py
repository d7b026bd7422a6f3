"""By which weights `Scored` draws: functions of the candidates' scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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
    temperature = checks.positive_number("temperature", temperature)
    return lambda scores, pos_scores: scores / temperature


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
    least = pos_mean - checks.positive_number("margin", margin)

    def log_weight(scores: Tensor, pos_scores: Tensor) -> Tensor:
        pos_z, neg_z = (scores - pos_mean) / pos_deviation, (scores - neg_mean) / neg_deviation
        log_odds = (neg_z**2 - pos_z**2) / 2 + math.log(neg_deviation / pos_deviation / (_POPULATION - 1))
        p = log_odds.sigmoid()
        weights = torch.where(p > _LEAST_PROBABILITY, -p / 2, -((scores - pos_scores.unsqueeze(-1)) ** 2) / 2)
        weights = torch.where(scores <= least, -torch.inf, weights)
        none_left = (weights == -torch.inf).all(-1, keepdim=True)
        return torch.where(none_left & (scores == scores.amax(-1, keepdim=True)), 0.0, weights)

    return log_weight

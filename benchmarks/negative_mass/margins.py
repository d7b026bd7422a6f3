"""Margins whose true mass is known, on which estimates of it are tried."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TEMPERATURE = 0.1
# Margins of p⁺ and p⁻ are normal, on the scale of the half cosine (margins in [−1, 1], which these leave once in 1e15).
# The row's positive has the average score of positives, so that p⁺ has mean 0. A negative is above it once in 44 times.
# exp(d/τ) is log-normal with a deviation of 1 in its logarithm, and has moments in closed form. A wider distribution
# would have such heavy tails that standard errors of 20,000 rows could not be trusted.
SPREAD = 0.1
POSITIVE_MEAN = 0.0
NEGATIVE_MEAN = -0.2
WEIGHTINGS = ("sigmoid", "none")

# Exact to the last digits for both weightings.
_QUADRATURE_NODES = 96


class Setting(NamedTuple):
    """What a row draws: N from the mixture with share π of positives, M extra positives.

    With none C = ω(0), which need not be μ⁺; with the sigmoid it is, by the symmetry of these margins. The extra
    positives, which are known ones, score `shift` deviations higher than those among the N.
    """

    prior: float = 0.1
    negatives: int = 1000
    positives: int = 10
    shift: float = 0.0

    @property
    def known_mean(self) -> float:
        return POSITIVE_MEAN + self.shift * SPREAD


def truth(weighting: str, mean: float) -> tuple[float, float]:
    """Mean and variance of ω(d)·exp(d/τ) for margins d ~ N(mean, SPREAD²), not by the code under test.

    Args:
        weighting: "none", by the moments of the log-normal; or "sigmoid" with ρ = τ, by Gauss-Hermite quadrature.
        mean: of the margins.

    Raises:
        ValueError: another weighting.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting}")
    if weighting == "none":
        deviation = SPREAD / TEMPERATURE
        value = math.exp(mean / TEMPERATURE + deviation**2 / 2)
        return value, value**2 * math.expm1(deviation**2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(_QUADRATURE_NODES)
    scaled = (mean + SPREAD * nodes) / TEMPERATURE
    values = np.exp(scaled) / (1 + np.exp(scaled))  # σ(−d/τ)·exp(d/τ)
    weights = weights / weights.sum()
    value = float(weights @ values)
    return value, float(weights @ (values - value) ** 2)


def draw(setting: Setting, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Margins of the negatives [rows, N] and of the extra positives [rows, M], fp64."""
    negatives, positives = (rows, setting.negatives), (rows, setting.positives)
    is_positive = torch.rand(negatives, generator=generator, dtype=torch.float64) < setting.prior
    mean = torch.where(is_positive, POSITIVE_MEAN, NEGATIVE_MEAN)
    margins = torch.randn(negatives, generator=generator, dtype=torch.float64) * SPREAD + mean
    return margins, torch.randn(positives, generator=generator, dtype=torch.float64) * SPREAD + setting.known_mean

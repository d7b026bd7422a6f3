"""Weights 1 − p_FN beside the correction: bias and spread where known positives score like hidden ones, or higher.

The margins are those of the command. Known positives are the M extra ones of the correction, and those that p_FN is
fitted on. Their mean may be SHIFT deviations higher, since a model gives higher scores to positives that it was trained
on, or that users find first, than to those that are still hidden. CVIR leaves out the ⌊πN⌋ highest negatives of each
row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.common import reporting
from benchmarks.negative_mass.margins import NEGATIVE_MEAN, TEMPERATURE, WEIGHTINGS, Setting, draw, truth
from cw_ext import FalseNegatives, cw_loss
from cw_ext.false_negatives import Family, cvir_log_weights
from cw_ext.parameters import DEFAULTS

PRIORS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
SHIFTS = (0.0, 0.5)
SETTINGS = tuple(Setting(prior=prior, shift=shift) for shift in SHIFTS for prior in PRIORS)

# Each fit serves a part of the rows, so that standard errors hold what fits differ by.
FITS = 20
# Scores that a fit sees.
KNOWN, UNLABELED = 10_000, 100_000

LABELS = {
    "none": "no weights",
    "corrected": "correction, no floor",
    "floored": f"correction, floor {DEFAULTS['floor']}",
    "normal": "1 − p, normal",
    "isotonic": "1 − p, isotonic",
    "cvir": "CVIR",
}


def ways_of(setting: Setting, generator: torch.Generator) -> dict[str, Callable[[Tensor, Tensor], dict[str, Any]]]:
    """What each way gives cw_loss, from the margins of the negatives and of the extra positives.

    p_FN is fitted once, to separate scores.
    """
    prior = setting.prior
    unlabeled, known = draw(setting._replace(negatives=UNLABELED, positives=KNOWN), 1, generator)
    normal, isotonic = (FalseNegatives.fit(known, unlabeled, prior, family=f) for f in get_args(Family))
    return {
        "none": lambda margins, extra: {},
        "corrected": lambda margins, extra: {"prior": prior, "extra_pos_scores": extra, "floor": 1e-6},
        "floored": lambda margins, extra: {"prior": prior, "extra_pos_scores": extra},
        "normal": lambda margins, extra: {"neg_log_weights": normal.log_weights(margins)},
        "isotonic": lambda margins, extra: {"neg_log_weights": isotonic.log_weights(margins)},
        "cvir": lambda margins, extra: {"neg_log_weights": cvir_log_weights(margins, prior)},
    }


def measure(
    setting: Setting, weightings: Sequence[str], rows: int, generator: torch.Generator
) -> dict[str, dict[str, dict[str, float]]]:
    """Estimate the mass in each row, in all ways from the same draws.

    Args:
        setting: what to draw.
        weightings: see :func:`benchmarks.negative_mass.margins.truth`.
        rows: a multiple of :data:`FITS`, at least twice as many.
        generator: of the draws.

    Returns:
        Per weighting and way, relative to the true mass: ``"bias"`` with its standard error ``"bias_se"``, and
        ``"std"``.
    """
    found: dict[tuple[str, str], list[Tensor]] = {(w, name): [] for w in weightings for name in LABELS}
    for _ in range(FITS):
        ways = ways_of(setting, generator)
        margins, extra = draw(setting, rows // FITS, generator)
        pos = torch.zeros(len(margins), dtype=torch.float64)
        for name, way in ways.items():
            arguments = way(margins, extra)
            # The loss is log(N·G), N the negatives that are not masked out.
            live = (arguments.get("neg_log_weights", margins) > -math.inf).sum(1)
            for weighting in weightings:
                losses = cw_loss(
                    pos, margins, temperature=TEMPERATURE, weighting=weighting, reduction="none", **arguments
                )
                found[weighting, name].append(losses - live.log())
    result: dict[str, dict[str, dict[str, float]]] = {weighting: {} for weighting in weightings}
    for (weighting, name), losses in found.items():
        relative = torch.exp(torch.stack(losses)) / truth(weighting, NEGATIVE_MEAN)[0]
        result[weighting][name] = {
            "bias": float(relative.mean()) - 1,
            "bias_se": float(relative.mean(1).std()) / math.sqrt(FITS),
            "std": float(relative.std()),
        }
    return result


def whole_rows(rows: int) -> int:
    """Return the number of rows to measure instead of `rows`, which is the same for each fit."""
    return max(2, round(rows / FITS)) * FITS


def run(rows: int, generator: torch.Generator, done: Callable[[], object]) -> list[dict[str, Any]]:
    """Measure all settings, a point each, of :func:`whole_rows`; `done` is called after each."""
    points = []
    for setting in SETTINGS:
        points.append({**setting._asdict(), "estimates": measure(setting, WEIGHTINGS, whole_rows(rows), generator)})
        done()
    return points


def describe(report: Mapping[str, Any], weighting: str) -> str:
    """Return the table of one weighting, a row per setting: bias ± standard error (standard deviation)."""
    rows = [
        ["{prior:g}, {shift:g}".format(**point), *(_cell(point["estimates"][weighting][name]) for name in LABELS)]
        for point in report["estimated"]
    ]
    return "\n".join(
        [
            f"weighting {weighting}, known positives some deviations above hidden ones",
            "mass, % of μ⁻: bias ± standard error (standard deviation)",
            reporting.format_table(["π, deviations", *LABELS.values()], rows),
        ]
    )


def _cell(estimate: Mapping[str, float]) -> str:
    bias, error, std = (100 * estimate[name] for name in ("bias", "bias_se", "std"))
    return f"{bias:+z.2f} ± {error:.2f} ({std:.1f})"

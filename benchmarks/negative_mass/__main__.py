"""Check whether the correction finds the true negatives' mass, on made-up data where the truth is known.

Every row draws N margins from the mixture π·p⁺ + (1 − π)·p⁻, and M margins from p⁺. From these, cw_loss estimates the
mean of ω(d)·exp(d/τ) over p⁻, which is G = exp(loss)/N. A closed form or a quadrature gives the truth.

The first table shows the bias of the estimate (± its standard error) and its standard deviation (in brackets) over the
rows, in percent of the truth. The second table shows the same for the loss itself, against log(N·truth). The
uncorrected loss, the true π, wrong values of π and the floors all see the same draws. Everything is in fp64.

The third table puts weights 1 − p_FN, estimated from scores, beside the correction. It includes data where known
positives score higher than hidden ones.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import command, reporting
from benchmarks.common.arguments import add_out, non_negative_int, positive_int
from benchmarks.negative_mass import estimated
from benchmarks.negative_mass.margins import (
    NEGATIVE_MEAN,
    POSITIVE_MEAN,
    SPREAD,
    TEMPERATURE,
    WEIGHTINGS,
    Setting,
    draw,
    truth,
)
from benchmarks.negative_mass.plot import plot_estimated, plot_mass
from cw_ext import cw_loss
from cw_ext.parameters import DEFAULTS

ROWS = 20_000
# Margins drawn at a time.
BLOCK = 2**18

SWEEPS: dict[str, tuple[Setting, ...]] = {
    "prior": tuple(Setting(prior=prior) for prior in (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)),
    "negatives": tuple(Setting(negatives=number) for number in (10, 30, 100, 300, 1000, 4000)),
    "positives": tuple(Setting(positives=number) for number in (0, 1, 2, 5, 10, 20, 50)),
}


class Estimator(NamedTuple):
    """How cw_loss is called: with which multiple of the true π, and above which floor."""

    label: str
    prior_factor: float
    # A logarithm needs a positive mass; this floor adds nothing visible to max(A − πC, 0).
    floor: float = 1e-6
    min_margin: float | None = None


ESTIMATORS = {
    "uncorrected": Estimator("uncorrected", 0.0),
    "corrected": Estimator("true π, no floor", 1.0),
    "floored": Estimator(f"true π, floor {DEFAULTS['floor']}", 1.0, DEFAULTS["floor"]),
    # The smallest margin that half cosines can have.
    "dcl": Estimator("true π, DCL's floor", 1.0, min_margin=-1.0),
    "half": Estimator("half of π, no floor", 0.5),
    "double": Estimator("twice π, no floor", 2.0),
}


def expected(setting: Setting, weighting: str, prior: float) -> tuple[float, float]:
    """Bias and standard deviation of (A − πC)/(1 − π), without any floor, both divided by the true mass μ⁻.

    With E C = μ⁺ (no shift) and π' the share of positives that is drawn, the bias is
    (π' − π)·(μ⁺ − μ⁻)/((1 − π)·μ⁻): none for the true π, π'·(μ⁺ − μ⁻)/μ⁻ for no correction. The variance is
    (Var A + π²·Var C)/(1 − π)².

    Args:
        setting: what is drawn.
        weighting: as for :func:`truth`.
        prior: π of the estimate, in [0, 1).
    """
    negative, negative_variance = truth(weighting, NEGATIVE_MEAN)
    positive, positive_variance = truth(weighting, POSITIVE_MEAN)
    share = setting.prior
    a = share * positive + (1 - share) * negative
    a_variance = share * (positive_variance + positive**2) + (1 - share) * (negative_variance + negative**2) - a**2
    c, c_variance = (0.5 if weighting == "sigmoid" else 1.0), 0.0
    if setting.positives:
        c, c_variance = truth(weighting, setting.known_mean)
        c_variance /= setting.positives
    mass = (a - prior * c) / (1 - prior)
    variance = (a_variance / setting.negatives + prior**2 * c_variance) / (1 - prior) ** 2
    return mass / negative - 1, math.sqrt(variance) / negative


def estimators_of(setting: Setting) -> dict[str, tuple[Estimator, float]]:
    """The estimators and the π of each; without those whose π is not below 1."""
    priors = {name: estimator.prior_factor * setting.prior for name, estimator in ESTIMATORS.items()}
    return {name: (estimator, priors[name]) for name, estimator in ESTIMATORS.items() if priors[name] < 1}


def summarize(losses: Tensor, uncorrected: Tensor, setting: Setting, weighting: str, name: str) -> dict[str, float]:
    """Describe the estimates of one estimator.

    Args:
        losses: [rows], of the estimator; at least two rows.
        uncorrected: [rows], the losses with π = 0 of the same draws.
        setting: what was drawn.
        weighting: as for :func:`truth`.
        name: key in :data:`ESTIMATORS`.

    Returns:
        Relative to the true mass: ``"bias"`` and ``"std"`` with their standard errors (``"bias_se"``, ``"std_se"``) and
        what they would be without a floor (``"expected_bias"``, ``"expected_std"``). Of the loss against log(N·μ⁻):
        ``"loss_bias"``, ``"loss_bias_se"``, ``"loss_std"``. ``"at_floor"``: the share of rows where the floor binds.
    """
    estimator, prior = estimators_of(setting)[name]
    log_mass = math.log(truth(weighting, NEGATIVE_MEAN)[0])
    log_n = math.log(setting.negatives)
    relative = torch.exp(losses - log_n - log_mass)
    std = relative.std()
    fourth = ((relative - relative.mean()) ** 4).mean() / std**4
    if estimator.min_margin is None:
        log_least = uncorrected + math.log(estimator.floor)
    else:
        log_least = torch.full_like(losses, estimator.min_margin / TEMPERATURE + log_n)
    at_floor = losses + math.log1p(-prior) <= log_least + 1e-9
    expected_bias, expected_std = expected(setting, weighting, prior)
    rows = len(losses)
    return {
        "bias": float(relative.mean()) - 1,
        "bias_se": float(std) / math.sqrt(rows),
        "expected_bias": expected_bias,
        "std": float(std),
        "std_se": float(std * ((fourth - 1).clamp(min=0) / (4 * rows)).sqrt()),
        "expected_std": expected_std,
        "loss_bias": float(losses.mean()) - log_n - log_mass,
        "loss_bias_se": float(losses.std()) / math.sqrt(rows),
        "loss_std": float(losses.std()),
        "at_floor": float(at_floor.double().mean()),
    }


def measure(
    setting: Setting, weightings: Sequence[str], rows: int, generator: torch.Generator
) -> dict[str, dict[str, dict[str, float]]]:
    """Estimate the mass in each row, with all estimators from the same draws.

    Args:
        setting: what to draw.
        weightings: see :func:`truth`.
        rows: at least 2.
        generator: of the draws.

    Returns:
        The result of :func:`summarize`, per weighting and estimator.
    """
    estimators = estimators_of(setting)
    losses: dict[tuple[str, str], list[Tensor]] = {(w, name): [] for w in weightings for name in estimators}
    per_block = max(1, BLOCK // (setting.negatives + setting.positives))
    for start in range(0, rows, per_block):
        margins, extra = draw(setting, min(per_block, rows - start), generator)
        pos = torch.zeros(len(margins), dtype=torch.float64)
        for (weighting, name), blocks in losses.items():
            estimator, prior = estimators[name]
            blocks.append(
                cw_loss(
                    pos,
                    margins,
                    extra_pos_scores=extra,
                    temperature=TEMPERATURE,
                    prior=prior,
                    weighting=weighting,
                    floor=estimator.floor,
                    min_margin=estimator.min_margin,
                    reduction="none",
                )
            )
    found = {key: torch.cat(blocks) for key, blocks in losses.items()}
    return {
        weighting: {
            name: summarize(found[weighting, name], found[weighting, "uncorrected"], setting, weighting, name)
            for name in estimators
        }
        for weighting in weightings
    }


def run(rows: int, seed: int) -> dict[str, Any]:
    """Measure all settings of :data:`SWEEPS`, each once, and of `estimated`; return the content of results.json."""
    generator = torch.Generator().manual_seed(seed)
    settings = list(dict.fromkeys(setting for sweep in SWEEPS.values() for setting in sweep))
    points = {}
    with command.progress(total=len(settings) + len(estimated.SETTINGS), unit="setting") as progress:
        for setting in settings:
            points[setting] = {**setting._asdict(), "estimates": measure(setting, WEIGHTINGS, rows, generator)}
            progress.update()
        weighed = estimated.run(rows, generator, progress.update)
    return {
        "environment": reporting.environment(),
        "settings": {"rows": rows, "estimated_rows": estimated.whole_rows(rows), "seed": seed},
        "margins": {
            "temperature": TEMPERATURE,
            "spread": SPREAD,
            "positive_mean": POSITIVE_MEAN,
            "negative_mean": NEGATIVE_MEAN,
        },
        "labels": {name: estimator.label for name, estimator in ESTIMATORS.items()},
        "truth": {
            weighting: {
                "negative": truth(weighting, NEGATIVE_MEAN)[0],
                "positive": truth(weighting, POSITIVE_MEAN)[0],
            }
            for weighting in WEIGHTINGS
        },
        "sweeps": {name: [points[setting] for setting in sweep] for name, sweep in SWEEPS.items()},
        "estimated_labels": estimated.LABELS,
        "estimated": weighed,
    }


def describe(report: Mapping[str, Any], weighting: str) -> str:
    """Return the tables of one weighting, a row per setting: bias ± standard error (standard deviation)."""
    points = {_name(point): point["estimates"][weighting] for sweep in report["sweeps"].values() for point in sweep}
    mean = report["truth"][weighting]
    labels = report["labels"]
    mass, loss = [], []
    for name, estimates in points.items():
        found = [estimates.get(estimator) for estimator in labels]
        at_zero = f"{100 * estimates['corrected']['at_floor']:.2f}"
        mass.append([name, *(_cell(estimate, 100, "", 2) for estimate in found), at_zero])
        loss.append([name, *(_cell(estimate, 1, "loss_", 4) for estimate in found)])
    return "\n".join(
        [
            f"weighting {weighting}, μ⁻ = {mean['negative']:.4g}, μ⁺ = {mean['positive']:.4g}",
            "mass, % of μ⁻: bias ± standard error (standard deviation)",
            reporting.format_table(["π, N, M", *labels.values(), "A ≤ πC, %"], mass),
            "loss − log(N·μ⁻): mean ± standard error (standard deviation)",
            reporting.format_table(["π, N, M", *labels.values()], loss),
        ]
    )


def _name(point: Mapping[str, Any]) -> str:
    return "{prior:g}, {negatives}, {positives}".format(**point)


def _cell(estimate: Mapping[str, float] | None, scale: float, prefix: str, digits: int) -> str:
    if estimate is None:
        return "-"
    bias, error, std = (scale * estimate[prefix + name] for name in ("bias", "bias_se", "std"))
    return f"{bias:+z.{digits}f} ± {error:.{digits}f} ({std:.{digits - 1}f})"


def _number_of_rows(text: str) -> int:
    if (rows := positive_int(text)) < 2:
        raise argparse.ArgumentTypeError(f"expected at least 2, for a standard deviation, got {text!r}")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser("python -m benchmarks.negative_mass", __doc__, interrupted="nothing is written")
    parser.add_argument(
        "--rows",
        type=_number_of_rows,
        default=ROWS,
        help=f"estimates per setting; the third table rounds to a multiple of {estimated.FITS}, at least "
        f"{2 * estimated.FITS}",
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the draws")
    add_out(parser)
    arguments = parser.parse_args(argv)
    directory = arguments.out or reporting.default_directory("negative-mass")
    return command.run(lambda: _run(arguments.rows, arguments.seed, directory))


def _run(rows: int, seed: int, directory: Path) -> None:
    reporting.make_writable_directory(directory)
    report = run(rows, seed)
    written = [directory / "results.json"]
    reporting.write_json(written[0], report)
    for weighting in WEIGHTINGS:
        print(describe(report, weighting), end="\n\n")
        print(estimated.describe(report, weighting), end="\n\n")
        for name, plot in ((weighting, plot_mass), (f"{weighting}-estimated", plot_estimated)):
            written.append(directory / f"{name}.png")
            plot(report, weighting, written[-1])
    reporting.print_results(*written)


if __name__ == "__main__":
    sys.exit(main())

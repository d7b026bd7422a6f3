"""Accuracy against the planted share of false negatives, and the share as it is estimated."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.common import reporting

# Okabe and Ito's palette, as in training/plots.py; their yellow is too faint for lines, and is a brown here.
_STYLES = {
    "infonce": ("#000000", "X"),
    "sl": ("#E69F00", "D"),
    "dcl": ("#D55E00", "s"),
    "pucl": ("#009E73", "^"),
    "cw-weights": ("#56B4E9", "v"),
    "cw": ("#0072B2", "o"),
    "cvir": ("#E69F00", "D"),
    "tedn": ("#56B4E9", "v"),
    "tedn-same-digit": ("#0072B2", "o"),
    "posterior": ("#009E73", "^"),
    "posterior-6": ("#994F00", "s"),
    "fne": ("#CC79A7", "P"),
}
_BY_ARGUMENTS = ("infonce", "sl", "dcl", "pucl", "cw-weights", "cw")
_ESTIMATED = ("infonce", "dcl", "cvir", "tedn", "tedn-same-digit", "posterior", "posterior-6", "fne")
_REFERENCES = {"pixels": ("pixels", ":"), "untrained": ("untrained encoder", "--")}
# Position of the batch as it is, left of the planted shares. It has more negatives, so no line leads to it.
_AS_IT_IS = -0.1
# So that error bars stand side by side.
_DODGE = 0.008


def plot_all(report: Mapping[str, Any], out: Path) -> list[Path]:
    """Draw PNGs into the folder `out`, and return their paths.

    results.png has the losses that are arguments of this one: test accuracy, its difference from the baseline's, and
    what the temperature changes. estimated.png has those whose weights are estimated, beside InfoNCE and DCL, and at
    last the estimated share. Each has those that were measured, and is left out where that is the baseline alone.

    Args:
        report: of :mod:`benchmarks.image_pairs`.
        out: a folder that exists.
    """
    drawn = []
    for file, names, draw_right in (
        ("results.png", _BY_ARGUMENTS, _draw_search),
        ("estimated.png", _ESTIMATED, _draw_estimates),
    ):
        measured = [name for name in names if name in report["labels"]]
        if measured != [report["baseline"]]:
            figure, right = _draw_accuracies(report, measured)
            draw_right(right, report, measured)
            reporting.save_figure(figure, out / file)
            drawn.append(out / file)
    return drawn


def _draw_accuracies(report: Mapping[str, Any], names: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with accuracies and differences, and axes on the right that are still empty."""
    figure = Figure(figsize=(16, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    settings, labels, baseline = (report[name] for name in ("settings", "labels", "baseline"))
    figure.suptitle(
        f"Pairs of views of digits: 1 nearest neighbour, {settings['labelled_per_digit']} labelled images per digit; "
        f"mean ± standard deviation of {settings['seeds']} seeds"
    )
    absolute, relative, right = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 0.9))
    base = {result["share"]: result["few"] for result in report["results"] if result["loss"] == baseline}
    for order, name in enumerate(names):
        shift = _DODGE * (order - (len(names) - 1) / 2)
        accuracies = {result["share"]: result["few"] for result in report["results"] if result["loss"] == name}
        _draw(absolute, accuracies, name, labels[name], shift)
        if name != baseline:
            differences = {
                share: [a - b for a, b in zip(values, base[share], strict=True)] for share, values in accuracies.items()
            }
            _draw(relative, differences, name, labels[name], shift)
    for name, (label, line) in _REFERENCES.items():
        level = statistics.mean(report["without_training"][name]["few"])
        absolute.axhline(level, color="#777777", linestyle=line, linewidth=1, label=label)
    relative.axhline(0, color="#000000", linewidth=0.8)
    absolute.set(title="test accuracy")
    relative.set(title=f"difference from {labels[baseline]} on the same seeds")
    planted = [share for share in base if share is not None]
    ticks = {share: f"{share:g}" for share in planted}
    label = "π, share of the negatives that show the same digit"
    for result in report["results"]:
        if result["share"] is None:
            ticks[_AS_IT_IS] = f"{result['prior']:.3f}\nof {result['negatives']}"
    if None in base:
        label += "; left: the batch as it is"
    for axes in (absolute, relative):
        axes.set_xticks([*ticks], [*ticks.values()])
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.legend(*absolute.get_legend_handles_labels(), loc="outside lower center", ncols=10, frameon=False)
    return figure, right


def _draw(axes: Axes, values: Mapping[float | None, Sequence[float]], name: str, label: str, shift: float) -> None:
    colour, marker = _STYLES[name]
    for as_it_is in (False, True):
        shares = [share for share in values if (share is None) == as_it_is]
        axes.errorbar(
            [(_AS_IT_IS if share is None else share) + shift for share in shares],
            [statistics.mean(values[share]) for share in shares],
            [statistics.stdev(values[share]) if len(values[share]) > 1 else 0.0 for share in shares],
            color=colour,
            marker=marker,
            linestyle="none" if as_it_is else "-",
            capsize=2,
            label=None if as_it_is else label,
        )


def _draw_search(axes: Axes, report: Mapping[str, Any], names: Sequence[str]) -> None:
    last = report["results"][-1]  # of the largest share
    for result in report["results"]:
        if result["share"] == last["share"] and result["loss"] in names:
            colour, marker = _STYLES[result["loss"]]
            temperatures, accuracies = zip(*result["validation"], strict=True)
            axes.semilogx(temperatures, accuracies, color=colour, marker=marker)
    axes.set_xticks(temperatures, [f"{temperature:g}" for temperature in temperatures])
    axes.minorticks_off()
    axes.set(title=f"validation accuracy at π = {last['prior']:.3g}", xlabel="τ, on the half cosine")
    axes.grid(alpha=0.3)


def _draw_estimates(axes: Axes, report: Mapping[str, Any], names: Sequence[str]) -> None:
    for name in names:
        estimates = {
            result["share"]: result["estimated_prior"]
            for result in report["results"]
            if result["loss"] == name and result["share"] is not None and None not in result["estimated_prior"]
        }
        if estimates:
            _draw(axes, estimates, name, report["labels"][name], 0.0)
    ends = [0, max(result["prior"] for result in report["results"])]
    axes.plot(ends, ends, color="#777777", linestyle="--", linewidth=1)
    axes.set(title="π, estimated in the last epoch", xlabel="π, as planted (dashed: the same)")
    axes.grid(alpha=0.3)

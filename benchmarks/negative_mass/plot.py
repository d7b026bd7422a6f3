"""Bias and spread of the estimated negative mass against π, N and M."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.common import reporting

# Okabe and Ito's palette, as in training/plots.py. DCL's floor is not drawn: it coincides with the true π.
# The floor's larger markers show behind those of the true π where the two agree.
_STYLES = {
    "uncorrected": ("#000000", "X", 6),
    "half": ("#E69F00", "s", 5),
    "double": ("#D55E00", "D", 5),
    "floored": ("#009E73", "^", 10),
    "corrected": ("#0072B2", "o", 5),
}
_ESTIMATED_STYLES = {
    "none": ("#000000", "X", 6),
    "cvir": ("#D55E00", "D", 5),
    "floored": ("#009E73", "^", 10),
    "corrected": ("#0072B2", "o", 5),
    "isotonic": ("#E69F00", "s", 5),
    "normal": ("#CC79A7", "v", 5),
}
_SWEEPS = {
    "prior": "π, share of positives among the negatives",
    "negatives": "N, negatives per row",
    "positives": "M, extra positives per row (0: C = ω(0))",
}
_SYMBOLS = {"prior": "π", "negatives": "N", "positives": "M"}
_STANDARD_ERRORS = 2
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def plot_mass(report: Mapping[str, Any], weighting: str, path: Path) -> None:
    """Draw relative bias and relative standard deviation against π, N and M into a PNG.

    Args:
        report: of :func:`benchmarks.negative_mass.run`.
        weighting: which of the report's.
        path: where the PNG goes.
    """
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    mean = report["truth"][weighting]
    ratio = mean["positive"] / mean["negative"]
    figure.suptitle(
        f"Estimated mass of the true negatives, weighting {weighting}, μ⁺ = {ratio:.1f} μ⁻, "
        f"{report['settings']['rows']} rows; bars: ±{_STANDARD_ERRORS} standard errors"
    )
    grid = figure.subplots(2, len(_SWEEPS), sharex="col", sharey="row")
    grid[0, 0].set(ylabel="bias, % of the truth")
    grid[0, 0].set_yscale("symlog", linthresh=1, linscale=0.7)
    grid[1, 0].set(ylabel="standard deviation, % of the truth", yscale="log")
    grid[1, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    grid[1, 0].yaxis.set_minor_formatter(NullFormatter())
    for axes in grid[:, 0]:
        axes.yaxis.set_major_formatter(_PLAIN)
    for (sweep, xlabel), (bias, std) in zip(_SWEEPS.items(), grid.T, strict=True):
        points = report["sweeps"][sweep]
        _scale_x(std, sweep, [point[sweep] for point in points])
        for axes, quantity in ((bias, "bias"), (std, "std")):
            _draw(axes, points, sweep, weighting, quantity, report["labels"])
        bias.axhline(0, color="#777777", linewidth=0.8)
        bias.set_title(", ".join(f"{_SYMBOLS[name]} = {points[0][name]:g}" for name in _SWEEPS if name != sweep))
        std.set_xlabel(xlabel)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_STYLES), frameon=False
    )
    reporting.save_figure(figure, path)


def plot_estimated(report: Mapping[str, Any], weighting: str, path: Path) -> None:
    """Draw bias and deviation of the weights 1 − p_FN beside the correction's against π into a PNG.

    Args:
        report: of :func:`benchmarks.negative_mass.run`.
        weighting: which of the report's.
        path: where the PNG goes.
    """
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Mass of the true negatives, weighting {weighting}; bars: ±{_STANDARD_ERRORS} standard errors")
    shifts = list(dict.fromkeys(point["shift"] for point in report["estimated"]))
    grid = figure.subplots(2, len(shifts), sharex=True, sharey="row")
    grid[0, 0].set(ylabel="bias, % of the truth")
    grid[0, 0].set_yscale("symlog", linthresh=1, linscale=0.7)
    grid[1, 0].set(ylabel="standard deviation, % of the truth", yscale="log")
    grid[1, 0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    grid[1, 0].yaxis.set_minor_formatter(NullFormatter())
    for axes in grid[:, 0]:
        axes.yaxis.set_major_formatter(_PLAIN)
    for shift, (bias, std) in zip(shifts, grid.T, strict=True):
        points = [point for point in report["estimated"] if point["shift"] == shift]
        for order, (name, (colour, marker, size)) in enumerate(_ESTIMATED_STYLES.items()):
            found = [point["estimates"][weighting][name] for point in points]
            x = [point["prior"] for point in points]
            style = {"color": colour, "marker": marker, "markersize": size, "zorder": 3 + order}
            y, error = ([100 * estimate[key] for estimate in found] for key in ("bias", "bias_se"))
            error = [_STANDARD_ERRORS * e for e in error]
            bias.errorbar(x, y, error, capsize=3, label=report["estimated_labels"][name], **style)
            std.plot(x, [100 * estimate["std"] for estimate in found], **style)
        for axes in (bias, std):
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
        bias.axhline(0, color="#777777", linewidth=0.8)
        bias.set_title(f"known positives score {f'{shift:g} deviations higher' if shift else 'as hidden ones do'}")
        std.set_xlabel(_SWEEPS["prior"])
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    reporting.save_figure(figure, path)


def _draw(
    axes: Axes,
    points: Sequence[Mapping[str, Any]],
    sweep: str,
    weighting: str,
    quantity: str,
    labels: Mapping[str, str],
) -> None:
    for order, (name, (colour, marker, size)) in enumerate(_STYLES.items()):
        known = [point for point in points if name in point["estimates"][weighting]]
        # M = 0 is another estimate, not the limit of few extra positives: no line leads to it.
        for part in ([p for p in known if p["positives"] == 0], [p for p in known if p["positives"] > 0]):
            estimates = [point["estimates"][weighting][name] for point in part]
            axes.errorbar(
                [point[sweep] for point in part],
                [100 * estimate[quantity] for estimate in estimates],
                [100 * _STANDARD_ERRORS * estimate[f"{quantity}_se"] for estimate in estimates],
                color=colour,
                marker=marker,
                markersize=size,
                capsize=3,
                zorder=3 + order,
                label=labels[name] if part and part[-1]["positives"] else None,
            )
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _scale_x(axes: Axes, sweep: str, values: Sequence[float]) -> None:
    if sweep == "prior":
        return
    if sweep == "negatives":
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(_PLAIN)

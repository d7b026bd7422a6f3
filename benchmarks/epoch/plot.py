"""Where the time of a training step goes, as stacked bars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.common import reporting

# Okabe and Ito's palette, as in training/plots.py, in an order that keeps neighbours apart.
_COLOURS = {
    "sampling": "#56B4E9",
    "queries": "#000000",
    "loss_forward": "#0072B2",
    "backward": "#E69F00",
    "optimizer": "#009E73",
    "rest": "#CC79A7",
}
_NAMES = {"fused": "fused", "reference": "eager"}
# Narrower segments have no room for their number.
_LEAST_LABELLED_PERCENT = 4


def plot_epoch(report: Mapping[str, Any], path: Path) -> None:
    """Draw the parts of a step of each backend into a PNG, in milliseconds and as shares of the step.

    Args:
        report: of :func:`benchmarks.epoch.measure`.
        path: where the PNG goes.
    """
    config = report["config"]
    costs = [report["backends"][backend] for backend in _NAMES]
    totals = [1e3 * cost["step"]["mean"] for cost in costs]

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{report['data']['name']}, {config['model']}, {report['loss']}: one training step, "
        f"B={config['batch_size']} D={config['dim']}, negatives {report['loss_settings']['negatives']}"
    )
    times, shares = figure.subplots(1, 2)
    labels = [
        f"{name}\n{'≈ ' if cost['extrapolated'] else ''}{cost['epoch_seconds']:,.1f} s/epoch"
        for name, cost in zip(_NAMES.values(), costs, strict=True)
    ]
    starts, share_starts = [0.0] * len(costs), [0.0] * len(costs)
    for part, colour in _COLOURS.items():
        widths = [1e3 * cost["parts"][part] for cost in costs]
        percents = [100 * width / total for width, total in zip(widths, totals, strict=True)]
        times.barh(labels, widths, left=starts, color=colour, label=part.replace("_", " "))
        bars = shares.barh(labels, percents, left=share_starts, color=colour)
        shown = [f"{percent:.0f}" if percent >= _LEAST_LABELLED_PERCENT else "" for percent in percents]
        shares.bar_label(bars, shown, label_type="center", color="white", fontweight="bold")
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
        share_starts = [start + percent for start, percent in zip(share_starts, percents, strict=True)]

    for row, total in enumerate(totals):
        times.annotate(f"{total:,.1f}", (total, row), xytext=(4, 0), textcoords="offset points", va="center")
    times.set(xlabel="ms per step, mean", title="Time", xlim=(0, 1.15 * max(totals)))
    shares.set(xlabel="% of the step", title="Shares", xlim=(0, 100))
    for axes in (times, shares):
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(_COLOURS), frameon=False)
    reporting.save_figure(figure, path)

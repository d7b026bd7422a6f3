"""Quality against cost of the kinds of negatives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.common import reporting

# Okabe and Ito's palette, as in training/plots.py.
_STYLES = {"sl": ("#E69F00", "s", "SL"), "cw": ("#0072B2", "o", "CW")}


def plot_kinds(report: Mapping[str, Any], path: Path) -> None:
    """Draw test NDCG@20 against the time of a step into a PNG, a point per kind and loss.

    Args:
        report: of :mod:`benchmarks.negative_kinds`, with the quality of one kind at least.
        path: where the PNG goes.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for loss, (colour, marker, name) in _STYLES.items():
        measured = [kind for kind in report["kinds"] if loss in kind["quality"]]
        for kind in measured:
            seconds, quality = kind["cost"]["seconds"], kind["quality"][loss]
            middle = 1e3 * seconds["median"]
            across = [[middle - 1e3 * seconds["q20"]], [1e3 * seconds["q80"] - middle]]
            up = [[quality["ndcg"] - min(quality["seeds"])], [max(quality["seeds"]) - quality["ndcg"]]]
            label = name if kind is measured[0] else None
            axes.errorbar(middle, quality["ndcg"], up, across, marker, color=colour, capsize=2, alpha=0.8, label=label)
            if kind["quality"].keys() == {loss} or loss == "cw":  # one label for both
                place = {"xytext": (5, 5), "textcoords": "offset points"}
                axes.annotate(kind["trained_with"], (middle, quality["ndcg"]), fontsize=8, **place)
    axes.set_xscale("log")
    for formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else ""))
    axes.set(
        xlabel=f"ms per step, {report['step']}, 20-80 %",
        ylabel=f"test NDCG@20 on {report['data']['name']}, mean and range of the seeds",
        title="Kinds of negatives: quality against cost",
    )
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    reporting.save_figure(figure, path)

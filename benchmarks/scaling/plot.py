"""Epochs on one and on two processes as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.common import reporting

# Okabe and Ito's palette, as in training/plots.py.
_COLOURS = ("#000000", "#0072B2", "#E69F00", "#56B4E9", "#D55E00")


def plot_scaling(report: Mapping[str, Any], path: Path) -> None:
    """Draw the seconds of an epoch, by way and arrangement, into a PNG.

    Args:
        report: of :mod:`benchmarks.scaling`.
        path: where the PNG goes.
    """
    ways = report["ways"]
    figure = Figure(figsize=(3 * len(ways) + 2, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (way, arrangements) in zip(figure.subplots(1, len(ways), squeeze=False)[0], ways.items(), strict=True):
        for place, (name, found) in enumerate(arrangements.items()):
            low, middle, high = (found["epoch_steps"] * found["step_seconds"][q] for q in ("q20", "median", "q80"))
            error = [[middle - low], [high - middle]]
            axes.bar(place, middle, yerr=error, color=_COLOURS[place], capsize=3, label=name)
            axes.annotate(f"{middle:.1f}", (place, high), xytext=(0, 3), textcoords="offset points", ha="center")
        axes.set(title=way, ylabel="s per epoch, median and 20-80 %")
        axes.set_xticks([])
        axes.margins(y=0.12)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"An epoch of {report['data']['name']}: B={report['batch_size']:,} D={report['dim']} N={report['negatives']:,}"
    )
    reporting.save_figure(figure, path)

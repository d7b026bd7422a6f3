"""Plots time and memory of a step against the number of items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.common import reporting
from benchmarks.growth.contestants import is_dense

MIB = 2**20
# Okabe and Ito's palette, as in training/plots.py; dense gradients are dashed.
_STYLES = {
    "drawn, dense": ("#0072B2", "o"),
    "drawn, sparse": ("#0072B2", "s"),
    "shared, dense": ("#009E73", "v"),
    "shared, sparse": ("#009E73", "^"),
    "eager CW": ("#D55E00", "D"),
    "eager softmax": ("#E69F00", "P"),
}


def plot_growth(report: Mapping[str, Any], path: Path) -> None:
    """Draw the seconds and the peak memory of each contestant's step into a PNG.

    Args:
        report: of :mod:`benchmarks.growth`, with a step that was measured at least.
        path: where the PNG goes.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    times, memories = figure.subplots(1, 2)
    for name, (colour, marker) in _STYLES.items():
        found = [(table["items"], table["contestants"].get(name)) for table in report["tables"]]
        style = {"color": colour, "marker": marker, "markersize": 5, "alpha": 0.8}
        style["linestyle"] = "--" if is_dense(name) else "-"
        timed = [(items, cost["seconds"]) for items, cost in found if cost]
        if timed:
            sizes = [items for items, _ in timed]
            low, middle, high = ([1e3 * seconds[q] for _, seconds in timed] for q in ("q20", "median", "q80"))
            times.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
            times.plot(sizes, middle, label=name, **style)
        weighed = [(items, cost["peak_extra_bytes"]) for items, cost in found if cost and cost["peak_extra_bytes"]]
        if weighed:
            memories.plot([items for items, _ in weighed], [peak / MIB for _, peak in weighed], **style)
    tables = [(table["items"], table["table_bytes"] / MIB) for table in report["tables"]]
    memories.plot(*zip(*tables), color="black", linestyle=":", label="the table itself")
    times.set(ylabel="ms per step, median and 20-80 %", title="Time")
    memories.set(ylabel="peak MiB of a step, without the table", title="Memory")
    for axes in (times, memories):
        axes.set(xscale="log", yscale="log", xlabel="items")
        axes.set_xticks([items for items, _ in tables])
        axes.xaxis.set_minor_formatter(NullFormatter())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
        axes.grid(alpha=0.3, which="both")
        axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=7, frameon=False)
    figure.suptitle(f"A training step against the number of items ({report['step']})")
    reporting.save_figure(figure, path)

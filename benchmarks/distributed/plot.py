"""Plots what steps over several processes send, and how long they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.common import reporting
from benchmarks.distributed.sent import SENT

MB = 1e6
# Okabe and Ito's palette, as in training/plots.py.
_COLOURS = {
    "per row": "#D55E00",
    "shared": "#009E73",
    "ids": "#000000",
    "vectors": "#0072B2",
    "own gradients": "#56B4E9",
    "ring": "#E69F00",
}


def plot_traffic(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw bytes and time of each way's largest measured step, and the arithmetic for a billion items, into a PNG.

    Args:
        reports: of :func:`benchmarks.distributed.measure.measure`, by number of processes.
        path: where the PNG goes.
    """
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    bytes_, times, larger = figure.subplots(1, 3)
    measured = [(report["processes"], step) for report in reports for step in report["measured"]]
    for way, colour in _COLOURS.items():
        ours = [(processes, step) for processes, step in measured if step["way"] == way]
        sizes = {_sizes(step) for _, step in ours}
        if not sizes:
            continue
        chosen = [(processes, step) for processes, step in ours if _sizes(step) == max(sizes)]
        items, negatives, rows = max(sizes)
        what = f"N={negatives:,}" if negatives else f"B={rows:,}"
        label = f"{way} ({items:,} items, {what})"
        style = {"color": colour, "marker": "o", "markersize": 5, "alpha": 0.8}
        counts = [processes for processes, _ in chosen]
        bytes_.plot(counts, [_sent(step) / MB for _, step in chosen], label=label, **style)
        bytes_.plot(counts, [_sent(step["predicted"]) / MB for _, step in chosen], color=colour, linestyle=":")
        low, middle, high = ([1e3 * step["seconds"]["step"][q] for _, step in chosen] for q in ("q20", "median", "q80"))
        times.fill_between(counts, low, high, color=colour, alpha=0.2, linewidth=0)
        times.plot(counts, middle, **style)
        most = max((p for p in reports[0]["predicted"] if p["way"] == way), key=_sizes)
        predicted = [p for p in reports[0]["predicted"] if p["way"] == way and _sizes(p) == _sizes(most)]
        larger.plot([p["processes"] for p in predicted], [_sent(p) / MB for p in predicted], **style)
    _finish(bytes_, "MB sent per process and step", "Measured (dotted: by arithmetic)", measured)
    _finish(times, "ms per step, median and 20-80 %", "Time", measured)
    _finish(larger, "MB sent per process and step", "A billion items, B=1,024: by arithmetic", None)
    figure.legend(*bytes_.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    reporting.save_figure(figure, path)


def _sizes(step: Mapping[str, Any]) -> tuple[int, int, int]:
    return step["items"], step["negatives"], step["batch_size"]


def _sent(step: Mapping[str, Any]) -> float:
    """In all; a logarithmic axis has no place for zero."""
    return sum(step[kind] for kind in SENT) or float("nan")


def _finish(axes: Axes, ylabel: str, title: str, measured: Sequence[tuple[int, Any]] | None) -> None:
    sent_something = any(value > 0 for line in axes.lines for value in line.get_ydata())  # one process sends nothing
    axes.set(xscale="log", yscale="log" if sent_something else "linear", xlabel="processes", ylabel=ylabel, title=title)
    axes.set_xticks(sorted({processes for processes, _ in measured}) if measured else [2, 8, 64, 1024])
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    axes.grid(alpha=0.3, which="both")
    axes.set_axisbelow(True)

"""Plots time, memory and share of the floor from the throughput benchmark."""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.common import reporting
from benchmarks.throughput.contestants import CONTESTANTS
from benchmarks.throughput.report import MIB
from benchmarks.throughput.shapes import Shape

# Okabe and Ito's palette, as in training/plots.py, and some of Tol's muted one; the markers differ too.
_STYLES = {
    "cw_ext": ("#0072B2", "o"),
    "graph": ("#CC79A7", "v"),
    "deterministic": ("#F0E442", "p"),
    "eager": ("#E69F00", "s"),
    "compile": ("#009E73", "^"),
    "checkpoint": ("#D55E00", "D"),
    "tuned": ("#56B4E9", "P"),
    "cce": ("#882255", "X"),
    "recompute": ("#332288", "h"),
    "ready-ids": ("#44AA99", "8"),
    "torch-search": ("#999933", "<"),
    "torch-isin": ("#117733", "H"),
    "numpy-sets": ("#CC6677", ">"),
    "numpy-choice": ("#661100", "*"),
    "bit-table": ("#AA4499", "d"),
    "floor": ("#000000", "x"),
}
_SIZES = {"negatives": "negatives per row N", "batch_size": "rows B"}


def plot(report: dict[str, Any], out: Path) -> list[Path]:
    """Draw what the report has numbers for.

    Args:
        report: of the throughput benchmark.
        out: directory for throughput_time.png, throughput_memory.png and throughput_floor.png.

    Returns:
        The files written.
    """
    costs = [cost for entry in report["shapes"] for cost in entry["contestants"].values()]
    written = []
    if costs:
        written.append(out / "throughput_time.png")
        _plot_sweeps(report, "time", "ms per step", written[-1])
    if any(cost["peak_extra_bytes"] is not None for cost in costs):
        written.append(out / "throughput_memory.png")
        _plot_sweeps(report, "memory", "peak extra MiB", written[-1])
    if any(cost["share_of_floor"] is not None for cost in costs):
        written.append(out / "throughput_floor.png")
        _plot_floor(report, written[-1])
    return written


def _plot_sweeps(report: dict[str, Any], quantity: str, label: str, path: Path) -> None:
    by_table = _entries_by_table(report)
    rows, columns = _layout(len(by_table))
    figure = _figure(6.5 * columns, 4.6 * rows, f"One training step of the CW loss: {quantity} against its size")
    for axes, (table, entries) in zip(_panels(figure, len(by_table)), by_table.items()):
        field, group, sweep = _longest_sweep(entries)
        for name, (colour, marker) in _STYLES.items():
            points = [(e["shape"][field], e["contestants"][name]) for e in sweep if name in e["contestants"]]
            if quantity == "time":
                sizes = [size for size, _ in points]
                low, middle, high = (
                    [1e3 * cost["seconds"][quantile] for _, cost in points] for quantile in ("q20", "median", "q80")
                )
                axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
            else:
                points = [(size, cost) for size, cost in points if (cost["peak_extra_bytes"] or 0) > 0]
                sizes = [size for size, _ in points]
                middle = [cost["peak_extra_bytes"] / MIB for _, cost in points]
            if sizes:
                style = "--" if name == "floor" else "-"
                axes.plot(sizes, middle, style, color=colour, marker=marker, markersize=5, label=name)
        axes.set(xscale="log", yscale="log", xlabel=_SIZES[field], ylabel=label)
        axes.set_title(f"{table.capitalize()}: {group}")
        _plain_ticks(axes, sorted({entry["shape"][field] for entry in sweep}))
        axes.grid(alpha=0.3, which="both")
    _legend(figure)
    reporting.save_figure(figure, path)


def _plot_floor(report: dict[str, Any], path: Path) -> None:
    by_table = _entries_by_table(report)
    rows, columns = _layout(len(by_table))
    tallest = max(map(len, by_table.values()))
    height = rows * (2.0 + 0.34 * tallest)
    figure = _figure(7.5 * columns, height, "Share of the floor's speed (the yardstick is 100 %)")
    for axes, (table, entries) in zip(_panels(figure, len(by_table)), by_table.items()):
        for name in CONTESTANTS:
            if name == "floor":
                continue
            colour, marker = _STYLES[name]
            shares = {
                position: 100 * entry["contestants"][name]["share_of_floor"]
                for position, entry in enumerate(entries)
                if entry["contestants"].get(name, {}).get("share_of_floor") is not None
            }
            if not shares:
                continue
            if name == "cw_ext":
                bars = axes.barh(list(shares), list(shares.values()), color=colour, label=name)
                axes.bar_label(bars, fmt="%.0f %%", padding=6, fontsize=8)
            else:
                axes.plot(
                    list(shares.values()), list(shares), marker, color=colour, markeredgecolor="white", label=name
                )
        axes.axvline(100, color=_STYLES["floor"][0], linestyle="--", linewidth=1)
        axes.set_yticks(range(len(entries)), [entry["label"] for entry in entries], fontsize=8)
        axes.set(xlabel="floor's median time / own median time, %", title=table.capitalize())
        axes.set_xlim(0, 1.15 * axes.get_xlim()[1])
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    _legend(figure)
    reporting.save_figure(figure, path)


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    return figure


def _legend(figure: Figure) -> None:
    """One legend for all panels, in the order of the contestants."""
    handles = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = [name for name in CONTESTANTS if name in handles]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=5, frameon=False)


def _layout(panels: int) -> tuple[int, int]:
    """Rows and columns: two panels side by side."""
    return -(-panels // 2), min(panels, 2)


def _panels(figure: Figure, panels: int) -> list[Axes]:
    rows, columns = _layout(panels)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.remove()
    return axes[:panels]


def _entries_by_table(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    by_table: dict[str, list[dict[str, Any]]] = {}
    for entry in filter(itemgetter("contestants"), report["shapes"]):
        by_table.setdefault(entry["table"], []).append(entry)
    return by_table


def _longest_sweep(entries: list[dict[str, Any]]) -> tuple[str, str, list[dict[str, Any]]]:
    """The shapes that differ in N alone, or in B alone, of those the most there are.

    Returns:
        Which of a shape's fields differs, what the shapes have in common in words, and their entries in its order.
    """
    sweeps = []
    for field in ("negatives", "batch_size"):
        groups: dict[Shape, list[dict[str, Any]]] = {}
        for entry in entries:
            if entry["shape"][field]:  # some kinds have no N
                groups.setdefault(replace(Shape(**entry["shape"]), **{field: 0}), []).append(entry)
        if not groups:
            continue
        common, sweep = max(groups.items(), key=lambda group: len(group[1]))
        rest = common.label.partition(" ")[2] if field == "batch_size" else common.group
        sweeps.append((field, rest, sorted(sweep, key=lambda entry, field=field: entry["shape"][field])))
    return max(sweeps, key=lambda found: len(found[2]))


def _plain_ticks(axes: Axes, values: list[int]) -> None:
    axes.set_xticks(values, [str(value) for value in values])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    # 2 and 5 are labelled too where few powers of ten are in view.
    low, high = axes.get_ylim()
    if high < 30 * low:
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""))
    else:
        axes.yaxis.set_minor_formatter(NullFormatter())

"""Learning curves and test metrics of training runs as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.common import reporting

# Okabe and Ito's palette, whose colours can be told apart with any common colour vision; the markers help too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def plot_runs(runs: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw validation NDCG@K against epochs, and test Recall@K and NDCG@K as bars, into a PNG.

    Where the runs have it, also balanced NDCG@K of the test against NDCG@K, a point per run in the colour of its curve.

    Args:
        runs: results of :func:`benchmarks.training.trainer.train`, at least one, all with the same K.
        path: where the PNG goes.
        title: heading of the figure.
    """
    k = runs[0]["k"]
    names = [run["loss"] for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run['loss']}, seed {run['config']['seed']}" for run in runs]
    colours = [COLOURS[index % len(COLOURS)] for index in range(len(runs))]

    is_balanced = all("balanced_ndcg" in run["test"] for run in runs)
    widths = (1.6, 1, 1, 1) if is_balanced else (1.6, 1, 1)
    figure = Figure(figsize=(16 if is_balanced else 13, 3.2 + 0.28 * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    curves, recall_bars, ndcg_bars, *rest = figure.subplots(1, len(widths), width_ratios=widths)

    for index, (run, name, colour) in enumerate(zip(runs, names, colours, strict=True)):
        epochs = [point["epoch"] for point in run["validation"]]
        ndcg = [point["ndcg"] for point in run["validation"]]
        marker = MARKERS[index % len(MARKERS)]
        curves.plot(epochs, ndcg, color=colour, marker=marker, markersize=5, label=name)
    curves.set(xlabel="epoch", ylabel=f"validation NDCG@{k}", title="Learning curves")
    curves.set_ylim(bottom=0)
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.grid(alpha=0.3)
    curves.legend(
        loc="upper left", bbox_to_anchor=(0, -0.17), ncols=2 if max(map(len, names)) > 9 else 4, frameon=False
    )

    for axes, metric, label in ((recall_bars, "recall", f"Recall@{k}"), (ndcg_bars, "ndcg", f"NDCG@{k}")):
        values = [run["test"][metric] for run in runs]
        bars = axes.barh(names, values, color=colours)
        axes.bar_label(bars, fmt="%.4f", padding=3)
        axes.set(xlabel=f"test {label}, mean over users", title=label, xlim=(0, 1.4 * max(*values, 1e-6)))
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)

    for axes in rest:
        for index, (run, colour) in enumerate(zip(runs, colours, strict=True)):
            point = (run["test"]["ndcg"], run["test"]["balanced_ndcg"])
            axes.plot(*point, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=8, linestyle="none")
        axes.set(
            xlabel=f"test NDCG@{k}", ylabel=f"balanced test NDCG@{k}, each item alike", title="NDCG, balanced NDCG"
        )
        axes.locator_params(nbins=5)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    reporting.save_figure(figure, path)

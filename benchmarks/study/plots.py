"""The study's plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.common import reporting
from benchmarks.study import parts, step_times
from benchmarks.study.published import HEALTH, LOSS_NAMES, SHORT_NAMES, published
from benchmarks.study.runs import Store
from benchmarks.study.summary import RERANKED, Summary, summarise
from benchmarks.training import effectiveness

# Okabe and Ito's palette, as in training/plots.py; markers distinguish what colour does not.
_BLUE, _ORANGE, _GREEN, _RED, _PINK, _SKY, _BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000"
)  # fmt: skip
_LOSS_STYLES = {
    "sl": (_ORANGE, "s", LOSS_NAMES["sl"]),
    "psl-tanh": (_GREEN, "^", LOSS_NAMES["psl-tanh"]),
    "slk": (_RED, "D", LOSS_NAMES["slk"]),
    "cw": (_BLUE, "o", LOSS_NAMES["cw"]),
    "cw-known-prior": (_SKY, "P", "CW, π = the share"),
}
# What is not a loss alone has its loss's colour and another line.
_ESTIMATED_STYLES = {
    LOSS_NAMES["sl"]: (_ORANGE, "s", "-"),
    LOSS_NAMES["psl-tanh"]: (_GREEN, "^", "-"),
    LOSS_NAMES["slk"]: (_RED, "D", "-"),
    LOSS_NAMES["cw"]: (_BLUE, "o", "-"),
    "SL, 1 − p_FN": (_ORANGE, "v", "--"),
    "SL@20, 1 − p_FN": (_RED, "v", "--"),
    "SL, adapter": (_PINK, "X", "--"),
    "CW, held-out positives": (_BLUE, "P", "--"),
    "SL, 1 − p_FN, π estimated": (_ORANGE, "*", "-."),
}
_MODEL_STYLES = {"mf": (_BLUE, "o", "MF"), "lightgcn": (_ORANGE, "s", "LightGCN"), "xsimgcl": (_GREEN, "^", "XSimGCL")}


# The estimated effectiveness of a number of negatives depends on this most, and it is not known.
_PREDICTED_PRIORS = (1e-4, 1e-3, 1e-2)


def _figure(*size: float) -> Figure:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> bool:
    reporting.save_figure(figure, path)
    return True


def _line(
    axes: Axes,
    xs: Sequence[float],
    summaries: Sequence[Summary | None],
    colour: str,
    marker: str,
    part: str = "test",
    **more: Any,
) -> bool:
    """Draw means with deviations where there are any."""
    known = [(x, summary) for x, summary in zip(xs, summaries, strict=True) if summary is not None]
    if not known:
        return False
    means = [summary.mean("ndcg", part) for _, summary in known]
    deviations = [summary.deviation("ndcg", part) for _, summary in known]
    axes.errorbar([x for x, _ in known], means, deviations, color=colour, marker=marker, capsize=2, **more)
    return True


def _plain_log_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def plot_comparison(store: Store, path: Path) -> bool:
    """Draw every loss's test NDCG@20 on every data set and model, with what is published, into a PNG."""
    panels = list(dict.fromkeys(dataset for dataset, _ in parts.COMPARED))
    points: list[tuple[int, str, str, Summary]] = []
    for (dataset, model), (losses, _) in parts.COMPARED.items():
        for loss in losses:
            summary = summarise(store, parts.compared_runs(store, dataset, model, loss))
            if summary:
                points.append((panels.index(dataset), model, loss, summary))
    if not points:
        return False
    shown = sorted({panel for panel, *_ in points})
    figure = _figure(4.6 * len(shown) + 1, 6)
    columns = figure.subplots(1, len(shown), squeeze=False)[0]
    for column, panel in zip(columns, shown, strict=True):
        known = {loss for p, _, loss, _ in points if p == panel}
        losses = [loss for loss in parts.COMPARED[panels[panel], "mf"][0] if loss in known]
        models = [model for model in _MODEL_STYLES if any(p[:2] == (panel, model) for p in points)]
        for model in models:
            colour, marker, name = _MODEL_STYLES[model]
            shift = 0.22 * (models.index(model) - (len(models) - 1) / 2)
            found = [(losses.index(loss) + shift, loss, s) for p, m, loss, s in points if (p, m) == (panel, model)]
            column.errorbar(
                [summary.mean("ndcg") for _, _, summary in found],
                [y for y, _, _ in found],
                xerr=[summary.deviation("ndcg") for _, _, summary in found],
                fmt=marker, color=colour, capsize=2, label=name,
            )  # fmt: skip
            known = [(y, published(panels[panel], model, loss)) for y, loss, _ in found]
            known = [(y, numbers[1]) for y, numbers in known if numbers]
            column.plot(
                [value for _, value in known], [y for y, _ in known], "|", color=colour, markersize=11,
                markeredgewidth=1.5, label=f"{name}, published",
            )  # fmt: skip
        column.set_yticks(range(len(losses)), [LOSS_NAMES[loss] for loss in losses])
        column.invert_yaxis()
        column.set(xlabel="test NDCG@20, mean ± deviation over seeds", title=SHORT_NAMES[panels[panel]])
        _finish(column)
        column.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    return _save(figure, path)


def plot_stages(store: Store, path: Path) -> bool:
    """Draw CW's stages and the sweeps of its hyper-parameters, test NDCG@20 on Health, into a PNG."""
    stages = {
        (weighting, correction, confidence): summarise(store, parts.stage_runs(weighting, correction, confidence))
        for weighting in parts.WEIGHTINGS
        for correction in parts.CORRECTIONS
        for confidence in parts.CONFIDENCES
    }
    if not any(stages.values()):
        return False
    figure = _figure(13, 8)
    grid = figure.subplot_mosaic([["stages", "stages", "stages"], list(parts.SWEEPS)[:3], list(parts.SWEEPS)[3:]])
    axes = grid["stages"]
    colours = {"none": _BLACK, "from 0": _BLUE, "from top 20": _RED}
    ticks = [(weighting, correction) for weighting in parts.WEIGHTINGS for correction in parts.CORRECTIONS]
    for index, (confidence, colour) in enumerate(colours.items()):
        found = [(x, stages[(*tick, confidence)]) for x, tick in enumerate(ticks)]
        xs = [x + 0.15 * (index - 1) for x, _ in found]
        label = f"confidence: {confidence}"
        _line(axes, xs, [summary for _, summary in found], colour, "osD"[index], linestyle="none", label=label)
    axes.set_xticks(range(len(ticks)), [f"{w}\n{'corrected' if c == 'yes' else 'uncorrected'}" for w, c in ticks])
    axes.set(ylabel="test NDCG@20", title="The parts of CW: weighting, correction (π = .05), confidence (τ_c = 1.25)")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    for name, values in parts.SWEEPS.items():
        axes = grid[name]
        _line(axes, values, [summarise(store, parts.sweep_runs(name, value)) for value in values], _BLUE, "o")
        if axes is not grid["temperature"]:
            axes.sharey(grid["temperature"])  # or small effects would look large
        if min(values) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
            axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.set(xlabel=name, ylabel="test NDCG@20")
        _finish(axes)
    return _save(figure, path)


def plot_estimated(store: Store, path: Path) -> bool:
    """Draw test NDCG@20 of what is done about false negatives against their share into a PNG."""
    figure = _figure(7.5, 5)
    axes = figure.subplots()
    drawn = False
    for name, of_shares in parts.estimated_runs(store).items():
        summaries = [summarise(store, runs) for runs in of_shares]
        colour, marker, line = _ESTIMATED_STYLES[name]
        drawn |= _line(axes, parts.ESTIMATED_SHARES, summaries, colour, marker, linestyle=line, label=name)
        known = [summary if summary and summary.has(RERANKED) else None for summary in summaries]
        label = f"{name}, reranked"
        _line(axes, parts.ESTIMATED_SHARES, known, colour, marker, RERANKED, linestyle=":", mfc="none", label=label)
    axes.set(
        xlabel="share of the negatives that are held-out positives of their users",
        ylabel="test NDCG@20, mean ± deviation over seeds",
        title=f"False negatives, estimated: {SHORT_NAMES[HEALTH]}, MF",
    )
    _finish(axes)
    if not drawn:
        return False
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def plot_noise(store: Store, path: Path) -> bool:
    """Draw test NDCG@20 against the share of false negatives into a PNG."""
    figure = _figure(7, 4.5)
    axes = figure.subplots()
    drawn = False
    for loss in parts.NOISE_LOSSES:
        colour, marker, name = _LOSS_STYLES[loss]
        summaries = [summarise(store, parts.noise_runs(store, loss, share)) for share in parts.SHARES]
        drawn |= _line(axes, parts.SHARES, summaries, colour, marker, label=name)
    axes.set(
        xlabel="share of the negatives that are held-out positives of their users",
        ylabel="test NDCG@20, mean ± deviation over seeds",
        title=f"False negatives: {SHORT_NAMES[HEALTH]}, MF",
    )
    _finish(axes)
    if not drawn:
        return False
    axes.legend(frameon=False)
    return _save(figure, path)


def _draw_times(axes: Axes, times: dict[str, dict[str, float]], colour: str, marker: str, label: str) -> None:
    """Draw medians of milliseconds, with bars from the 20 % to the 80 % quantile, against the number of negatives."""
    if not times:
        axes.set_axis_off()
        return
    low, middle, high = (
        1e3 * np.array([seconds[quantile] for seconds in times.values()]) for quantile in ("q20", "median", "q80")
    )
    bars = (middle - low, high - middle)
    axes.errorbar([int(number) for number in times], middle, bars, color=colour, marker=marker, label=label, capsize=2)
    axes.set_yscale("log")
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else ""))


def _predict(axes: Axes, store: Store, dataset: str) -> None:
    """Draw how effective each number of negatives should be, by SL's runs with the protocol's number."""
    runs = [run for run in parts.compared_runs(store, dataset, "mf", "sl") if run in store]
    known = [shares for run in runs if (shares := store[run].get("shares_below"))]
    if not known:
        axes.set_axis_off()
        return
    shares = np.mean(known, axis=0)
    numbers = np.unique(np.geomspace(1, parts.NUMBERS[-1], 60).astype(int))
    # On the scale of the ranks, where the items that were not trained on are uniform.
    items = np.linspace(0, 1, 10_001)
    for prior, style in zip(_PREDICTED_PRIORS, ("-", "--", ":"), strict=True):
        inputs = effectiveness.estimate_inputs(shares, items, prior)
        best = effectiveness.best_number(inputs)
        axes.plot(
            numbers,
            effectiveness.effectiveness(numbers, inputs),
            style,
            color=_BLACK,
            label=f"π = {prior:g}, best N = {best}",
        )
    axes.set(ylabel="estimated effectiveness", ylim=(-1, 1))
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.28))


def plot_numbers(store: Store, path: Path) -> bool:
    """Draw test NDCG@20 and the time of a step against the number of negatives into a PNG."""
    found = {
        (dataset, loss): [summarise(store, parts.number_runs(store, dataset, loss, number)) for number in parts.NUMBERS]
        for dataset in parts.NUMBER_DATASETS
        for loss in parts.NUMBER_LOSSES
    }
    datasets = [  # the protocol's number alone is no curve
        dataset
        for dataset in parts.NUMBER_DATASETS
        if any(len([summary for summary in found[dataset, loss] if summary]) > 1 for loss in parts.NUMBER_LOSSES)
    ]
    if not datasets:
        return False
    times = step_times.read(store.directory)
    figure = _figure(4.8 * len(datasets), 9.5)
    rows = figure.subplots(3, len(datasets), height_ratios=(3, 2, 2), squeeze=False)
    for dataset, (quality, cost, prediction) in zip(datasets, rows.T, strict=True):
        for loss in parts.NUMBER_LOSSES:
            colour, marker, name = _LOSS_STYLES[loss]
            _line(quality, parts.NUMBERS, found[dataset, loss], colour, marker, label=name)
            _draw_times(cost, times.get(dataset, {}).get(loss, {}), colour, marker, name)
        quality.set(ylabel="test NDCG@20", title=f"{SHORT_NAMES[dataset]}, MF")
        cost.set(ylabel="ms per step, one thread")
        _predict(prediction, store, dataset)
        for axes in (quality, cost, prediction):
            _plain_log_axis(axes)
            axes.set(xlabel="N, negatives per positive", xlim=(0.8, 1.25 * parts.NUMBERS[-1]))
            _finish(axes)
        quality.legend(frameon=False)
    return _save(figure, path)


# Name of the file: the function that draws it and returns whether there was anything to draw.
PLOTS: dict[str, Callable[[Store, Path], bool]] = {
    "comparison": plot_comparison,
    "stages": plot_stages,
    "noise": plot_noise,
    "estimated": plot_estimated,
    "numbers": plot_numbers,
}

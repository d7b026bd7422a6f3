"""Draws the plots of docs/choose and docs/guides: `python docs/pictures/choose_plots.py` writes choose-*.png beside it.

They show published measurements (benchmarks/results) so large that they can be read on a phone:

- choose-temperature.png: the search of the study, Amazon-Health, seed 0, all items as negatives, ½·cosine, D=64;
- choose-numbers.png: the number of negatives, MF on Amazon-Health, three seeds, and a step's time on one thread;
- choose-kinds.png: kinds of negatives, MF on MovieLens-100K, three seeds (python -m benchmarks.negative_kinds);
- choose-prior-bias.png: made-up margins (python -m benchmarks.negative_mass), sigmoid weights, N = 1000, M = 10;
- choose-images.png: pairs of digits (python -m benchmarks.image_pairs), five seeds.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
TABLES = (RESULTS / "study" / "tables.md").read_text(encoding="utf-8")
# Okabe and Ito's palette.
BLUE, ORANGE, GREEN, RED, PINK, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#000000"


def make_figure(rows: int = 1, height: float = 3.9) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.6, height), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, squeeze=False)[:, 0])
    for each in axes:
        each.tick_params(labelsize=11)
        each.grid(alpha=0.3)
        each.set_axisbelow(True)
    return figure, axes


def finish(figure: Figure, name: str) -> None:
    figure.savefig(HERE / f"choose-{name}.png")


def read(name: str) -> Any:
    return json.loads((RESULTS / name / "results.json").read_text(encoding="utf-8"))


def temperature() -> None:
    figure, (axes,) = make_figure()
    for model, loss, label, colour, marker in (
        ("mf", "sl", "SL, MF", BLUE, "o"),
        ("mf", "psl-tanh", "PSL (tanh), MF", GREEN, "^"),
        ("lightgcn", "sl", "SL, LightGCN", RED, "s"),
        ("xsimgcl", "sl", "SL, XSimGCL", PINK, "D"),
    ):
        row = re.compile(rf"\| Health, {model}, {loss} \| τ=([\d.]+) \|.*\| \**([\d.]+)\** \|")
        points = sorted((float(t), float(ndcg)) for t, ndcg in row.findall(TABLES))
        assert len(points) == 8, (model, loss, points)
        best = max(ndcg for _, ndcg in points)
        values = [100 * ndcg / best for _, ndcg in points]
        axes.plot([t for t, _ in points], values, marker, ls="-", color=colour, label=label, ms=6, lw=1.8)
    axes.set_xscale("log")
    axes.set_xticks([0.05, 0.075, 0.1, 0.15, 0.2], [".05", ".075", ".1", ".15", ".2"])
    axes.minorticks_off()
    axes.set_xlabel("temperature τ, on ½·cosine", fontsize=12)
    axes.set_ylabel("validation NDCG@20, % of best", fontsize=12)
    axes.legend(frameon=False, fontsize=11, loc="lower right")
    finish(figure, "temperature")


def numbers() -> None:
    figure, (ranking, time) = make_figure(2, 5.4)
    for loss, label, colour, marker in (("sl", "SL", ORANGE, "s"), ("cw", "CW with a confidence", BLUE, "o")):
        row = re.compile(rf"\| Health, {loss} \| (\d+) \| [^|]+ \| ([\d.]+) ± ([\d.]+) \| ([\d.]+) ")
        points = [tuple(map(float, found)) for found in row.findall(TABLES)]
        assert len(points) == 6, points
        n, ndcg, deviation, ms = zip(*points, strict=True)
        ranking.errorbar(n, ndcg, deviation, fmt=f"{marker}-", color=colour, label=label, capsize=3, ms=6, lw=1.8)
        time.plot(n, ms, f"{marker}-", color=colour, ms=6, lw=1.8)
    for axes in (ranking, time):
        axes.set_xscale("log")
        axes.set_xticks([10, 30, 100, 300, 1000, 4000], ["10", "30", "100", "300", "1000", "4000"])
        axes.minorticks_off()
    ranking.set_ylabel("test NDCG@20", fontsize=12)
    ranking.legend(frameon=False, fontsize=11, loc="lower right")
    time.set_yscale("log")
    time.set_yticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
    time.minorticks_off()
    time.set_ylabel("ms per step", fontsize=12)
    time.set_xlabel("negatives per row, N", fontsize=12)
    finish(figure, "numbers")


def kinds() -> None:
    names = {
        "uniform:256": "uniform",
        "popularity:256": "popular",
        "shared:256": "shared",
        "in-batch": "in-batch",
        "mixed:256": "mixed",
        "full": "all items",
    }
    measured = {kind["trained_with"]: kind["quality"] for kind in read("negative-kinds")["kinds"]}
    figure, (axes,) = make_figure(height=4.2)
    for loss, label, colour, marker, up in (("sl", "SL", ORANGE, "s", 0.14), ("cw", "CW", BLUE, "o", -0.14)):
        for place, name in enumerate(names):
            quality = measured[name][loss]
            low, high = min(quality["seeds"]), max(quality["seeds"])
            across = [[quality["ndcg"] - low], [high - quality["ndcg"]]]
            axes.errorbar(
                quality["ndcg"], place - up, xerr=across, fmt=marker, color=colour, capsize=3, ms=6, lw=1.6,
                label=None if place else label,
            )  # fmt: skip
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.invert_yaxis()
    axes.set_xlabel("test NDCG@20, range of three seeds", fontsize=12)
    axes.legend(frameon=False, fontsize=11, loc="lower left")
    finish(figure, "kinds")


def prior_bias() -> None:
    sweep = read("negative-mass")["sweeps"]["prior"]
    figure, (axes,) = make_figure(height=4.6)
    for name, label, colour, marker in (
        ("uncorrected", "no correction", BLACK, "X"),
        ("half", "half of the true π", ORANGE, "s"),
        ("floored", "true π, floor .3", GREEN, "^"),
        ("corrected", "true π, no floor", BLUE, "o"),
        ("double", "twice the true π", RED, "D"),
    ):
        found = [(at["prior"], at["estimates"]["sigmoid"].get(name)) for at in sweep]
        points = [(prior, 100 * estimate["bias"]) for prior, estimate in found if estimate]
        axes.plot(*zip(*points, strict=True), marker, ls="-", color=colour, label=label, ms=6, lw=1.8)
    axes.set_xlabel("share π of false negatives", fontsize=12)
    axes.set_ylabel("bias, % of the truth", fontsize=12)
    figure.legend(frameon=False, fontsize=11, loc="outside lower center", ncols=2)
    finish(figure, "prior-bias")


def images() -> None:
    report = read("image-pairs")
    figure, (axes,) = make_figure(height=5.0)
    for order, (name, label, colour, marker) in enumerate(
        (
            ("infonce", "InfoNCE", BLACK, "X"),
            ("cw", "CW, told π", BLUE, "o"),
            ("dcl", "DCL, told π", RED, "s"),
            ("cvir", "CVIR, told π", ORANGE, "D"),
            ("tedn-same-digit", "(TED)ⁿ, pairs of a digit", GREEN, "^"),
        )
    ):
        found = [(at["share"], at["few"]) for at in report["results"] if at["loss"] == name and at["share"] is not None]
        shares = [share + 0.006 * (order - 2) for share, _ in found]  # side by side
        means, deviations = [mean(few) for _, few in found], [stdev(few) for _, few in found]
        axes.errorbar(shares, means, deviations, fmt=f"{marker}-", color=colour, label=label, capsize=2, ms=6, lw=1.6)
    pixels = mean(report["without_training"]["pixels"]["few"])
    axes.axhline(pixels, color="0.4", ls=":", label="pixels, no training")
    axes.set_xlabel("share π of false negatives", fontsize=12)
    axes.set_ylabel("accuracy, 1 nearest neighbour", fontsize=12)
    figure.legend(frameon=False, fontsize=11, loc="outside lower center", ncols=2)
    finish(figure, "images")


if __name__ == "__main__":
    temperature()
    numbers()
    kinds()
    prior_bias()
    images()

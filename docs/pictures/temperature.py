"""Draws how validation NDCG@20 depends on the temperature: `python docs/pictures/temperature.py` writes its PNG.

The numbers are those of the search in benchmarks/results/study/tables.md: Amazon-Health, seed 0, all items as
negatives, ½·cosine, D=64, learning rate .1.
"""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).parent
TABLES = HERE.parents[1] / "benchmarks" / "results" / "study" / "tables.md"
# Okabe and Ito's palette.
CURVES = {
    ("mf", "sl"): ("SL, MF", "#0072B2", "o"),
    ("mf", "psl-tanh"): ("PSL (tanh), MF", "#009E73", "^"),
    ("lightgcn", "sl"): ("SL, LightGCN", "#D55E00", "s"),
    ("xsimgcl", "sl"): ("SL, XSimGCL", "#CC79A7", "D"),
}


def curve(model: str, loss: str) -> list[tuple[float, float]]:
    """(τ, validation NDCG@20) of the search, in order of τ."""
    row = re.compile(rf"\| Health, {model}, {loss} \| τ=([\d.]+) \|.*\| \**([\d.]+)\** \|")
    return sorted((float(t), float(ndcg)) for t, ndcg in row.findall(TABLES.read_text(encoding="utf-8")))


def main() -> None:
    figure = Figure(figsize=(4.6, 3.9), dpi=160, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (model, loss), (label, colour, marker) in CURVES.items():
        points = curve(model, loss)
        assert len(points) == 8, (model, loss, points)
        best = max(ndcg for _, ndcg in points)
        values = [100 * ndcg / best for _, ndcg in points]
        axes.plot([t for t, _ in points], values, marker, ls="-", color=colour, label=label, ms=6, lw=1.8)
    axes.set_xscale("log")
    axes.set_xticks([0.05, 0.075, 0.1, 0.15, 0.2], [".05", ".075", ".1", ".15", ".2"])
    axes.minorticks_off()
    axes.set_xlabel("temperature τ, on ½·cosine", fontsize=12)
    axes.set_ylabel("validation NDCG@20, % of the best", fontsize=12)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=11, loc="lower right")
    figure.savefig(HERE / "temperature.png")


if __name__ == "__main__":
    main()

"""Draw the front figure: time and memory of one step in plain PyTorch, under torch.compile and with cw_ext.

    python -m benchmarks.throughput.front_figure

It writes docs/pictures/front-light.png and docs/pictures/front-dark.png. Nothing is measured: the numbers come from
benchmarks/results/throughput-cpu/throughput.json, where machine, versions and commit are recorded too.

The step is the forward and backward pass of the CW loss from embeddings with its defaults, with the gradients of all
inputs, without sampling and without the optimizer: 1,024 rows, 1,000 negatives per row given as ids, 64 dimensions,
41,000 items, fp32. It ran on two cores of an AMD EPYC (AVX-512) with torch 2.13.0 for the CPU. Times are medians of
steps in turns in one process. Memory is the peak growth of a fresh process, beyond the inputs.

Plain PyTorch is the contestant `eager`: look up, normalise, multiply. torch.compile compiles the faster way of writing
it, which normalises the table before the look-up (`tuned`); compiling itself is not counted.
benchmarks/throughput/contestants.py describes both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.common import command, reporting
from benchmarks.throughput.report import MIB

_ROOT = Path(__file__).resolve().parents[2]
SOURCE = _ROOT / "benchmarks" / "results" / "throughput-cpu" / "throughput.json"
PICTURES = _ROOT / "docs" / "pictures"
# The step that is drawn: the study's numbers of rows and negatives, with about as many items as gowalla has.
STEP = {
    "kind": "ids", "batch_size": 1024, "negatives": 1000, "dim": 64, "items": 41000, "dtype": "float32",
    "shared": False, "loss": "cw",
}  # fmt: skip
BARS = {"eager": "plain PyTorch", "compile": "torch.compile", "cw_ext": "cw_ext"}

# Background, text, and the bars' colours: those of others and cw_ext's. The backgrounds are GitHub's.
THEMES = {
    "light": ("#ffffff", "#1f2328", "#8c959f", "#0969da"),
    "dark": ("#0d1117", "#e6edf3", "#656c76", "#58a6ff"),
}
# Inches and dots per inch: 1,400 pixels, to be shown in half as many (or in 350 on a telephone).
SIZE, DPI = (7.0, 4.5), 200


def costs(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Take from a throughput report what the figure shows.

    Args:
        report: of the throughput benchmark.

    Returns:
        For each of :data:`BARS` the median milliseconds of a step and its peak extra MiB.

    Raises:
        ValueError: the report has no measurement of the step, or lacks one of the bars.
    """
    for entry in report["shapes"]:
        found = entry["contestants"]
        if STEP.items() <= entry["shape"].items() and BARS.keys() <= found.keys():
            return {
                name: {
                    "ms": 1e3 * found[name]["seconds"]["median"],
                    "mib": found[name]["peak_extra_bytes"] / MIB,
                }
                for name in BARS
            }
    raise ValueError(f"expected a report with {', '.join(BARS)} at {STEP}, got none")


def describe(shown: dict[str, dict[str, float]]) -> str:
    """Return the figure's numbers as text, which the pictures carry as their description."""
    return "; ".join(f"{BARS[name]}: {_ms(cost['ms'])}, {_mib(cost['mib'])}" for name, cost in shown.items())


def draw(shown: dict[str, dict[str, float]], theme: str, path: Path) -> None:
    """Draw the figure in one of :data:`THEMES`.

    Args:
        shown: from :func:`costs`.
        theme: "light" or "dark".
        path: the PNG to write.
    """
    background, text, _, _ = THEMES[theme]
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.1, hspace=0.06)
    figure = Figure(figsize=SIZE, facecolor=background, layout=layout)
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 1)
    _panel(panels[0], "Time of one step", {name: cost["ms"] for name, cost in shown.items()}, _ms, theme)
    _panel(panels[1], "Peak extra memory", {name: cost["mib"] for name, cost in shown.items()}, _mib, theme)
    figure.supxlabel(
        "CW loss, forward and backward, on 2 CPU cores:\n1,024 rows, 1,000 negatives each; 41,000 items, D = 64",
        fontsize=14,
        color=text,
    )
    with reporting.written_whole(path) as unfinished:
        metadata = {"Title": "One step of the CW loss", "Description": describe(shown), "Software": None}
        figure.savefig(
            unfinished, dpi=DPI, facecolor=background, metadata=metadata, format="png", pil_kwargs={"optimize": True}
        )


def _panel(axes: Axes, title: str, values: dict[str, float], label: Callable[[float], str], theme: str) -> None:
    background, text, others, own = THEMES[theme]
    names = list(values)
    bars = axes.barh(
        [BARS[name] for name in names],
        list(values.values()),
        color=[own if name == "cw_ext" else others for name in names],
        height=0.72,
    )
    labels = axes.bar_label(bars, [label(value) for value in values.values()], padding=6, fontsize=17, color=text)
    for name, tick, shown in zip(names, axes.get_yticklabels(), labels, strict=True):
        tick.set_color(own if name == "cw_ext" else text)
        if name == "cw_ext":
            tick.set_fontweight("bold")
            shown.set_fontweight("bold")
            shown.set_color(own)
    axes.set_title(title, loc="left", fontsize=17, weight="bold", color=text)
    axes.set_facecolor(background)
    axes.set_xlim(0, 1.27 * max(values.values()))
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=17, length=0)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.spines["left"].set_color(others)


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 100 else f"{value:.0f} ms"


def _mib(value: float) -> str:
    return f"{value:.0f} MiB" if value < 1000 else f"{value:,.0f} MiB"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser("python -m benchmarks.throughput.front_figure", __doc__)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=PICTURES, help="folder for the pictures (default: docs/pictures)"
    )
    arguments = parser.parse_args(argv)
    return command.run(lambda: _run(arguments.out))


def _run(out: Path) -> None:
    shown = costs(json.loads(SOURCE.read_text(encoding="utf-8")))
    reporting.make_writable_directory(out)
    pictures = [out / f"front-{theme}.png" for theme in THEMES]
    for theme, picture in zip(THEMES, pictures, strict=True):
        draw(shown, theme, picture)
    print(describe(shown))
    reporting.print_results(*pictures)


if __name__ == "__main__":
    sys.exit(main())

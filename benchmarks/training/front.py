"""NDCG against balanced NDCG of losses and their settings, with the Pareto front."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from benchmarks.common import reporting
from benchmarks.training.plots import COLOURS, MARKERS


@dataclass(frozen=True)
class FrontPoint:
    """Test results of a loss with one setting.

    Attributes:
        loss: its points have one colour and are joined in the order given.
        setting: the point's label; that of the loss where empty.
        ndcg, balanced_ndcg: a value per seed, at least one.
    """

    loss: str
    setting: str
    ndcg: Sequence[float]
    balanced_ndcg: Sequence[float]

    def __post_init__(self) -> None:
        if not 0 < len(self.ndcg) == len(self.balanced_ndcg):
            raise ValueError(
                f"balanced_ndcg: expected as many values as of ndcg, at least one, "
                f"got {len(self.balanced_ndcg)} and {len(self.ndcg)}"
            )

    @property
    def means(self) -> tuple[float, float]:
        """NDCG and balanced NDCG."""
        return mean(self.ndcg), mean(self.balanced_ndcg)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices, by falling first number, of the points that no other point dominates.

    A point dominates another if it is at least as high in both numbers and higher in one.
    """
    front: list[int] = []
    best = -float("inf")
    ordered = sorted(range(len(points)), key=lambda index: points[index], reverse=True)
    for _, group in itertools.groupby(ordered, key=lambda index: points[index][0]):
        level = list(group)
        highest = points[level[0]][1]
        if highest > best:
            front += [index for index in level if points[index][1] == highest]
            best = highest
    return front


def plot_front(points: Sequence[FrontPoint], file: Path, *, title: str) -> None:
    """Draw test NDCG@20 against balanced NDCG@20 into a PNG: a point per loss and setting at its mean over seeds, with
    deviations where there are several; the points of the Pareto front ringed and joined by a dashed line.

    Args:
        points: at least one.
        file: where the PNG goes.
        title: heading of the figure.

    Raises:
        ValueError: there are no points.
        OSError: the file cannot be written; the message contains it.
    """
    reporting.save_figure(_draw(points, title)[0], file)


def _draw(points: Sequence[FrontPoint], title: str) -> tuple[Figure, list[Annotation]]:
    """Return the figure and the labels of its points."""
    if not points:
        raise ValueError("points: expected at least one, got none")
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.margins(0.12)
    for number, loss in enumerate(dict.fromkeys(point.loss for point in points)):
        own = [point for point in points if point.loss == loss]
        deviations = [[_deviation(p.ndcg) for p in own], [_deviation(p.balanced_ndcg) for p in own]]
        axes.errorbar(
            *zip(*(point.means for point in own), strict=True),
            *reversed(deviations),
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            elinewidth=0.8,
            label=loss,
        )
    means = np.array([point.means for point in points])
    front = means[pareto_front([point.means for point in points])]
    axes.plot(
        *front.T, color="0.45", linestyle="--", linewidth=1, marker="o", markersize=14, markerfacecolor="none",
        label="Pareto front", zorder=1,
    )  # fmt: skip
    axes.set(xlabel="test NDCG@20", ylabel="balanced test NDCG@20, each item alike", title=title)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    first, *rest = zip(*axes.get_legend_handles_labels(), strict=True)  # lines come before what has error bars
    figure.legend(*zip(*rest, first, strict=True), loc="outside lower center", ncols=6, frameon=False)
    figure.draw_without_rendering()  # lays it out, so that labels can be placed in pixels
    labels = _place_labels(axes, means, [point.setting or point.loss for point in points])
    return figure, labels


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


# Where a label may go, tried in this order: around its point, then farther and farther away.
_PLACES = [
    (distance * np.cos(angle), distance * np.sin(angle))
    for distance in (14, 24, 36, 50, 66)
    for angle in np.radians((20, -20, 160, -160, 50, -50, 130, -130, 90, -90, 0, 180))
]
# Half the side of the square that labels leave free around a point, in points of 1/72 inch.
_MARKER = 7


def _place_labels(axes: Axes, means: np.ndarray, texts: Sequence[str]) -> list[Annotation]:
    """Write a label beside each point [num_points, 2], over no other point or label as far as there is room."""
    scale = axes.figure.dpi / 72
    centres = axes.transData.transform(means)
    taken = [Bbox.from_extents(*(centre - _MARKER * scale), *(centre + _MARKER * scale)) for centre in centres]
    labels = []
    for mean_point, text in zip(means, texts, strict=True):
        label = axes.annotate(
            text, mean_point, (0, 0), textcoords="offset points", fontsize=8.5, va="center",
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4},
        )  # fmt: skip
        label.set_path_effects([Stroke(linewidth=2.5, foreground="white"), Normal()])  # readable over lines
        label.set_in_layout(False)  # or the axes would move, and the points with them
        boxes = []
        for place in _PLACES:
            label.set_position(place)
            label.set_horizontalalignment("left" if place[0] > 1 else "right" if place[0] < -1 else "center")
            box = _text_box(label)
            overlaps = sum(_common_area(box, other) for other in taken)
            outside = box.width * box.height - _common_area(box, axes.bbox)
            boxes.append((overlaps + outside, len(boxes), place, label.get_horizontalalignment(), box))
        _, _, place, alignment, box = min(boxes, key=lambda found: found[:2])
        label.set_position(place)
        label.set_horizontalalignment(alignment)
        taken.append(box)
        labels.append(label)
    return labels


def _text_box(label: Annotation) -> Bbox:
    """The pixels of the words alone, without the line to the point."""
    renderer = label.figure.canvas.get_renderer()  # type: ignore[union-attr]
    label.update_positions(renderer)
    return Text.get_window_extent(label, renderer)


def _common_area(first: Bbox, second: Bbox) -> float:
    common = Bbox.intersection(first, second)
    return 0.0 if common is None else common.width * common.height

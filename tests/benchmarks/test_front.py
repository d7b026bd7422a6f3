"""The plot of NDCG against balanced NDCG, and which points are on its front."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.text import Text

from benchmarks.training import front
from benchmarks.training.front import FrontPoint, pareto_front, plot_front


@pytest.mark.parametrize("values", [4, 1000])  # with few values there are ties in both numbers and twice the same point
@pytest.mark.parametrize("number", [1, 2, 15, 60])
def test_the_front_is_what_nothing_dominates(values, number):
    rng = np.random.default_rng(number)
    for _ in range(20):
        points = [(int(x), int(y)) for x, y in rng.integers(0, values, (number, 2))]
        expected = [
            index
            for index, (x, y) in enumerate(points)
            if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)
        ]
        found = pareto_front(points)
        assert sorted(found) == expected
        assert [points[index][0] for index in found] == sorted((points[index][0] for index in found), reverse=True)


def made_up_points() -> list[FrontPoint]:
    rng = np.random.default_rng(0)
    points = []
    for loss, settings in (("CW", 4), ("SL", 3), ("SL@20", 3), ("BPR", 1), ("Talos", 1)):
        for index in range(settings):
            x, y = rng.uniform(0.13, 0.138), rng.uniform(0.03, 0.045)
            seeds = 3 if loss != "BPR" else 1
            points.append(
                FrontPoint(
                    loss,
                    f"τ={0.05 * 2 ** (index / 2):.3g}, π_FN={0.01 * index:g}" if settings > 1 else "",
                    tuple(x + rng.normal(0, 5e-4, seeds)),
                    tuple(y + rng.normal(0, 5e-4, seeds)),
                )
            )
    return points


def test_a_plot_with_a_label_per_point_none_over_another(tmp_path):
    points = made_up_points()
    plot_front(points, tmp_path / "front.png", title="made up")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")

    figure, labels = front._draw(points, "made up")
    figure.canvas.draw()
    assert [label.get_text() for label in labels] == [point.setting or point.loss for point in points]
    renderer = figure.canvas.get_renderer()
    boxes = [Text.get_window_extent(label, renderer) for label in labels]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    (axes,) = figure.axes
    centres = axes.transData.transform([point.means for point in points])
    assert not any(box.contains(*centre) for box in boxes for centre in centres)
    assert all(axes.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_settings_of_a_loss_are_joined_and_deviations_shown():
    points = [
        FrontPoint("CW", "a", (0.1, 0.2), (0.3, 0.5)),
        FrontPoint("SL", "", (0.3,), (0.2,)),
        FrontPoint("CW", "b", (0.2, 0.2), (0.1, 0.1)),
    ]
    (axes,) = front._draw(points, "three points")[0].axes
    cw, sl = axes.containers
    np.testing.assert_allclose(cw.lines[0].get_xydata(), [[0.15, 0.4], [0.2, 0.1]])
    np.testing.assert_allclose(sl.lines[0].get_xydata(), [[0.3, 0.2]])
    horizontal, vertical = (bars.get_segments() for bars in cw.lines[2])
    np.testing.assert_allclose(horizontal[0][:, 0], [0.15 - np.sqrt(0.005), 0.15 + np.sqrt(0.005)])
    np.testing.assert_allclose(vertical[0][:, 1], [0.4 - np.sqrt(0.02), 0.4 + np.sqrt(0.02)])
    (ringed,) = (line for line in axes.lines if line.get_label() == "Pareto front")
    np.testing.assert_allclose(ringed.get_xydata(), [[0.3, 0.2], [0.15, 0.4]])


def test_bad_points_are_refused(tmp_path):
    with pytest.raises(ValueError, match="points: expected at least one"):
        plot_front([], tmp_path / "front.png", title="")
    with pytest.raises(ValueError, match="balanced_ndcg: expected as many values as of ndcg, .* got 1 and 2"):
        FrontPoint("CW", "", (0.1, 0.2), (0.1,))
    assert not list(tmp_path.iterdir())

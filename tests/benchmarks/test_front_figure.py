"""benchmarks.throughput.front_figure: the pictures show what the published measurements say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
from PIL import Image

from benchmarks.throughput import front_figure


def _published() -> dict[str, dict[str, float]]:
    return front_figure.costs(json.loads(front_figure.SOURCE.read_text(encoding="utf-8")))


def test_the_pictures_in_the_documentation_show_the_published_numbers() -> None:
    for theme in front_figure.THEMES:
        with Image.open(front_figure.PICTURES / f"front-{theme}.png") as picture:
            assert picture.text["Description"] == front_figure.describe(_published())


def test_it_draws_both_themes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert front_figure.main(["--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(front_figure.describe(_published()) + "\nresults: ")
    corners = {}
    for theme in front_figure.THEMES:
        with Image.open(tmp_path / f"front-{theme}.png") as picture:
            assert picture.size == (1400, 900)
            corners[theme] = picture.convert("RGB").getpixel((0, 0))
    assert corners == {"light": (255, 255, 255), "dark": (13, 17, 23)}


def test_a_report_without_the_step_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a report with eager, compile, cw_ext at"):
        front_figure.costs({"shapes": []})

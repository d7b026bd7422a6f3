"""The least work of a step, counted by hand or by running it slowly."""

from __future__ import annotations

import json

import pytest

from benchmarks.step_ratios import __main__ as step_ratios
from benchmarks.step_ratios import checkouts, floors, grid, rates
from benchmarks.step_ratios.grid import Shape


def test_work_is_counted():
    """Two rows, three negatives, five items of four numbers."""
    sizes = {"rows": 2, "negatives": 3, "items": 5, "dim": 4}
    looked_up, dense = floors.ways(Shape("ids", **sizes))
    assert looked_up == floors.Work(3 * 6 * 4, False, 6, rows=6, copied=6 * 8 + 5 * 16)
    assert dense == floors.Work(3 * 10 * 4, False, 10, copied=6 * 8 + 10 * 16)
    drawn, _ = floors.ways(Shape("drawn", **sizes, popularity=True, sparse=True))
    assert drawn == floors.Work(3 * 6 * 4, False, 6, words=12, rows=6, copied=5 * 16)
    (full,) = floors.ways(Shape("full", **sizes | {"negatives": 0}, precision="medium"))
    assert full == floors.Work(3 * 10 * 4, True, 10, copied=10 * 16)
    (scores,) = floors.ways(Shape("scores", 2, 3, 0, 0, "bfloat16"))
    assert scores == floors.Work(exponentials=6, copied=2 * 2 * 6)


def test_the_fastest_way_counts(monkeypatch):
    """Looking 6 rows up takes 6 s, and the products of 10 scores 1 s and their exponentials 2."""
    found = {"multiply_add": 120, "exponential": 5, "word": 1, "rows 5 16": 1, "copy 128": 1e9, "copy 208": 1e9}
    monkeypatch.setattr(rates, "measure", lambda threads, tables, copies: found)
    shape = Shape("ids", rows=2, negatives=3, items=5, dim=4)
    assert floors.floors([shape], 1)["seconds"] == {shape.label: pytest.approx(3)}


def test_rates_are_measured(kernels, checkout, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkouts, "PAIRS", 1)
    flags = ["--against", str(checkout), "--steps", "grid", "--floors", "--quick", "--rounds", "2"]
    assert step_ratios.main([*flags, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "against.json").read_text(encoding="utf-8"))["floors"]
    assert all(rate > 0 for rate in found["rates"].values())
    assert [*found["seconds"]] == [shape.label for shape in grid.QUICK]
    assert "here/floor" in capsys.readouterr().out


def test_floors_are_of_the_grid(capsys):
    with pytest.raises(SystemExit):
        step_ratios.main(["--floors"])
    assert "--floors needs --against and --steps grid" in capsys.readouterr().err

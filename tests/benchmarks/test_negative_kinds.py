"""The comparison of kinds of negatives: its search, and what it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from throughput_cases import ONE_SETS, POPULARITY, SAMPLED

from benchmarks.common import data
from benchmarks.negative_kinds import __main__ as negative_kinds
from benchmarks.throughput import shapes
from benchmarks.training.negatives import Negatives

KINDS = (SAMPLED, POPULARITY, *ONE_SETS.values())
FLAGS = ["--quick", "--seeds", "2", "--epochs", "2", "--negatives", "4", "--rounds", "2"]


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    """Users of each of 4 blocks take 12 of their block's 20 items."""
    lines = [f"{user} {20 * (user % 4) + (user + item) % 20}\n" for user in range(120) for item in range(12)]
    path = tmp_path / "blocks.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def tiny(monkeypatch) -> None:
    monkeypatch.setattr(shapes, "KINDS_SMALL", KINDS)
    monkeypatch.setattr(negative_kinds, "SEARCHED", {"temperature": (0.1, 0.2), "lr": (0.1,)})


def load_results(directory: Path) -> dict:
    assert (directory / "results.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((directory / "results.json").read_text(encoding="utf-8"))


def test_every_kind_is_measured_once_in_each_grid():
    for grid in (shapes.KINDS_SMALL, shapes.KINDS_AT_GOWALLAS_SIZE):
        found = [str(negative_kinds.negatives_of(shape, 9)) for shape in grid]
        assert found == ["uniform:9", "popularity:9", "shared:9", "in-batch", "mixed:9", "full"]


def test_settings_are_searched_one_after_the_other():
    def score(settings):
        seen.append(tuple(settings.values()))
        return -((settings["a"] - 2) ** 2) - (settings["b"] - settings["a"]) ** 2

    seen = []
    best, tried = negative_kinds.search(score, {"a": (1, 2, 3), "b": (0, 1, 2)})
    # a with b = 0, where 1 is as good as anything; then b with a = 1.
    assert seen == [(1, 0), (2, 0), (3, 0), (1, 1), (1, 2)]
    assert best == {"a": 1, "b": 1}
    assert [value for _, value in tried] == [-2, -4, -10, -1, -2]


def test_what_validates_best_is_tested(blocks, monkeypatch):
    trained = []

    def train(dataset, loss, config, show_progress):
        trained.append((dataset, loss.settings["temperature"], config.lr, config.seed))
        validation = {(0.1, 0.1): 0.5, (0.2, 0.1): 0.6, (0.2, 0.3): 0.4}[loss.settings["temperature"], config.lr]
        return {
            "best_validation": {"ndcg": validation + 0.1 * config.seed},
            "test": {"recall": loss.settings["temperature"], "ndcg": config.lr + config.seed},
        }

    monkeypatch.setattr(negative_kinds, "train", train)
    monkeypatch.setattr(negative_kinds, "SEARCHED", {"temperature": (0.1, 0.2), "lr": (0.1, 0.3)})
    datasets = [data.load(blocks, seed=seed) for seed in (0, 1)]
    found = negative_kinds.measure_quality(datasets, "cw", Negatives("shared", 4), epochs=3)
    assert found["settings"] == {"temperature": 0.2, "lr": 0.1}
    assert (found["validation_ndcg"], found["recall"]) == (pytest.approx(0.65), pytest.approx(0.2))
    assert (found["ndcg"], found["seeds"]) == (pytest.approx(0.6), [0.1, 1.1])
    assert [entry["validation_ndcg"] for entry in found["tried"]] == [0.5, 0.6, 0.4]
    # The search is on the first seed alone.
    assert [run[1:] for run in trained] == [(0.1, 0.1, 0), (0.2, 0.1, 0), (0.2, 0.3, 0), (0.2, 0.1, 1)]
    assert all(dataset is datasets[seed] for dataset, _, _, seed in trained)


def test_a_comparison_is_written_whole(blocks, tiny, kernels, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert negative_kinds.main(["--data", str(blocks), "--out", str(out), *FLAGS]) == 0
    report = load_results(out)
    assert report["data"]["name"] == "blocks"
    assert report["settings"] == {"seeds": 2, "epochs": 2, "negatives": 4, "rounds": 2}
    names = ["uniform:6", "popularity:6", "shared:6", "in-batch", "mixed:6", "full"]
    assert [kind["cost"]["negatives"] for kind in report["kinds"]] == names
    assert [kind["trained_with"] for kind in report["kinds"]] == [name.replace("6", "4") for name in names]
    printed = capsys.readouterr().out
    for kind in report["kinds"]:
        seconds = kind["cost"]["seconds"]
        assert 0 < seconds["q20"] <= seconds["median"] <= seconds["q80"]
        assert f"{1e3 * seconds['median']:.2f}" in printed
        assert kind["quality"].keys() == {"sl", "cw"}
        for quality in kind["quality"].values():
            assert len(quality["seeds"]) == len(quality["tried"]) == 2
            assert quality["ndcg"] == pytest.approx(sum(quality["seeds"]) / 2)
            best = max(quality["tried"], key=lambda entry: entry["validation_ndcg"])
            assert quality["settings"] == {name: best[name] for name in ("temperature", "lr")}
            assert math.isfinite(quality["recall"])
            assert f"{quality['ndcg']:.4f}" in printed
    assert "made-up history of 12 users" in printed


def test_an_interrupt_keeps_what_was_measured(blocks, tiny, kernels, tmp_path, monkeypatch, capsys):
    measure = negative_kinds.measure_quality

    def interrupted(datasets, loss, negatives, epochs):
        if (loss, negatives.kind) == ("cw", "popularity"):
            raise KeyboardInterrupt
        return measure(datasets, loss, negatives, epochs)

    monkeypatch.setattr(negative_kinds, "measure_quality", interrupted)
    assert negative_kinds.main(["--data", str(blocks), "--out", str(tmp_path), *FLAGS]) == 130
    report = load_results(tmp_path)
    assert [list(kind["quality"]) for kind in report["kinds"]] == [["sl", "cw"], ["sl"], [], [], [], []]
    captured = capsys.readouterr()
    assert "interrupted; what was measured before is written" in captured.err
    assert "in-batch" in captured.out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--data", "no/such/file"], "no/such/file: expected an interaction file, got none"),
        (["--history", "no/such/file"], "no/such/file: expected an interaction file, got none"),
    ],
)
def test_errors_are_one_line_with_status_2(blocks, tiny, kernels, tmp_path, capsys, flags, complaint):
    assert negative_kinds.main(["--data", str(blocks), "--out", str(tmp_path / "out"), *FLAGS, *flags]) == 2
    assert capsys.readouterr().err.splitlines() == [f"error: {complaint}"]

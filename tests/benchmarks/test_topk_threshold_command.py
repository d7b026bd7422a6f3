"""benchmarks.topk_threshold: what it counts, against a count one by one, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import quantiles

import pytest
from training_cases import load_blocks

from benchmarks.common.data import InteractionData
from benchmarks.topk_threshold import __main__ as topk_threshold
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.negatives import Negatives
from benchmarks.training.trainer import Trainer, TrainingConfig


def write_split(data: InteractionData, directory: Path) -> Path:
    for name, users, items in (
        ("train", data.train_users, data.train_items), ("test", data.test_users, data.test_items)
    ):  # fmt: skip
        lines = [f"{user}\t{item}\n" for user, item in zip(users.tolist(), items.tolist(), strict=True)]
        (directory / f"{name}.tsv").write_text("user_procid\titem_procid\n" + "".join(lines), encoding="utf-8")
    return directory


@pytest.mark.parametrize("refresh_epochs", [None, 1])
def test_items_above_are_counted(tmp_path, refresh_epochs):
    options = LossOptions(confidence_top_k=4, refresh_epochs=refresh_epochs, negatives=Negatives("uniform", 8))
    run = Trainer(load_blocks(tmp_path), build_loss("slk", options), TrainingConfig(dim=8, epochs=3, batch_size=64))
    run.train(show_progress=False)
    users, items = run.tables()
    known = set(zip(run.fit.train_users.tolist(), run.fit.train_items.tolist(), strict=True))
    counts = {"all": [], "unknown": []}
    for user, threshold in enumerate(run.thresholds):
        above = [item for item, row in enumerate(items) if users[user] @ row / 2 > threshold]
        counts["all"].append(len(above))
        counts["unknown"].append(sum((user, item) not in known for item in above))
    assert counts["all"] != counts["unknown"]
    for name, found in topk_threshold.items_above(run).items():
        fifths = quantiles(counts[name], n=10, method="inclusive")
        assert list(found.values()) == pytest.approx([fifths[1], fifths[4], fifths[7]])


def test_the_command_compares_both_ways(tmp_path, capsys):
    directory = write_split(load_blocks(tmp_path), tmp_path)
    arguments = ["--data", str(directory), "--seed", "3", "5", "--epochs", "2", "--timed-epochs", "1"]
    assert topk_threshold.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    settings = report["loss_settings"]
    assert settings["catalogue"] == settings["counts"] | {"refresh_epochs": 5}
    assert settings["counts"]["confidence_top_k"] == 20
    printed = capsys.readouterr().out
    for way in ("catalogue", "counts"):
        assert [run["seed"] for run in report["runs"][way]] == [3, 5]
        assert all(run["epochs"] == 2 and 0 < run["test"]["ndcg"] < 1 for run in report["runs"][way])
        assert report["times"]["epoch"][way] >= report["times"]["steps_per_epoch"] * report["times"]["step"][way]["q20"]
        assert f"{way} {report['times']['epoch'][way]:.3f} s" in printed
    # Until the first pass, after five epochs, both start alike; then only one way has thresholds that are not 0.
    assert report["runs"]["catalogue"][0]["items_above"] != report["runs"]["counts"][0]["items_above"]


def test_with_no_seed_only_epochs_are_timed(tmp_path, capsys):
    directory = write_split(load_blocks(tmp_path), tmp_path)
    out = tmp_path / "out"
    assert topk_threshold.main(["--data", str(directory), "--seed", "--timed-epochs", "1", "--out", str(out)]) == 0
    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert report["runs"] == {"catalogue": [], "counts": []}
    assert report["times"]["pass"]["median"] > 0
    assert "an epoch: catalogue" in capsys.readouterr().out

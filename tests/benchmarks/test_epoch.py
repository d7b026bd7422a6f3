"""The epoch benchmark end to end on made-up data, and its arithmetic on made-up times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.common import data
from benchmarks.epoch import __main__ as epoch
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.negatives import Negatives
from benchmarks.training.trainer import Trainer, TrainingConfig

USERS, ITEMS, PER_USER = 12, 30, 10
FLAGS = ["--negatives", "8", "--dim", "8", "--batch-size", "16"]


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A directory with 12 users' training items, 10 each, of which one is held out for validation."""
    header = "user_procid\titem_procid\n"
    directory = tmp_path / "made-up"
    directory.mkdir()
    train = [f"{user}\t{(3 * user + item) % ITEMS}\n" for user in range(USERS) for item in range(PER_USER)]
    test = [f"{user}\t{(3 * user + PER_USER) % ITEMS}\n" for user in range(USERS)]
    (directory / "train.tsv").write_text(header + "".join(train), encoding="utf-8")
    (directory / "test.tsv").write_text(header + "".join(test), encoding="utf-8")
    return directory


@pytest.mark.parametrize("loss", ["cw", "sl"])
def test_both_backends_are_measured_and_written(kernels, split, device, tmp_path, capsys, loss):
    out = tmp_path / "new" / "out"
    flags = ["--loss", loss, "--eager-steps", "2", "--device", device.type, *FLAGS]
    status = epoch.main(["--data", str(split), "--out", str(out), *flags])
    printed = capsys.readouterr().out
    assert status == 0
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert report["data"] == {"name": "made-up", "users": 12, "items": 30, "train": 120, "test": 12}
    assert report["loss"] == loss
    assert (report["loss_settings"]["negatives"], report["config"]["device"]) == ("uniform:8", device.type)
    assert "torch" in report["environment"]

    # 12 users × 9 items are trained on, in batches of 16.
    fused, eager = report["backends"]["fused"], report["backends"]["reference"]
    assert (fused["steps"], fused["epoch_steps"], fused["extrapolated"]) == (7, 7, False)
    assert (eager["steps"], eager["epoch_steps"], eager["extrapolated"]) == (2, 7, True)
    for cost in (fused, eager):
        assert set(cost["parts"]) == set(epoch.PARTS)
        assert all(seconds >= 0 for seconds in cost["parts"].values())
        measured = sum(seconds for part, seconds in cost["parts"].items() if part != "rest")
        assert measured <= cost["step"]["mean"]
        assert sum(cost["parts"].values()) == pytest.approx(cost["step"]["mean"])
        assert cost["epoch_seconds"] == pytest.approx(7 * cost["step"]["mean"])
    assert report["epoch_ratio"] == pytest.approx(eager["epoch_seconds"] / fused["epoch_seconds"])

    for part in ("sampling", "queries", "loss forward", "backward", "optimizer", "rest", "step"):
        assert f"\n{part} " in printed
    assert "(measured in full)" in printed
    assert "(extrapolated from the first 2 steps)" in printed
    assert str(out / "results.json") in printed


@pytest.mark.parametrize("spec", ["popularity:4", "in-batch", "full"])
def test_an_epoch_with_other_negatives(kernels, split, tmp_path, capsys, spec):
    flags = ["--steps", "2", "--eager-steps", "2", *FLAGS, "--negatives", spec]
    assert epoch.main(["--data", str(split), "--out", str(tmp_path), *flags]) == 0
    assert f"fp32, negatives {spec}\n" in capsys.readouterr().out


def test_eager_draws_as_sampling_and_fused_inside(kernels, split, monkeypatch):
    drawn_in = []
    draw = Negatives.draw

    def recorded(self, *arguments):
        drawn_in.append(backend)
        return draw(self, *arguments)

    monkeypatch.setattr(Negatives, "draw", recorded)
    dataset, config = data.load(split), TrainingConfig(dim=8, batch_size=16)
    for backend in epoch.BACKENDS:
        loss = build_loss("cw", LossOptions(negatives=Negatives("uniform", 8), backend=backend))
        drawn_in.clear()
        epoch.measure_backend(dataset, loss, config, steps=2)
        assert drawn_in == ([] if backend == "fused" else ["reference"] * (epoch.WARM_UP_STEPS + 2))


def test_an_epoch_is_the_mean_step_times_its_steps():
    part_seconds = {"sampling": 1.0, "queries": 0.5, "loss_forward": 2.0, "backward": 3.0, "optimizer": 1.0}
    cost = epoch.summarize(part_seconds, [2.0, 1.0, 2.0, 3.0], epoch_steps=700)
    assert cost["parts"] == {
        "sampling": 0.25,
        "queries": 0.125,
        "loss_forward": 0.5,
        "backward": 0.75,
        "optimizer": 0.25,
        "rest": 0.125,
    }
    assert (cost["step"]["mean"], cost["step"]["median"]) == (2.0, 2.0)
    assert (cost["epoch_seconds"], cost["extrapolated"]) == (1400.0, True)
    whole = epoch.summarize(part_seconds, [2.0, 1.0, 2.0, 3.0], epoch_steps=4)
    assert (whole["epoch_seconds"], whole["extrapolated"]) == (8.0, False)


def test_more_steps_than_the_epoch_has_are_the_whole_epoch(kernels, split, tmp_path):
    steps = ["--steps", "1000", "--eager-steps", "0"]
    assert epoch.main(["--data", str(split), *steps, "--out", str(tmp_path), *FLAGS]) == 0
    report = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    for cost in report["backends"].values():
        assert (cost["steps"], cost["extrapolated"]) == (7, False)


def test_an_interrupt_writes_nothing(kernels, split, tmp_path, monkeypatch, capsys):
    def train_step(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_step", train_step)
    out = tmp_path / "out"
    assert epoch.main(["--data", str(split), "--out", str(out), *FLAGS]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; nothing was written"
    assert not list(out.iterdir())


@pytest.mark.parametrize("where", ["data", "out"])
def test_errors_are_one_line_with_status_2(kernels, split, tmp_path, capsys, where):
    missing = tmp_path / "missing"
    arguments = {
        "data": (["--data", str(missing), "--out", str(tmp_path / "out")], "expected an interaction file, got none"),
        "out": (["--data", str(split), "--out", str(split / "train.tsv")], "expected a writable output directory"),
    }
    given, complaint = arguments[where]
    assert epoch.main([*given, *FLAGS]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith("error: ")
    assert complaint in err[0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--loss", "bpr"], "invalid choice: 'bpr'"),
        (["--steps", "-1"], "expected a whole number of at least 0, got '-1'"),
        (["--eager-steps", "few"], "expected a whole number of at least 0, got 'few'"),
        (["--dim", "0"], "expected a whole number of at least 1, got '0'"),
    ],
)
def test_bad_flags_are_refused(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as caught:
        epoch.main(arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err

"""Training that was interrupted and goes on: bit by bit as if it had not been, or a refusal with the reason."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import FLAGS, load_blocks, write_blocks

from benchmarks.common.data import InteractionData
from benchmarks.training import __main__ as training
from benchmarks.training import checkpoints, compare
from benchmarks.training.checkpoints import CheckpointError
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.negatives import Negatives
from benchmarks.training.trainer import Trainer, TrainingConfig

CONFIG = TrainingConfig(dim=8, epochs=8, batch_size=64, eval_every=2)
LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "bpr": ("bpr", {}),
    "sl": ("sl", {}),
    # Estimated before epoch 4 and before epoch 7; what the checkpoint after epoch 4 has is used in epochs 5 and 6.
    "slk": ("slk", {"confidence_top_k": 5, "refresh_epochs": 3}),
    "slk with learned thresholds": ("slk", {"confidence_top_k": 5}),
    "cw with thresholds": ("cw", {"confidence_temperature": 1.25, "confidence_top_k": 5, "refresh_epochs": 2}),
    "cw": ("cw", {}),
    "cw with an estimated prior": ("cw", {"prior": "auto"}),
    "advinfonce": ("advinfonce", {"adversary_every": 2}),
    "llpauc": ("llpauc", {}),
    "sl, weighed by scores": ("sl", {"false_negative_prior": "auto", "false_negative_family": "isotonic"}),
    "slk, weighed by scores": ("slk", {"false_negative_prior": 0.1, "confidence_top_k": 5, "refresh_epochs": 3}),
    "sl, weighed by an adapter": ("sl", {"false_negative_prior": 0.1, "adapter_candidates": 4}),
    "sl, weighed by what each epoch leaves out": ("sl", {"false_negative_prior": 0.1, "cross_fitted": True}),
    "cw, pulled less": ("cw", {"positive_temperature": 0.125, "falling_pull": 0.2}),
    "talos": ("talos", {"confidence_top_k": 5}),
    "cw with held-out positives": ("cw", {"held_out_positives": True}),
    "cw with likely positives": ("cw", {"likely_positives": "regression"}),
    "dcl with likely positives and an estimated prior": ("dcl", {"likely_positives": "walks", "prior": "auto"}),
}


@pytest.fixture
def blocks(tmp_path: Path) -> InteractionData:
    return load_blocks(tmp_path)


@pytest.fixture(autouse=True)
def plots(monkeypatch) -> None:
    """Files only, since plots take most of the time and are tested elsewhere."""
    monkeypatch.setattr(compare, "plot_runs", lambda runs, path, title: path.touch())


def make_trainer(data: InteractionData, loss: str = "sl", config: TrainingConfig = CONFIG, **options) -> Trainer:
    options = {"negatives": Negatives("uniform", 8), "backend": "reference", **options}
    return Trainer(data, build_loss(loss, LossOptions(**options)), config)


def interrupt(trainer: Trainer, epoch: int, step: int = 3) -> None:
    """Let Ctrl-C arrive after so many steps of an epoch (from 0)."""
    train_step, steps = trainer.train_step, []

    def interrupted(batch: torch.Tensor) -> float:
        if trainer.epoch == epoch:
            steps.append(batch)
            if len(steps) > step:
                raise KeyboardInterrupt
        return train_step(batch)

    trainer.train_step = interrupted


def leave_checkpoint(trainer: Trainer, path: Path, epoch: int = 5) -> None:
    """Train until Ctrl-C in that epoch."""
    interrupt(trainer, epoch)
    assert trainer.train(show_progress=False, checkpoint=path) == "interrupt"


def state(trainer: Trainer) -> dict[str, Any]:
    """All that may not differ: everything but the seconds, and the tests of the best epoch."""
    found = {**trainer.state_dict(), "test": trainer.test()}
    del found["seconds"]
    return found


def assert_identical(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    match expected:
        case torch.Tensor():
            assert torch.equal(found, expected)
        case dict():
            assert found.keys() == expected.keys()
            for name in expected:
                assert_identical(found[name], expected[name])
        case list() | tuple():
            assert len(found) == len(expected)
            for a, b in zip(found, expected, strict=True):
                assert_identical(a, b)
        case _:
            assert found == expected


def check_resumption(data: InteractionData, path: Path, *arguments, **options) -> None:
    """Interrupted twice, then trained to its end, a run must be what it is without an interruption."""
    whole = make_trainer(data, *arguments, **options)
    assert whole.train(show_progress=False) == "epochs"
    for epoch in (3, 5):
        trainer = make_trainer(data, *arguments, **options)
        interrupt(trainer, epoch)
        assert trainer.train(show_progress=False, checkpoint=path) == "interrupt"
        assert trainer.epoch == epoch
    resumed = make_trainer(data, *arguments, **options)
    begun_at = []
    train_epoch = resumed._train_epoch
    resumed._train_epoch = lambda: begun_at.append(resumed.epoch) or train_epoch()
    assert resumed.train(show_progress=False, checkpoint=path) == "epochs"
    assert begun_at == [4, 5, 6, 7]
    assert_identical(state(resumed), state(whole))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("false_negatives", [None, 0.3])
def test_every_loss_goes_on_as_if_not_interrupted(blocks, tmp_path, name, false_negatives):
    loss, options = LOSSES[name]
    config = replace(CONFIG, false_negatives=false_negatives)
    check_resumption(blocks, tmp_path / "checkpoint.pt", loss, config, **options)


@pytest.mark.parametrize("model", ["lightgcn", "xsimgcl"])
@pytest.mark.parametrize("name", ["sl", "slk", "advinfonce"])
def test_every_model_goes_on_as_if_not_interrupted(blocks, tmp_path, model, name):
    pytest.importorskip("torch_geometric")
    loss, options = LOSSES[name]
    check_resumption(blocks, tmp_path / "checkpoint.pt", loss, replace(CONFIG, model=model), **options)


@pytest.mark.parametrize("spec", ["popularity:8", "mixed:8", "full", "auto:30", "scored:3/20", "memory:2", "chain:3"])
def test_every_kind_of_negatives_goes_on_as_if_not_interrupted(blocks, tmp_path, spec):
    check_resumption(blocks, tmp_path / "checkpoint.pt", "cw", negatives=Negatives.parse(spec))


def test_the_kernels_go_on_as_if_not_interrupted(blocks, tmp_path, kernels):
    options = {"backend": "fused", "confidence_temperature": 1.25, "confidence_top_k": 5, "refresh_epochs": 3}
    check_resumption(blocks, tmp_path / "checkpoint.pt", "cw", **options)


@pytest.mark.parametrize("name", ["cw", "advinfonce"])
def test_every_device_goes_on_with_the_same_draws(blocks, tmp_path, device, name):
    config = replace(CONFIG, false_negatives=0.3, device=device.type)
    thresholds = {"confidence_temperature": 1.25, "confidence_top_k": 5, "refresh_epochs": 3}
    options = {"prior": "auto", **thresholds, "adversary_every": 2}
    whole, interrupted, resumed = (make_trainer(blocks, name, config, **options) for _ in range(3))
    whole.train(show_progress=False)
    leave_checkpoint(interrupted, tmp_path / "checkpoint.pt")
    assert resumed.train(show_progress=False, checkpoint=tmp_path / "checkpoint.pt") == "epochs"
    assert torch.equal(resumed.generator.get_state(), whole.generator.get_state())
    assert {table.device.type for table in resumed._best_tables} == {device.type}


def test_a_run_that_was_done_is_not_trained_on(blocks, tmp_path):
    path = tmp_path / "checkpoint.pt"
    for config, ended_by in ((CONFIG, "epochs"), (replace(CONFIG, lr=0.0, patience=1), "patience")):
        path.unlink(missing_ok=True)
        whole = make_trainer(blocks, config=config)
        assert whole.train(show_progress=False, checkpoint=path) == ended_by
        resumed = make_trainer(blocks, config=config)
        resumed._train_epoch = lambda: pytest.fail("trained")
        assert resumed.train(show_progress=False, checkpoint=path) == ended_by
        assert_identical(state(resumed), state(whole))


def test_seconds_go_on_too(blocks, tmp_path):
    path = tmp_path / "checkpoint.pt"
    leave_checkpoint(make_trainer(blocks), path)
    written = torch.load(path)["state"]["seconds"]
    resumed = make_trainer(blocks)
    checkpoints.load(resumed, path, "cpu")
    assert resumed.stopwatch.seconds == written
    assert all(written.values())
    resumed.train(show_progress=False)
    assert all(resumed.stopwatch.seconds[part] > written[part] for part in written)


# --- checkpoints of something else ---


@pytest.mark.parametrize(
    ("loss", "options", "config", "complaint"),
    [
        ("cw", {}, {}, "expected a checkpoint with loss cw, got sl"),
        ("sl", {"temperature": 0.2}, {}, "expected a checkpoint with settings temperature 0.2, got 0.1"),
        (
            "sl",
            {"negatives": Negatives("uniform", 9)},
            {},
            "expected a checkpoint with settings negatives uniform:9, got uniform:8",
        ),
        ("sl", {}, {"seed": 1}, "expected a checkpoint with config seed 1, got 0"),
        ("sl", {}, {"lr": 0.2}, "expected a checkpoint with config lr 0.2, got 0.1"),
        ("sl", {}, {"epochs": 9}, "expected a checkpoint with config epochs 9, got 8"),
        ("sl", {}, {"patience": 3}, "expected a checkpoint with config patience 3, got None"),
        ("sl", {}, {"false_negatives": 0.1}, "expected a checkpoint with config false_negatives 0.1, got None"),
    ],
)
def test_another_run_is_refused(blocks, tmp_path, loss, options, config, complaint):
    path = tmp_path / "checkpoint.pt"
    leave_checkpoint(make_trainer(blocks), path)
    content = path.read_bytes()
    other = make_trainer(blocks, loss, replace(CONFIG, **config), **options)
    before = state_of_tables(other)
    with pytest.raises(CheckpointError) as caught:
        other.train(show_progress=False, checkpoint=path)
    assert str(caught.value) == f"{path}: {complaint}"
    assert path.read_bytes() == content
    assert (other.epoch, other.curve) == (0, [])
    assert_identical(state_of_tables(other), before)


def state_of_tables(trainer: Trainer) -> list[torch.Tensor]:
    return [table.detach().clone() for table in trainer.model()]


def test_other_data_are_refused(blocks, tmp_path):
    path = tmp_path / "checkpoint.pt"
    leave_checkpoint(make_trainer(blocks), path)
    fewer = replace(blocks, train_users=blocks.train_users[:-1], train_items=blocks.train_items[:-1])
    for data, complaint in (
        (fewer, "expected a checkpoint with data train 479, got 480"),
        (replace(blocks, name="other"), "expected a checkpoint with data name other, got blocks"),
    ):
        with pytest.raises(CheckpointError, match=complaint):
            make_trainer(data).train(show_progress=False, checkpoint=path)


def test_another_backend_may_go_on(blocks, tmp_path, kernels):
    """It draws the same and computes the same up to rounding."""
    path = tmp_path / "checkpoint.pt"
    leave_checkpoint(make_trainer(blocks), path)
    resumed = make_trainer(blocks, backend="fused")
    assert resumed.train(show_progress=False, checkpoint=path) == "epochs"


DAMAGES = {
    "empty": lambda whole: b"",
    "cut early": lambda whole: whole[:100],
    "cut in the middle": lambda whole: whole[: len(whole) // 2],
    "cut at the end": lambda whole: whole[:-1],
    "text": lambda whole: b"user item\n",
    "bytes": lambda whole: bytes(range(256)),
    "a pickle that torch does not take": lambda whole: b"\x80\x02t.",
    "names that are no text": lambda whole: b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_kept(blocks, tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    leave_checkpoint(make_trainer(blocks), path)
    content = DAMAGES[damage](path.read_bytes())
    path.write_bytes(content)
    expected = "expected a checkpoint of a training run, got another or a damaged file"
    with pytest.raises(CheckpointError) as caught:
        make_trainer(blocks).train(show_progress=False, checkpoint=path)
    assert str(caught.value).startswith(f"{path}: {expected} (")
    assert str(caught.value).endswith("); remove it to start from scratch")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [7, [1, 2], {}, {"run": 3, "state": {}}, {"run": None, "state": None}])
def test_another_file_of_torch_is_refused(blocks, tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="expected a checkpoint of a training run"):
        checkpoints.load(make_trainer(blocks), tmp_path / "other.pt", "cpu")


def test_a_state_that_lacks_something_is_refused(blocks, tmp_path):
    trainer = make_trainer(blocks)
    for state_dict in ({}, {**trainer.state_dict(), "model": {}}, {**trainer.state_dict(), "optimizer": 3}):
        torch.save({"run": trainer.identity(), "state": state_dict}, tmp_path / "partial.pt")
        with pytest.raises(CheckpointError, match="expected a checkpoint of a training run"):
            checkpoints.load(make_trainer(blocks), tmp_path / "partial.pt", "cpu")


def test_a_checkpoint_that_runs_code_is_refused(blocks, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"run": Payload(), "state": {}}, tmp_path / "payload.pt")
    with pytest.raises(CheckpointError):
        checkpoints.load(make_trainer(blocks), tmp_path / "payload.pt", "cpu")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left")])
def test_an_interrupted_write_leaves_the_checkpoint_before_it(blocks, tmp_path, monkeypatch, error):
    path = tmp_path / "checkpoint.pt"
    leave_checkpoint(make_trainer(blocks), path, epoch=3)
    content = path.read_bytes()

    def save(_, file):
        Path(file).write_bytes(content[:1000])
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error) if isinstance(error, OSError) else error):
        patch.setattr(torch, "save", save)
        checkpoints.save(make_trainer(blocks), path)
    assert path.read_bytes() == content
    check_resumption(blocks, path)
    assert [file.name for file in tmp_path.iterdir() if ".pt" in file.name] == ["checkpoint.pt"]


# --- the command line ---


def arguments(directory: Path, *further: str) -> list[str]:
    """Of a comparison of three runs of 6 epochs; what comes further counts."""
    path = directory / "blocks.txt"
    if not path.exists():
        write_blocks(path)
    basics = ["--loss", "bpr", "sl", "cw", "--epochs", "6", "--eval-every", "2", "--out", str(directory / "out")]
    return ["--data", str(path), *FLAGS, *basics, *further]


def load_results(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "out" / "results.json").read_text(encoding="utf-8"))


def checkpoint(directory: Path) -> Path:
    return directory / "out" / "checkpoint.pt"


def interrupt_main(monkeypatch, directory: Path, loss: str, epoch: int, *further: str) -> None:
    """Let Ctrl-C arrive at the beginning of an epoch (from 0) of that loss's training."""
    original = Trainer._train_epoch

    def train_epoch(self):
        if self.loss.name == loss and self.epoch == epoch:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", train_epoch)
        assert training.main(arguments(directory, *further)) == 130


def trained_epochs(monkeypatch) -> list[tuple[str, int]]:
    """Which epochs (from 0) of which loss are trained from now on."""
    original, epochs = Trainer._train_epoch, []
    monkeypatch.setattr(
        Trainer, "_train_epoch", lambda self: epochs.append((self.loss.name, self.epoch)) or original(self)
    )
    return epochs


def without_seconds(run: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "seconds"}


def all_epochs(*losses: str, first: int = 0) -> list[tuple[str, int]]:
    return [(loss, epoch) for loss in losses for epoch in range(first, 6)]


def test_a_comparison_goes_on_with_the_unfinished_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "whole").mkdir()
    assert training.main(arguments(tmp_path / "whole")) == 0
    whole = load_results(tmp_path / "whole")
    assert not checkpoint(tmp_path / "whole").exists()

    interrupt_main(monkeypatch, tmp_path, "sl", 5)
    before = load_results(tmp_path)
    assert [run["ended_by"] for run in before["runs"]] == ["epochs", "interrupt"]
    assert checkpoint(tmp_path).exists()
    epochs = trained_epochs(monkeypatch)
    capsys.readouterr()
    assert training.main(arguments(tmp_path, "--resume")) == 0
    assert epochs == [*all_epochs("sl", first=4), *all_epochs("cw")]
    after = load_results(tmp_path)
    assert after["runs"][0] == before["runs"][0]  # to the seconds
    assert [without_seconds(run) for run in after["runs"]] == [without_seconds(run) for run in whole["runs"]]
    printed = capsys.readouterr().out
    assert all(f"{run['test']['ndcg']:.4f}" in printed for run in whole["runs"])
    written = {"results.json", "results.png", "item_ids.parquet", "user_ids.parquet"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == written


def test_a_comparison_is_interrupted_again_and_again(tmp_path, monkeypatch):
    assert training.main(arguments(tmp_path)) == 0
    whole = load_results(tmp_path)
    interrupt_main(monkeypatch, tmp_path, "bpr", 3)
    for loss, epoch in (("bpr", 5), ("sl", 1), ("sl", 2), ("cw", 5)):
        interrupt_main(monkeypatch, tmp_path, loss, epoch, "--resume")
    assert training.main(arguments(tmp_path, "--resume")) == 0
    assert list(map(without_seconds, load_results(tmp_path)["runs"])) == list(map(without_seconds, whole["runs"]))


def test_what_is_finished_is_not_done_again(tmp_path, monkeypatch):
    assert training.main(arguments(tmp_path)) == 0
    content = (tmp_path / "out" / "results.json").read_bytes()
    epochs = trained_epochs(monkeypatch)
    assert training.main(arguments(tmp_path, "--resume")) == 0
    assert epochs == []
    assert (tmp_path / "out" / "results.json").read_bytes() == content


def test_without_resume_all_is_done_anew(tmp_path, monkeypatch):
    interrupt_main(monkeypatch, tmp_path, "sl", 5)
    epochs = trained_epochs(monkeypatch)
    assert training.main(arguments(tmp_path)) == 0
    assert epochs == all_epochs("bpr", "sl", "cw")
    assert [run["ended_by"] for run in load_results(tmp_path)["runs"]] == ["epochs"] * 3


def test_with_nothing_there_resume_begins(tmp_path, monkeypatch):
    epochs = trained_epochs(monkeypatch)
    assert training.main(arguments(tmp_path, "--resume")) == 0
    assert epochs == all_epochs("bpr", "sl", "cw")


def test_losses_and_seeds_may_be_added(tmp_path, monkeypatch):
    assert training.main(arguments(tmp_path, "--loss", "cw", "--seed", "1")) == 0
    first = load_results(tmp_path)["runs"]
    further = ("--loss", "sl", "cw", "--seed", "0", "1", "--resume")
    interrupt_main(monkeypatch, tmp_path, "sl", 5, *further)
    # What was finished before is kept, though it comes later.
    runs = load_results(tmp_path)["runs"]
    assert [(run["loss"], run["config"]["seed"], run["ended_by"]) for run in runs] == [
        ("sl", 0, "interrupt"),
        ("cw", 1, "epochs"),
    ]
    assert runs[1] == first[0]
    epochs = trained_epochs(monkeypatch)
    assert training.main(arguments(tmp_path, *further)) == 0
    assert epochs == [*all_epochs("sl", first=4), *all_epochs("sl", "cw")]
    runs = load_results(tmp_path)["runs"]
    assert [(run["loss"], run["config"]["seed"]) for run in runs] == [("sl", 0), ("sl", 1), ("cw", 0), ("cw", 1)]
    assert runs[3] == first[0]


def test_an_interrupt_while_a_plot_is_drawn_loses_nothing(tmp_path, monkeypatch, capsys):
    def plot(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compare, "plot_runs", plot)
        assert training.main(arguments(tmp_path)) == 130
    assert "interrupted; finished runs: bpr (seed 0)\n" in capsys.readouterr().err
    first = load_results(tmp_path)["runs"][0]
    epochs = trained_epochs(monkeypatch)
    assert training.main(arguments(tmp_path, "--resume")) == 0
    assert epochs == all_epochs("sl", "cw")
    assert load_results(tmp_path)["runs"][0] == first


def test_resume_needs_the_directory(capsys):
    with pytest.raises(SystemExit) as caught:
        training.main(["--resume"])
    assert caught.value.code == 2
    assert "--resume needs --out, the folder of the comparison to go on with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("further", "complaint"),
    [
        (["--lr", "0.3"], "expected runs of this comparison only, got bpr with {'negatives': 'uniform:1'} and {"),
        (["--dim", "4"], "expected runs of this comparison only, got bpr with"),
        (["--loss", "sl", "cw"], "expected runs of this comparison only, got bpr with"),
        (["--seed", "1"], "expected runs of this comparison only, got bpr with"),
        (["--tau", "0.2"], "checkpoint.pt: expected a checkpoint with settings temperature 0.2, got 0.1"),
        (["--loss", "bpr", "cw"], "checkpoint.pt: expected a checkpoint with loss cw, got sl"),
    ],
)
def test_other_arguments_are_refused_and_nothing_changes(tmp_path, monkeypatch, capsys, further, complaint):
    interrupt_main(monkeypatch, tmp_path, "sl", 5)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    epochs = trained_epochs(monkeypatch)
    capsys.readouterr()
    assert training.main(arguments(tmp_path, *further, "--resume")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'out'}/")
    assert complaint in last
    assert epochs == []
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_data_that_changed_are_refused(tmp_path, monkeypatch, capsys):
    """Which is not among the settings of a run."""
    interrupt_main(monkeypatch, tmp_path, "sl", 5)
    before = (tmp_path / "out" / "results.json").read_bytes()
    with (tmp_path / "blocks.txt").open("a", encoding="utf-8") as file:
        file.writelines(f"late item{item}\n" for item in range(14))
    capsys.readouterr()
    assert training.main(arguments(tmp_path, "--resume")) == 2
    assert "results.json: expected results on {'name': 'blocks', 'users': 61, " in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        '{"runs": 3, "data": {"name": "blocks"}}',
        '{"runs": ["sl"], "data": {"name": "blocks"}}',
        '{"runs": [{"ended_by": "epochs"}], "data": {"name": "blocks"}}',
        '{"runs": []}',
    ],
)
def test_results_that_are_none_are_refused_and_kept(tmp_path, monkeypatch, capsys, content):
    path = tmp_path / "out" / "results.json"
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    epochs = trained_epochs(monkeypatch)
    assert training.main(arguments(tmp_path, "--resume")) == 2
    expected = f"error: {path}: expected the results of an earlier comparison, got something else"
    assert capsys.readouterr().err.splitlines() == [expected]
    assert path.read_text(encoding="utf-8") == content
    assert epochs == []


def test_a_damaged_checkpoint_stops_the_command_line(tmp_path, monkeypatch, capsys):
    interrupt_main(monkeypatch, tmp_path, "sl", 5)
    checkpoint(tmp_path).write_bytes(checkpoint(tmp_path).read_bytes()[:3000])
    before = (tmp_path / "out" / "results.json").read_bytes()
    capsys.readouterr()
    assert training.main(arguments(tmp_path, "--resume")) == 2
    assert f"error: {checkpoint(tmp_path)}: expected a checkpoint of a training run" in capsys.readouterr().err
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    assert checkpoint(tmp_path).stat().st_size == 3000


def test_a_disk_that_is_full_is_an_error_that_leaves_the_checkpoint(tmp_path, monkeypatch, capsys):
    interrupt_main(monkeypatch, tmp_path, "bpr", 3)
    content = checkpoint(tmp_path).read_bytes()

    def save(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        assert training.main(arguments(tmp_path, "--resume")) == 2
    assert "error: no space left on device" in capsys.readouterr().err
    assert checkpoint(tmp_path).read_bytes() == content
    assert training.main(arguments(tmp_path, "--resume")) == 0

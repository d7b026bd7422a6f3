"""Hyper-parameters chosen by validation: the rule for ties, the budget, what is found, and how a search goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_cases import FLAGS, load_blocks, write_blocks

from benchmarks.common.data import InteractionData
from benchmarks.training import __main__ as training
from benchmarks.training import auto, compare
from benchmarks.training.auto import choose, simplest_within_noise
from benchmarks.training.losses import LOSSES, LossOptions, build_loss
from benchmarks.training.metrics import ranking_metrics
from benchmarks.training.negatives import Negatives
from benchmarks.training.search_spaces import SearchSpace, Setting, Stage, search_space
from benchmarks.training.trainer import Trainer, TrainingConfig, TrainingError, train

CONFIG = TrainingConfig(dim=8, epochs=20, batch_size=64, eval_every=2)
OPTIONS = LossOptions(negatives=Negatives("uniform", 8), backend="reference")


@pytest.fixture
def blocks(tmp_path: Path) -> InteractionData:
    return load_blocks(tmp_path)


@pytest.fixture(autouse=True)
def plots(monkeypatch) -> None:
    monkeypatch.setattr(compare, "plot_runs", lambda runs, path, title: path.touch())


def trained_epochs(monkeypatch) -> list[tuple[float | None, float, int]]:
    """The τ, the learning rate and the epoch (from 0) of all epochs that are trained from now on."""
    original, epochs = Trainer._train_epoch, []

    def train_epoch(self):
        epochs.append((self.loss.settings.get("temperature"), self.config.lr, self.epoch))
        return original(self)

    monkeypatch.setattr(Trainer, "_train_epoch", train_epoch)
    return epochs


# --- the rule for ties ---


@pytest.mark.parametrize("seed", range(20))
def test_ties_go_to_the_simplest_by_two_paired_standard_errors(seed):
    rng = np.random.default_rng(seed)
    users = rng.uniform(size=50)
    scores = [users + rng.normal(0.01 * rng.integers(3), 0.05, size=50) for _ in range(6)]
    complexities = [int(number) for number in rng.integers(3, size=6)]
    best = max(scores, key=np.mean)
    equal = []
    for number, values in enumerate(scores):
        error = np.std(best - values, ddof=1) / np.sqrt(50)
        if values is best or np.mean(best) - np.mean(values) < 2 * error:
            equal.append(number)
    least = min(complexities[number] for number in equal)
    expected = max((number for number in equal if complexities[number] == least), key=lambda n: np.mean(scores[n]))
    assert simplest_within_noise([torch.tensor(values) for values in scores], complexities) == expected


def test_the_rule_is_about_paired_differences():
    """Two settings whose users differ much from each other, but hardly between the settings."""
    users = torch.linspace(0, 1, 100).double()
    clearly_better = users + 0.01 + 0.001 * torch.tensor([1.0, -1.0]).repeat(50)
    assert simplest_within_noise([users, clearly_better], [0, 1]) == 1
    noisily_better = users + 0.01 + 0.5 * torch.tensor([1.0, -1.0]).repeat(50)
    assert simplest_within_noise([users, noisily_better], [0, 1]) == 0


def test_equal_users_are_a_tie():
    assert simplest_within_noise([torch.ones(1), torch.ones(1)], [1, 0]) == 1
    assert simplest_within_noise([torch.zeros(1), torch.ones(1)], [0, 1]) == 1  # no error from one user


def test_the_users_ndcg_is_that_of_each_user_alone():
    generator = torch.Generator().manual_seed(0)
    tables = (torch.randn(7, 3, generator=generator), torch.randn(9, 3, generator=generator))
    targets = (torch.tensor([5, 1, 5, 3]), torch.tensor([0, 4, 8, 2]))
    masked = (torch.tensor([1, 5]), torch.tensor([3, 7]))
    found: list[torch.Tensor] = []
    ranking_metrics(*tables, *targets, *masked, k=4, user_ndcg=found)
    alone = []
    for user in (1, 3, 5):
        own = [each[targets[0] == user] for each in targets]
        alone.append(ranking_metrics(*tables, *own, *masked, k=4)["ndcg"])
    assert torch.cat(found).tolist() == pytest.approx(alone, abs=1e-15)


# --- search spaces ---


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_space_that_it_can_be_trained_in(name):
    space = search_space(name)
    best = Setting(OPTIONS, CONFIG).changed(space.fixed)
    for number, stage in enumerate(space.stages):
        settings = [best.changed(tries) for tries in stage.tries(best)]
        assert len(settings) > 1
        if number:
            assert settings[0] == best  # which has been trained by then
        seen = [(build_loss(name, options).settings, config) for options, config in settings]
        assert all(one not in seen[:place] for place, one in enumerate(seen)), "a setting that changes nothing"
        best = settings[-1]


def test_only_bpr_has_its_learning_rate_chosen():
    for name in LOSSES:
        start = Setting(OPTIONS, replace(CONFIG, lr=0.3))
        rates = {start.changed(tries).config.lr for stage in search_space(name).stages for tries in stage.tries(start)}
        assert rates == ({0.3, 0.03, 0.003} if name == "bpr" else {0.3})


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="loss must be one of .*, got 'softmax'"):
        search_space("softmax")


# --- the search ---


@pytest.mark.parametrize("name", ["bpr", "sl", "cw", "llpauc"])
@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, epochs=5), replace(CONFIG, epochs=40, patience=2)], ids=str)
def test_the_budget_is_kept(blocks, monkeypatch, name, config):
    epochs = trained_epochs(monkeypatch)
    choice = choose(blocks, name, OPTIONS, config)
    assert 0 < len(epochs) == choice.epochs == sum(tried["epochs"] for tried in choice.tries) <= 2 * config.epochs


def test_what_there_are_no_epochs_for_is_not_counted(blocks):
    choice = choose(blocks, "sl", OPTIONS, replace(CONFIG, epochs=1))
    assert len(choice.tries) == choice.epochs == 2
    first, second = choice.reason.split("; then ")
    assert " of 2 after up to 1 epochs" in first and " of 1 after up to 1 epochs" in second


def test_flat_curves_end_the_search(blocks):
    """With a learning rate of 0 nothing gets better after the first validation."""
    config = replace(CONFIG, epochs=400, lr=0.0)
    choice = choose(blocks, "sl", OPTIONS, config)
    assert max(tried["epochs"] for tried in choice.tries) <= 2 + 3 * 2
    assert choice.chosen == {"temperature": 0.1}  # all are equal: the default


@pytest.mark.parametrize("place", range(4))
def test_a_planted_best_is_found(blocks, monkeypatch, place):
    """A learning rate that learns within the first epochs, among some that are next to 0."""
    rates = [1e-6, 1e-7, 1e-8]
    rates.insert(place, 1.0)
    space = SearchSpace((Stage(lambda best: [{"lr": rate} for rate in rates]),))
    monkeypatch.setattr(auto, "search_space", lambda name: space)
    choice = choose(blocks, "sl", OPTIONS, CONFIG)
    assert (choice.chosen, choice.config, choice.options) == ({"lr": 1.0}, replace(CONFIG, lr=1.0), OPTIONS)
    assert "lr 1 is the best of 4" in choice.reason


def test_what_diverges_is_not_chosen(blocks, monkeypatch):
    space = SearchSpace((Stage(lambda best: [{"lr": rate} for rate in (0.1, 0.05)]),))
    monkeypatch.setattr(auto, "search_space", lambda name: space)
    original = Trainer._train_epoch

    def train_epoch(self):
        if self.config.lr in bad:
            raise TrainingError("sl: the training loss became nan")
        return original(self)

    monkeypatch.setattr(Trainer, "_train_epoch", train_epoch)
    bad = {0.1}
    choice = choose(blocks, "sl", OPTIONS, CONFIG)
    assert choice.chosen == {"lr": 0.05}
    assert choice.tries[0]["diverged"] == "sl: the training loss became nan"
    bad = {0.1, 0.05}
    with pytest.raises(TrainingError, match="sl: all of 2 settings diverged"):
        choose(blocks, "sl", OPTIONS, CONFIG)


def test_an_interrupted_search_chooses_the_same(blocks, tmp_path, monkeypatch):
    whole = choose(blocks, "slk", OPTIONS, CONFIG)
    assert whole.checkpoint is None
    original, done = Trainer._train_epoch, []

    def train_epoch(self):
        done.append(self.epoch)
        if len(done) % 8 == 0:
            raise KeyboardInterrupt
        return original(self)

    folder, interrupts = tmp_path / "search", 0
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", train_epoch)
        while True:
            try:
                resumed = choose(blocks, "slk", OPTIONS, CONFIG, checkpoint=folder)
                break
            except KeyboardInterrupt:
                interrupts += 1
    assert interrupts > 2
    assert resumed.report() | {"seconds": 0} == whole.report() | {"seconds": 0}
    assert (resumed.options, resumed.config) == (whole.options, whole.config)


def test_the_training_goes_on_where_the_search_left_it(blocks, tmp_path, monkeypatch):
    choice = choose(blocks, "cw", OPTIONS, CONFIG, checkpoint=tmp_path / "search")
    loss = build_loss("cw", choice.options)
    whole = train(blocks, loss, choice.config, show_progress=False)
    epochs = trained_epochs(monkeypatch)
    gone_on = train(blocks, loss, choice.config, show_progress=False, checkpoint=choice.checkpoint)
    spent = next(tried["epochs"] for tried in choice.tries if tried["settings"] == choice.chosen)
    assert spent > 0
    assert [epoch for *_, epoch in epochs] == list(range(spent, gone_on["epochs"]))
    assert gone_on | {"seconds": 0} == whole | {"seconds": 0}


# --- the command line ---


def arguments(directory: Path, *further: str) -> list[str]:
    path = directory / "blocks.txt"
    if not path.exists():
        write_blocks(path)
    basics = ["--loss", "sl", "bpr", "--auto", "--epochs", "8", "--eval-every", "2", "--out", str(directory / "out")]
    return ["--data", str(path), *FLAGS, *basics, *further]


def load_results(directory: Path) -> dict[str, Any]:
    results = json.loads((directory / "out" / "results.json").read_text(encoding="utf-8"))
    for run in (*results["runs"], *results["auto"].values()):
        del run["seconds"]
    return results


def test_results_have_the_choice_and_every_try(tmp_path, monkeypatch, capsys):
    epochs = trained_epochs(monkeypatch)
    assert training.main(arguments(tmp_path, "--seed", "3", "4")) == 0
    results, printed = load_results(tmp_path), capsys.readouterr().out
    assert list(results["auto"]) == ["sl", "bpr"]
    for name, choice in results["auto"].items():
        assert f"auto: {name}: {choice['reason']}\n" in printed
        runs = [run for run in results["runs"] if run["loss"] == name]
        assert [run["config"]["seed"] for run in runs] == [3, 4]
        for run in runs:
            assert choice["chosen"].items() <= (run["loss_settings"] | run["config"]).items()
        assert choice["epochs"] <= 16
        assert choice["tries"]
    # The search's work on what it chose is not done again.
    assert len(epochs) < sum(choice["epochs"] for choice in results["auto"].values()) + 4 * 8
    table = printed[printed.index("tried by --auto") :]
    assert table.count("*") == 2
    assert all(f"{ndcg:.4f}" in table for tried in results["auto"]["sl"]["tries"] for _, ndcg in tried["rungs"])
    assert not list((tmp_path / "out").rglob("*.pt"))


def test_settings_that_are_no_numbers_are_reported(tmp_path, capsys):
    assert training.main(arguments(tmp_path, "--loss", "cw", "--epochs", "20")) == 0
    choice, printed = load_results(tmp_path)["auto"]["cw"], capsys.readouterr().out
    prior, likely = choice["chosen"]["prior"], choice["chosen"]["likely_positives"]
    assert f"prior {prior:g}, likely_positives {likely or 'none'}, extra_positives" in choice["reason"]
    table = printed[printed.index("tried by --auto") :]
    assert "prior=0.03 likely_positives=auto extra_positives=20" in table
    assert "prior=0 likely_positives=none extra_positives=0" in table
    assert table.count("*") == 1


@pytest.mark.parametrize("steps", [3, 14, 30, 37])
def test_the_command_goes_on_with_the_same_choice(tmp_path, monkeypatch, steps):
    (tmp_path / "whole").mkdir()
    assert training.main(arguments(tmp_path / "whole")) == 0
    original, done = Trainer._train_epoch, []

    def train_epoch(self):
        done.append(self.epoch)
        if len(done) == steps:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", train_epoch)
        assert training.main(arguments(tmp_path)) == 130
    assert training.main(arguments(tmp_path, "--resume")) == 0
    found, expected = load_results(tmp_path), load_results(tmp_path / "whole")
    assert (found["auto"], found["runs"]) == (expected["auto"], expected["runs"])


def test_what_was_chosen_is_kept_for_further_seeds_and_not_for_other_settings(tmp_path, monkeypatch, capsys):
    assert training.main(arguments(tmp_path)) == 0
    first = load_results(tmp_path)
    epochs = trained_epochs(monkeypatch)
    assert training.main(arguments(tmp_path, "--resume", "--seed", "0", "1")) == 0
    assert len(epochs) == 2 * 8  # one further run of each loss
    assert load_results(tmp_path)["auto"] == first["auto"]
    capsys.readouterr()
    assert training.main(arguments(tmp_path, "--resume", "--dim", "4")) == 2
    assert "expected the search of" in capsys.readouterr().err


def test_a_directory_that_cannot_be_saved_to_is_refused_before_the_search(tmp_path, monkeypatch, capsys):
    (tmp_path / "models" / "sl-seed0").mkdir(parents=True)
    (tmp_path / "models" / "sl-seed0" / "notes.txt").write_text("mine")
    epochs = trained_epochs(monkeypatch)
    assert training.main(arguments(tmp_path, "--save", str(tmp_path / "models"))) == 2
    assert str(tmp_path / "models" / "sl-seed0") in capsys.readouterr().err
    assert epochs == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("further", "complaint"),
    [
        (["--tau", "0.1"], "--auto chooses --tau for sl: expected one of the two, got both"),
        (["--loss", "cw", "--prior", "0.05"], "--auto chooses --prior for cw"),
        (["--loss", "cw", "--likely-positives", "auto"], "--auto chooses --likely-positives for cw"),
        (["--loss", "bpr", "slk", "--confidence-tau", "1.25"], "--auto chooses --confidence-tau for slk"),
        (["--loss", "llpauc", "--top-negatives", "0.1"], "--auto chooses --top-negatives for llpauc"),
    ],
)
def test_what_it_would_choose_must_not_be_given(tmp_path, capsys, further, complaint):
    """Not even the default."""
    with pytest.raises(SystemExit) as caught:
        training.main(arguments(tmp_path, *further))
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""Held-out positives among the negatives: how many, which, for whom, and what training and tests see of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from training_cases import FLAGS, load_blocks, make_data, p_value, pairs, record_batches, write_blocks

from benchmarks.common import data
from benchmarks.common.data import DataError, InteractionData, split_validation
from benchmarks.training import __main__ as training
from benchmarks.training.false_negatives import FalseNegatives
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.metrics import ranking_metrics
from benchmarks.training.negatives import Negatives
from benchmarks.training.trainer import Trainer, TrainingConfig

# Users with 6, 2, no, 1 and no items to hold out: a tenth, at least one, never the only one.
SIZES = {0: 64, 1: 25, 2: 1, 3: 2, 4: 1}
HELD_OUT = {0: 6, 1: 2, 2: 0, 3: 1, 4: 0}
NUM_ITEMS = 80


@pytest.fixture
def made_up() -> InteractionData:
    rng = np.random.default_rng(1)
    return make_data({user: sorted(rng.permutation(NUM_ITEMS)[:size].tolist()) for user, size in SIZES.items()}, 80)


@pytest.fixture
def blocks(tmp_path: Path) -> InteractionData:
    return load_blocks(tmp_path)


def held_out(whole: InteractionData, fit: InteractionData) -> set[tuple[int, int]]:
    """The pairs that are in the one and not in the other."""
    everything, kept = pairs(whole.train_users, whole.train_items), pairs(fit.train_users, fit.train_items)
    assert kept < everything
    return everything - kept


def put_among(noise: FalseNegatives, users: list[int], number: int, seed: int = 0) -> torch.Tensor:
    """What becomes of negatives −1, so that it can be told what was put there."""
    negatives = torch.full((len(users), number), -1)
    return noise.put_among(negatives, torch.tensor(users), torch.Generator().manual_seed(seed))


# --- which negatives become false ones ---


def test_a_tenth_of_each_users_items_is_held_out(made_up):
    noise, fit = FalseNegatives.hold_out(made_up, 1.0, seed=3)
    apart = held_out(made_up, fit)
    assert {user: sum(u == user for u, _ in apart) for user in SIZES} == HELD_OUT
    found = put_among(noise, list(SIZES), 2000)
    for user, row in zip(SIZES, found, strict=True):
        expected = {item for u, item in apart if u == user} or {-1}
        assert set(row.tolist()) == expected


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_of_false_negatives_is_that_asked_for(made_up, share):
    noise, _ = FalseNegatives.hold_out(made_up, share, seed=0)
    number = 100_000
    found = put_among(noise, [0, 1, 2, 3, 4], number)
    for user, row in enumerate(found):
        replaced = (row != -1).sum().item()
        expected = share * number if HELD_OUT[user] else 0
        assert abs(replaced - expected) <= 4 * math.sqrt(number * share * (1 - share))


def test_false_negatives_are_uniform_on_those_held_out(made_up):
    noise, fit = FalseNegatives.hold_out(made_up, 0.7, seed=0)
    found = put_among(noise, [0, 1], 60_000)
    for user, row in enumerate(found):
        own = sorted(item for u, item in held_out(made_up, fit) if u == user)
        assert p_value(torch.bincount(row[row != -1], minlength=NUM_ITEMS)[own]) > 1e-4


def test_places_are_chosen_one_by_one(made_up):
    """Neighbours are replaced together as often as chance has it."""
    noise, _ = FalseNegatives.hold_out(made_up, 0.3, seed=0)
    replaced = put_among(noise, [0] * 500, 200) != -1
    for together in (replaced[:, 1:] & replaced[:, :-1], replaced[1:] & replaced[:-1]):
        n = together.numel()
        # Neighbouring pairs share a place, so the variance is that of independent ones and twice a covariance.
        deviation = math.sqrt(n * (0.3**2 * (1 - 0.3**2) + 2 * (0.3**3 - 0.3**4)))
        assert abs(together.sum().item() - 0.09 * n) < 4 * deviation


def test_other_negatives_stay_where_they_are(made_up):
    noise, fit = FalseNegatives.hold_out(made_up, 0.4, seed=0)
    negatives = torch.arange(1000, 1600).reshape(3, 200)
    found = noise.put_among(negatives, torch.tensor([0, 2, 1]), torch.Generator().manual_seed(0))
    replaced = found < 1000
    assert torch.equal(found[~replaced], negatives[~replaced])
    assert replaced.any(1).tolist() == [True, False, True]


def test_the_seed_alone_says_what_is_held_out_and_what_is_drawn(made_up):
    runs = [FalseNegatives.hold_out(made_up, 0.5, seed) for seed in (1, 1, 2)]
    splits = [held_out(made_up, fit) for _, fit in runs]
    assert splits[0] == splits[1] != splits[2]
    users = [0, 1, 3]
    first, again = (put_among(noise, users, 50) for noise, _ in runs[:2])
    other = put_among(runs[0][0], users, 50, seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_is_held_out_is_another_draw_than_the_validation_items(made_up):
    _, fit = FalseNegatives.hold_out(made_up, 0.5, seed=0)
    _, users, items = split_validation(made_up, seed=0)
    assert held_out(made_up, fit) != pairs(users, items)


# --- in training ---


def make_trainer(data: InteractionData, share: float | None, loss: str = "sl", **config) -> Trainer:
    options = LossOptions(negatives=Negatives("uniform", 40), backend="reference")
    config = {"dim": 8, "epochs": 1, "batch_size": 64, "false_negatives": share, **config}
    return Trainer(data, build_loss(loss, options), TrainingConfig(**config))


def test_training_knows_nothing_of_what_is_held_out(blocks):
    run, without = make_trainer(blocks, 0.5), make_trainer(blocks, None)
    apart = held_out(without.fit, run.fit)
    assert len(apart) == 60  # one of 7 for each user
    users = torch.arange(60).repeat_interleave(run.interactions.starts.diff())
    known = pairs(users, run.interactions.items)
    assert known == pairs(run.fit.train_users, run.fit.train_items) == pairs(run.sampler.users, run.sampler.items)
    assert known.isdisjoint(apart)
    validation = pairs(run.validation_users, run.validation_items)
    assert validation == pairs(without.validation_users, without.validation_items)
    assert known | apart | validation == pairs(blocks.train_users, blocks.train_items)


def test_the_models_graph_is_without_what_is_held_out(blocks):
    pytest.importorskip("torch_geometric")
    run, without = (make_trainer(blocks, share, model="lightgcn") for share in (0.5, None))
    edges = [set(map(tuple, r.model.adjacency.to_sparse_coo().indices().T.tolist())) for r in (run, without)]
    assert {(u, i - 60) for u, i in edges[1] - edges[0] if u < 60} == held_out(without.fit, run.fit)


@pytest.mark.parametrize("loss", ["bpr", "llpauc", "sl", "advinfonce", "cw"])
def test_a_batch_of_every_loss_has_false_negatives(blocks, loss):
    runs = {share: make_trainer(blocks, share, loss) for share in (0.0, 0.5, 1.0)}
    apart = held_out(make_trainer(blocks, None).fit, runs[1.0].fit)
    false = {}
    for share, run in runs.items():
        batches = record_batches(run)
        run.train_step(torch.arange(64))
        batch = batches[0][1]
        drawn = run.loss.negatives.draw(batch.query_ids, run.interactions, batch.seed)
        assert batch.neg_ids.shape == drawn.shape == (64, 1 if loss == "bpr" else 40)
        assert torch.equal(batch.neg_ids, drawn) == (share == 0)
        users = batch.query_ids.unsqueeze(1).expand_as(drawn)
        is_held_out = [pair in apart for pair in zip(users.flatten().tolist(), batch.neg_ids.flatten().tolist())]
        false[share] = sum(is_held_out) / len(is_held_out)
    assert false[1.0] == 1
    assert false[0.0] < false[0.5] < 1


def test_both_backends_train_on_the_same_false_negatives(blocks, kernels):
    losses = []
    for name in ("fused", "reference"):
        loss = build_loss("cw", LossOptions(negatives=Negatives("popularity", 8), backend=name))
        run = Trainer(blocks, loss, TrainingConfig(dim=8, batch_size=64, false_negatives=0.5))
        losses.append([run.train_step(batch) for batch in run.shuffled_batches()])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_rankings_leave_out_what_is_held_out(blocks):
    run = make_trainer(blocks, 0.0, epochs=8)  # with which they are not pushed out of the rankings anyway
    run.train(show_progress=False)
    trained_on = make_trainer(blocks, None).fit
    tables, found = run._best_tables, run.test()
    seen, fit = ((d.train_users, d.train_items) for d in (trained_on, run.fit))
    targets = (blocks.test_users, blocks.test_items)
    popularity = torch.bincount(seen[1], minlength=blocks.num_items)  # of what is held out too
    assert found["test"] == ranking_metrics(*tables, *targets, *seen, popularity=popularity)
    assert found["test"] != ranking_metrics(*tables, *targets, *fit, popularity=popularity)
    everything = (blocks.train_users, blocks.train_items)
    assert found["test_validation_masked"] == ranking_metrics(*tables, *targets, *everything, popularity=popularity)
    validation = ranking_metrics(*tables, run.validation_users, run.validation_items, *seen)
    assert run.best["ndcg"] == validation["ndcg"]


def test_the_same_seed_gives_the_same_noisy_run(blocks):
    curves = []
    for seed in (1, 1, 2):
        run = make_trainer(blocks, 0.5, epochs=2, eval_every=1, seed=seed)
        run.train(show_progress=False)
        curves.append(run.curve)
    assert curves[0] == curves[1] != curves[2]


# --- what cannot be ---


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(blocks, share):
    with pytest.raises(ValueError, match=rf"false_negatives must be in \[0, 1\], got {share}"):
        make_trainer(blocks, share)


def test_data_with_nothing_to_hold_out_is_refused():
    # Validation takes one of two items, so only one is left.
    with pytest.raises(DataError, match="made up: expected a user with at least 2 items to train on, to hold one out"):
        make_trainer(make_data({user: [user, user + 1] for user in range(5)}, 9), 0.5)


@pytest.mark.parametrize("spec", ["shared:8", "in-batch", "mixed:8", "full"])
def test_negatives_that_rows_have_in_common_are_refused(tmp_path, capsys, monkeypatch, spec):
    monkeypatch.setattr(Trainer, "train", lambda *_: pytest.fail("training began"))
    arguments = ["--data", str(write_blocks(tmp_path / "blocks.txt")), "--out", str(tmp_path / "out"), *FLAGS]
    assert training.main([*arguments, "--false-negatives", "0.1", "--loss", "sl", "--negatives", spec]) == 2
    assert f"error: false_negatives need negatives drawn for each row, got {spec}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("share", "complaint"),
    [
        ("1.5", "argument --false-negatives: expected a number in [0, 1], got '1.5'"),
        ("-1", "argument --false-negatives: expected a finite number of at least 0, got '-1'"),
        ("many", "argument --false-negatives: expected a finite number of at least 0, got 'many'"),
    ],
)
def test_bad_shares_on_the_command_line_are_refused(capsys, share, complaint):
    with pytest.raises(SystemExit) as caught:
        training.main(["--false-negatives", share])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_the_command_line_trains_with_them(tmp_path, capsys):
    path = write_blocks(tmp_path / "blocks.txt")
    arguments = ["--data", str(path), "--loss", "sl", "--epochs", "1", "--out", str(tmp_path), *FLAGS]
    assert training.main([*arguments, "--false-negatives", "0.25"]) == 0
    report = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    loss = build_loss("sl", LossOptions(negatives=Negatives("uniform", 8), backend="reference"))
    run = Trainer(data.load(path, core=2), loss, TrainingConfig(dim=8, epochs=1, batch_size=64, false_negatives=0.25))
    run.train(show_progress=False)
    assert report["runs"][0]["config"]["false_negatives"] == 0.25
    assert report["runs"][0]["validation"] == run.curve

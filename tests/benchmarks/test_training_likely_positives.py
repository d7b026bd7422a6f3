"""Further positives that users probably like, in training: which ones, found from what, and what cannot be."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import assert_distributed
from training_cases import FLAGS, load_blocks, make_data, pairs, record_batches, write_blocks

from benchmarks.common.data import InteractionData
from benchmarks.training import __main__ as training
from benchmarks.training import positives
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.negatives import Batch, Negatives
from benchmarks.training.positives import likely_positives
from benchmarks.training.trainer import Trainer, TrainingConfig
from cw_ext import Interactions, LikelyPositives

CONFIG = TrainingConfig(dim=8, lr=0.02, epochs=2, batch_size=64, eval_every=2)
OPTIONS = LossOptions(negatives=Negatives("uniform", 8), backend="reference", likely_positives="regression")


@pytest.fixture
def blocks(tmp_path: Path) -> InteractionData:
    return load_blocks(tmp_path)


def interactions_of(data: InteractionData) -> Interactions:
    return Interactions(data.train_users, data.train_items, num_queries=data.num_users, num_items=data.num_items)


def train(
    data: InteractionData, loss: str = "cw", config: TrainingConfig = CONFIG, **options
) -> tuple[Trainer, list[Batch]]:
    run = Trainer(data, build_loss(loss, replace(OPTIONS, **options)), config)
    batches = record_batches(run)
    assert run.train(show_progress=False) == "epochs"
    return run, [batch for _, batch in batches]


def rows_of(batches: list[Batch]) -> set[tuple[int, int]]:
    return {pair for b in batches for pair in zip(b.query_ids.tolist(), b.pos_ids.tolist(), strict=True)}


def drawn_in(batches: list[Batch]) -> Counter[tuple[int, int]]:
    """How often each item was a further positive of each user; −1 where a user has none."""
    return Counter(
        (user, item)
        for batch in batches
        for user, items in zip(batch.query_ids.tolist(), batch.extra_pos_ids.tolist(), strict=True)
        for item in items
    )


def regression(rows: set[tuple[int, int]], shape: tuple[int, int]) -> np.ndarray:
    """EASE (eq. 8 of arXiv 1905.03375) with λ = 200; of known items 0."""
    known = np.zeros(shape)
    known[tuple(np.array(list(rows)).T)] = 1
    inverse = np.linalg.inv(known.T @ known + 200 * np.eye(shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return np.where(known > 0, 0, known @ weights)


# --- which ones ---


@pytest.mark.parametrize("loss", ["cw", "dcl"])
@pytest.mark.parametrize("false_negatives", [None, 0.3])
def test_they_are_drawn_as_a_regression_on_the_rows_alone_has_it(blocks, loss, false_negatives):
    """Validation items and held-out false negatives are as unknown as others, and may be drawn."""
    config = replace(CONFIG, false_negatives=false_negatives)
    run, batches = train(blocks, loss, config, extra_positives=300)
    rows = rows_of(batches)
    validation = pairs(run.validation_users, run.validation_items)
    held_out = pairs(blocks.train_users, blocks.train_items) - rows - validation
    assert bool(held_out) is (false_negatives is not None)
    drawn = drawn_in(batches)
    assert not drawn.keys() & rows
    assert drawn.keys() & validation and (not held_out or drawn.keys() & held_out)

    scores = regression(rows, (blocks.num_users, blocks.num_items))
    weights = scores.clip(min=0) ** 2
    assert 0 < np.count_nonzero(weights, axis=1).min() and np.count_nonzero(weights, axis=1).max() <= 20  # all are kept
    for user in range(blocks.num_users):
        counts = torch.tensor([drawn[user, item] for item in range(blocks.num_items)]).double()
        expected = counts.sum() * torch.from_numpy(weights[user] / weights[user].sum())
        # The rarest count with the most frequent, since the test needs five of each.
        rare, most = (expected > 0) & (expected < 5), expected.argmax()
        for numbers in (counts, expected):
            numbers[most] += numbers[rare].sum()
            numbers[rare] = 0
        assert_distributed(counts, expected)


def test_walks_draw_from_the_rows_alone_too(blocks):
    run, batches = train(blocks, likely_positives="walks")
    rows = rows_of(batches)
    expected = LikelyPositives.by_walks(interactions_of(run.fit))
    assert pairs(run.fit.train_users, run.fit.train_items) == rows
    assert torch.equal(run.likely.ids, expected.ids) and torch.equal(run.likely.probabilities, expected.probabilities)
    drawn = drawn_in(batches)
    assert not drawn.keys() & rows
    assert all(item in expected.ids[user].tolist() for user, item in drawn)


def test_every_step_draws_others(blocks):
    run = Trainer(blocks, build_loss("cw", replace(OPTIONS, extra_positives=3)), CONFIG)
    batches = record_batches(run)
    for _ in range(2):
        run.train_step(torch.arange(64))  # the same rows
    first, second = (batch.extra_pos_ids for _, batch in batches)
    assert first.shape == second.shape == (64, 3)
    assert (first != second).any(1).sum() > 32


def test_a_user_who_shares_no_item_has_none_and_is_trained_on(blocks):
    """The corrections of the others go on, and the loss is finite."""
    data = make_data({0: [0, 1, 2], 1: [0, 1, 3], 2: [0, 2, 3], 3: [4, 5]}, 6)
    run, batches = train(data, extra_positives=4, config=replace(CONFIG, batch_size=16))
    drawn = drawn_in(batches)
    assert {item for user, item in drawn if user == 3} == {-1}
    assert {item for user, item in drawn if user < 3 and item >= 0} <= {0, 1, 2, 3}
    assert any(item >= 0 for _, item in drawn)
    assert all(np.isfinite(point["training_loss"]) for point in run.curve)


# --- how they are found ---


def test_auto_is_the_regression_up_to_so_many_items(blocks, monkeypatch):
    known = interactions_of(blocks)
    found = {}
    for most in (blocks.num_items, blocks.num_items - 1):
        monkeypatch.setattr(positives, "MOST_REGRESSED", most)
        found[most] = likely_positives("auto", known).probabilities
        for kind, make in (("regression", LikelyPositives.by_regression), ("walks", LikelyPositives.by_walks)):
            assert torch.equal(likely_positives(kind, known).probabilities, make(known).probabilities)
    by_regression, by_walks = found.values()
    assert torch.equal(by_regression, LikelyPositives.by_regression(known).probabilities)
    assert torch.equal(by_walks, LikelyPositives.by_walks(known).probabilities)
    assert not torch.equal(by_regression, by_walks)


@pytest.mark.parametrize("kind", ["regression", "walks"])
def test_those_of_other_pairs_are_others(kind):
    """Also where every user has as many, and where only the catalogue is longer."""
    make = LikelyPositives.by_regression if kind == "regression" else LikelyPositives.by_walks
    first = {0: [0, 1, 2], 1: [0, 1, 3], 2: [0, 2, 3]}
    for train_items, num_items in ((first, 6), ({**first, 2: [0, 2, 4]}, 6), (first, 7), (first, 6)):
        known = interactions_of(make_data(train_items, num_items))
        found, expected = likely_positives(kind, known), make(known)
        assert torch.equal(found.ids, expected.ids)
        assert torch.equal(found.probabilities, expected.probabilities)


# --- what cannot be, and the command ---


@pytest.mark.parametrize("loss", ["cw", "dcl"])
def test_another_way_is_refused_before_training(loss):
    with pytest.raises(ValueError, match="likely_positives must be one of auto, regression, walks, got 'ease'"):
        build_loss(loss, replace(OPTIONS, likely_positives="ease"))


@pytest.mark.parametrize("loss", ["cw", "dcl"])
@pytest.mark.parametrize("options", [{"prior": 0.0}, {"extra_positives": 0}, {"held_out_positives": True}])
def test_without_a_correction_or_with_held_out_positives_there_are_none(blocks, loss, options):
    run, batches = train(blocks, loss, **options)
    assert "likely_positives" not in run.loss.settings and run.likely is None
    known = pairs(blocks.train_users, blocks.train_items)
    assert all(drawn_in([batch]).keys() <= known for batch in batches if batch.extra_pos_ids is not None)


def test_none_takes_known_ones(blocks):
    run, batches = train(blocks, likely_positives=None)
    assert run.likely is None and drawn_in(batches).keys() <= rows_of(batches)


def test_other_losses_have_none():
    for name in ("sl", "slk", "bpr"):
        loss = build_loss(name, OPTIONS)
        assert "likely_positives" not in loss.settings and loss.likely_positives is None


def test_the_command_line_trains_with_them(tmp_path, capsys):
    path = write_blocks(tmp_path / "blocks.txt")
    arguments = ["--data", str(path), "--epochs", "2", "--eval-every", "1", *FLAGS, "--out", str(tmp_path / "out")]
    likely = ["--likely-positives", "walks", "--false-negatives", "0.2"]
    assert training.main([*arguments, "--loss", "sl", "cw", *likely]) == 0
    sl, cw = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["runs"]
    assert cw["loss_settings"]["likely_positives"] == "walks" and "likely_positives" not in sl["loss_settings"]
    assert "likely=walks" in capsys.readouterr().out
    for further in (["sl"], ["cw", "--prior", "0"], ["cw", "--extra-positives", "0"], ["cw", "--held-out-positives"]):
        assert training.main([*arguments, *likely, "--loss", *further]) == 2
        needed = "--likely-positives needs cw or dcl, with a prior and extra positives that are not held out, got "
        assert needed + f"{further[0]} with --negatives uniform:8" in capsys.readouterr().err


def test_they_are_found_where_training_runs(blocks, device):
    run, batches = train(blocks, config=replace(CONFIG, device=device.type, false_negatives=0.2))
    assert {batch.extra_pos_ids.device.type for batch in batches} == {device.type}
    assert run.likely.ids.device.type == device.type and 0 < run.curve[-1]["ndcg"] <= 1

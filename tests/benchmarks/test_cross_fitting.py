"""Weights from what each epoch leaves out: which pairs these are, where they are not, and what the estimate sees."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_cases import load_blocks, make_data, pairs, record_batches

from benchmarks.common.data import InteractionData
from benchmarks.training.estimates import Unseen
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.negatives import Negatives
from benchmarks.training.positives import Folds
from benchmarks.training.trainer import Trainer, TrainingConfig

CONFIG = TrainingConfig(dim=8, epochs=11, batch_size=64, eval_every=11)
OPTIONS = LossOptions(
    negatives=Negatives("uniform", 12), backend="reference", false_negative_prior=0.1, cross_fitted=True, prior=0.0
)


@pytest.fixture
def blocks(tmp_path: Path) -> InteractionData:
    return load_blocks(tmp_path)


def make_trainer(data: InteractionData, loss: str = "sl", config: TrainingConfig = CONFIG, **options) -> Trainer:
    return Trainer(data, build_loss(loss, replace(OPTIONS, **options)), config)


def training_pairs(run: Trainer) -> set[tuple[int, int]]:
    return pairs(run.fit.train_users, run.fit.train_items)


def test_folds_are_tenths_of_each_user_and_of_all():
    users = torch.arange(7).repeat_interleave(torch.tensor([1, 2, 9, 10, 11, 25, 100]))
    for seed in range(5):
        folds = Folds(users, seed)
        left_out = [folds.left_out(epoch) for epoch in range(10)]
        assert torch.equal(torch.cat(left_out).sort().values, torch.arange(len(users)))
        for fold in left_out:
            assert 15 <= len(fold) <= 16  # of 158
            counts = torch.bincount(users[fold], minlength=7)
            assert all(number in (size // 10, -(-size // 10)) for number, size in zip(
                counts.tolist(), (1, 2, 9, 10, 11, 25, 100), strict=True
            ))  # fmt: skip
        for epoch in (0, 4, 13):
            both = torch.cat([folds.left_out(epoch), folds.rows(epoch)])
            assert torch.equal(both.sort().values, torch.arange(len(users)))
            assert torch.equal(folds.left_out(epoch), folds.left_out(epoch + 10))
    assert not torch.equal(Folds(users, 0).left_out(0), Folds(users, 1).left_out(0))
    assert torch.equal(Folds(users, 1).left_out(3), Folds(users, 1).left_out(3))


def test_every_item_of_a_user_is_as_likely_in_every_fold():
    users = torch.zeros(20, dtype=torch.int64)
    counts = torch.zeros(20, 10)
    for seed in range(2000):
        for fold in range(10):
            counts[Folds(users, seed).left_out(fold), fold] += 1
    assert (counts - 200).abs().max() < 6 * 200**0.5


def test_over_ten_epochs_each_pair_is_left_out_once_and_then_in_no_row(blocks):
    run = make_trainer(blocks)
    batches = record_batches(run)
    run.train(show_progress=False)
    everything, left_out = training_pairs(run), Counter()
    rows_of = {}
    for epoch in range(11):
        of_epoch = [batch for at, batch in batches if at == epoch]
        rows = pairs(*(torch.cat([getattr(batch, name) for batch in of_epoch]) for name in ("query_ids", "pos_ids")))
        assert rows < everything
        rows_of[epoch] = rows
        if epoch < 10:
            left_out.update(everything - rows)
    assert left_out == Counter(everything)
    assert rows_of[10] == rows_of[0]


@pytest.mark.parametrize("spec", ["uniform:40", "shared:40", "full"])
def test_what_is_left_out_stays_in_validation_graph_and_known_positives(blocks, spec):
    run, plain = (
        make_trainer(blocks, negatives=Negatives.parse(spec), **options)
        for options in ({}, {"cross_fitted": False})
    )  # fmt: skip
    known = pairs(
        torch.repeat_interleave(torch.arange(60), run.interactions.starts.diff()), run.interactions.items.long()
    )
    assert known == training_pairs(run) == training_pairs(plain)
    assert pairs(*run.seen) == training_pairs(run)
    for name in ("validation_users", "validation_items"):
        assert torch.equal(getattr(run, name), getattr(plain, name))


def test_what_is_left_out_is_never_a_negative(blocks):
    run = make_trainer(blocks)
    batches = record_batches(run)
    run.train(show_progress=False)
    known = training_pairs(run)
    for _, batch in batches:  # the reference has its negatives drawn before
        users = batch.query_ids.unsqueeze(1).expand_as(batch.neg_ids)
        assert known.isdisjoint(zip(users.flatten().tolist(), batch.neg_ids.flatten().tolist(), strict=True))


@pytest.mark.parametrize("share", [None, 0.4])
def test_the_estimate_sees_what_the_epoch_before_left_out_and_nothing_else(blocks, monkeypatch, share):
    run = make_trainer(blocks, config=replace(CONFIG, false_negatives=share))
    batches, seen = record_batches(run), {}
    scores = Unseen.scores

    def noted(unseen, *arguments):
        seen[run.epoch] = pairs(unseen.users, unseen.items)
        return scores(unseen, *arguments)

    monkeypatch.setattr(Unseen, "scores", noted)
    run.train(show_progress=False)
    assert sorted(seen) == list(range(1, 11))
    for epoch, positives in seen.items():
        before = [batch for at, batch in batches if at == epoch - 1]
        rows = pairs(*(torch.cat([getattr(batch, name) for batch in before]) for name in ("query_ids", "pos_ids")))
        assert positives and positives == training_pairs(run) - rows
        assert positives.isdisjoint(pairs(run.validation_users, run.validation_items))


def test_a_graph_keeps_the_edges_that_are_left_out(blocks):
    pytest.importorskip("torch_geometric")
    config = replace(CONFIG, model="lightgcn")
    run, plain = (make_trainer(blocks, config=config, cross_fitted=crossed) for crossed in (True, False))
    for found, expected in zip(run.tables(), plain.tables(), strict=True):
        assert torch.equal(found, expected)


def test_too_few_interactions_are_refused():
    with pytest.raises(ValueError, match="^cross_fitted: expected at least 10 training interactions, got 9$"):
        make_trainer(make_data({0: list(range(5)), 1: list(range(6))}, 12))


def test_an_adapter_cannot_be_cross_fitted():
    with pytest.raises(ValueError, match="^cross_fitted must be False with an adapter, .* got 4 adapter_candidates"):
        build_loss("sl", replace(OPTIONS, adapter_candidates=4))


def test_settings_name_it_only_in_use():
    assert build_loss("sl", OPTIONS).settings["cross_fitted"] is True
    for options in (replace(OPTIONS, cross_fitted=False), replace(OPTIONS, false_negative_prior=None)):
        assert "cross_fitted" not in build_loss("sl", options).settings

"""Thresholds of a user's first K against a sort per user, and when training estimates them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from drawing import histories, make_interactions
from training_cases import load_blocks, record_batches

from benchmarks.common.data import InteractionData
from benchmarks.training import topk_thresholds, trainer
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.negatives import Negatives
from benchmarks.training.topk_thresholds import top_k_thresholds
from benchmarks.training.trainer import Trainer, TrainingConfig
from cw_ext import draw_negatives

USERS, ITEMS = 20, 50  # of make_interactions: user 0 knows nothing, user 1 all items but two
SEED = torch.tensor(13)


def tables(num_items: int = ITEMS) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return tuple(torch.randn(rows, 5, generator=generator, dtype=torch.float64) for rows in (USERS, num_items))


@pytest.fixture
def blocks(tmp_path: Path) -> InteractionData:
    return load_blocks(tmp_path)


@pytest.mark.parametrize("k", [1, 3, 20, 60, 500])
@pytest.mark.parametrize("num_negatives", [1, 12])
@pytest.mark.parametrize("users_per_block", [1, 7, USERS])
def test_thresholds_are_those_of_a_sort_per_user(monkeypatch, k, num_negatives, users_per_block):
    monkeypatch.setattr(topk_thresholds, "_SCORES_PER_BLOCK", users_per_block * ITEMS)
    interactions, (users, items) = make_interactions(), tables()
    expected = []
    for block in torch.arange(USERS).split(users_per_block):
        drawn = draw_negatives(block, interactions, num_negatives, seed=SEED ^ block[0]).tolist()
        for user, ids in zip(block.tolist(), drawn, strict=True):
            known = histories(interactions)[user]
            assert known.isdisjoint(ids)
            ranking = sorted(((users[user] @ items[item]).item() for item in [*known, *ids]), reverse=True)
            expected.append(ranking[:k][-1])  # with fewer than k the lowest
    found = top_k_thresholds(users, items, interactions, k, num_negatives, SEED)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("users_per_block", [1, 6, USERS])
def test_where_all_items_are_drawn_the_ends_are_those_of_all_scores(monkeypatch, users_per_block):
    monkeypatch.setattr(topk_thresholds, "_SCORES_PER_BLOCK", users_per_block * ITEMS)
    interactions, (users, items) = make_interactions(), tables()
    scores = users @ items.T
    number = 3000  # leaves an item out with probability 50·(49/50)^3000 < 1e-24
    for k, expected in ((1, scores.amax(1)), (ITEMS + number, scores.amin(1))):
        found = top_k_thresholds(users, items, interactions, k, number, SEED)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_another_seed_draws_other_items():
    found = [top_k_thresholds(*tables(), make_interactions(), 5, 3, torch.tensor(seed)) for seed in (1, 1, 2)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# --- in training ---


def make_trainer(data: InteractionData, loss: str, epochs: int = 8, **options) -> Trainer:
    given = {"confidence_temperature": 1.25, "confidence_top_k": 4, "refresh_epochs": 3}
    options = {**given, "negatives": Negatives("uniform", 8), **options}
    config = TrainingConfig(dim=8, epochs=epochs, batch_size=64, eval_every=4)
    return Trainer(data, build_loss(loss, LossOptions(backend="reference", **options)), config)


@pytest.mark.parametrize("loss", ["slk", "cw"])
def test_thresholds_are_0_at_first_and_then_estimated_every_so_many_epochs(blocks, monkeypatch, loss):
    estimates = []

    def estimate(*arguments):
        estimates.append((run.epoch, top_k_thresholds(*arguments)))
        return estimates[-1][1]

    monkeypatch.setattr(trainer, "top_k_thresholds", estimate)
    run = make_trainer(blocks, loss)
    batches = record_batches(run)
    run.train(show_progress=False)
    assert [epoch for epoch, _ in estimates] == [3, 6]  # before the fourth and before the seventh epoch
    in_force = {**dict.fromkeys(range(3), torch.zeros(60)), **dict.fromkeys(range(3, 6), estimates[0][1])}
    in_force |= dict.fromkeys(range(6, 8), estimates[1][1])
    assert {epoch for epoch, _ in batches} == set(in_force)
    for epoch, batch in batches:
        assert torch.equal(batch.thresholds, in_force[epoch][batch.query_ids])
    assert all(estimate.unique().numel() > 30 for _, estimate in estimates)


def test_thresholds_in_training_are_half_cosines_of_the_tables_then(blocks):
    # So many negatives that all items are among them, so that the first of each user is the best of all.
    run = make_trainer(blocks, "slk", confidence_top_k=1, refresh_epochs=1, negatives=Negatives("uniform", 3000))
    run.epoch = 1
    with torch.no_grad():
        for table in run.model():
            table.mul_(torch.rand(len(table), 1) + 0.5)
        users, items = (table.double() for table in run.model())
    run.refresh_thresholds()
    cosines = torch.nn.functional.cosine_similarity(users.unsqueeze(1), items.unsqueeze(0), dim=2)
    torch.testing.assert_close(run.thresholds.double(), cosines.amax(1) / 2, rtol=1e-5, atol=0)


@pytest.mark.parametrize("spec", ["popularity:8", "shared:8", "in-batch", "mixed:8", "full"])
def test_every_kind_of_negatives_has_thresholds(blocks, spec):
    run = make_trainer(blocks, "slk", epochs=2, refresh_epochs=1, negatives=Negatives.parse(spec))
    run.train(show_progress=False)
    assert (run.thresholds.abs() <= 0.5).all() and run.thresholds.all()


@pytest.mark.parametrize(
    ("loss", "options"), [("cw", {"confidence_top_k": None, "refresh_epochs": 1}), ("slk", {"refresh_epochs": None})]
)
def test_a_loss_without_thresholds_or_that_learns_them_has_no_pass(blocks, monkeypatch, loss, options):
    monkeypatch.setattr(trainer, "top_k_thresholds", lambda *_: pytest.fail("estimated"))
    run = make_trainer(blocks, loss, epochs=4, **options)
    batches = record_batches(run)
    run.train(show_progress=False)
    assert all(batch.thresholds is None for _, batch in batches)


@pytest.mark.parametrize("loss", ["slk", "cw"])
@pytest.mark.parametrize("spec", ["uniform:40", "shared:40", "full"])
def test_learned_thresholds_are_the_kth_best_of_what_a_user_does_not_know(blocks, backend, loss, spec):
    """Of tables that stay as they are, so that there is a truth: by a count over all items."""
    tau_c = {"cw": 1.25}.get(loss)
    options = LossOptions(
        confidence_temperature=tau_c, confidence_top_k=4, negatives=Negatives.parse(spec), backend=backend
    )
    run = Trainer(blocks, build_loss(loss, options), TrainingConfig(dim=8, lr=0.0, epochs=40, batch_size=64))
    run.train(show_progress=False)
    with torch.no_grad():
        users, items = run.model()
        scores = torch.nn.functional.cosine_similarity(users.unsqueeze(1), items.unsqueeze(0), dim=2) / 2
    scores[run.fit.train_users, run.fit.train_items] = -torch.inf
    above = (scores > run.thresholds.unsqueeze(1)).sum(1)
    assert abs(above.double().mean() - 4) < 0.7
    # A negative of the K best more or less, on average: of 48 items a row's 40 draws have 3.3 ± 1.8 of them.
    assert (above - 4).abs().double().mean() < 1.3


def test_estimates_leave_a_model_in_training_mode(blocks):
    pytest.importorskip("torch_geometric")
    loss = build_loss("slk", LossOptions(refresh_epochs=1, negatives=Negatives("uniform", 8), backend="reference"))
    run = Trainer(blocks, loss, TrainingConfig(model="xsimgcl", dim=8, epochs=2, batch_size=64))
    modes = []
    run.model.register_forward_hook(lambda model, *_: modes.append(model.training))
    run.train(show_progress=False)
    steps = len(run.shuffled_batches())
    assert modes == [True] * steps + [False] + [True] * steps + [False]  # the estimate, and the validation


@pytest.mark.parametrize(
    ("loss", "options", "complaint"),
    [
        ("slk", {"confidence_top_k": 0}, "confidence_top_k must be at least 1, got 0"),
        ("cw", {"confidence_top_k": -2, "confidence_temperature": 1.25}, "confidence_top_k must be at least 1, got -2"),
        ("slk", {"refresh_epochs": 0}, "refresh_epochs must be at least 1, got 0"),
        ("slk", {"confidence_temperature": 0.0}, "confidence_temperature of slk must be > 0, got 0.0"),
        ("slk", {"confidence_temperature": -1.0}, "confidence_temperature of slk must be > 0, got -1.0"),
        ("cw", {"confidence_top_k": 5, "confidence_temperature": None}, "confidence_temperature must be > 0 where"),
    ],
)
def test_bad_values_are_refused(loss, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_loss(loss, LossOptions(backend="reference", **options))

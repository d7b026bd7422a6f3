"""Weights against false negatives in training, the adapter behind some, reranking, and held-out positives."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_cases import FLAGS, load_blocks, pairs, record_batches, write_blocks

from benchmarks.common.data import InteractionData
from benchmarks.training import __main__ as training
from benchmarks.training.adapter import Adapter, rerank, teach
from benchmarks.training.estimates import Estimate
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.metrics import ranking_metrics
from benchmarks.training.negatives import Negatives
from benchmarks.training.positives import HeldOutPositives
from benchmarks.training.reranking import reranked
from benchmarks.training.trainer import Trainer, TrainingConfig
from cw_ext import ScoreCurve, draw_negatives

OPTIONS = LossOptions(negatives=Negatives("uniform", 12), backend="reference")
CONFIG = TrainingConfig(dim=8, epochs=3, batch_size=64, eval_every=1)


@pytest.fixture
def blocks(tmp_path: Path) -> InteractionData:
    return load_blocks(tmp_path)


def make_trainer(data: InteractionData, loss: str = "sl", config: TrainingConfig = CONFIG, **options) -> Trainer:
    return Trainer(data, build_loss(loss, replace(OPTIONS, **options)), config)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- by score ---


def test_weights_follow_the_densities_of_the_scores():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(0.2, 0.1, 40_000), rng.normal(0.0, 0.1, 360_000)
    unlabeled = np.concatenate([negative, rng.normal(0.2, 0.1, 40_000)])
    curve, prior = Estimate(0.1, "normal", strength=0.5).curve(torch.tensor(positive), torch.tensor(unlabeled))
    assert prior == 0.1
    scores = np.linspace(-0.2, 0.25, 20)
    positives, negatives = (np.exp(-((scores - mean) ** 2) / 0.02) for mean in (0.2, 0.0))
    expected = 0.5 * np.log(0.9 * negatives / (0.9 * negatives + 0.1 * positives))
    np.testing.assert_allclose(curve(torch.tensor(scores)).numpy(), expected, atol=0.03)


def test_no_negative_loses_all_its_weight_and_no_prior_changes_none():
    scores = torch.linspace(0, 1, 400), torch.linspace(-1, 0.1, 4000)
    curve, _ = Estimate(0.4, "isotonic", strength=2.0).curve(*scores)
    assert curve.log_weights.min().item() == pytest.approx(2 * math.log(0.05))
    for family in ("normal", "isotonic"):
        assert torch.equal(Estimate(0.0, family).curve(*scores)[0].log_weights, torch.zeros(257))


def test_a_prior_that_is_estimated_is_at_most_nine_tenths():
    scores = torch.linspace(0, 1, 400)  # positives cannot be told from unlabeled items
    assert Estimate("auto", "isotonic").curve(scores, scores)[1] == 0.9


@pytest.mark.parametrize("share", [None, 0.4])
def test_each_epoch_but_the_first_has_weights_by_the_scores_before_it(blocks, share):
    run = make_trainer(blocks, config=replace(CONFIG, false_negatives=share), false_negative_prior=0.2)
    batches, curves = record_batches(run), {}
    while run.epoch < 3:
        tables = [F.normalize(table.detach(), dim=1) for table in run.model()]
        generator = run.generator.clone_state()
        users = run.validation_users
        drawn = draw_negatives(users, run.interactions, 50, seed=torch.randint(2**63 - 1, (), generator=generator))
        if share is not None:
            drawn = run.false_negatives.put_among(drawn, users, generator)
        queries = tables[0][users]
        positive = (queries * tables[1][run.validation_items]).sum(1) / 2
        unlabeled = torch.einsum("bd,bnd->bn", queries, tables[1][drawn]) / 2
        curves[run.epoch] = Estimate(0.2).curve(positive, unlabeled)[0]
        run._train_epoch()
        run.epoch += 1
    assert {epoch for epoch, batch in batches if batch.score_curve is None} == {0}
    for epoch, batch in batches:
        if epoch:
            found, expected = batch.score_curve, curves[epoch]
            assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
            torch.testing.assert_close(found.log_weights, expected.log_weights, atol=1e-3, rtol=1e-3)
            assert batch.neg_log_weights is None


def test_the_loss_is_weighed_by_the_curve(blocks):
    run = make_trainer(blocks, false_negative_prior=0.2, false_negative_family="isotonic")
    batches = record_batches(run)
    for _ in range(2):
        run._train_epoch()
        run.epoch += 1
    batch = batches[-1][1]
    queries, items = (F.normalize(table.detach().double(), dim=1) for table in (batch.queries, batch.items))
    neg_ids = OPTIONS.negatives.draw(batch.query_ids, run.interactions, batch.seed)
    scores = torch.einsum("bd,bnd->bn", queries, items[neg_ids]) / 2
    positive = (queries * items[batch.pos_ids]).sum(1) / 2
    weights = batch.score_curve(scores).exp()
    assert weights.std() > 0.01
    # SL on their mean, times their number as its sum has it.
    mean = (weights * (scores / 0.1).exp()).sum(1) / weights.sum(1)
    expected = (math.log(12) + mean.log() - positive / 0.1).mean()
    assert run._function(batch).item() == pytest.approx(expected.item(), rel=1e-4)


# --- the adapter ---


def test_the_adapter_is_a_network_on_differences_products_and_sums():
    adapter, generator = Adapter(6, seeded()), seeded(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(generator=generator)
    queries, items = torch.randn(5, 6, generator=generator), torch.randn(9, 6, generator=generator)
    ids = torch.randint(9, (5, 4), generator=generator)
    q = 6**0.5 * F.normalize(queries, dim=1).unsqueeze(1).expand(5, 4, 6)
    c = 6**0.5 * F.normalize(items, dim=1)[ids]
    network = nn.Sequential(adapter.hidden, nn.ReLU(), adapter.out)
    expected = network(torch.cat([q - c, q * c, q + c], dim=-1)).squeeze(-1)
    torch.testing.assert_close(adapter(queries, items, ids), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(adapter(7 * queries, 0.1 * items, ids), expected, atol=1e-4, rtol=1e-4)


def test_the_adapter_learns_the_ratio_of_the_densities():
    shares = [0.5, 0.3, 0.15, 0.05]
    items = torch.eye(4)
    pos_ids = torch.arange(4).repeat_interleave(torch.tensor([round(400 * share) for share in shares]))
    users = torch.zeros(400, dtype=torch.int64)
    data = InteractionData(users, pos_ids, users[:0], users[:0], 1, 4, "made up")
    adapter, generator = Adapter(4, seeded()), seeded(1)

    def draw(users, number, generator):
        return torch.randint(4, (len(users), number), generator=generator)

    for _ in range(300):
        teach(adapter, (torch.ones(1, 4), items), HeldOutPositives(data), draw, generator)
    found = adapter(torch.ones(1, 4), items, torch.arange(4).unsqueeze(0))[0]
    np.testing.assert_allclose(found.detach().numpy(), np.log(np.array(shares) / 0.25), atol=0.2)


def test_the_hardest_different_negatives_are_candidates():
    generator = seeded(3)
    adapter = Adapter(5, generator)
    with torch.no_grad():
        adapter.out.weight.normal_(generator=generator)
    queries, items = torch.randn(7, 5, generator=generator), torch.randn(12, 5, generator=generator)
    neg_ids = torch.randint(12, (7, 15), generator=generator)
    neg_ids[0] = 4  # one item only
    curve = ScoreCurve(-3.0, 3.0, torch.tensor([0.0, -1.0, -4.0]))
    found = adapter.log_weights(queries, items, neg_ids, 3, curve)
    cosines = F.cosine_similarity(queries.unsqueeze(1), items.unsqueeze(0), dim=-1)
    for row in range(7):
        drawn = sorted(set(neg_ids[row].tolist()), key=lambda item: -cosines[row, item])
        for place, item in enumerate(neg_ids[row].tolist()):
            ratio = adapter(queries[row : row + 1], items, torch.tensor([[item]])).detach()
            expected = curve(ratio).item() if item in drawn[:3] else 0.0
            assert found[row, place].item() == pytest.approx(expected, abs=1e-5)
    assert (found != 0).any() and (found == 0).any()


def test_an_adapters_weights_are_those_of_each_rows_own_negatives(blocks):
    run = make_trainer(blocks, false_negative_prior=0.2, adapter_candidates=4)
    batches = record_batches(run)
    run.train(show_progress=False)
    assert {epoch for epoch, batch in batches if batch.neg_log_weights is None} == {0}
    for epoch, batch in batches:
        assert batch.score_curve is None
        if epoch:
            assert batch.neg_log_weights.shape == batch.neg_ids.shape
            # An item has one weight in a row, and no more than four items have another than 1.
            for ids, weights in zip(batch.neg_ids, batch.neg_log_weights, strict=True):
                weighed = set(zip(ids.tolist(), weights.tolist(), strict=True))
                assert len(weighed) == len({item for item, _ in weighed})
                assert sum(weight != 0 for _, weight in weighed) <= 4
    assert any((batch.neg_log_weights != 0).any() for epoch, batch in batches if epoch)


def test_reranking_is_by_the_product_of_score_and_probability():
    generator = seeded()
    scores, p = torch.randn(3, 8, generator=generator), torch.rand(3, 8, generator=generator)
    for exponent in (0.0, 0.5, 2.0):
        expected = scores.exp() * p**exponent
        torch.testing.assert_close(rerank(scores, p, exponent).exp(), expected)


def test_metrics_of_a_ranking_whose_first_items_are_ranked_again():
    users, items = torch.eye(2), torch.tensor([[4.0, 1], [3, 2], [2, 3], [1, 4]])
    targets = (torch.tensor([0, 1]), torch.tensor([2, 3]))
    masked = (torch.tensor([1]), torch.tensor([2]))

    def reverse(of, scores, ids):
        assert of.tolist() == [0, 1] and ids.tolist() == [[0, 1, 2], [3, 1, 0]]
        return -scores

    # User 0's items 2, 1, 0 and user 1's 0, 1, 3.
    found = ranking_metrics(users, items, *targets, *masked, k=2, rerank=(3, reverse))
    assert found == {"recall": 0.5, "ndcg": 0.5}
    assert ranking_metrics(users, items, *targets, *masked, k=3, rerank=(1, reverse))["ndcg"] == 0.75


def test_the_exponent_is_that_of_the_best_validation(blocks):
    run = make_trainer(blocks, false_negative_prior=0.2, adapter_candidates=4)
    run.train(show_progress=False)
    found = run.test()
    assert found == run.test()
    validation, test = (run.validation_users, run.validation_items), (blocks.test_users, blocks.test_items)
    # Where the validation's own items are to be learned, more of the adapter is better.
    lesson = HeldOutPositives(replace(blocks, train_users=validation[0], train_items=validation[1]))
    known = reranked(run.best_tables, 0.2, (lesson, run._drawn, seeded()), validation, test, run.seen, k=5)
    assert known["exponent"] > 0
    assert found["test_reranked"].keys() == {"recall", "ndcg", "exponent"}
    assert "test_reranked" not in make_trained(blocks).test()


def make_trained(blocks: InteractionData) -> Trainer:
    run = make_trainer(blocks, "cw", held_out_positives=True)
    run.train(show_progress=False)
    return run


@pytest.mark.parametrize("candidates", [None, 4])
def test_weights_are_estimated_where_training_runs(blocks, device, candidates):
    config = replace(CONFIG, device=device.type, false_negatives=0.2)
    estimate = {"false_negative_prior": "auto", "false_negative_family": "isotonic", "adapter_candidates": candidates}
    run = make_trainer(blocks, config=config, **estimate)
    batches = record_batches(run)
    assert run.train(show_progress=False) == "epochs"
    batch = batches[-1][1]
    weights = batch.score_curve.log_weights if candidates is None else batch.neg_log_weights
    assert weights.device.type == device.type and (weights <= 0).all()
    assert 0 < run.curve[-1]["ndcg"] <= 1 and run.test().keys() >= {"test"}


# --- held-out positives ---


@pytest.mark.parametrize("share", [None, 0.3])
def test_held_out_positives_are_in_no_row_and_no_negatives(blocks, share):
    config = replace(CONFIG, false_negatives=share)
    run, without = (make_trainer(blocks, "cw", config, held_out_positives=held) for held in (True, False))
    rows, known = (pairs(t.fit.train_users, t.fit.train_items) for t in (run, without))
    held_out = known - rows
    assert rows < known and held_out == pairs(run.held_out.users, run.held_out.items)
    assert len(held_out) == 60  # one of each user's
    batches = record_batches(run)
    run.train(show_progress=False)
    for _, batch in batches:
        users = batch.query_ids.unsqueeze(1)
        assert rows.issuperset(zip(batch.query_ids.tolist(), batch.pos_ids.tolist(), strict=True))
        extra = batch.extra_pos_ids
        assert held_out.issuperset(zip(users.expand_as(extra).flatten().tolist(), extra.flatten().tolist()))
        drawn = OPTIONS.negatives.draw(batch.query_ids, run.interactions, batch.seed)
        assert known.isdisjoint(zip(users.expand_as(drawn).flatten().tolist(), drawn.flatten().tolist()))


def test_further_positives_are_uniform_on_a_users_own():
    users, items = torch.tensor([0, 0, 0, 2]), torch.tensor([5, 7, 9, 3])
    data = InteractionData(users, items, users[:0], users[:0], 4, 12, "made up")
    drawn = HeldOutPositives(data).draw(torch.tensor([0, 1, 2, 3]), 30_000, seeded())
    counts = torch.bincount(drawn[0], minlength=12)
    assert counts[[5, 7, 9]].sum() == 30_000
    assert (counts[[5, 7, 9]] - 10_000).abs().max() < 4 * math.sqrt(30_000 * 2 / 9)
    assert (drawn[1] == -1).all() and (drawn[2] == 3).all() and (drawn[3] == -1).all()


# --- what cannot be, and the command ---


@pytest.mark.parametrize(
    ("loss", "options", "complaint"),
    [
        ("cw", {"false_negative_prior": 0.1}, "prior of cw must be 0 with a false_negative_prior, got 0.1"),
        ("cw", {"false_negative_prior": 0.1, "prior": "auto"}, "prior of cw must be 0 .* got auto"),
        ("sl", {"false_negative_prior": 1.0}, r"false_negative_prior must be in \[0, 1\) or 'auto', got 1.0"),
        ("sl", {"false_negative_prior": math.nan}, r"false_negative_prior must be in \[0, 1\) or 'auto', got nan"),
        ("sl", {"false_negative_prior": 0.1, "false_negative_family": "beta"}, "must be one of normal, isotonic, got"),
        ("sl", {"false_negative_prior": 0.1, "false_negative_strength": 0.0}, "must be finite and > 0, got 0.0"),
        ("sl", {"false_negative_prior": 0.1, "adapter_candidates": 65}, r"must be in \[1, 64\], got 65"),
        ("sl", {"adapter_candidates": 8}, "adapter_candidates need a false_negative_prior, got None"),
        (
            "sl",
            {"false_negative_prior": 0.1, "adapter_candidates": 8, "negatives": Negatives("full", None)},
            "negatives of sl with an adapter must be drawn for each row, .* got full",
        ),
        ("cw", {"held_out_positives": True, "prior": 0.0}, "need extra_positives and a prior, got 20 and 0.0"),
        ("dcl", {"held_out_positives": True, "extra_positives": 0}, "need extra_positives and a prior, got 0 and"),
    ],
)
def test_what_cannot_be_is_refused_before_training(loss, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_loss(loss, replace(OPTIONS, **options))


def test_losses_without_these_weights_are_what_they_were():
    """Results of earlier runs are found by the settings."""
    for name in ("sl", "slk", "cw", "bpr"):
        settings = build_loss(name, OPTIONS).settings
        assert not {"false_negative_prior", "adapter_candidates", "held_out_positives"} & settings.keys()


def test_the_command_line_trains_with_them(tmp_path, capsys):
    path = write_blocks(tmp_path / "blocks.txt")
    arguments = ["--data", str(path), "--epochs", "2", "--eval-every", "1", *FLAGS]
    weighed = ["--loss", "sl", "--false-negative-prior", "auto", "--false-negative-family", "isotonic"]
    adapter = ["--false-negative-strength", "0.5", "--adapter-candidates", "4", "--false-negatives", "0.2"]
    assert training.main([*arguments, *weighed, *adapter, "--out", str(tmp_path / "a")]) == 0
    (run,) = json.loads((tmp_path / "a" / "results.json").read_text(encoding="utf-8"))["runs"]
    assert (
        run["loss_settings"].items()
        >= {
            "false_negative_prior": "auto",
            "false_negative_family": "isotonic",
            "false_negative_strength": 0.5,
            "adapter_candidates": 4,
        }.items()
    )
    assert 0 <= run["test_reranked"]["ndcg"] <= 1 and run["seconds"]["estimates"] > 0
    assert run["validation"][0]["false_negative_prior"] == 0
    assert 0 < run["final_false_negative_prior"] <= 0.9
    printed = capsys.readouterr().out
    assert "π_FN=auto f=isotonic γ=0.5 adapter=4" in printed
    header, row = (next(line for line in printed.splitlines() if line.startswith(word)) for word in ("loss", "sl"))
    assert header.split("  ")[-2:] == ["NDCG@20 reranked", "λ"]
    reranked_test = run["test_reranked"]
    assert row.split()[-2:] == [f"{reranked_test['ndcg']:.4f}", f"{reranked_test['exponent']:g}"]
    assert training.main([*arguments, "--loss", "cw", "--held-out-positives", "--out", str(tmp_path / "b")]) == 0
    (run,) = json.loads((tmp_path / "b" / "results.json").read_text(encoding="utf-8"))["runs"]
    assert run["loss_settings"]["held_out_positives"] is True

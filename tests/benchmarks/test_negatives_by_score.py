"""Training on negatives that are chosen by their scores, and on as many as each epoch's scores suggest."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_cases import FLAGS, load_blocks, record_batches, write_blocks

from benchmarks.training import __main__ as training
from benchmarks.training.effectiveness import Inputs, effectiveness
from benchmarks.training.estimates import Unseen
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.negatives import Negatives
from benchmarks.training.stage_numbers import stage_number
from benchmarks.training.trainer import Trainer, TrainingConfig
from cw_ext import Interactions, candidate_scores, draw_negatives, sampled_cw_loss
from cw_ext.samplers import Scored, softmax

CONFIG = TrainingConfig(dim=8, epochs=3, batch_size=64, eval_every=1)


def make_trainer(tmp_path, spec, loss="sl", config=CONFIG, **options) -> Trainer:
    given = LossOptions(negatives=Negatives.parse(spec), **options)
    return Trainer(load_blocks(tmp_path), build_loss(loss, given), config)


@pytest.mark.parametrize(("loss", "similarity", "number"), [("sl", "half_cosine", 4), ("bpr", "dot", 1)])
@pytest.mark.parametrize("temperature", [None, 0.03])
@pytest.mark.parametrize("corrected", [False, True])
def test_scored_ones_are_drawn_by_the_scores_of_the_step(tmp_path, loss, similarity, number, temperature, corrected):
    if loss == "bpr" and temperature is None:
        with pytest.raises(ValueError, match="must be given for scored:1/20 on inner products, got None"):
            make_trainer(tmp_path, "scored:4/20", loss)
        return
    options = {"temperature": 0.2, "sampler_temperature": temperature, "scored_corrected": corrected}
    trainer = make_trainer(tmp_path, "scored:4/20", loss, **options)
    steps = record_batches(trainer)
    # The tables are written in place by the step after the batch is noted.
    draw, drawn = trainer.negative_sampler.draw, []

    def draw_and_copy(queries, items, *ids, seed):
        own = Scored(
            trainer.interactions,
            number,
            num_candidates=20,
            log_weight=softmax(temperature or 0.2),
            similarity=similarity,
            log_q_correction=corrected,
        )
        drawn.append(own.draw(queries.clone(), items.clone(), *ids, seed=seed))
        return draw(queries, items, *ids, seed=seed)

    trainer.negative_sampler.draw = draw_and_copy
    trainer.train(show_progress=False)
    assert len(steps) == len(drawn) > 10
    for (_, batch), expected in zip(steps, drawn, strict=True):
        assert torch.equal(batch.neg_ids, expected.ids)
        if corrected and loss == "sl":
            assert torch.equal(batch.neg_log_weights, expected.log_weights)
        else:
            assert batch.neg_log_weights is None
    assert len({tuple(ids.flatten().tolist()) for ids, _ in drawn}) == len(drawn)


@pytest.mark.parametrize("spec", ["memory:2", "chain:2"])
@pytest.mark.parametrize("loss", ["sl", "bpr", "cw"])
def test_a_sampler_with_a_state_is_kept_up_to_date(tmp_path, spec, loss):
    trainer = make_trainer(tmp_path, spec, loss, sampler_temperature=1.0 if spec == "chain:2" else None)
    before = {name: tensor.clone() for name, tensor in trainer.negative_sampler.state_dict().items()}
    steps = record_batches(trainer)
    assert trainer.train(show_progress=False) == "epochs"
    after = trainer.negative_sampler.state_dict()
    name = "kept" if spec == "memory:2" else "states"
    assert (after[name] != before[name]).float().mean() > 0.3
    if spec == "memory:2":
        assert after["epoch"] == 2 and (after["counts"][:-1] == 3).all(), "every user is in a row of each epoch"
    for _, batch in steps:
        assert batch.neg_ids.shape == (len(batch.pos_ids), 1 if loss == "bpr" else 2)
        known = batch.interactions
        pairs = set(
            zip(torch.arange(known.num_queries).repeat_interleave(known.starts.diff()).tolist(), known.items.tolist())
        )
        for user, ids in zip(batch.query_ids.tolist(), batch.neg_ids.tolist(), strict=True):
            assert not any((user, item) in pairs for item in ids)


def test_the_same_pool_whatever_else_is_drawn(tmp_path):
    first, again = (make_trainer(tmp_path, "memory", loss) for loss in ("bpr", "sl"))
    other = make_trainer(tmp_path, "memory", "bpr", replace(CONFIG, seed=1))
    assert torch.equal(first.negative_sampler.pool, again.negative_sampler.pool)
    assert not torch.equal(first.negative_sampler.pool, other.negative_sampler.pool)


def test_the_options_of_a_kind_tell_its_runs_apart():
    def settings(spec, **options):
        return build_loss("sl", LossOptions(negatives=Negatives.parse(spec), **options)).settings

    for name, value, specs in (
        ("sampler_temperature", 0.3, ("scored:2/9", "memory", "chain")),
        ("memory_pool", 200, ("memory",)),
        ("scored_corrected", True, ("scored:2/9",)),
        ("stage_prior", 0.01, ("auto",)),
    ):
        for spec in ("uniform:9", "auto", "scored:2/9", "memory", "chain"):
            assert (settings(spec) != settings(spec, **{name: value})) == (spec in specs), (name, spec)


def _of_the_pool(spec: str, number: int, users: torch.Tensor, items: torch.Tensor, **options) -> torch.Tensor:
    """Scores [Q, number] of what a sampler draws once it has had the time to follow the scores."""
    known = Interactions([0], [0], num_queries=len(users), num_items=len(items))
    loss = build_loss("sl", LossOptions(negatives=Negatives.parse(f"{spec}:{number}"), **options))
    sampler = loss.sampler.build(known, 0)
    queries, none = torch.arange(len(users)), torch.zeros(len(users), dtype=torch.int64)
    for epoch in range(12):
        sampler.update(users, items, queries, none, epoch=epoch, seed=epoch)
    return candidate_scores(users, items, sampler.draw(users, items, queries, none, seed=99).ids)


def test_chains_follow_the_softmax_that_scored_ones_do():
    """At the same temperature: softmax(s/τ) among all items."""
    generator = torch.Generator().manual_seed(1)
    users, items = torch.randn(1, 4, generator=generator), torch.randn(12, 4, generator=generator)
    found = _of_the_pool("chain", 20, users.expand(3000, 4), items, sampler_temperature=0.2)[1:]
    scores = torch.nn.functional.cosine_similarity(users, items) / 2
    expected = (scores / 0.2).softmax(0)
    mean = (expected * scores).sum()
    deviation = (expected * (scores - mean) ** 2).sum().sqrt()
    assert abs(found.mean() - mean) < 5 * deviation / found.numel() ** 0.5
    # At MCNS' fourth power of such a softmax it would be as far away as from here to uniform ones, nearly.
    assert ((scores / 0.8).softmax(0) * scores).sum() < mean - 0.05


@pytest.mark.parametrize("spec", ["memory", "chain"])
def test_lower_temperatures_draw_harder_ones(spec):
    generator = torch.Generator().manual_seed(2)
    users, items = torch.randn(300, 8, generator=generator), torch.randn(200, 8, generator=generator)
    options = ({"sampler_temperature": 10.0}, {"temperature": 0.1}, {"sampler_temperature": 0.02})
    at_random, of_the_loss, hard = (_of_the_pool(spec, 8, users, items, **given).mean() for given in options)
    assert abs(at_random) < 0.02 and of_the_loss > at_random + 0.1 and hard > of_the_loss + 0.05


def test_temperatures_of_a_memory():
    def settings(loss, **options):
        return build_loss(loss, LossOptions(negatives=Negatives.parse("memory"), **options)).settings

    assert settings("bpr")["sampler_temperature"] == 10, "SRNS' own, for inner products"
    assert settings("sl", temperature=0.2)["sampler_temperature"] == 0.2
    for loss in ("bpr", "sl"):
        assert settings(loss, sampler_temperature=0.5)["sampler_temperature"] == 0.5


def test_a_chains_settings_are_not_those_of_runs_with_another_target():
    """Which had the temperature of p, not of p^α, as "sampler_temperature"."""
    settings = build_loss("sl", LossOptions(negatives=Negatives.parse("chain"), sampler_temperature=0.2)).settings
    assert settings["chain_temperature"] == 0.2 and "sampler_temperature" not in settings


def test_settings_of_scored_ones_are_what_they_were():
    """Results of earlier runs are found by the settings."""
    uniform, scored = (
        build_loss("sl", LossOptions(negatives=Negatives.parse(spec))).settings for spec in ("uniform:9", "scored:2/9")
    )
    added = {"negatives": "scored:2/9", "sampler_temperature": 0.1, "scored_corrected": False}
    assert scored == uniform | added


@pytest.mark.parametrize(("num_items", "size"), [(50, 72), (100, 100), (500, 128)])
def test_a_pool_has_no_more_places_than_there_are_items(num_items, size):
    known = Interactions([0], [0], num_queries=2, num_items=num_items)
    sampler = build_loss("bpr", LossOptions(negatives=Negatives.parse("memory"))).sampler.build(known, 0)
    assert sampler.pool.shape == (3, size), "72 are the least that a memory takes"


@pytest.mark.parametrize(
    ("spec", "loss", "options", "message"),
    [
        ("scored:2/9", "advinfonce", {}, "negatives of advinfonce must be drawn for each row"),
        ("auto", "bpr", {}, "negatives of bpr must be drawn for each row"),
        ("scored:2/9", "slk", {}, "refresh_epochs must be given with scored:2/9 negatives"),
        ("scored:2/9", "sl", {"sampler_temperature": 0.0}, r"\(--sampler-tau\) must be finite and > 0, got 0.0"),
        ("chain", "bpr", {}, r"sampler_temperature \(--sampler-tau\) must be given for chain:1 on inner products"),
        ("memory", "sl", {"memory_pool": 71}, r"memory_pool \(--memory-pool\) must be at least 72, got 71"),
        ("memory:9", "sl", {}, r"--negatives memory:9: num_negatives must be at most size = 8, got 9"),
        ("scored:10/5000000000", "sl", {}, "--negatives scored:10/5000000000: num_candidates must be an integer in"),
        ("auto", "sl", {"stage_prior": 1.0}, r"stage_prior must be in \[0, 1\) or 'auto', got 1.0"),
    ],
)
def test_what_cannot_be_is_refused_before_training(spec, loss, options, message):
    with pytest.raises(ValueError, match=message):
        build_loss(loss, LossOptions(negatives=Negatives.parse(spec), **options))


@pytest.mark.parametrize("spec", ["memory", "auto"])
def test_false_negatives_are_put_among_uniform_ones_only(tmp_path, spec):
    with pytest.raises(ValueError, match=f"^false_negatives need negatives drawn for each row, got {spec}:"):
        make_trainer(tmp_path, spec, config=replace(CONFIG, false_negatives=0.1))


def test_candidates_that_take_too_much_memory_are_named(tmp_path, capsys, monkeypatch):
    def draw(*_, **__):
        raise torch.OutOfMemoryError("can't allocate memory")

    monkeypatch.setattr(Scored, "draw", draw)
    path = write_blocks(tmp_path / "blocks.txt")
    flags = [*FLAGS, "--loss", "sl", "--negatives", "scored:10/2000000000", "--out", str(tmp_path / "out")]
    assert training.main(["--data", str(path), *flags]) == 2
    assert "error: --negatives scored:10/2000000000: can't allocate memory" in capsys.readouterr().err


# --- options that could not act ---

_MEMORY, _SCORED = ["--negatives", "memory"], ["--negatives", "scored:2/9"]
_BPR = ["--loss", "bpr"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [*_BPR, "--false-negative-prior", "0.1"],
            "--false-negative-prior needs a loss of the softmax family, got bpr",
        ),
        ([*_BPR, "--adapter-candidates", "8"], "--adapter-candidates needs --false-negative-prior and a loss of the"),
        (["--false-negative-family", "normal"], "--false-negative-family needs --false-negative-prior and a loss of"),
        (["--false-negative-strength", "1"], "--false-negative-strength needs --false-negative-prior and a loss of"),
        (["--false-negative-strength", "0"], "--false-negative-strength needs --false-negative-prior and a loss of"),
        (
            ["--loss", "sl", "bpr", "--held-out-positives"],
            "--held-out-positives needs cw or dcl, got sl with --negatives uniform:8, bpr with --negatives uniform:1",
        ),
        (["--scored-corrected"], "--scored-corrected needs --negatives scored:N/K and a loss of the softmax family"),
        (
            [*_BPR, *_SCORED, "--sampler-tau", "1", "--scored-corrected"],
            "--scored-corrected needs --negatives scored:N/K and a loss of the softmax family, got bpr with",
        ),
        (["--sampler-tau", "0.1"], "--sampler-tau needs --negatives scored:N/K, memory[:N] or chain[:N], got sl with"),
        ([*_SCORED, "--memory-pool", "128"], "--memory-pool needs --negatives memory[:N], got sl with --negatives sco"),
        (
            [*_MEMORY, "--stage-prior", "0"],
            "--stage-prior needs --negatives auto[:N], got sl with --negatives memory:1",
        ),
        ([*_MEMORY, "--memory-pool", "10"], "memory_pool (--memory-pool) must be at least 72, got 10"),
        ([*_MEMORY, "--sampler-tau", "0"], "sampler_temperature (--sampler-tau) must be finite and > 0, got 0.0"),
    ],
)
def test_options_that_no_loss_can_use_are_refused_in_a_line(tmp_path, capsys, flags, message):
    out = tmp_path / "out"
    assert training.main([*FLAGS, "--loss", "sl", *flags, "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and not out.exists()


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--loss", "bpr", "sl", "--false-negative-prior", "0"], {"false_negative_prior": 0.0}),
        (["--loss", "bpr", "cw", "--held-out-positives"], {"held_out_positives": True}),
        (["--loss", "bpr", "sl", *_SCORED, "--sampler-tau", "1", "--scored-corrected"], {"scored_corrected": True}),
        ([*_MEMORY, "--memory-pool", "128", "--sampler-tau", "2"], {"memory_pool": 128, "sampler_temperature": 2.0}),
        (["--negatives", "chain", "--sampler-tau", "2"], {"chain_temperature": 2.0}),
        (["--negatives", "auto:9", "--stage-prior", "0"], {"stage_prior": 0.0}),
    ],
)
def test_an_option_that_one_loss_uses_is_taken(tmp_path, capsys, flags, settings):
    path, out = write_blocks(tmp_path / "blocks.txt"), tmp_path / "out"
    arguments = ["--data", str(path), *FLAGS, "--epochs", "1", "--loss", "sl", *flags, "--out", str(out)]
    assert training.main(arguments) == 0
    runs = json.loads((out / "results.json").read_text(encoding="utf-8"))["runs"]
    assert runs[-1]["loss_settings"].items() >= settings.items()
    rows = capsys.readouterr().out.splitlines()
    (header,) = (row for row in rows if row.startswith("loss "))
    assert "reranked" not in header and ("N at the end" in header) == ("auto:9" in flags)
    if "auto:9" in flags:
        (row,) = (row for row in rows if row.startswith("sl "))
        assert row.split()[-1] == str(runs[0]["final_num_negatives"])


# --- as many as the scores suggest ---


def _tables(spread: float) -> tuple[Unseen, tuple[torch.Tensor, torch.Tensor]]:
    """50 users with 8 unseen positives each, that score N(spread, 1) where the others score N(0, 1)."""
    g = torch.Generator().manual_seed(3)
    users = torch.arange(50).repeat_interleave(8)
    items = torch.arange(400)
    others = Interactions(torch.arange(50), torch.arange(50), num_queries=50, num_items=3000)
    scores = torch.randn(50, 3000, generator=g)
    scores[users, items] += spread
    unseen = Unseen(users, items, lambda u, n, generator: draw_negatives(u, others, n, seed=8))
    return unseen, (scores, torch.eye(3000))


@pytest.mark.parametrize("spread", [0.5, 2.0])
@pytest.mark.parametrize("prior", [0.001, 0.02])
def test_the_number_is_the_most_effective_one(spread, prior):
    """Of all numbers one by one; accuracies counted score by score."""
    unseen, tables = _tables(spread)
    found = stage_number(unseen, tables, prior, 500, torch.Generator().manual_seed(0))
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    users, items = unseen.users[order], unseen.items[order]
    drawn = unseen.draw(users, 1000, None)
    positives = tables[0][users, items].double().numpy()
    negatives = tables[0][users.unsqueeze(1), drawn].double().numpy()
    below = ((negatives < positives[:, None]) + 0.5 * (negatives == positives[:, None])).mean(1)
    others = np.array([(np.delete(positives, k) < positives[k]).mean() for k in range(len(positives))])
    inputs = Inputs(1 - prior, np.clip((below - prior * others) / (1 - prior), 0, 1))
    numbers = np.arange(1, 501)
    assert found == numbers[np.argmax(effectiveness(numbers, inputs))]


def test_each_epoch_has_its_number(tmp_path):
    trainer = make_trainer(tmp_path, "auto:30")
    steps = record_batches(trainer)
    trainer.train(show_progress=False)
    by_epoch = {}
    for epoch, batch in steps:
        by_epoch.setdefault(epoch, set()).add(batch.num_negatives)
    assert all(len(numbers) == 1 for numbers in by_epoch.values())
    numbers = [numbers.pop() for numbers in by_epoch.values()]
    assert [point["num_negatives"] for point in trainer.curve] == numbers
    assert len(set(numbers)) > 1 and all(1 <= number <= 30 for number in numbers)


def test_the_loss_draws_as_many(tmp_path):
    trainer = make_trainer(tmp_path, "auto:30")
    steps = record_batches(trainer)
    trainer.train_step(torch.arange(20))
    batch = steps[0][1]
    for number in (1, 7):
        found = build_loss("sl", LossOptions(negatives=Negatives.parse("auto:30"))).build(1, 1, 1, None)(
            batch._replace(num_negatives=number)
        )
        expected = sampled_cw_loss(
            batch.queries, batch.items, batch.query_ids, batch.pos_ids, batch.interactions, number, seed=batch.seed,
            weighting="none", temperature=0.1,
        )  # fmt: skip
        assert found == expected

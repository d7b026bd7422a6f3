"""Extra positives, the losses of the benchmarks, and training end to end on made-up data."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from training_cases import FLAGS, p_value, record_batches, write_blocks

from benchmarks.common import data, reporting
from benchmarks.demo import step_cost
from benchmarks.training import __main__ as training
from benchmarks.training import compare, estimates, plots
from benchmarks.training.losses import LOSSES, BatchLoss, LossOptions, build_loss
from benchmarks.training.metrics import ranking_metrics
from benchmarks.training.negatives import Batch, Negatives
from benchmarks.training.positives import InteractionSampler
from benchmarks.training.trainer import Trainer, TrainingConfig, train
from cw_ext import Interactions, draw_negatives

# All of CW's, with further positives that are known.
STAGES: dict[str, Any] = {
    "prior": 0.05,
    "extra_positives": 5,
    "likely_positives": None,
    "weighting": "sigmoid",
    "confidence_temperature": 1.25,
}
REFERENCE = LossOptions(negatives=Negatives("uniform", 8), backend="reference", **STAGES)


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    return write_blocks(tmp_path / "blocks.txt")


# --- extra positives ---


def seeded(device: torch.device, seed: int = 0) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def test_extra_positives_are_uniform_on_the_users_others(device):
    positives = {0: [3, 5, 8, 11], 1: [2], 2: [0, 9], 4: [7]}
    pairs = torch.tensor([(user, item) for user, items in positives.items() for item in items]).to(device)
    sampler = InteractionSampler(Interactions(pairs[:, 0], pairs[:, 1], num_queries=5, num_items=12))
    interactions = torch.arange(len(pairs), device=device).repeat(400)
    drawn = sampler.extra_positives(interactions, 30, seeded(device))
    assert drawn.shape == (len(interactions), 30)
    drawn, interactions = drawn.cpu(), interactions.cpu()
    for index in range(len(pairs)):
        user, own = sampler.users[index].item(), sampler.items[index].item()
        others = [item for item in positives[user] if item != own]
        found = drawn[interactions == index].flatten()
        if not others:
            assert (found == -1).all()
            continue
        counts = torch.bincount(found, minlength=12)
        assert counts[others].sum() == len(found)
        assert p_value(counts[others]) > 1e-4 if len(others) > 1 else True


# --- which negatives ---


@pytest.mark.parametrize(
    ("spec", "kind", "number", "name"),
    [
        ("1000", "uniform", 1000, "uniform:1000"),
        ("uniform:7", "uniform", 7, "uniform:7"),
        ("popularity:7", "popularity", 7, "popularity:7"),
        ("shared:0012", "shared", 12, "shared:12"),
        ("in-batch", "in-batch", None, "in-batch"),
        ("mixed:1", "mixed", 1, "mixed:1"),
        ("full", "full", None, "full"),
        ("auto", "auto", 1000, "auto:1000"),
        ("auto:50", "auto", 50, "auto:50"),
        ("memory", "memory", 1, "memory:1"),
        ("memory:3", "memory", 3, "memory:3"),
        ("chain", "chain", 1, "chain:1"),
        ("scored:10/100", "scored", 10, "scored:10/100"),
    ],
)
def test_negatives_are_parsed_and_named(spec, kind, number, name):
    negatives = Negatives.parse(spec)
    assert (negatives.kind, negatives.number, str(negatives)) == (kind, number, name)
    assert Negatives.parse(name) == negatives


@pytest.mark.parametrize(
    "spec",
    ["", "0", "-5", "1.5", "uniform", "uniform:", "uniform:0", "full:3", "in-batch:2", "hard:9", "shared:x", " 7"]
    + ["scored", "scored:10", "scored:0/10", "scored:10/0", "uniform:1/2", "full:1/2", "1/2", "memory:0", "auto:0"],
)
def test_what_names_no_negatives_is_refused(spec):
    with pytest.raises(ValueError) as caught:
        Negatives.parse(spec)
    assert str(caught.value) == (
        "expected N, uniform:N, popularity:N, shared:N, in-batch, mixed:N, full, auto[:N], scored:N/K, memory[:N] or "
        f"chain[:N], N and K whole numbers of at least 1, got {spec!r}"
    )


@pytest.mark.parametrize("arguments", [("hard", 3), ("full", 3), ("mixed", None), ("uniform", 0)])
def test_negatives_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError, match="negatives must be N, uniform:N, .*got "):
        Negatives(*arguments)


# --- losses ---


SPECS = ["uniform:9", "popularity:9", "shared:9", "in-batch", "mixed:9", "full"]


def make_batch(dtype: torch.dtype = torch.float64) -> Batch:
    """6 rows of 8 users who know 5 of 30 items each, of which every item is one once or twice."""
    generator = torch.Generator().manual_seed(0)
    known = (4 * torch.arange(8).unsqueeze(1) + torch.arange(5)) % 30
    interactions = Interactions(torch.arange(8).repeat_interleave(5), known.flatten(), num_queries=8, num_items=30)
    users = torch.randint(8, (6,), generator=generator)
    return Batch(
        queries=torch.randn(6, 4, generator=generator, dtype=dtype),
        items=torch.randn(30, 4, generator=generator, dtype=dtype),
        query_ids=users,
        pos_ids=known[users, 0],
        extra_pos_ids=known[users, 1:4],
        interactions=interactions,
        seed=torch.tensor(11),
        thresholds=torch.rand(6, generator=generator, dtype=dtype) - 0.5,
        prior=0.15,
    )


def knows(batch: Batch) -> torch.Tensor:
    """bool [B, I], from the pairs one by one."""
    known = torch.zeros(len(batch.query_ids), batch.items.shape[0], dtype=torch.bool)
    starts, items = batch.interactions.starts.tolist(), batch.interactions.items.tolist()
    for row, user in enumerate(batch.query_ids.tolist()):
        for item in items[starts[user] : starts[user + 1]]:
            known[row, item] = True
    return known


def negatives_and_weights(batch: Batch, negatives: Negatives) -> tuple[torch.Tensor, torch.Tensor]:
    """What each row meets, ids [B, C], and its weight q [B, C], 0 where it leaves one out."""
    rows, num_items = batch.queries.shape[0], batch.items.shape[0]
    counts = batch.interactions.item_counts.double()
    if negatives.kind in ("uniform", "popularity"):
        draws = {"seed": batch.seed, "distribution": negatives.kind}
        ids = draw_negatives(batch.query_ids, batch.interactions, negatives.number, **draws)
        return ids, torch.ones(ids.shape, dtype=torch.float64) if negatives.kind == "uniform" else counts[ids] ** -0.75
    drawn = torch.empty(0, dtype=torch.int64)
    if negatives.kind in ("shared", "mixed"):
        drawn = draw_negatives(None, batch.interactions, negatives.number, seed=batch.seed)
    ids = torch.arange(num_items) if negatives.kind == "full" else drawn
    if negatives.kind in ("in-batch", "mixed"):
        ids = torch.cat([batch.pos_ids, drawn])
    weights = torch.ones(len(ids), dtype=torch.float64)
    if negatives.kind in ("in-batch", "mixed"):  # one over the chance of the mixture, of which K are uniform
        chance = rows * counts[ids] / counts.sum() + len(drawn) / num_items
        weights = 1 / chance
    ids = ids.expand(rows, -1)
    left_out = knows(batch).gather(1, ids) | (ids == batch.pos_ids.unsqueeze(1))
    return ids, torch.where(left_out, 0.0, weights)


def cosines(queries, items, ids):
    x = items[ids]
    q = queries.reshape(len(queries), *[1] * (x.dim() - 2), -1)
    return (q * x).sum(-1) / (q.norm(dim=-1) * x.norm(dim=-1))


def expected_loss(
    name: str, batch: Batch, negatives: Negatives, parameters: dict[str, torch.Tensor] | None = None, **cw: Any
) -> torch.Tensor:
    """Each loss as published for the cosine, for τ = 0.2 there, which is 0.1 on the half cosine.

    Args:
        parameters: those of the loss's own.
        cw: of expected_cw, for "cw".
    """
    tau, prior = 0.2, 0.05
    queries, items = batch.queries, batch.items
    if name == "bpr":
        neg_ids = draw_negatives(batch.query_ids, batch.interactions, 1, seed=batch.seed)[:, 0]
        scores = [(queries * items[ids]).sum(-1) for ids in (batch.pos_ids, neg_ids)]
        return -torch.log(torch.sigmoid(scores[0] - scores[1])).mean()
    ids, q = negatives_and_weights(batch, negatives)
    if name == "llpauc":
        return expected_llpauc(batch, ids, **parameters)
    n_of_row = (q > 0).sum(1)
    q = q / q.sum(1, keepdim=True)  # so that Σ q f is a mean
    p, n, e = (cosines(queries, items, i) for i in (batch.pos_ids, ids, batch.extra_pos_ids))
    d = n - p.unsqueeze(1)
    softmax_loss = torch.log(n_of_row * (q * torch.exp(d / tau)).sum(1))
    if name == "sl":
        return softmax_loss.mean()
    if name == "infonce":
        others = torch.exp(p / tau) * n_of_row * (q * torch.exp(d / tau)).sum(1)
        return -torch.log(torch.exp(p / tau) / (torch.exp(p / tau) + others)).mean()
    if name == "bsl":  # τ₁ = 0.5 of the positive, τ₂ = τ of the negatives
        mass = n_of_row * (q * torch.exp(n / tau)).sum(1)
        return -torch.log(torch.exp(p / 0.5) / mass ** (tau / 0.5)).mean()
    if name == "talos":
        beta = 2 * batch.thresholds.unsqueeze(1)
        above, positive = (1 / (1 + torch.exp(beta - scores)) for scores in (n, p.unsqueeze(1)))
        masses = torch.where(q > 0, above ** (1 / tau), 0.0).sum(1)
        return (torch.log(masses) - torch.log(positive[:, 0]) / tau).mean()
    if name == "slk":  # twice as published; τ_w = 2.5, and thresholds are half cosines
        return (2 * torch.sigmoid((p - 2 * batch.thresholds) / 2.5) * softmax_loss).mean()
    if name == "advinfonce":
        users, others = parameters["users"], parameters["items"]
        hardness = ids.shape[1] * torch.softmax(cosines(users[batch.query_ids], others, ids), dim=1)
        mass = 64 * (hardness * torch.exp(n / tau)).sum(1)
        return -torch.log(torch.exp(p / tau) / (torch.exp(p / tau) + mass)).mean()
    if name.startswith("psl"):
        surrogate = {"tanh": torch.tanh, "atan": torch.atan, "relu": lambda x: torch.relu(x + 1) - 1}[name[4:]]
        return torch.log(n_of_row * (q * (surrogate(d / 2) + 1) ** (1 / 0.1)).sum(1)).mean()
    if name == "dcl":
        difference = (q * torch.exp(d / tau)).sum(1) - prior * torch.exp((e - p.unsqueeze(1)) / tau).mean(1)
        mass = torch.clamp(difference, min=math.exp(-2 / tau)) / (1 - prior)
        return torch.log(1 + n_of_row * mass).mean()
    return expected_cw(p, n, e, q, n_of_row, **cw)


def expected_cw(
    p,
    n,
    e,
    q,
    n_of_row,
    *,
    weighting="sigmoid",
    rho=None,
    prior=0.05,
    floor=0.3,
    tau_c: float | None = 2.5,
    thresholds: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """The CW loss with all temperatures and thresholds on the cosine."""
    tau = 0.2
    weight = {
        "none": torch.ones_like,
        "sigmoid": lambda d: torch.sigmoid(-d / (rho or tau)),
        "exponential": lambda d: torch.exp(-d / (rho or 2)),
        "linear": lambda d: torch.clamp(1 - d / (rho or 2), min=0),
    }[weighting]
    d, margins_of_extra = n - p.unsqueeze(1), e - p.unsqueeze(1)
    a = (q * weight(d) * torch.exp(d / tau)).sum(1)
    c = (weight(margins_of_extra) * torch.exp(margins_of_extra / tau)).mean(1)
    mass = torch.maximum(a - prior * c, floor * a) / (1 - prior)
    confidence = 1 if tau_c is None else 2 * torch.sigmoid((p - thresholds) / tau_c)
    return (confidence * torch.log(n_of_row * mass)).mean()


def expected_llpauc(batch: Batch, ids, *, a, b, s_pos, s_neg, gamma, multiplier_a, multiplier_b) -> torch.Tensor:
    """For α = 0.6 and β = 0.25, score by score."""

    def soft_plus(x):
        return torch.log(1 + torch.exp(5 * x)) / 5

    pos, neg = [], []
    for row, (query, positive) in enumerate(zip(batch.queries, batch.pos_ids, strict=True)):
        score = torch.sigmoid(query @ batch.items[positive])
        pos.append(soft_plus(-((score - a) ** 2 - 2 * (1 + gamma) * score) - s_pos) / 0.6)
        for negative in ids[row]:
            score = torch.sigmoid(query @ batch.items[negative])
            neg.append(soft_plus((score - b) ** 2 + 2 * (1 + gamma) * score - s_neg) / 0.25)
    game = -s_pos - sum(pos) / len(pos) + s_neg + sum(neg) / len(neg) - gamma**2
    return game + multiplier_a * (a + gamma) + multiplier_b * (gamma + 1 - b)


def batch_loss_of(
    name: str, negatives: Negatives, batch: Batch, backend: str, **options: Any
) -> tuple[BatchLoss, Batch, dict[str, torch.Tensor]]:
    """The loss, in fp64 and with random parameters if it has some of its own; its batch; these parameters."""
    given = {
        **STAGES,
        "refresh_epochs": 5,
        "bsl_positive_temperature": 0.25,
        "top_positives": 0.6,
        "top_negatives": 0.25,
        **options,
    }
    loss = build_loss(name, LossOptions(negatives=negatives, backend=backend, **given))
    if loss.takes_ids:
        batch = batch._replace(neg_ids=loss.negatives.draw(batch.query_ids, batch.interactions, batch.seed))
    function = loss.build(8, 30, 4, torch.Generator().manual_seed(2))
    if not isinstance(function, torch.nn.Module):
        return function, batch, {}
    function.double()
    with torch.no_grad():
        for parameter in function.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return function, batch, dict(function.named_parameters())


def loss_of(name: str, negatives: Negatives, batch: Batch, backend: str, **options: Any) -> torch.Tensor:
    function, batch, _ = batch_loss_of(name, negatives, batch, backend, **options)
    return function(batch)


def test_a_detached_confidence_weighs_rows_only(backend):
    batch, negatives = make_batch(), Negatives.parse("uniform:9")
    tables = [table.requires_grad_() for table in (batch.queries, batch.items)]
    options = {"weighting": "none", "prior": 0.0, "confidence_temperature": 0.2, "confidence_detached": True}
    found = loss_of("cw", negatives, batch, backend, **options)
    ids, _ = negatives_and_weights(batch, negatives)
    p, n = (cosines(batch.queries, batch.items, which) for which in (batch.pos_ids, ids))
    weights = torch.sigmoid(p / 0.4).detach()
    rows = torch.logsumexp((n - p.unsqueeze(1)) / 0.2, dim=1)
    expected = (weights * rows).sum() / weights.sum()
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)
    for a, b in zip(torch.autograd.grad(found, tables), torch.autograd.grad(expected, tables), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_published_ones(name):
    batch, negatives = make_batch(), Negatives.parse("uniform:9")
    tables = [table.requires_grad_() for table in (batch.queries, batch.items)]
    function, given, parameters = batch_loss_of(name, negatives, batch, "reference")
    expected = expected_loss(name, batch, negatives, parameters)
    found = function(given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    if name == "cw":  # whose weights have no gradient
        return
    inputs = [*tables, *parameters.values()]
    for a, b in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"weighting": "none"}, {"weighting": "none"}),
        ({"weighting": "linear"}, {"weighting": "linear"}),
        ({"weighting": "linear", "weight_temperature": 0.3}, {"weighting": "linear", "rho": 0.6}),
        ({"weighting": "exponential", "weight_temperature": 0.3}, {"weighting": "exponential", "rho": 0.6}),
        ({"weight_temperature": 0.05}, {"rho": 0.1}),
        ({"prior": 0.4, "floor": 0.9}, {"prior": 0.4, "floor": 0.9}),
        ({"prior": 0.4, "floor": 0.01}, {"prior": 0.4, "floor": 0.01}),
        ({"prior": 0.0}, {"prior": 0.0}),
        ({"prior": "auto"}, {"prior": 0.15}),
        ({"confidence_temperature": None}, {"tau_c": None}),
        ({"confidence_temperature": 0.4, "confidence_top_k": 5}, {"tau_c": 0.8, "thresholds": "of the batch"}),
    ],
)
def test_every_option_of_cw_is_what_it_says(options, expected, backend):
    batch, negatives = make_batch(), Negatives.parse("uniform:9")
    if "thresholds" in expected:
        expected = expected | {"thresholds": 2 * batch.thresholds}
    found = loss_of("cw", negatives, batch, backend, **options)
    torch.testing.assert_close(found, expected_loss("cw", batch, negatives, **expected), rtol=1e-8, atol=0)
    assert not torch.isclose(found, expected_loss("cw", batch, negatives), rtol=1e-4)  # that of the defaults


def test_cw_is_by_default_the_correction_by_likely_positives_alone(backend):
    batch, loss = make_batch(), build_loss("cw", LossOptions(negatives=Negatives.parse("uniform:9"), backend=backend))
    assert (loss.extra_positives, loss.likely_positives) == (20, "auto")
    if loss.takes_ids:
        batch = batch._replace(neg_ids=loss.negatives.draw(batch.query_ids, batch.interactions, batch.seed))
    found = loss.build(8, 30, 4, torch.Generator())(batch)
    expected = expected_loss("cw", batch, loss.negatives, weighting="none", prior=0.1, tau_c=None)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


def test_the_confidence_of_slk_goes_by_default_with_its_temperature():
    batch, negatives = make_batch(), Negatives.parse("uniform:9")
    given, found = (
        loss_of("slk", negatives, batch, "reference", temperature=0.08, confidence_temperature=tau)
        for tau in (1.0, None)
    )
    torch.testing.assert_close(found, given, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"prior": 0.1, "extra_positives": 20, "likely_positives": "auto", "weighting": "none"}),
        (["--likely-positives", "none"], {"likely_positives": None}),
        (["--likely-positives", "walks", "--prior", "0.1"], {"prior": 0.1, "likely_positives": "walks"}),
        (["--held-out-positives"], {"held_out_positives": True}),
    ],
)
def test_where_the_command_takes_further_positives_from(blocks, tmp_path, flags, expected):
    arguments = ["--loss", "cw", "--epochs", "1", "--eval-every", "1", "--out", str(tmp_path / "out")]
    assert training.main(["--data", str(blocks), *FLAGS, *arguments, *flags]) == 0
    (run,) = load_results(tmp_path / "out")["runs"]
    assert expected.items() <= run["loss_settings"].items()
    assert ("likely_positives" in run["loss_settings"]) == ("held_out_positives" not in expected)


@pytest.mark.parametrize("spec", SPECS)
def test_slk_bsl_and_talos_have_every_kind_of_negatives(spec, backend):
    batch, negatives = make_batch(), Negatives.parse(spec)
    for name in ("slk", "bsl", *(["talos"] if spec in ("uniform:9", "shared:9", "full") else [])):
        found = loss_of(name, negatives, batch, backend)
        torch.testing.assert_close(found, expected_loss(name, batch, negatives), rtol=1e-8, atol=0)


@pytest.mark.parametrize("spec", ["uniform:9", "shared:9", "full"])
def test_learned_thresholds_are_those_of_the_steps_before(spec, backend):
    batch, negatives = make_batch(), Negatives.parse(spec)
    function, given, _ = batch_loss_of("slk", negatives, batch, backend, refresh_epochs=None)
    for step in range(3):
        thresholds = function.top_k.threshold(batch.query_ids)
        assert thresholds.all() == (step > 0)
        expected = expected_loss("slk", batch._replace(thresholds=thresholds), negatives)
        torch.testing.assert_close(function(given), expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("spec", ["popularity:9", "in-batch", "mixed:9"])
def test_thresholds_are_not_learned_from_negatives_that_are_not_uniform(spec):
    options = LossOptions(confidence_temperature=1.25, confidence_top_k=5, negatives=Negatives.parse(spec))
    for name in ("slk", "cw"):
        with pytest.raises(ValueError, match=f"^refresh_epochs must be given with {spec} negatives, .*, got None$"):
            build_loss(name, options)


def test_bsl_is_a_multiple_of_sl():
    batch, negatives = make_batch(), Negatives.parse("uniform:9")
    sl = loss_of("sl", negatives, batch, "reference", temperature=0.1)
    bsl = loss_of("bsl", negatives, batch, "reference", temperature=0.1, bsl_positive_temperature=0.2)
    torch.testing.assert_close(bsl, sl / 2, rtol=1e-12, atol=0)


def test_dcl_takes_an_estimated_prior():
    batch, negatives = make_batch(), Negatives.parse("uniform:9")
    expected = loss_of("dcl", negatives, batch, "reference", prior=0.15)
    assert torch.equal(loss_of("dcl", negatives, batch, "reference", prior="auto"), expected)
    assert not torch.equal(loss_of("dcl", negatives, batch, "reference"), expected)


@pytest.mark.parametrize("name", ["sl", "cw"])
@pytest.mark.parametrize("spec", SPECS)
def test_every_kind_of_negatives_is_what_it_says(name, spec, backend):
    batch, negatives = make_batch(), Negatives.parse(spec)
    found = loss_of(name, negatives, batch, backend)
    torch.testing.assert_close(found, expected_loss(name, batch, negatives), rtol=1e-8, atol=0)


def test_bad_hyper_parameters_are_refused_before_training():
    with pytest.raises(ValueError, match=r"loss must be one of bpr, llpauc, sl, .*got 'ls'"):
        build_loss("ls")
    with pytest.raises(ValueError, match="prior must be in"):
        build_loss("cw", LossOptions(prior=1.0, backend="reference"))
    with pytest.raises(ValueError, match="temperature must be > 0"):
        build_loss("sl", LossOptions(temperature=0.0, backend="reference"))
    with pytest.raises(ValueError, match="bsl_positive_temperature must be finite and > 0, got -1.0"):
        build_loss("bsl", LossOptions(bsl_positive_temperature=-1.0, backend="reference"))
    with pytest.raises(ValueError, match="^positive_temperature must be > 0, got -1.0"):
        build_loss("sl", LossOptions(positive_temperature=-1.0, backend="reference"))
    with pytest.raises(ValueError, match="extra_positives must be at least 0, got -1"):
        build_loss("cw", LossOptions(extra_positives=-1, backend="reference"))


@pytest.mark.parametrize("spec", ["shared:9", "in-batch", "mixed:9", "full"])
def test_bpr_takes_negatives_that_are_drawn_for_a_row(spec):
    with pytest.raises(ValueError, match=f"negatives of bpr must be .*uniform:N or popularity:N, got {spec}"):
        build_loss("bpr", LossOptions(negatives=Negatives.parse(spec)))
    loss = build_loss("bpr", LossOptions(negatives=Negatives.parse("popularity:9")))
    assert (str(loss.negatives), loss.settings) == ("popularity:1", {"negatives": "popularity:1"})


# --- training ---


def load_results(directory: Path) -> dict:
    report = json.loads((directory / "results.json").read_text(encoding="utf-8"))
    assert (directory / "results.png").read_bytes().startswith(b"\x89PNG")
    return report


def test_training_end_to_end(blocks, device, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    losses = ["bpr", "sl", "cw"]
    arguments = ["--epochs", "15", "--eval-every", "3", "--device", device.type, "--out", str(out)]
    status = training.main(["--data", str(blocks), "--loss", *losses, *arguments, *FLAGS])
    assert status == 0

    dataset = data.load(blocks, core=2)
    tables = (torch.randn(count, 8, generator=torch.Generator().manual_seed(0)) for count in (60, 56))
    untrained = ranking_metrics(
        *tables, dataset.test_users, dataset.test_items, dataset.train_users, dataset.train_items
    )
    report = load_results(out)
    assert [run["loss"] for run in report["runs"]] == losses
    assert report["data"] == {"name": "blocks", "users": 60, "items": 56, "train": 480, "test": 120}
    assert report["environment"]["torch"] == torch.__version__
    assert ("gpu" in report["environment"]) == (device.type == "cuda")
    for run in report["runs"]:
        assert run["config"]["device"] == device.type
        assert run["loss_settings"]["negatives"] == ("uniform:1" if run["loss"] == "bpr" else "uniform:8")
        assert [point["epoch"] for point in run["validation"]] == [3, 6, 9, 12, 15]
        assert run["best_validation"]["ndcg"] == max(point["ndcg"] for point in run["validation"])
        assert run["test"]["recall"] > 2 * untrained["recall"]
        assert run["test"]["ndcg"] > 2 * untrained["ndcg"]
        assert run["test_validation_masked"]["ndcg"] >= run["test"]["ndcg"]
        assert run["seconds"]["total"] >= sum(
            run["seconds"][part] for part in ("sampling", "loss", "optimizer", "evaluation")
        )
    printed = capsys.readouterr().out
    assert "NDCG@20" in printed
    assert str(out / "results.json") in printed
    for run in report["runs"]:
        assert f"{run['test']['ndcg']:.4f}" in printed


def test_the_best_epoch_is_what_gets_tested(blocks):
    dataset = data.load(blocks, core=2)
    config = TrainingConfig(dim=8, lr=0.3, epochs=15, batch_size=64, eval_every=1)
    trainer = Trainer(dataset, build_loss("sl", REFERENCE), config)
    trainer.train()
    assert trainer.best["epoch"] < 15
    fit = trainer.fit
    popularity = torch.bincount(fit.train_items, minlength=dataset.num_items)
    found = ranking_metrics(
        *trainer._best_tables,
        trainer.validation_users,
        trainer.validation_items,
        fit.train_users,
        fit.train_items,
        popularity=popularity,
    )
    assert {name: trainer.best[name] for name in found} == found
    masked_more = ranking_metrics(
        *trainer._best_tables,
        dataset.test_users,
        dataset.test_items,
        torch.cat([fit.train_users, trainer.validation_users]),
        torch.cat([fit.train_items, trainer.validation_items]),
        popularity=popularity,
    )
    assert trainer.test()["test_validation_masked"] == masked_more


@pytest.mark.parametrize(("name", "by_cosine"), [("bpr", False), ("sl", True), ("cw", True)])
def test_items_are_ranked_by_the_similarity_trained_with(blocks, name, by_cosine):
    dataset = data.load(blocks, core=2)
    config = TrainingConfig(dim=8, lr=0.0, epochs=1, batch_size=64)
    trainer = Trainer(dataset, build_loss(name, REFERENCE), config)
    trainer.train()
    users, items = trainer.model()
    if by_cosine:
        items = items / items.norm(dim=1, keepdim=True)
    targets = (dataset.test_users, dataset.test_items)
    fit = (trainer.fit.train_users, trainer.fit.train_items)
    expected = ranking_metrics(users.detach(), items.detach(), *targets, *fit)
    found = trainer.test()["test"]
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_learns(blocks, name, device):
    dataset = data.load(blocks, core=2)
    loss = build_loss(name, replace(REFERENCE, confidence_top_k=5, refresh_epochs=2, adversary_every=3))
    best = {}
    for lr in (0.0, 0.1):
        config = TrainingConfig(dim=8, lr=lr, epochs=12, batch_size=64, eval_every=2, device=device.type)
        trainer = Trainer(dataset, loss, config)
        trainer.train(show_progress=False)
        best[lr] = trainer.best["ndcg"]
    assert best[0.1] > 1.5 * best[0.0]


@pytest.mark.parametrize("name", LOSSES)
def test_training_starts_from_embeddings_of_the_losss_scale(blocks, name):
    dataset = data.load(blocks, core=2)
    tables = Trainer(dataset, build_loss(name, REFERENCE), TrainingConfig(dim=8, seed=4)).model()
    generator = torch.Generator().manual_seed(4)
    for rows, table in zip((60, 56), tables, strict=True):
        scale = {"bpr": math.sqrt(2 / (rows + 8)), "llpauc": 0.01}.get(name, 1.0)
        torch.testing.assert_close(table.detach(), scale * torch.randn(rows, 8, generator=generator))


def test_training_starts_alike_on_every_device(blocks, device):
    dataset = data.load(blocks, core=2)
    loss = build_loss("sl", REFERENCE)
    here, on_cpu = (Trainer(dataset, loss, TrainingConfig(dim=8, seed=3, device=name)) for name in (device.type, "cpu"))
    for table, expected in zip(here.model(), on_cpu.model(), strict=True):
        assert torch.equal(table.cpu(), expected)
    assert torch.equal(here.validation_items.cpu(), on_cpu.validation_items)
    assert torch.equal(torch.cat(here.shuffled_batches()).sort().values.cpu(), torch.arange(len(on_cpu.sampler.users)))


def test_the_same_seed_gives_the_same_run(blocks):
    dataset = data.load(blocks, core=2)
    loss = build_loss("cw", REFERENCE)
    runs = [train(dataset, loss, TrainingConfig(dim=8, epochs=2, eval_every=1, seed=seed)) for seed in (1, 1, 2)]
    assert runs[0]["validation"] == runs[1]["validation"]
    assert runs[0]["validation"] != runs[2]["validation"]


@pytest.mark.parametrize("spec", ["uniform:8", "popularity:8", "shared:16", "in-batch", "mixed:8", "full"])
def test_training_with_every_kind_learns_and_repeats(blocks, spec, device, backend):
    dataset = data.load(blocks, core=2)
    loss = build_loss("cw", LossOptions(negatives=Negatives.parse(spec), backend=backend))
    untrained = Trainer(dataset, loss, TrainingConfig(dim=8, lr=0.0, epochs=1, batch_size=64, device=device.type))
    untrained.train(show_progress=False)
    runs = []
    for others_draw in (0, 7):
        torch.manual_seed(others_draw)  # which must not matter
        config = TrainingConfig(dim=8, epochs=8, batch_size=64, eval_every=2, device=device.type)
        runs.append(train(dataset, loss, config, show_progress=False))
    assert runs[0]["best_validation"]["ndcg"] > 1.5 * untrained.best["ndcg"]
    assert runs[0]["loss_settings"]["negatives"] == spec
    if device.type == "cpu":  # on a GPU small batches are summed atomically
        assert runs[0]["validation"] == runs[1]["validation"]


@pytest.mark.parametrize("spec", ["uniform:8", "popularity:8", "shared:16", "mixed:8"])
def test_both_backends_train_on_the_same_draws(blocks, kernels, spec):
    dataset = data.load(blocks, core=2)
    curves = {}
    for name in ("fused", "reference"):
        loss = build_loss("cw", LossOptions(negatives=Negatives.parse(spec), backend=name))
        trainer = Trainer(dataset, loss, TrainingConfig(dim=8, batch_size=64))
        assert loss.takes_ids == (name == "reference" and spec[0] in "up")
        curves[name] = [trainer.train_step(batch) for batch in trainer.shuffled_batches()]
    assert curves["fused"] == pytest.approx(curves["reference"], rel=1e-4)


def test_steps_draw_anew(blocks, monkeypatch):
    seeds = []

    def record(batch):
        seeds.append(batch.seed.item())
        return batch.items.sum() * 0

    dataset = data.load(blocks, core=2)
    loss = replace(build_loss("sl", REFERENCE), build=lambda *sizes: record, takes_ids=False)
    trainer = Trainer(dataset, loss, TrainingConfig(dim=8, epochs=2, batch_size=64))
    trainer.train(show_progress=False)
    assert len(seeds) == len(set(seeds)) == 2 * len(trainer.shuffled_batches())


def test_negatives_are_none_of_what_is_trained_on(blocks):
    dataset = data.load(blocks, core=2)
    trainer = Trainer(dataset, build_loss("sl", REFERENCE), TrainingConfig(dim=8))
    fit = set(zip(trainer.fit.train_users.tolist(), trainer.fit.train_items.tolist()))
    known = trainer.interactions
    users = torch.arange(known.num_queries).repeat_interleave(known.starts.diff())
    assert set(zip(users.tolist(), known.items.tolist())) == fit
    assert set(zip(trainer.sampler.users.tolist(), trainer.sampler.items.tolist())) == fit


def test_a_user_without_a_negative_is_refused_before_training(tmp_path, capsys):
    lines = [f"{user} {item}" for user in range(3) for item in range(4 if user else 5)]
    (tmp_path / "full.txt").write_text("\n".join(lines), encoding="utf-8")
    split = tmp_path / "split"
    split.mkdir()
    pairs = [(0, item) for item in range(6)] * 2 + [(1, 0), (1, 1)]
    header = "user_procid\titem_procid\n"
    # Validation takes one of a user's items away, so that user 0 knows 5 of 6.
    (split / "train.tsv").write_text(header + "".join(f"{u}\t{i}\n" for u, i in pairs), encoding="utf-8")
    (split / "test.tsv").write_text(header + "1\t2\n", encoding="utf-8")
    arguments = ["--data", str(split), "--loss", "sl", "--epochs", "1", "--dim", "2", "--out", str(tmp_path / "out")]
    assert training.main([*arguments, "--negatives", "uniform:3"]) == 0
    assert training.main([*arguments, "--negatives", "popularity:3"]) == 2
    assert "error: query_ids: query 0 has all 5 items that occur as known positives" in capsys.readouterr().err


def test_patience_ends_training(blocks, tmp_path):
    # With a learning rate of 0 no validation is better than the first.
    arguments = [
        "--lr",
        "0",
        "--epochs",
        "50",
        "--eval-every",
        "2",
        "--patience",
        "3",
        "--out",
        str(tmp_path),
    ]
    assert training.main(["--data", str(blocks), "--loss", "sl", *arguments, *FLAGS]) == 0
    run = load_results(tmp_path)["runs"][0]
    assert (run["ended_by"], run["epochs"], run["best_epoch"]) == ("patience", 8, 2)


def interrupt_at(monkeypatch, loss: str, epoch: int) -> None:
    """Let Ctrl-C arrive in the given epoch (from 0) of the given loss."""
    original = Trainer._train_epoch

    def train_epoch(self):
        if self.loss.name == loss and self.epoch == epoch:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(Trainer, "_train_epoch", train_epoch)


def test_an_interrupted_run_is_tested_and_written(blocks, tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, "sl", 5)
    arguments = ["--loss", "bpr", "sl", "cw", "--epochs", "6", "--eval-every", "2", "--out", str(tmp_path)]
    assert training.main(["--data", str(blocks), *arguments, *FLAGS]) == 130
    runs = load_results(tmp_path)["runs"]
    assert [(run["loss"], run["epochs"], run["ended_by"]) for run in runs] == [
        ("bpr", 6, "epochs"),
        ("sl", 5, "interrupt"),
    ]
    assert "interrupted; finished runs: bpr (seed 0), sl (seed 0)\n" in capsys.readouterr().err


def test_an_interrupt_before_the_first_validation_keeps_the_runs_before(blocks, tmp_path, monkeypatch, capsys):
    interrupt_at(monkeypatch, "sl", 1)
    arguments = ["--loss", "bpr", "sl", "--epochs", "6", "--eval-every", "2", "--out", str(tmp_path)]
    assert training.main(["--data", str(blocks), *arguments, *FLAGS]) == 130
    assert [run["loss"] for run in load_results(tmp_path)["runs"]] == ["bpr"]
    assert "interrupted; finished runs: bpr (seed 0)\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--data", "no/such/file"], "no/such/file: expected an interaction file, got none"),
        (["--prior", "1.5"], "prior must be in [0, 1), got 1.5"),
        (["--tau", "-1"], "temperature must be > 0, got -1.0"),
        (["--prior", "nan"], "prior must be a number in [0, 1) or a tensor with one value per row, got nan"),
        (["--prior", "1"], "prior must be in [0, 1), got 1.0"),
        (["--tau", "inf", "--loss", "advinfonce"], "temperature must be finite and > 0, got inf"),
        (["--bsl-tau", "0", "--loss", "bsl"], "bsl_positive_temperature must be finite and > 0, got 0.0"),
        (["--weight-tau", "-1"], "weight_temperature must be > 0"),
        (["--floor", "0"], "floor must be in (0, 1], got 0.0"),
        (["--loss", "slk", "--confidence-tau", "0"], "confidence_temperature of slk must be > 0, got 0.0"),
        (["--confidence-detached"], "confidence_detached needs a confidence_temperature"),
        (["--confidence-top-k", "5"], "confidence_temperature must be > 0 where"),
        (["--confidence-tau", "-1"], "confidence_temperature must be > 0, got -1.0"),
        (["--likely-positives", "none", "--prior", "0"], "--likely-positives needs cw or dcl, with a prior and"),
        (["--loss", "llpauc", "--top-positives", "0"], "top_positives must be in (0, 1], got 0.0"),
        (["--loss", "llpauc", "--top-negatives", "2"], "top_negatives must be in (0, 1], got 2.0"),
        (["--loss", "advinfonce", "--adversary-every", "1"], "adversary_every must be at least 2, got 1"),
        (["--core", "1000"], "left after the 1000-core filter (--core 1000), got none of 600 distinct pairs"),
        (["--loss", "bpr", "--lr", "1e38", "--epochs", "3"], "bpr: the training loss became"),
        (["--loss", "sl", "bpr", "--negatives", "full"], "negatives of bpr must be drawn for each row, uniform:N or"),
    ],
)
def test_errors_are_one_line_with_status_2(blocks, tmp_path, capsys, arguments, complaint):
    status = training.main(["--data", str(blocks), *FLAGS, "--out", str(tmp_path / "out"), *arguments])
    assert status == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert complaint in last


def test_an_output_directory_that_cannot_be_is_refused_before_training(blocks, capsys, monkeypatch):
    monkeypatch.setattr(compare, "train", lambda *_: pytest.fail("training began"))
    assert training.main(["--data", str(blocks), *FLAGS, "--out", str(blocks / "out")]) == 2
    assert f"{blocks / 'out'}: expected a writable output directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--loss", "nonsense"], "invalid choice: 'nonsense'"),
        (["--epochs", "0"], "expected a whole number of at least 1, got '0'"),
        (["--epochs", "many"], "expected a whole number of at least 1, got 'many'"),
        (["--prior", "x"], "argument --prior: expected a number in [0, 1) or auto, got 'x'"),
        (["--weighting", "cubic"], "argument --weighting: invalid choice: 'cubic'"),
        (["--model", "none"], "argument --model: invalid choice: 'none'"),
        (["--confidence-top-k", "0"], "argument --confidence-top-k: expected a whole number of at least 1, got '0'"),
        (["--refresh-epochs", "0"], "argument --refresh-epochs: expected a whole number of at least 1, got '0'"),
        (["--adversary-every", "0"], "argument --adversary-every: expected a whole number of at least 1, got '0'"),
        (["--seed", "0", "-1"], "argument --seed: expected a whole number of at least 0, got '-1'"),
        (["--seed"], "argument --seed: expected at least one argument"),
        (["--lr", "nan"], "expected a finite number of at least 0, got 'nan'"),
        (["--patience", "-1"], "expected a whole number of at least 0, got '-1'"),
        (
            ["--negatives", "hard:5"],
            "argument --negatives: expected N, uniform:N, popularity:N, shared:N, in-batch, mixed",
        ),
    ],
)
def test_bad_flags_are_refused(capsys, arguments, complaint):
    with pytest.raises(SystemExit) as caught:
        training.main(arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


# --- several seeds ---


def test_every_loss_is_trained_with_every_seed(blocks, tmp_path, capsys):
    def train_all(name: str, *arguments: str) -> list[dict]:
        out = tmp_path / name
        basics = ["--data", str(blocks), "--epochs", "2", "--eval-every", "1", "--out", str(out)]
        assert training.main([*basics, *FLAGS, *arguments]) == 0
        return load_results(out)["runs"]

    runs = train_all("all", "--loss", "sl", "cw", "sl", "--seed", "3", "1", "1", "2")
    assert [(run["loss"], run["config"]["seed"]) for run in runs] == [(n, s) for n in ("sl", "cw") for s in (3, 1, 2)]
    lines = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if "±" in line}
    assert list(lines) == ["sl", "cw"]
    for name, line in lines.items():
        of_loss = [run for run in runs if run["loss"] == name]
        for column, (part, metric) in enumerate(
            [
                ("test", "recall"),
                ("test", "ndcg"),
                ("test", "balanced_ndcg"),
                ("test", "mean_popularity"),
                ("test", "coverage"),
                ("test", "gini"),
                ("test_validation_masked", "recall"),
                ("test_validation_masked", "ndcg"),
                ("best_validation", "ndcg"),
            ]
        ):
            values = [run[part][metric] for run in of_loss]
            assert metric == "coverage" or len(set(values)) == 3  # which is all of so few items
            digits = 1 if metric == "mean_popularity" else 4
            assert line[1 + column] == f"{mean(values):.{digits}f}±{stdev(values):.{digits}f}"

    # A seed decides on the split too, and seeds before it do not matter.
    alone = train_all("alone", "--loss", "cw", "--seed", "2")[0]
    assert {**alone, "seconds": None} == {**runs[5], "seconds": None}
    assert "±" not in capsys.readouterr().out


# --- an estimated prior ---


def best_bin(positive: list[float], unlabeled: list[float]) -> float:
    """Best Bin Estimation (arXiv 2111.00980, algorithm 1 with δ = 0.05, γ = 0.01), threshold by threshold."""
    error = sum(math.sqrt(math.log(4 / 0.05) / (2 * len(scores))) for scores in (positive, unlabeled))
    bins = []
    for threshold in positive:
        p, u = (sum(score >= threshold for score in scores) / len(scores) for scores in (positive, unlabeled))
        bins.append(((u + 1.01 * error) / p, u / p))
    return min(bins)[1]


def estimating_trainer(blocks: Path, name: str = "cw") -> Trainer:
    """One that knows the blocks, so that most positives score above most negatives, and changes little."""
    dataset = data.load(blocks, core=2)
    config = TrainingConfig(dim=8, lr=0.02, epochs=7, batch_size=64, eval_every=2)
    trainer = Trainer(dataset, build_loss(name, replace(REFERENCE, prior="auto")), config)
    taken = torch.zeros(60, 56)
    taken[dataset.train_users, dataset.train_items] = 1
    taken[dataset.test_users, dataset.test_items] = 1
    # Users of a block have items in common: the first one of them is the block's name.
    of_users = (taken @ taken.T > 0).int().argmax(1)
    of_items = of_users[taken.argmax(0)]
    names = of_users.unique()
    assert len(names) == 4
    with torch.no_grad():
        for table, block in zip(trainer.model(), (of_users, of_items), strict=True):
            table.mul_(0.1)[:, :4] += block.unsqueeze(1) == names
    return trainer


@pytest.mark.parametrize("name", ["cw", "dcl"])
def test_the_prior_is_0_at_first_and_then_that_of_the_validation_before(blocks, name):
    trainer = estimating_trainer(blocks, name)
    batches = record_batches(trainer)
    trainer.train(show_progress=False)
    found = {point["epoch"]: point["prior"] for point in trainer.curve}
    assert list(found) == [2, 4, 6, 7]
    assert all(0 < prior < 0.9 for prior in found.values())
    assert len(set(found.values())) == 4
    in_force = [0.0, 0.0, found[2], found[2], found[4], found[4], found[6]]
    assert {epoch for epoch, _ in batches} == set(range(7))
    assert all(batch.prior == in_force[epoch] for epoch, batch in batches)


def test_the_prior_is_estimated_from_validation_items_and_negatives(blocks, monkeypatch):
    monkeypatch.setattr(estimates, "_ROWS_PER_BLOCK", 7)
    trainer = estimating_trainer(blocks)
    for _ in range(4):
        generator = trainer.generator.clone_state()
        trainer._validate(0.0)
        seed = torch.randint(2**63 - 1, (), generator=generator)
        users, items = trainer.validation_users, trainer.validation_items
        drawn = draw_negatives(users, trainer.interactions, 50, seed=seed)
        tables = [table.detach().double() for table in trainer.model()]
        positive = cosines(tables[0][users], tables[1], items).tolist()
        unlabeled = cosines(tables[0][users], tables[1], drawn).flatten().tolist()
        # An item may be among its own user's negatives, with the same score up to rounding.
        low, high = sorted(best_bin([score + shift for score in positive], unlabeled) for shift in (-1e-6, 1e-6))
        assert low - 1e-9 <= trainer.curve[-1]["prior"] <= high + 1e-9 < low + 0.05
        assert 0 < trainer.curve[-1]["prior"] < 0.9
        trainer._train_epoch()


def test_a_prior_that_leaves_no_negative_is_cut(blocks):
    dataset = data.load(blocks, core=2)
    # Of dimension 4, so that a row of ones has a norm without rounding.
    trainer = Trainer(dataset, build_loss("cw", replace(REFERENCE, prior="auto")), TrainingConfig(dim=4, epochs=1))
    with torch.no_grad():
        for table in trainer.model():
            table.fill_(1.0)  # all scores are the same
    trainer._validate(0.0)
    assert trainer.curve[-1]["prior"] == 0.9


def test_the_command_line_estimates_the_prior(blocks, tmp_path, capsys):
    arguments = ["--loss", "cw", "--prior", "auto", "--epochs", "2", "--eval-every", "1", "--out", str(tmp_path)]
    assert training.main(["--data", str(blocks), *FLAGS, *arguments]) == 0
    run = load_results(tmp_path)["runs"][0]
    assert run["loss_settings"]["prior"] == "auto"
    assert all(0 <= point["prior"] <= 0.9 for point in run["validation"])
    assert "π=auto" in capsys.readouterr().out


# --- results ---


def test_a_failed_write_leaves_the_file_before_it(tmp_path):
    path = tmp_path / "results.json"
    reporting.write_json(path, {"value": 1})
    with pytest.raises(TypeError):
        reporting.write_json(path, {"value": object()})
    assert json.loads(path.read_text()) == {"value": 1}


def test_table_columns_line_up():
    table = reporting.format_table(["loss", "x"], [["a", "10.25"], ["longer", "3"]])
    assert table.splitlines() == ["loss        x", "------  -----", "a       10.25", "longer      3"]


def test_plot_of_many_runs(tmp_path):
    point = {"epoch": 5, "ndcg": 0.0, "recall": 0.0}
    runs = [
        {"loss": f"loss-{i}", "k": 20, "validation": [point], "test": {"recall": 0.0, "ndcg": 0.0}} for i in range(11)
    ]
    plots.plot_runs(runs, tmp_path / "runs.png", "zeros")
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


def made_up_run(seed: int, **test: float) -> dict:
    """The entry of a run, as far as the table shows it."""
    return {
        "loss": "sl",
        "loss_settings": {"negatives": "uniform:1"},
        "k": 5,
        "config": {"lr": 0.1, "weight_decay": 0.0, "seed": seed},
        "epochs": 5,
        "best_epoch": 5,
        "best_validation": {"recall": 0.0, "ndcg": 0.0},
        "test": {"recall": 0.0, "ndcg": 0.0, **test},
        "test_validation_masked": {"recall": 0.0, "ndcg": 0.0},
        "seconds": {"per_epoch": 1.0},
    }


def test_the_table_shows_what_is_recommended_and_a_dash_where_a_run_lacks_it():
    names = ["balanced NDCG@5", "mean popularity", "coverage", "Gini"]
    old = made_up_run(0)
    new = [
        made_up_run(seed, balanced_ndcg=0.1 * seed, mean_popularity=20.0 * seed, coverage=0.25 * seed, gini=0.5)
        for seed in (1, 2)
    ]
    deviations = ["0.1500±0.0707", "30.0±14.1", "0.3750±0.1768", "0.5000±0.0000"]
    expected = {"-": [[old], [old, *new]], "": [new]}
    for shown, cases in expected.items():
        for runs in cases:
            header, _, row, *_ = compare.describe_runs(runs).splitlines()
            columns = re.split("  +", header.strip())
            cells = dict(zip(columns, re.split("  +", row.strip()), strict=False))
            assert [cells[name] for name in names] == ([shown] * 4 if shown else deviations)


# --- step cost ---


def test_step_cost_sees_the_memory_of_the_reference():
    shape = step_cost.StepShape(batch_size=256, negatives=128, extra_positives=2, dim=64, items=100)
    report = step_cost.measure(shape, repeats=3)
    reference = report["backends"]["reference"]
    assert 0 < reference["seconds"]["q20"] <= reference["seconds"]["median"] <= reference["seconds"]["q80"]
    # The reference gathers [B, N, D] floats, and keeps some copies of that size for the backward pass.
    gathered = 256 * 128 * 64 * 4
    assert gathered < reference["peak_extra_bytes"] < 20 * gathered
    described = step_cost.describe(report)
    assert f"{1e3 * reference['seconds']['median']:.1f}" in described

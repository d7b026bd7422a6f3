"""How hard a loss pulls on the positive: by a temperature of its own, and less for rows with a high loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_training import cosines, make_batch, negatives_and_weights

from benchmarks.training import __main__ as training
from benchmarks.training.losses import FALLING, LossOptions, build_loss
from benchmarks.training.negatives import Batch, Negatives

SPECS = ["uniform:9", "popularity:9", "shared:9", "in-batch", "mixed:9", "full"]
WITH_TEMPERATURE = ["sl", "infonce", "dcl", "psl-tanh", "psl-atan", "psl-relu", "slk", "cw"]
BASE = LossOptions(refresh_epochs=5, prior=0.0, weighting="linear")


def rows_and_loss(name: str, spec: str, backend: str, batch: Batch, **options) -> torch.Tensor:
    negatives = Negatives.parse(spec)
    loss = build_loss(name, replace(BASE, negatives=negatives, backend=backend, **options))
    if loss.takes_ids:
        batch = batch._replace(neg_ids=negatives.draw(batch.query_ids, batch.interactions, batch.seed))
    return loss.build(8, 30, 4, torch.Generator())(batch)


def make_leaves() -> tuple[Batch, list[torch.Tensor]]:
    batch = make_batch()
    return batch, [table.requires_grad_() for table in (batch.queries, batch.items)]


def assert_same(found: torch.Tensor, expected: torch.Tensor, leaves: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for a, b in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


def rows_of_sl(batch: Batch, spec: str, tau: float, positive_tau: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's log Σ e^{s_j/τ} − s⁺/τ⁺ and s⁺, with τ on the half cosine."""
    ids, q = negatives_and_weights(batch, Negatives.parse(spec))
    number = (q > 0).sum(1)
    q = q / q.sum(1, keepdim=True)
    p, n = (cosines(batch.queries, batch.items, which) / 2 for which in (batch.pos_ids, ids))
    return torch.log(number * (q * torch.exp(n / tau)).sum(1)) - p / positive_tau, p


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("positive_tau", [0.08, 0.125])
def test_sl_has_two_temperatures(backend, spec, positive_tau):
    batch, leaves = make_leaves()
    found = rows_and_loss("sl", spec, backend, batch, positive_temperature=positive_tau)
    assert_same(found, rows_of_sl(batch, spec, 0.1, positive_tau)[0].mean(), leaves)


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_a_rows_loss_gains_its_positives_score(backend, name):
    """L + s⁺·(1/τ − 1/τ⁺), before the confidence multiplies."""
    batch, leaves = make_leaves()
    found = rows_and_loss(name, "uniform:9", backend, batch, positive_temperature=0.16, confidence_temperature=0.7)
    without = rows_and_loss(name, "uniform:9", backend, batch, confidence_temperature=0.7)
    positive = cosines(batch.queries, batch.items, batch.pos_ids) / 2
    confidence = torch.ones(len(positive), dtype=torch.float64)
    if name == "slk":
        confidence = 2 * torch.sigmoid((positive - batch.thresholds) / 0.7)
    elif name == "cw":
        confidence = 2 * torch.sigmoid(positive / 0.7)
    assert_same(found, without + (confidence * positive).mean() * (1 / 0.1 - 1 / 0.16), leaves)


def test_a_detached_confidence_has_a_temperature_of_the_positive_too(backend):
    batch, leaves = make_leaves()
    options = {"confidence_temperature": 0.3, "confidence_detached": True}
    found = rows_and_loss("cw", "uniform:9", backend, batch, positive_temperature=0.16, **options)
    without = rows_and_loss("cw", "uniform:9", backend, batch, **options)
    positive = cosines(batch.queries, batch.items, batch.pos_ids) / 2
    weights = torch.sigmoid(positive / 0.3).detach()
    gained = (weights * positive).sum() / weights.sum() * (1 / 0.1 - 1 / 0.16)
    assert_same(found, without + gained, leaves)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("positive_tau", [None, 0.125])
def test_the_pull_falls_with_the_rows_loss(backend, spec, positive_tau):
    batch, leaves = make_leaves()
    found = rows_and_loss("sl", spec, backend, batch, falling_pull=0.3, positive_temperature=positive_tau)
    rows, positive = rows_of_sl(batch, spec, 0.1, positive_tau or 0.1)
    height = torch.tensor([max(row, 0.0) for row in rows.tolist()], dtype=torch.float64)
    share = height / (sum(height) / len(height))
    assert share.max() > 1.4 and share.min() < 0.8
    assert_same(found, (rows + 0.3 * share * positive / 0.1).mean(), leaves)


@pytest.mark.parametrize("name", ["slk", "cw"])
def test_the_rows_loss_is_that_of_weights_and_confidence(name):
    """By a batch of one row each, whose loss is the row's."""
    batch, leaves = make_leaves()
    found = rows_and_loss(name, "full", "reference", batch, falling_pull=0.4, confidence_temperature=0.7)
    rows = []
    for row in range(len(batch.query_ids)):
        alone = {
            name: getattr(batch, name)[row : row + 1] for name in ("queries", "query_ids", "pos_ids", "thresholds")
        }
        alone["extra_pos_ids"] = batch.extra_pos_ids[row : row + 1]
        rows.append(rows_and_loss(name, "full", "reference", batch._replace(**alone), confidence_temperature=0.7))
    losses = torch.stack(rows)
    share = losses.detach().clamp(min=0)
    share = share / share.mean()
    positive = cosines(batch.queries, batch.items, batch.pos_ids) / 2
    assert_same(found, (losses + 0.4 * share * positive / 0.1).mean(), leaves)


def test_where_no_row_has_a_loss_above_0_the_pull_stays():
    batch, _ = make_leaves()
    with torch.no_grad():  # each query at its positive, and all other items opposite
        batch.items.copy_(-torch.ones_like(batch.items))
        batch.items[batch.pos_ids[0]] = 1.0
        batch.queries.fill_(1.0)
    batch = batch._replace(pos_ids=batch.pos_ids[:1].expand(6), query_ids=batch.query_ids[:1].expand(6))
    found = rows_and_loss("sl", "uniform:9", "reference", batch, falling_pull=0.3)
    expected = rows_and_loss("sl", "uniform:9", "reference", batch)
    assert expected < 0 and torch.equal(found, expected)


@pytest.mark.parametrize("name", FALLING)
def test_learned_thresholds_are_counted_as_without_it(name):
    """The counts come with the rows, not their mean."""
    batch, _ = make_leaves()
    options = {"refresh_epochs": None, "confidence_top_k": 5, "negatives": Negatives("full", None)}
    options["confidence_temperature"] = 0.7
    functions = [
        build_loss(name, replace(BASE, **options, falling_pull=pull)).build(8, 30, 4, torch.Generator())
        for pull in (0.3, None)
    ]
    values = [[function(batch).item() for _ in range(3)] for function in functions]
    assert all(a != b for a, b in zip(*values, strict=True))
    if name != "sl":
        thresholds = [function.top_k.thresholds for function in functions]
        assert torch.equal(*thresholds) and thresholds[0].any()


@pytest.mark.parametrize("pull", [0.0, 1.0, -0.2, float("nan")])
def test_a_pull_out_of_range_is_refused(pull):
    with pytest.raises(ValueError, match=rf"^falling_pull must be in \(0, 1\), got {pull}$"):
        build_loss("sl", LossOptions(falling_pull=pull))


def test_a_detached_confidence_has_no_falling_pull():
    with pytest.raises(ValueError, match="and no confidence_top_k or falling_pull, got 1.25, None and 0.2$"):
        build_loss("cw", LossOptions(confidence_temperature=1.25, confidence_detached=True, falling_pull=0.2))


def test_settings_name_what_is_in_use_only():
    for name in WITH_TEMPERATURE:
        plain = build_loss(name, BASE).settings
        assert not plain.keys() & {"positive_temperature", "falling_pull"}
        used = build_loss(name, replace(BASE, positive_temperature=0.2, falling_pull=0.1)).settings
        expected = {"positive_temperature": 0.2} | ({"falling_pull": 0.1} if name in FALLING else {})
        assert used == plain | expected
    assert build_loss("bsl", replace(BASE, positive_temperature=0.2)).settings["positive_temperature"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            "--loss bsl bpr --positive-tau .2",
            "--positive-tau needs a loss of the softmax family other than bsl, got bsl ",
        ),
        (
            "--loss talos --positive-tau .2",
            "--positive-tau needs a loss of the softmax family other than bsl, got talos ",
        ),
        ("--loss sl --bsl-tau .2 --positive-tau .2", "--bsl-tau needs bsl, got sl "),
        ("--loss infonce --falling-pull .2", "--falling-pull needs cw, sl or slk, got infonce "),
        ("--loss sl --cross-fitted", "--cross-fitted needs --false-negative-prior and a loss of the softmax family"),
        ("--loss sl --falling-pull 1", "falling_pull must be in (0, 1), got 1.0"),
        ("--loss sl --positive-tau 0", "positive_temperature must be > 0, got 0.0"),
    ],
)
def test_options_that_cannot_act_are_refused(tmp_path, capsys, arguments, complaint):
    assert training.main(["--out", str(tmp_path / "out"), *arguments.split()]) == 2
    assert complaint in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()

"""Talos against its formula written out, with its gradients, and the thresholds that it learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from training_cases import load_blocks, record_batches

from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.negatives import Batch, Negatives
from benchmarks.training.talos import Talos, known_items
from benchmarks.training.trainer import Trainer, TrainingConfig
from cw_ext import Interactions, draw_negatives

KNOWN = {0: [0, 3], 1: [1], 2: [2, 5, 6, 7], 3: []}
USERS, POSITIVES = [2, 0, 1, 0], [5, 3, 1, 0]
ITEMS, DIM = 9, 3


def make_batch(kind: str, number: int) -> tuple[Batch, list[list[int]]]:
    """A batch, and the negatives of each row, with those drawn twice."""
    pairs = [(user, item) for user, items in KNOWN.items() for item in items]
    interactions = Interactions(*torch.tensor(pairs).T, num_queries=len(KNOWN), num_items=ITEMS)
    generator, seed, users = torch.Generator().manual_seed(5), torch.tensor(3), torch.tensor(USERS)
    queries = torch.randn(len(USERS), DIM, generator=generator, dtype=torch.float64)
    items = torch.randn(ITEMS, DIM, generator=generator, dtype=torch.float64)
    neg_ids = None
    if kind == "uniform":
        neg_ids = draw_negatives(users, interactions, number, seed=seed)
        drawn = neg_ids.tolist()
    else:
        shared = draw_negatives(None, interactions, number, seed=seed).tolist() if kind == "shared" else range(ITEMS)
        drawn = [[item for item in shared if item not in KNOWN[user]] for user in USERS]
    batch = Batch(queries, items, users, torch.tensor(POSITIVES), None, interactions, seed, neg_ids)
    return batch, drawn


def written_out(
    queries: np.ndarray, items: np.ndarray, drawn: list[list[int]], beta: np.ndarray, tau: float
) -> tuple[float, np.ndarray, np.ndarray, list[int]]:
    """The loss, its gradients by hand, and the counts above β; all on the cosine."""
    loss, of_queries, of_items, above = 0.0, np.zeros_like(queries), np.zeros_like(items), []
    rows = len(queries)

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def add_gradient(row: int, item: int, slope: float) -> None:
        q, x = queries[row], items[item]
        length_q, length_x = math.sqrt(q @ q), math.sqrt(x @ x)
        cosine = q @ x / (length_q * length_x)
        of_queries[row] += slope * (x / length_x - cosine * q / length_q) / length_q
        of_items[item] += slope * (q / length_q - cosine * x / length_x) / length_x

    for row, positive in enumerate(POSITIVES):
        cosine = {
            item: queries[row] @ items[item] / math.sqrt((queries[row] @ queries[row]) * (items[item] @ items[item]))
            for item in [positive, *drawn[row]]
        }
        masses = [sigma(cosine[item] - beta[row]) ** (1 / tau) for item in drawn[row]]
        loss += (math.log(sum(masses)) - math.log(sigma(cosine[positive] - beta[row])) / tau) / rows
        above.append(sum(cosine[item] > beta[row] for item in drawn[row]))
        for item, mass in zip(drawn[row], masses, strict=True):
            add_gradient(row, item, mass / sum(masses) * sigma(beta[row] - cosine[item]) / tau / rows)
        add_gradient(row, positive, -sigma(beta[row] - cosine[positive]) / tau / rows)
    return loss, of_queries, of_items, above


@pytest.mark.parametrize(("kind", "number"), [("uniform", 7), ("shared", 12), ("full", None)])
@pytest.mark.parametrize("tau", [0.1, 0.3, 2.0])
def test_it_is_the_formula(backend, kind, number, tau):
    batch, drawn = make_batch(kind, number)
    beta = np.array([0.3, -0.2, 0.0, 0.7])
    tables = [table.requires_grad_() for table in (batch.queries, batch.items)]
    thresholds = torch.tensor(beta / 2, requires_grad=True)
    function = Talos(tau / 2, Negatives(kind, number), backend)
    found, above = function(batch, confidence_threshold=thresholds.detach(), return_above=True)
    loss, *gradients, counts = written_out(*(table.detach().numpy() for table in tables), drawn, beta, tau)
    assert found.item() == pytest.approx(loss, rel=1e-9)
    assert above.tolist() == counts
    for a, b in zip(torch.autograd.grad(found, tables), gradients, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-8, atol=1e-10)
    assert function(batch, confidence_threshold=thresholds.detach()).item() == found.item()


def test_known_items_are_those_of_each_query():
    batch, _ = make_batch("full", None)
    users = torch.tensor([3, 2, 2, 0])
    found = known_items(batch.interactions, users)
    assert [row.nonzero()[:, 0].tolist() for row in found] == [KNOWN[user] for user in users.tolist()]


@pytest.mark.parametrize("spec", ["uniform:40", "shared:40", "full"])
def test_thresholds_are_the_kth_best_of_what_a_user_does_not_know(tmp_path, spec):
    """Of tables that stay as they are, so that there is a truth: by a count over all items."""
    options = LossOptions(confidence_top_k=4, negatives=Negatives.parse(spec))
    run = Trainer(
        load_blocks(tmp_path), build_loss("talos", options), TrainingConfig(dim=8, lr=0.0, epochs=40, batch_size=64)
    )
    run.train(show_progress=False)
    with torch.no_grad():
        users, items = run.model()
        scores = torch.nn.functional.cosine_similarity(users.unsqueeze(1), items.unsqueeze(0), dim=2) / 2
    scores[run.fit.train_users, run.fit.train_items] = -torch.inf
    above = (scores > run.thresholds.unsqueeze(1)).sum(1)
    assert abs(above.double().mean() - 4) < 0.7


def test_thresholds_of_a_pass_are_those_of_the_batch(tmp_path):
    options = LossOptions(confidence_top_k=4, refresh_epochs=1, negatives=Negatives("uniform", 8), backend="reference")
    run = Trainer(load_blocks(tmp_path), build_loss("talos", options), TrainingConfig(dim=8, epochs=2, batch_size=64))
    batches = record_batches(run)
    run.train(show_progress=False)
    last = batches[-1][1]
    assert last.thresholds.abs().min() > 0
    expected = Talos(0.1, Negatives("uniform", 8), "reference")(last, confidence_threshold=last.thresholds)
    assert torch.equal(run.loss.build(60, 56, 8, torch.Generator())(last), expected)


def test_it_learns_to_rank(tmp_path):
    options = LossOptions(negatives=Negatives("full", None), confidence_top_k=5)
    config = TrainingConfig(dim=8, epochs=10, batch_size=64, eval_every=5)
    run = Trainer(load_blocks(tmp_path), build_loss("talos", options), config)
    untrained = Trainer(load_blocks(tmp_path), build_loss("talos", options), config)
    run.train(show_progress=False)
    untrained._validate(0.0)
    assert run.best["ndcg"] > 2 * untrained.best["ndcg"]


@pytest.mark.parametrize("spec", ["popularity:9", "in-batch", "mixed:9", "auto:9", "scored:3/20"])
def test_other_negatives_are_refused(spec):
    options = LossOptions(refresh_epochs=5, negatives=Negatives.parse(spec))
    with pytest.raises(
        ValueError, match=f"^negatives of talos must be of the kinds uniform, shared, full, got {spec}$"
    ):
        build_loss("talos", options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"confidence_top_k": 0}, "confidence_top_k must be at least 1, got 0"),
    ],
)
def test_bad_values_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_loss("talos", LossOptions(**options))


def test_settings_are_what_it_uses():
    loss = build_loss("talos", LossOptions(negatives=Negatives("full", None), false_negative_prior=0.1, prior=0.0))
    assert loss.settings == {"temperature": 0.1, "confidence_top_k": 20, "negatives": "full", "backend": "auto"}
    assert loss.estimate is None


def test_a_zero_vector_has_cosine_0():

    batch, _ = make_batch("full", None)
    batch = batch._replace(queries=torch.zeros_like(batch.queries).requires_grad_())
    loss = Talos(0.1, Negatives("full", None), "reference")(batch, confidence_threshold=torch.zeros(4))
    unknown = [ITEMS - len(KNOWN[user]) for user in USERS]
    assert loss.item() == pytest.approx(np.log(unknown).mean())
    loss.backward()
    assert not batch.queries.grad.isnan().any()

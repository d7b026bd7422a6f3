"""The IR-Benchmark adapter: by the benchmark's convention, and against its own code where that can be imported."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import generator
from movielens import assert_same_loss
from page import run_block_of
from torch import Tensor, nn

from benchmarks.common.data import DataError, InteractionData, load_movielens_100k
from benchmarks.training.metrics import ranking_metrics
from cw_ext import Interactions, draw_negatives, presets
from cw_ext.integrations.ir_benchmark import CWOptimizer

DIM = 16
NEGATIVES = 64
BATCH_SIZE = 2048


class Factorization(nn.Module):
    """A model of the benchmark's convention, whose own loss is not 0."""

    norm = True

    def __init__(self, num_users: int, num_items: int, dim: int) -> None:
        super().__init__()
        self.users = nn.Embedding(num_users, dim)
        self.items = nn.Embedding(num_items, dim)

    def embed(self, norm: bool = True) -> tuple[Tensor, Tensor, float]:
        tables = self.users.weight, self.items.weight
        return *(F.normalize(table, dim=1) if norm else table for table in tables), 0.01

    def additional_loss(self, batch: Any, users: Tensor, items: Tensor, weight: float) -> Tensor:
        return weight * users[batch.user].sum()


def batch_of(num_users: int, num_items: int) -> dict[str, Tensor]:
    g = generator(0)
    return {
        "user": torch.randint(num_users, (40,), generator=g),
        "pos_item": torch.randint(num_items, (40,), generator=g),
        "neg_items": torch.randint(num_items, (40, 25), generator=g),
    }


@pytest.fixture(scope="module")
def dataset() -> InteractionData:
    try:
        return load_movielens_100k()
    except DataError as error:
        pytest.skip(str(error))


def itemrec(module: str) -> ModuleType:
    """A part of the benchmark."""
    reason = "IR-Benchmark is not there: put src/ of a checkout on PYTHONPATH"
    return pytest.importorskip(f"itemrec.{module}", reason=reason)


def batches(data: InteractionData) -> Iterator[dict[str, Tensor]]:
    """An epoch as the benchmark's loader gives it: shuffled, with uniform negatives that are not the user's."""
    known = Interactions(data.train_users, data.train_items, num_queries=data.num_users, num_items=data.num_items)
    for rows in torch.randperm(len(data.train_users)).split(BATCH_SIZE):
        users = data.train_users[rows]
        negatives = draw_negatives(users, known, NEGATIVES)
        yield {"user": users, "pos_item": data.train_items[rows], "neg_items": negatives}


def test_sl_is_the_softmax_loss() -> None:
    """At the temperature of the cosine, with what the model adds."""
    torch.manual_seed(0)
    model, same = Factorization(12, 30, DIM), Factorization(12, 30, DIM)
    same.load_state_dict(model.state_dict())
    batch = SimpleNamespace(**batch_of(12, 30))
    loss = CWOptimizer(model, **presets.sl(0.2)).cal_loss(batch)

    users, items, weight = same.embed()
    scores = users[batch.user] @ items.T
    margins = scores.gather(1, batch.neg_items) - scores.gather(1, batch.pos_item.unsqueeze(1))
    expected = torch.logsumexp(margins / 0.2, 1).mean() + same.additional_loss(batch, users, items, weight)
    assert_same_loss((loss, model), (expected, same))


def test_equal_to_the_benchmarks_softmax() -> None:
    """The same loss and gradients; and the same tables after five steps of Adam."""
    torch.manual_seed(0)
    model, same = itemrec("model").MFModel(12, 30, DIM), itemrec("model").MFModel(12, 30, DIM)
    same.load_state_dict(model.state_dict())
    batch = itemrec("dataset").IRDataBatch(**batch_of(12, 30))
    ours = CWOptimizer(model, 0.01, 1e-4, **presets.sl(0.2))
    theirs = itemrec("optimizer").SoftmaxOptimizer(same, 0.01, 1e-4, tau=0.2)
    assert_same_loss((ours.cal_loss(batch), model), (theirs.cal_loss(batch), same))
    for epoch in range(5):
        assert ours.step(batch, epoch) == pytest.approx(theirs.step(batch, epoch), rel=1e-5)
    for mine, its in zip(model.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def test_has_the_benchmarks_interface() -> None:
    """Every public method of its base class, to be called in the same way."""
    for name, method in inspect.getmembers(itemrec("optimizer").IROptimizer, inspect.isfunction):
        if not name.startswith("_"):
            parameters = inspect.signature(method).parameters.values()
            named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
            assert list(inspect.signature(getattr(CWOptimizer, name)).parameters) == named


@pytest.mark.parametrize("real", [False, True], ids=["convention", "itemrec"])
def test_trains_on_movielens(real: bool, dataset: InteractionData) -> None:
    """A model of the benchmark's convention, and the benchmark's own with its own batches."""
    torch.manual_seed(0)
    kind = itemrec("model").MFModel if real else Factorization
    batch_kind = itemrec("dataset").IRDataBatch if real else SimpleNamespace
    model = kind(dataset.num_users, dataset.num_items, DIM)
    optimizer = CWOptimizer(model, lr=0.1, **presets.cw(temperature=0.2, prior=0.02))

    def recall() -> float:
        with torch.no_grad():
            users, items, *_ = model.embed(norm=True)
            pairs = (dataset.test_users, dataset.test_items, dataset.train_users, dataset.train_items)
            return ranking_metrics(users, items, *pairs)["recall"]

    untrained = recall()
    for epoch in range(4):
        for batch in batches(dataset):
            optimizer.step(batch_kind(**batch), epoch)
    assert recall() > 3 * max(untrained, 20 / dataset.num_items)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"tau": 1.0}, TypeError), ({"prior": 1.0}, ValueError), ({"temperature": -1}, ValueError)],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        CWOptimizer(Factorization(2, 3, DIM), **arguments)


def test_the_block_of_the_page() -> None:
    """The optimizer of docs/guides/other-libraries.md takes a step."""
    torch.manual_seed(0)
    args = SimpleNamespace(lr=0.1, weight_decay=0.0, tau=0.2)
    optimizer = run_block_of(__file__, model=Factorization(12, 30, DIM), args=args)["optimizer"]
    batch = SimpleNamespace(**batch_of(12, 30))
    assert optimizer.step(batch, 0) > optimizer.step(batch, 1)

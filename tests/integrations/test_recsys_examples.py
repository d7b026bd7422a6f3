"""The adapter to NVIDIA's recsys-examples: by its convention, and against its own code where that is there."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from cases import assert_near, generator
from memory import peak_of
from movielens import assert_same_loss, sequences
from page import run_block_of
from torch import Tensor, nn

from benchmarks.hstu_losses.steps import LOSSES, TINY, step_of
from cw_ext import presets
from cw_ext.integrations.recsys_examples import CWSampledLoss

ITEMS = 60
DIM = 16
TARGETS = 35
NEGATIVES = 20


class Sampler(nn.Module):
    """By the convention of its InBatchNegativesSampler."""

    def normalize_embeddings(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)

    def gen_sampled_candidates(self, valid_ids: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        return valid_ids, self.normalize_embeddings(embeddings)


class Model(nn.Module):
    """What the loss is given: a state for each target, and the embeddings of the targets."""

    def __init__(self, targets: int = TARGETS, items: int = ITEMS, dim: int = DIM) -> None:
        super().__init__()
        g = generator(0)
        self.ids = torch.randint(items, (targets,), generator=g)
        self.states = nn.Parameter(nn.functional.normalize(torch.randn(targets, dim, generator=g), dim=1))
        self.items = nn.Parameter(torch.randn(items, dim, generator=g))

    def forward(self, loss: nn.Module) -> Tensor:
        return loss(self.states, self.ids, self.items[self.ids])


def test_infonce_by_hand() -> None:
    """The cross entropy of each target among itself and its draws, those equal to it left out."""
    model = Model()
    torch.manual_seed(1)
    found = model(CWSampledLoss(NEGATIVES, Sampler(), **presets.infonce(0.05)))
    torch.manual_seed(1)
    drawn = model.ids[torch.randint(TARGETS, (TARGETS, NEGATIVES))]
    assert (drawn == model.ids.unsqueeze(1)).any(), "no draw is its row's own positive"
    scores = model.states @ nn.functional.normalize(model.items, dim=1).T / 0.05
    expected = []
    for row, own in enumerate(model.ids.tolist()):
        others = [scores[row, i] for i in drawn[row].tolist() if i != own]
        expected.append(torch.stack([scores[row, own], *others]).logsumexp(0) - scores[row, own])
    assert_near(found, torch.stack(expected), torch.float32, "losses")


@pytest.mark.parametrize("targets", [0, 1])
@pytest.mark.parametrize("number", [NEGATIVES, -1])
def test_no_negatives(targets: int, number: int) -> None:
    """A batch of no targets, or of one item, has losses 0 and no gradient."""
    model = Model(targets)
    losses = model(CWSampledLoss(number, Sampler()))
    losses.sum().backward()
    assert losses.tolist() == [0.0] * targets
    assert (model.items.grad == 0).all()


def test_reduction() -> None:
    model = Model()
    values = []
    for reduction in ({}, {"reduction": "sum"}):
        torch.manual_seed(1)
        values.append(model(CWSampledLoss(-1, Sampler(), **reduction)))
    assert values[0].shape == (TARGETS,)
    assert_near(values[1], values[0].sum(), torch.float32, "sum")


@pytest.mark.usefixtures("kernels")
def test_negatives_are_not_gathered() -> None:
    """Nothing of the size of the embeddings of the negatives is allocated."""
    dim, number = 64, 500
    model = Model(dim=dim)
    _, largest = peak_of(torch.device("cpu"))(lambda: model(CWSampledLoss(number, Sampler())).sum().backward())
    assert largest < TARGETS * number * dim * 4 / 3


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("supervision_ids", ((TARGETS, DIM), (TARGETS + 1,), (TARGETS, DIM))),
        ("supervision_embeddings", ((TARGETS, DIM), (TARGETS,), (TARGETS, DIM + 1))),
    ],
)
def test_bad_shapes(name: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    outputs, ids, embeddings = shapes
    with pytest.raises(ValueError, match=f"{name} must have"):
        CWSampledLoss(NEGATIVES, Sampler())(
            torch.zeros(outputs), torch.zeros(ids, dtype=torch.int64), torch.zeros(embeddings)
        )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"softmax_temperature": 1.0}, TypeError),
        ({"prior": 1.0}, ValueError),
        ({"temperature": -1}, ValueError),
        ({"negatives_sampler": nn.Identity()}, TypeError),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        CWSampledLoss(**{"num_to_sample": NEGATIVES, "negatives_sampler": Sampler()} | arguments)


def theirs(module: str, name: str) -> Any:
    """A name of the examples' examples/hstu/modules."""
    reason = "recsys-examples is not there: RECSYS_EXAMPLES=CHECKOUT .ci/integrations"
    pytest.importorskip("modules.sampled_softmax_loss", reason=reason)
    return getattr(importlib.import_module(f"modules.{module}"), name)


def sampler_of(dedup: bool, dim: int = DIM) -> nn.Module:
    """As RetrievalGR makes it, where dedup is True."""
    norm = theirs("output_postprocessors", "L2NormEmbeddingPostprocessor")(embedding_dim=dim, eps=1e-6)
    return theirs("negatives_sampler", "InBatchNegativesSampler")(norm_func=norm, dedup_embeddings=dedup)


def softmax_of(number: int, temperature: float, dedup: bool, dim: int = DIM) -> nn.Module:
    """As RetrievalGR makes it. Its autocast is CUDA's, and does nothing to scores on the CPU."""
    return theirs("sampled_softmax_loss", "SampledSoftmaxLoss")(
        num_to_sample=number,
        softmax_temperature=temperature,
        negatives_sampler=sampler_of(dedup, dim),
        interaction_module=theirs("similarity.dot_product", "DotProductSimilarity")(dtype=torch.bfloat16),
    )


real = pytest.mark.filterwarnings("ignore:CUDA is not available")  # of its autocast, on the CPU


@real
@pytest.mark.parametrize("dedup", [False, True])
@pytest.mark.parametrize("number", [NEGATIVES, -1])
def test_infonce_is_the_sampled_softmax(number: int, dedup: bool) -> None:
    """With its own sampler and loss: the losses of the targets and every gradient."""
    own, adapted = Model(), Model()
    losses = []
    for model, loss in (
        (adapted, CWSampledLoss(number, sampler_of(dedup), **presets.infonce(0.05))),
        (own, softmax_of(number, 0.05, dedup)),
    ):
        torch.manual_seed(1)
        losses.append(model(loss))
    assert_near(losses[0], losses[1], torch.float32, "losses")
    assert_same_loss((losses[0].sum(), adapted), (losses[1].sum(), own))


@real
@pytest.mark.usefixtures("kernels")
def test_takes_less_memory() -> None:
    """The loss and its gradients beside SampledSoftmaxLoss."""
    number, dim = 128, 64
    model = Model(targets=500, dim=dim)
    ours, softmax = (
        peak_of(torch.device("cpu"))(lambda loss=loss: model(loss).sum().backward())[0]
        for loss in (
            CWSampledLoss(number, sampler_of(True, dim), **presets.infonce(0.05)),
            softmax_of(number, 0.05, True, dim),
        )
    )
    assert 3 * ours < softmax


@real
def test_what_is_compared() -> None:
    """The losses of benchmarks.hstu_losses that should be equal give the item table equal gradients."""
    theirs("sampled_softmax_loss", "SampledSoftmaxLoss")  # or skips
    gradients = {}
    for loss in LOSSES["nvidia"]:
        step = step_of("nvidia", loss, TINY)
        torch.manual_seed(0)
        gradients[loss] = step()
    expected = gradients.pop("softmax")
    assert (gradients.pop("cw") - expected).abs().max() > 1e-3
    for loss, found in gradients.items():
        assert_near(found, expected, torch.float32, loss)


@real
def test_trains_on_movielens() -> None:
    """Recall@20 of each user's last item, by its sampler, from the sum of the items before."""
    found, items = sequences(300)
    torch.manual_seed(0)
    table = nn.Embedding(items, DIM)
    norm = theirs("output_postprocessors", "L2NormEmbeddingPostprocessor")(embedding_dim=DIM)
    loss = CWSampledLoss(64, sampler_of(True), reduction="mean", **presets.cw(0.3, prior=0.02))
    optimizer = torch.optim.Adam(table.parameters(), lr=0.03)
    histories = [torch.tensor(history[-41:-1]) for history in found]
    last = torch.tensor([history[-1] for history in found])

    def states(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        """[B, L, D] and where there is an item, [B, L]."""
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return norm(table(padded).cumsum(1)), torch.arange(padded.shape[1]) < lengths.unsqueeze(1)

    def recall() -> float:
        with torch.no_grad():
            found_states, there = states(histories)
            scores = found_states[torch.arange(len(found)), there.sum(1) - 1] @ norm(table.weight).T
            for row, history in enumerate(found):
                scores[row, torch.tensor(history[:-1])] = -torch.inf
            return float((scores.topk(20).indices == last.unsqueeze(1)).any(1).float().mean())

    untrained = recall()
    for _ in range(8):
        for rows in torch.randperm(len(histories)).split(32):
            optimizer.zero_grad()
            batch = [histories[row] for row in rows.tolist()]
            outputs, there = states([row[:-1] for row in batch])
            ids = torch.cat([row[1:] for row in batch])
            loss(outputs[there], ids, table(ids)).backward()
            optimizer.step()
    assert recall() > 3 * max(untrained, 20 / items)


def test_the_block_of_the_page() -> None:
    """The loss of docs/guides/other-libraries.md takes the place of the model's."""
    model = Model()
    model._loss_module = nn.Module()
    model._loss_module._negatives_sampler = Sampler()
    run_block_of(__file__, model=model, num_negatives=NEGATIVES)
    losses = model(model._loss_module)
    assert isinstance(model._loss_module, CWSampledLoss) and losses.shape == (TARGETS,) and losses.isfinite().all()

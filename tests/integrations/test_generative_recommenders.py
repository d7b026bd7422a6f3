"""The adapter to Meta's generative-recommenders: by its convention, and against its own code where that is there."""

from __future__ import annotations

import copy
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
from cw_ext.integrations.generative_recommenders import CWSampledLoss

# The package's own warnings.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*xavier_uniform")

ITEMS = 60  # numbered from 1, as 0 is padding
DIM = 16
BATCH, LENGTH = 6, 9
NEGATIVES = 20
SAMPLERS = ["local", "local-l2", "in-batch", "in-batch-dedup-l2"]


class LocalNegativesSampler(nn.Module):
    """By the package's convention, of the kind that draws from all items."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self._item_emb = table
        self._all_item_ids = torch.arange(1, table.num_embeddings)

    def normalize_embeddings(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


class InBatchNegativesSampler(nn.Module):
    """The kind that draws from the batch's own items."""

    def __init__(self, ids: Tensor, embeddings: Tensor) -> None:
        super().__init__()
        self.found = ids, embeddings

    def get_all_ids_and_embeddings(self) -> tuple[Tensor, Tensor]:
        return self.found

    def normalize_embeddings(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


class DotProductSimilarity(nn.Module):
    """The package's class of this name, of which only the name counts."""


class Model(nn.Module):
    """An encoder by the package's convention."""

    def __init__(self, items: int = ITEMS, dim: int = DIM) -> None:
        super().__init__()
        self._ndp_module = DotProductSimilarity()
        self.table = nn.Embedding(items + 1, dim)


def batch_of(seed: int = 0, items: int = ITEMS, dim: int = DIM) -> dict[str, Tensor]:
    """What the loss is called with, without embeddings of the items."""
    g = generator(seed)
    lengths = torch.tensor([LENGTH, 0, 4, 1, 7, 2])
    ids = torch.randint(1, items + 1, (BATCH, LENGTH), generator=g)
    ids[torch.arange(LENGTH) >= lengths.unsqueeze(1)] = 0
    return {
        "lengths": lengths,
        "output_embeddings": nn.functional.normalize(torch.randn(BATCH, LENGTH, dim, generator=g), dim=-1),
        "supervision_ids": ids,
        "supervision_weights": torch.rand(BATCH, LENGTH, generator=g) * (ids != 0),
    }


def test_infonce_by_hand() -> None:
    """The cross entropy of each target among itself and its draws, those equal to it left out."""
    torch.manual_seed(0)
    model = Model()
    batch = batch_of()
    loss = CWSampledLoss(NEGATIVES, model, **presets.infonce(0.05))
    torch.manual_seed(1)
    found, auxiliary = loss(
        **batch,
        supervision_embeddings=model.table(batch["supervision_ids"]),
        negatives_sampler=LocalNegativesSampler(model.table),
    )
    torch.manual_seed(1)
    there = batch["supervision_ids"] != 0
    own = batch["supervision_ids"][there]
    drawn = 1 + torch.randint(ITEMS, (len(own), NEGATIVES))
    assert (drawn == own.unsqueeze(1)).any(), "no draw is its row's own positive"
    scores = batch["output_embeddings"][there] @ nn.functional.normalize(model.table.weight, dim=1).T / 0.05
    total = torch.tensor(0.0)
    for row, weight in enumerate(batch["supervision_weights"][there].tolist()):
        others = [scores[row, i] for i in drawn[row].tolist() if i != own[row]]
        total = total + weight * (torch.stack([scores[row, own[row]], *others]).logsumexp(0) - scores[row, own[row]])
    assert auxiliary == {}
    assert_near(found, total / batch["supervision_weights"].sum(), torch.float32, "loss")


def test_nothing_to_learn_from() -> None:
    """A batch without targets has loss 0 and no gradient, not NaN."""
    model = Model()
    batch = batch_of()
    batch["lengths"] = torch.zeros_like(batch["lengths"])
    embeddings = model.table(batch["supervision_ids"])
    loss = CWSampledLoss(NEGATIVES, model)
    found, _ = loss(**batch, supervision_embeddings=embeddings, negatives_sampler=LocalNegativesSampler(model.table))
    found.backward()
    assert found.item() == 0
    assert (model.table.weight.grad == 0).all()


def test_bf16() -> None:
    """As with its main_module_bf16: the loss, in fp32, is that of fp32 embeddings up to their rounding."""
    losses = []
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(0)
        model = Model().to(dtype)
        batch = batch_of()
        batch["output_embeddings"] = batch["output_embeddings"].to(dtype)
        found, _ = CWSampledLoss(NEGATIVES, model, temperature=0.2)(
            **batch,
            supervision_embeddings=model.table(batch["supervision_ids"]),
            negatives_sampler=LocalNegativesSampler(model.table),
        )
        found.backward()
        assert model.table.weight.grad.dtype == dtype
        losses.append(found)
    assert losses[0].dtype == torch.float32
    torch.testing.assert_close(*losses, rtol=0.05, atol=0)


def test_int32_ids() -> None:
    losses = []
    for dtype in (torch.int32, torch.int64):
        torch.manual_seed(0)
        model = Model()
        batch = batch_of()
        batch["supervision_ids"] = batch["supervision_ids"].to(dtype)
        embeddings = model.table(batch["supervision_ids"])
        sampler = LocalNegativesSampler(model.table)
        losses.append(
            CWSampledLoss(NEGATIVES, model)(**batch, supervision_embeddings=embeddings, negatives_sampler=sampler)
        )
    assert losses[0][0].item() == losses[1][0].item()


def test_large_ids_stay_apart() -> None:
    """Ids that fp32 takes for one: the other item stays a negative, the own positive does not."""
    embeddings = nn.functional.normalize(torch.randn(1, 2, DIM, generator=generator(0)), dim=-1)
    queries = torch.randn(1, 2, DIM, generator=generator(1))
    loss = CWSampledLoss(NEGATIVES, Model(), **presets.infonce(1.0))

    def value(ids: list[int]) -> float:
        torch.manual_seed(0)
        sampler = InBatchNegativesSampler(torch.tensor(ids), embeddings[0])
        found, _ = loss(torch.tensor([2]), queries, torch.tensor([ids]), embeddings, torch.ones(1, 2), sampler)
        return found.item()

    assert value([2**24, 2**24 + 1]) == value([1, 2])


@pytest.mark.usefixtures("kernels")
def test_negatives_are_not_gathered() -> None:
    """Nothing of the size of the embeddings of the negatives is allocated."""
    dim, number = 64, 500
    model = Model(dim=dim)
    batch = batch_of(dim=dim)
    batch["output_embeddings"].requires_grad_()
    loss = CWSampledLoss(number, model)

    def step() -> None:
        embeddings = model.table(batch["supervision_ids"])
        sampler = LocalNegativesSampler(model.table)
        loss(**batch, supervision_embeddings=embeddings, negatives_sampler=sampler)[0].backward()

    _, largest = peak_of(torch.device("cpu"))(step)
    assert largest < batch["lengths"].sum().item() * number * dim * 4 / 3


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("lengths", (BATCH + 1,)),
        ("supervision_ids", (BATCH,)),
        ("output_embeddings", (BATCH, LENGTH - 1, DIM)),
        ("supervision_embeddings", (BATCH, LENGTH, DIM + 1)),
        ("supervision_weights", (BATCH, LENGTH, 1)),
    ],
)
def test_bad_shapes(name: str, shape: tuple[int, ...]) -> None:
    model = Model()
    batch = batch_of() | {"supervision_embeddings": torch.zeros(BATCH, LENGTH, DIM)}
    batch[name] = torch.zeros(shape, dtype=batch[name].dtype)
    with pytest.raises(ValueError, match=f"{name} must have"):
        CWSampledLoss(NEGATIVES, model)(**batch, negatives_sampler=LocalNegativesSampler(model.table))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"softmax_temperature": 1.0}, TypeError),
        ({"prior": 1.0}, ValueError),
        ({"temperature": -1}, ValueError),
        ({"num_to_sample": 0}, ValueError),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        CWSampledLoss(**{"num_to_sample": NEGATIVES, "model": Model()} | arguments)


def theirs(module: str, name: str) -> Any:
    """A name of the package's research/modeling."""
    reason = "generative-recommenders or fbgemm is not there: GENERATIVE_RECOMMENDERS=CHECKOUT .ci/integrations"
    pytest.importorskip("fbgemm_gpu", reason=reason, exc_type=ImportError)
    pytest.importorskip("generative_recommenders", reason=reason)
    return getattr(importlib.import_module(f"generative_recommenders.research.modeling.{module}"), name)


def similarity_of(kind: str) -> nn.Module:
    if kind == "DotProduct":
        return theirs("similarity_utils", "get_similarity_function")(kind, DIM, DIM)[0]
    module, _ = theirs("similarity_utils", "create_mol_interaction_module")(
        query_embedding_dim=DIM,
        item_embedding_dim=DIM,
        dot_product_dimension=8,
        query_dot_product_groups=2,
        item_dot_product_groups=2,
        temperature=0.5,
        query_dropout_rate=0.0,
        query_hidden_dim=8,
        item_dropout_rate=0.0,
        item_hidden_dim=8,
        gating_query_hidden_dim=8,
        gating_qi_hidden_dim=8,
        gating_item_hidden_dim=8,
        softmax_dropout_rate=0.0,
        bf16_training=False,
    )
    return module


def encoder_of(kind: str, similarity: str = "DotProduct", items: int = ITEMS, length: int = LENGTH) -> nn.Module:
    """The package's model, as its train_fn makes it, in training mode."""
    return theirs("sequential.encoder_utils", "get_sequential_encoder")(
        module_type=kind,
        max_sequence_length=length,
        max_output_length=1,
        embedding_module=theirs("sequential.embedding_modules", "LocalEmbeddingModule")(items, DIM),
        interaction_module=similarity_of(similarity),
        input_preproc_module=theirs(
            "sequential.input_features_preprocessors", "LearnablePositionalEmbeddingInputFeaturesPreprocessor"
        )(max_sequence_len=length + 1, embedding_dim=DIM, dropout_rate=0.0),
        output_postproc_module=theirs("sequential.output_postprocessors", "L2NormEmbeddingPostprocessor")(DIM),
        verbose=False,
    ).train()


def sampler_of(kind: str, model: nn.Module) -> nn.Module:
    arguments = {"l2_norm": "l2" in kind, "l2_norm_eps": 1e-6}
    if kind.startswith("local"):
        items = model._embedding_module._item_emb
        arguments |= {
            "num_items": ITEMS,
            "item_emb": items,
            "all_item_ids": [i for i in range(1, items.num_embeddings) if i % 7],
        }
        return theirs("sequential.autoregressive_losses", "LocalNegativesSampler")(**arguments)
    arguments["dedup_embeddings"] = "dedup" in kind
    return theirs("sequential.autoregressive_losses", "InBatchNegativesSampler")(**arguments)


def step(model: nn.Module, loss: nn.Module, sampler: nn.Module, past_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The part of the package's train_fn from ids [B, L + 1], padded with 0, to the loss."""
    embeddings = model.get_item_embeddings(past_ids)
    lengths = (past_ids != 0).sum(1) - 1
    payloads = {"timestamps": torch.arange(past_ids.shape[1]).expand_as(past_ids) * 100 * (past_ids != 0)}
    states = model(
        past_lengths=lengths,
        past_ids=past_ids,
        past_embeddings=embeddings,
        past_payloads=payloads,
    )
    if hasattr(sampler, "get_all_ids_and_embeddings"):
        ids = past_ids.view(-1)
        sampler.process_batch(ids=ids, presences=ids != 0, embeddings=model.get_item_embeddings(ids))
    return loss(
        lengths=lengths,
        output_embeddings=states[:, :-1, :],
        supervision_ids=past_ids[:, 1:],
        supervision_embeddings=embeddings[:, 1:, :],
        supervision_weights=(past_ids[:, 1:] != 0).float(),
        negatives_sampler=sampler,
        **payloads,
    )


def histories(seed: int = 0) -> Tensor:
    """[B, L + 1] ids, with sequences of every length, padded with 0."""
    ids = torch.randint(1, ITEMS + 1, (BATCH, LENGTH + 1), generator=generator(seed))
    ids[torch.arange(LENGTH + 1) > torch.tensor([LENGTH, 1, 4, 3, 7, 2]).unsqueeze(1)] = 0
    return ids


# HSTU with MoL is left out: its gradients nearly cancel here, so that in fp32 either loss is 1e-5 from the truth.
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("kind", "similarity"), [("SASRec", "DotProduct"), ("HSTU", "DotProduct"), ("SASRec", "MoL")])
def test_infonce_is_the_sampled_softmax(kind: str, similarity: str, sampler: str) -> None:
    """With the package's own models, samplers and loss: the loss, what the similarity adds, and every gradient."""
    torch.manual_seed(0)
    own = encoder_of(kind, similarity)
    adapted = copy.deepcopy(own)
    softmax = theirs("sequential.losses.sampled_softmax", "SampledSoftmaxLoss")(NEGATIVES, 0.05, own)
    losses = []
    for model, loss in ((adapted, CWSampledLoss(NEGATIVES, adapted, **presets.infonce(0.05))), (own, softmax)):
        torch.manual_seed(1)
        losses.append(step(model, loss, sampler_of(sampler, model), histories()))
    (found, found_auxiliary), (expected, expected_auxiliary) = losses
    assert found_auxiliary.keys() == expected_auxiliary.keys()
    for name, value in expected_auxiliary.items():
        assert_near(found_auxiliary[name], value, torch.float32, name)
    assert_same_loss((found, adapted), (expected, own))


@pytest.mark.parametrize("arguments", [presets.cw(0.1, prior=0.1), presets.sl(0.2)], ids=["cw", "sl"])
def test_table_and_scores_agree(arguments: dict[str, Any]) -> None:
    """A sampler of another name is asked for its embeddings, and the model for scores: the same loss."""
    torch.manual_seed(0)
    by_table = encoder_of("SASRec")
    by_scores = copy.deepcopy(by_table)
    sampler = sampler_of("local-l2", by_scores)
    sampler.__class__ = type("Other", (type(sampler),), {})
    losses = []
    for model, its in ((by_table, sampler_of("local-l2", by_table)), (by_scores, sampler)):
        torch.manual_seed(1)
        losses.append(step(model, CWSampledLoss(NEGATIVES, model, **arguments), its, histories())[0])
    assert_same_loss((losses[0], by_table), (losses[1], by_scores))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("kind", ["local-l2", "in-batch-dedup-l2"])
def test_takes_less_memory(kind: str) -> None:
    """The loss and its gradients beside SampledSoftmaxLoss, with and without activation checkpointing."""
    number = 512
    torch.manual_seed(0)
    model = encoder_of("SASRec")
    softmax = theirs("sequential.losses.sampled_softmax", "SampledSoftmaxLoss")
    batch = batch_of()
    batch["output_embeddings"].requires_grad_()

    def peak(loss: nn.Module) -> int:
        def step() -> None:
            sampler = sampler_of(kind, model)
            embeddings = model.get_item_embeddings(batch["supervision_ids"])
            if kind.startswith("in-batch"):
                sampler.process_batch(batch["supervision_ids"], batch["supervision_ids"] != 0, embeddings)
            loss(**batch, supervision_embeddings=embeddings, negatives_sampler=sampler)[0].backward()

        return peak_of(torch.device("cpu"))(step)[0]

    ours = peak(CWSampledLoss(number, model, **presets.infonce(0.05)))
    assert 3 * ours < peak(softmax(number, 0.05, model))
    assert 3 * ours < peak(softmax(number, 0.05, model, activation_checkpoint=True))


def test_what_is_compared() -> None:
    """The losses of benchmarks.hstu_losses that should be equal give the item table equal gradients."""
    theirs("sequential.losses.sampled_softmax", "SampledSoftmaxLoss")  # or skips
    gradients = {}
    for loss in LOSSES["meta"]:
        step = step_of("meta", loss, TINY)
        torch.manual_seed(0)
        gradients[loss] = step()
    expected = gradients.pop("softmax")
    assert (gradients.pop("cw") - expected).abs().max() > 1e-3
    for loss, found in gradients.items():
        assert_near(found, expected, torch.float32, loss)


@pytest.mark.parametrize("kind", ["SASRec", "HSTU"])
def test_trains_on_movielens(kind: str) -> None:
    """Recall@20 of each user's last item, by the package's model, sampler and optimizer."""
    found, items = sequences(300)
    length = 40
    past = torch.zeros(len(found), length + 1, dtype=torch.int64)
    for row, history in enumerate(found):
        kept = torch.tensor(history[:-1][-length - 1 :]) + 1
        past[row, : len(kept)] = kept
    last = torch.tensor([history[-1] for history in found]) + 1
    torch.manual_seed(0)
    model = encoder_of(kind, items=items, length=length)
    sampler = sampler_of("local-l2", model)
    sampler._all_item_ids = torch.arange(1, items + 1)
    sampler._num_items = items
    loss = CWSampledLoss(64, model, **presets.cw(0.1, prior=0.02))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, betas=(0.9, 0.98))

    def recall() -> float:
        with torch.no_grad():
            lengths = (past != 0).sum(1)
            states = model.encode(
                past_lengths=lengths,
                past_ids=past,
                past_embeddings=model.get_item_embeddings(past),
                past_payloads={"timestamps": torch.arange(length + 1).expand_as(past) * 100 * (past != 0)},
            )
            scores = states @ nn.functional.normalize(model._embedding_module._item_emb.weight, dim=1).T
            scores[:, 0] = -torch.inf
            for row, history in enumerate(found):
                scores[row, torch.tensor(history[:-1]) + 1] = -torch.inf
            return float((scores.topk(20).indices == last.unsqueeze(1)).any(1).float().mean())

    untrained = recall()
    for _ in range(8):
        for rows in torch.randperm(len(past)).split(32):
            optimizer.zero_grad()
            step(model, loss, sampler, past[rows])[0].backward()
            optimizer.step()
    assert recall() > 3 * max(untrained, 20 / items)


def test_the_block_of_the_page() -> None:
    """The loss of docs/guides/other-libraries.md, on a batch."""
    torch.manual_seed(0)
    model, batch = Model(), batch_of()
    names = run_block_of(__file__, model=model, num_negatives=NEGATIVES, temperature=0.05)
    embeddings = model.table(batch["supervision_ids"])
    sampler = LocalNegativesSampler(model.table)
    loss, _ = names["ar_loss"](**batch, supervision_embeddings=embeddings, negatives_sampler=sampler)
    loss.backward()
    assert loss.isfinite() and model.table.weight.grad.any()

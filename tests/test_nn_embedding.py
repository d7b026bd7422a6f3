"""An nn.Embedding as `items`: values and gradients of `items(ids)` with the loss on the scores, options included."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import assert_near, generator
from drawing import histories, make_interactions
from torch import Tensor, nn

from cw_ext import (
    CWEmbeddingLoss,
    CWFullLoss,
    CWInBatchLoss,
    CWSampledLoss,
    cw_loss,
    cw_loss_from_embeddings,
    cw_loss_full,
    cw_loss_in_batch,
    draw_negatives,
    sampled_cw_loss,
)

ROWS, N, DIM, ITEMS = 6, 9, 5, 12
PADDING = 3
LOSS: dict[str, Any] = {"temperature": 0.4, "prior": 0.1}
KNOWN = make_interactions(8, ITEMS, 20)
QUERY_IDS = torch.tensor([2, 3, 3, 4, 5, 0])
POS_IDS = torch.tensor([PADDING, 0, 5, PADDING, 11, 5])
NEG_IDS = torch.randint(ITEMS, (ROWS, N), generator=generator(1))
NEG_IDS[:, 2] = PADDING
EXTRA_IDS = torch.tensor([[PADDING, 1], [2, PADDING], [4, 4], [0, 7], [9, PADDING], [1, 1]])
# Own and known positives are not negatives of a row where these are the positives of others, or all items.
HISTORIES = histories(KNOWN)


def left_out(candidates: Tensor) -> Tensor:
    """Log weights [B, len(candidates)]: −inf for a row's own positive and its query's known ones."""
    masks = [
        [c == p or c in HISTORIES[q] for c in candidates.tolist()]
        for p, q in zip(POS_IDS.tolist(), QUERY_IDS.tolist(), strict=True)
    ]
    return torch.zeros(len(POS_IDS), len(candidates), dtype=torch.float64).masked_fill(torch.tensor(masks), -math.inf)


def drawn() -> Tensor:
    return draw_negatives(QUERY_IDS, KNOWN, N, seed=4)


EVERY = torch.arange(ITEMS)
# Each function on an embedding, and which negatives it has with what log weights.
FORMS: dict[str, tuple[Callable[..., Tensor], Callable[[], tuple[Tensor, Tensor | None]]]] = {
    "ids": (
        lambda q, items, **more: cw_loss_from_embeddings(q, items, POS_IDS, NEG_IDS, **more),
        lambda: (NEG_IDS, None),
    ),
    "sampled": (
        lambda q, items, **more: sampled_cw_loss(q, items, QUERY_IDS, POS_IDS, KNOWN, N, seed=4, **more),
        lambda: (drawn(), None),
    ),
    "in-batch": (
        lambda q, items, **more: cw_loss_in_batch(
            q, items, POS_IDS, query_ids=QUERY_IDS, interactions=KNOWN, log_q_correction=False, **more
        ),
        lambda: (POS_IDS.expand(ROWS, -1), left_out(POS_IDS)),
    ),
    "full": (
        lambda q, items, **more: cw_loss_full(q, items, POS_IDS, query_ids=QUERY_IDS, interactions=KNOWN, **more),
        lambda: (EVERY.expand(ROWS, -1), left_out(EVERY)),
    ),
}
each_form = pytest.mark.parametrize("name", FORMS)


def embedding(**options: Any) -> nn.Embedding:
    table = nn.Embedding(ITEMS, DIM, dtype=torch.float64, **options)
    with torch.no_grad():  # the padding row too, so that it counts wherever it is used
        table.weight.copy_(torch.randn(ITEMS, DIM, generator=generator(2), dtype=torch.float64))
    return table


def queries() -> Tensor:
    return torch.randn(ROWS, DIM, generator=generator(3), dtype=torch.float64).requires_grad_()


def by_look_up(name: str, table: nn.Embedding) -> tuple[Tensor, Tensor]:
    """The loss of `items(ids)`, by plain PyTorch and the reference on scores, and the gradient of the queries."""
    q = queries()
    neg_ids, log_weights = FORMS[name][1]()

    def score(ids: Tensor) -> Tensor:
        return F.cosine_similarity(q.unsqueeze(1), table(ids), dim=-1) / 2

    pos, extra = score(POS_IDS.unsqueeze(1)).squeeze(1), score(EXTRA_IDS)
    loss = cw_loss(
        pos, score(neg_ids), extra_pos_scores=extra, neg_log_weights=log_weights, backend="reference", **LOSS
    )
    loss.backward()
    assert q.grad is not None
    return loss, q.grad


def by_the_op(name: str, table: nn.Embedding, backend: str) -> tuple[Tensor, Tensor]:
    q = queries()
    loss = FORMS[name][0](q, table, extra_pos_ids=EXTRA_IDS, backend=backend, **LOSS)
    loss.backward()
    assert q.grad is not None
    return loss, q.grad


@each_form
@pytest.mark.parametrize("options", [{}, {"padding_idx": PADDING}, {"padding_idx": PADDING - ITEMS}], ids=str)
def test_is_the_look_up(backend: str, name: str, options: dict[str, Any]) -> None:
    """Rows at padding_idx stand among the positives, extra positives and negatives: used, and without gradient."""
    expected_table, table = embedding(**options), embedding(**options)
    expected, found = by_look_up(name, expected_table), by_the_op(name, table, backend)
    for what, a, b in zip(("loss", "gradient of queries"), found, expected, strict=True):
        assert_near(a, b, torch.float64, what)
    assert_near(table.weight.grad, expected_table.weight.grad, torch.float64, "gradient of items")
    assert table.weight.grad[PADDING].any() == ("padding_idx" not in options)
    other = embedding()
    by_the_op(name, other, backend)
    assert other.weight.grad[PADDING].any(), "the case says nothing of padding"


@pytest.mark.parametrize("name", [name for name in FORMS if name != "full"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_second_backward(backend: str, name: str, sparse: bool) -> None:
    """It adds the same again, and leaves the padding row alone again."""
    table = embedding(padding_idx=PADDING, sparse=sparse)
    loss = FORMS[name][0](queries(), table, backend=backend, **LOSS)
    loss.backward(retain_graph=True)
    once = table.weight.grad.to_dense().clone()
    loss.backward()
    assert_near(table.weight.grad.to_dense(), 2 * once, torch.float64)
    assert once.any() and not once[PADDING].any()


@pytest.mark.parametrize("name", [name for name in FORMS if name != "full"])
@pytest.mark.parametrize("options", [{}, {"padding_idx": PADDING}], ids=str)
def test_sparse(backend: str, name: str, options: dict[str, Any]) -> None:
    expected_table, table = embedding(sparse=True, **options), embedding(sparse=True, **options)
    expected, found = by_look_up(name, expected_table), by_the_op(name, table, backend)
    assert_near(found[0], expected[0], torch.float64)
    gradient, wanted = table.weight.grad, expected_table.weight.grad
    assert gradient.is_sparse and gradient.is_coalesced() and wanted.is_sparse
    assert_near(gradient.to_dense(), wanted.to_dense(), torch.float64)
    assert (PADDING in gradient.indices()[0]) == ("padding_idx" not in options)
    torch.optim.SparseAdam(table.parameters()).step()


def test_sparse_has_no_full_softmax(backend: str) -> None:
    with pytest.raises(ValueError, match="items must have sparse=False, .*got sparse=True"):
        by_the_op("full", embedding(sparse=True), backend)


@each_form
@pytest.mark.parametrize("padding_idx", [None, PADDING])
def test_second_derivatives(backend: str, name: str, padding_idx: int | None) -> None:
    """Those of the look-up; the padding row is a constant in them."""
    results = []
    for loss_of in (lambda q, t: FORMS[name][0](q, t, backend=backend, detach_weights=False, **LOSS), None):
        q, table = queries(), embedding(padding_idx=padding_idx)
        if loss_of is not None:
            loss = loss_of(q, table)
        else:
            neg_ids, log_weights = FORMS[name][1]()
            pos = F.cosine_similarity(q, table(POS_IDS), dim=-1) / 2
            neg = F.cosine_similarity(q.unsqueeze(1), table(neg_ids), dim=-1) / 2
            further = {"neg_log_weights": log_weights, "detach_weights": False, "backend": "reference"}
            loss = cw_loss(pos, neg, **further, **LOSS)
        gradients = torch.autograd.grad(loss, (q, table.weight), create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), (q, table.weight)))
    for found, expected in zip(*results, strict=True):
        assert_near(found, expected, torch.float64)


@pytest.mark.thorough
@pytest.mark.cpu_kernels
@each_form
def test_compiles(kernels: None, name: str) -> None:
    torch.compiler.reset()
    expected_table, table = embedding(padding_idx=PADDING), embedding(padding_idx=PADDING)
    expected, _ = by_the_op(name, expected_table, "fused")
    loss = torch.compile(FORMS[name][0], fullgraph=True)(queries(), table, extra_pos_ids=EXTRA_IDS, **LOSS)
    loss.backward()
    assert_near(loss, expected, torch.float64)
    assert_near(table.weight.grad, expected_table.weight.grad, torch.float64)


class _Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.items = embedding(**options)

    def forward(self, queries: Tensor) -> Tensor:
        return FORMS["ids"][0](queries, self.items, **LOSS)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("strict", [False, True])
def test_exports(kernels: None, strict: bool) -> None:
    """The program, saved and loaded, leaves the padding row alone too."""
    model = _Model(padding_idx=PADDING)
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (queries(),), strict=strict), file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for loss_of in (model, exported):
        loss_of(queries()).backward()
    found, expected = exported.get_parameter("items.weight").grad, model.items.weight.grad
    assert_near(found, expected, torch.float64)
    assert not found[PADDING].any() and found.any()


def test_functional_call() -> None:
    """torch.func.grad of a model that holds the embedding."""
    model, q = _Model(padding_idx=PADDING), queries().detach()
    model(q).backward()
    found = torch.func.grad(lambda w: torch.func.functional_call(model, {"items.weight": w}, (q,)))(
        model.items.weight.detach()
    )
    assert_near(found, model.items.weight.grad, torch.float64)
    assert not found[PADDING].any() and found.any()


class _Normalised(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return F.normalize(weight, dim=-1)


class _Named(nn.Embedding):
    """A subclass that looks up as its parent does."""


def test_a_parametrized_and_a_derived_embedding(backend: str) -> None:
    tables = [embedding(padding_idx=PADDING) for _ in range(2)]
    for table in tables:
        nn.utils.parametrize.register_parametrization(table, "weight", _Normalised())
    expected, found = by_look_up("ids", tables[0]), by_the_op("ids", tables[1], backend)
    assert_near(found[0], expected[0], torch.float64)
    originals = [table.parametrizations.weight.original.grad for table in tables]
    assert_near(originals[1], originals[0], torch.float64)

    derived = _Named(ITEMS, DIM, dtype=torch.float64, _weight=embedding().weight.detach())
    assert torch.equal(by_the_op("ids", derived, backend)[0], by_the_op("ids", embedding(), backend)[0])


def test_the_modules_take_one(backend: str) -> None:
    more = {"backend": backend, **LOSS}
    table, q = embedding(padding_idx=PADDING), queries()
    pairs = [
        (CWEmbeddingLoss(**more)(q, table, POS_IDS, NEG_IDS), "ids"),
        (CWSampledLoss(KNOWN, N, **more)(q, table, QUERY_IDS, POS_IDS, seed=4), "sampled"),
        (CWInBatchLoss(KNOWN, log_q_correction=False, **more)(q, table, POS_IDS, query_ids=QUERY_IDS), "in-batch"),
        (CWFullLoss(KNOWN, **more)(q, table, POS_IDS, query_ids=QUERY_IDS), "full"),
    ]
    for found, name in pairs:
        assert torch.equal(found, FORMS[name][0](q, table, **more))


class _Scaled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@each_form
@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        (embedding(max_norm=1.0), ValueError, "items must have no max_norm, .*got 1.0; .*items.weight"),
        (embedding(scale_grad_by_freq=True), ValueError, "items must have scale_grad_by_freq=False, .*got True"),
        (nn.EmbeddingBag(ITEMS, DIM), TypeError, "items must be a .*torch.nn.Embedding, got EmbeddingBag"),
        (nn.Linear(DIM, ITEMS), TypeError, "items must be a torch.Tensor or a torch.nn.Embedding, got Linear"),
        (_Scaled(ITEMS, DIM), TypeError, "items must have the forward of torch.nn.Embedding, got _Scaled"),
        (nn.Embedding(ITEMS, DIM), TypeError, "items must have the dtype of queries, float64, got float32"),
        (nn.Embedding(ITEMS, DIM + 1).double(), ValueError, r"items must have shape \[I, D\] with queries' D = 5"),
    ],
    ids=["max_norm", "scale_grad_by_freq", "bag", "linear", "own forward", "dtype", "shape"],
)
def test_refuses_by_name(name: str, table: Any, error: type[Exception], message: str) -> None:
    before = table.weight.detach().clone()
    with pytest.raises(error, match=message):
        FORMS[name][0](queries(), table, **LOSS)
    assert torch.equal(table.weight, before)

"""sparse_grad=True: a coalesced sparse gradient of the item table, equal to the dense one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import Embeddings, assert_near, evaluate, exact, make_embeddings


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("similarity", ["half_cosine", "dot"])
def test_equals_the_dense_gradient(backend: str, device: torch.device, similarity: str, shared: bool) -> None:
    case = make_embeddings(6, 9, 8, 300, 3, seed=41, shared=shared, padding=True, row_weights=True)
    case = case.to(device=device)
    arguments = {"similarity": similarity, "prior": 0.1, "temperature": 0.5, "backend": backend}
    dense = evaluate(case, **arguments)
    sparse = evaluate(case, sparse_grad=True, **arguments)
    assert_near(sparse.loss, dense.loss, torch.float64)
    assert_near(sparse.gradients["queries"], dense.gradients["queries"], torch.float64)
    found = sparse.gradients["items"]
    assert found.is_sparse and found.is_coalesced() and found.shape == case.items.shape
    assert_near(found.to_dense(), dense.gradients["items"], torch.float64)
    ids = torch.cat([case.pos_ids.flatten(), case.neg_ids.flatten(), case.extra_ids.flatten()])
    assert torch.equal(found.indices()[0], ids[ids >= 0].unique()), "sorted, each item that is named, once"


def test_says_nothing_of_its_own(backend: str, recwarn: pytest.WarningsRecorder) -> None:
    """torch warns of sparse tensors whose invariants are not checked; the user made none."""
    torch.set_warn_always(True)
    try:
        evaluate(make_embeddings(3, 4, 5, 9), sparse_grad=True, backend=backend)
    finally:
        torch.set_warn_always(False)
    assert not [str(w.message) for w in recwarn]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    case = make_embeddings(6, 9, 8, 30, 3, seed=42).to(dtype)
    found = evaluate(case, sparse_grad=True, backend=backend).gradients["items"]
    dense = evaluate(case, backend=backend).gradients["items"]
    assert found.dtype == dtype and found.is_coalesced()
    assert_near(found.to_dense(), dense, dtype)


def test_sparse_adam(backend: str) -> None:
    """Three steps move just the rows that were named, and lower the loss."""
    case = make_embeddings(6, 9, 8, 200, seed=43).to(torch.float32)
    table = torch.nn.Embedding(200, 8, sparse=True)
    before = table.weight.detach().clone()
    optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.05)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = Embeddings(case.queries, table.weight, case.pos_ids, case.neg_ids).loss(
            sparse_grad=True, backend=backend
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    moved = (table.weight != before).any(1).nonzero().flatten()
    assert torch.equal(moved, torch.cat([case.pos_ids, case.neg_ids.flatten()]).unique())


def test_two_backwards(backend: str) -> None:
    leaves = make_embeddings(6, 9, 8, 30, seed=44).leaves()
    loss = leaves.loss(sparse_grad=True, backend=backend)
    first = torch.autograd.grad(loss, leaves.items, 2 * exact(1.0), retain_graph=True)[0]
    second = torch.autograd.grad(loss, leaves.items)[0]
    assert_near(first.to_dense(), 2 * second.to_dense(), torch.float64)


def test_no_rows(backend: str) -> None:
    leaves = make_embeddings(0, 3, 2, 5).leaves()
    loss = leaves.loss(sparse_grad=True, backend=backend)
    assert loss.item() == 0
    loss.backward()
    assert leaves.items.grad.shape == (5, 2) and not leaves.items.grad.to_dense().any()


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_nothing_but_padding(backend: str, shared: bool) -> None:
    case = make_embeddings(3, 4, 5, 9, 2, shared=shared)
    padded = replace(
        case, **{name: torch.full_like(getattr(case, name), -1) for name in ("pos_ids", "neg_ids", "extra_ids")}
    )
    result = evaluate(padded, sparse_grad=True, backend=backend)
    assert result.loss.item() == 0 and not result.gradients["queries"].any()
    assert result.gradients["items"].is_coalesced() and result.gradients["items"]._nnz() == 0
    assert result.gradients["items"].shape == case.items.shape


def test_double_backward_says_no(backend: str) -> None:
    """A clear error in place of a silently wrong second derivative."""
    leaves = make_embeddings(3, 4, 5, 9).leaves()
    loss = leaves.loss(sparse_grad=True, backend=backend)
    (first,) = torch.autograd.grad(loss, leaves.items, create_graph=True)
    with pytest.raises(RuntimeError):
        first.to_dense().sum().backward()

"""sparse_grad=True: a coalesced sparse gradient of the item table, equal to the dense one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from cases import Embeddings, assert_near, evaluate, exact, generator, make_embeddings
from memory import peak_of
from torch.utils.checkpoint import checkpoint

from cw_ext import Interactions, cw_loss_from_embeddings, cw_loss_in_batch, sampled_cw_loss


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


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


# ---- every way to a sparse gradient --------------------------------------------------------------------------------


def _known(num_items: int, queries: int = 12) -> tuple[torch.Tensor, Interactions]:
    g = generator(45)
    known = torch.randint(num_items, (queries, 4), generator=g)
    pairs = torch.arange(queries).repeat_interleave(4)
    return known, Interactions(pairs, known.flatten(), num_queries=queries, num_items=num_items, keep_counts=True)


# A table with few items per id, and one with so many that the distinct ids are found by sorting.
SIZES = {"few items": 37, "many items": 4001}


def _losses(num_items: int) -> dict[str, Callable[..., torch.Tensor]]:
    """Losses of (queries, table), with padding, duplicates and extra positives."""
    g = generator(46)
    known, interactions = _known(num_items)
    query_ids = torch.randint(12, (9,), generator=g)
    pos_ids = known[query_ids, torch.randint(4, (9,), generator=g)]
    pos_ids[2] = -1
    extra = known[query_ids, torch.randint(4, (9,), generator=g)].unsqueeze(1)
    extra[4] = -1
    ids = torch.randint(-1, num_items, (9, 20), generator=g)
    ids[:, 3] = ids[:, 4]
    drawn = {"seed": 5, "extra_pos_ids": extra, "num_negatives": 30}
    popular = {"distribution": "popularity", "popularity_smoothing": 0.5}
    of = {"query_ids": query_ids, "pos_ids": pos_ids, "interactions": interactions}
    return {
        "ids": partial(cw_loss_from_embeddings, pos_ids=pos_ids, neg_ids=ids, extra_pos_ids=extra),
        "int32 ids": partial(cw_loss_from_embeddings, pos_ids=pos_ids.int(), neg_ids=ids.int()),
        "weighted ids": partial(
            cw_loss_from_embeddings, pos_ids=pos_ids, neg_ids=ids, neg_log_weights=torch.randn(9, 20, generator=g)
        ),
        "shared ids": partial(cw_loss_from_embeddings, pos_ids=pos_ids, neg_ids=ids[0], extra_pos_ids=extra),
        "drawn": partial(sampled_cw_loss, **of, **drawn),
        "drawn again": partial(sampled_cw_loss, **of, **drawn, recompute=True),
        "drawn by popularity": partial(sampled_cw_loss, **of, **drawn, **popular),
        "drawn for all": partial(sampled_cw_loss, **of, **drawn, **popular, shared=True),
        "in batch": partial(cw_loss_in_batch, **of, extra_pos_ids=extra),
        "mixed": partial(cw_loss_in_batch, **of, num_negatives=15, seed=6),
        "full, estimated": partial(
            cw_loss_in_batch, **of, num_negatives=15, seed=6, estimate_full=True, include_positive=True
        ),
    }


def _gradients(loss: Callable[..., torch.Tensor], num_items: int, dtype: torch.dtype, **arguments: Any) -> list[Any]:
    g = generator(47)
    queries, table = (torch.randn(rows, 24, generator=g, dtype=torch.float64).to(dtype) for rows in (9, num_items))
    queries.requires_grad_()
    table.requires_grad_()
    value = loss(queries, table, **arguments)
    value.sum().backward()
    return [value.detach(), queries.grad, table.grad]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", _losses(37))
def test_every_loss(backend: str, name: str, size: str, dtype: torch.dtype) -> None:
    num_items = SIZES[size]
    loss = _losses(num_items)[name]
    if name == "weighted ids" and dtype == torch.float64:
        loss = partial(loss, neg_log_weights=loss.keywords["neg_log_weights"].double())
    dense = _gradients(loss, num_items, dtype, backend=backend)
    value, queries, items = _gradients(loss, num_items, dtype, backend=backend, sparse_grad=True)
    assert_near(value, dense[0], dtype)
    assert_near(queries, dense[1], dtype)
    assert items.is_sparse and items.is_coalesced() and items.dtype == dtype and items.shape == dense[2].shape
    ids = items.indices()[0]
    assert (ids.diff() > 0).all() and items._nnz() <= min(num_items, 9 * 32)
    assert_near(items.to_dense(), dense[2], dtype)


# Enough pairs for several threads; in the second table more words of 64 items than pairs.
@pytest.mark.cpu_kernels
@pytest.mark.parametrize("num_items", [5000, 3_300_000])
@pytest.mark.parametrize("name", ["ids", "shared ids", "drawn", "drawn again"])
def test_the_threads_do_not_matter(kernels: None, threads: Callable[[int], None], name: str, num_items: int) -> None:
    g = generator(55)
    rows = 50
    queries, table = torch.randn(rows, 2, generator=g), torch.randn(num_items, 2, generator=g)
    table.requires_grad_()
    pos_ids, ids = torch.randint(num_items, (rows,), generator=g), torch.randint(num_items, (rows, 1000), generator=g)
    loss = partial(cw_loss_from_embeddings, queries, table, pos_ids, ids[0] if name == "shared ids" else ids)
    if name.startswith("drawn"):
        interactions = Interactions(torch.arange(rows), pos_ids, num_queries=rows, num_items=num_items)
        loss = partial(
            *(sampled_cw_loss, queries, table, torch.arange(rows), pos_ids, interactions, 1000),
            seed=7,
            recompute=name == "drawn again",
        )
    found = []
    for count in (1, 2, 3):
        threads(count)
        found += torch.autograd.grad(loss(sparse_grad=True), table)
    for other in found[1:]:
        assert torch.equal(other.indices(), found[0].indices()) and torch.equal(other.values(), found[0].values())
    dense = torch.autograd.grad(loss(), table)[0]
    named = dense[found[0].indices()[0]]
    assert_near(found[0].values(), named, torch.float32)
    assert torch.count_nonzero(dense) == torch.count_nonzero(named)


def test_many_pairs_in_parts(kernels: None) -> None:
    """More pairs than are sorted at a time, so that the sums go from part to part; and items that no pair names."""
    rows, num_items, n = 520, 30_000, 5000
    g = generator(48)
    queries, table = torch.randn(rows, 3, generator=g), torch.randn(num_items, 3, generator=g).bfloat16()
    ids = torch.randint(num_items // 2, (rows, n), generator=g, dtype=torch.int32) * 2
    found = []
    for sparse in (False, True):
        leaf = table.clone().requires_grad_()
        cw_loss_from_embeddings(
            queries.bfloat16(), leaf, torch.zeros(rows, dtype=torch.int64), ids, sparse_grad=sparse
        ).backward()
        found.append(leaf.grad)
    dense, sparse = found
    assert torch.equal(sparse.indices()[0], ids.unique().long())
    assert_near(sparse.to_dense(), dense, torch.bfloat16)


def test_what_no_pair_weighs_does_not_leak(backend: str) -> None:
    """NaN in a row that only masked pairs name, and in one that no pair names."""
    case = make_embeddings(4, 5, 8, 30, seed=49).to(torch.float32)
    case.pos_ids[0], case.neg_ids[0] = -1, 7  # item 7: in a row of padding alone
    others = [x for x in range(30) if x not in (7, 8)]
    case.pos_ids[1:] = torch.tensor(others[:3])
    case.neg_ids[1:] = torch.tensor(others[3:18]).view(3, 5)
    case.items[7:9] = math.nan
    found = evaluate(case, sparse_grad=True, backend=backend).gradients["items"]
    assert 8 not in found.indices()[0] and 7 in found.indices()[0]
    assert found.to_dense().isfinite().all() and not found.to_dense()[7].any()


def test_accumulates(backend: str) -> None:
    """Into .grad, from one backward pass and from several."""
    leaves = make_embeddings(6, 9, 8, 300, seed=50).leaves()
    other = make_embeddings(6, 9, 8, 300, seed=51)
    second = Embeddings(leaves.queries, leaves.items, other.pos_ids, other.neg_ids)
    expected = [torch.autograd.grad(x.loss(backend=backend), leaves.items)[0] for x in (leaves, second)]

    def losses() -> list[torch.Tensor]:
        return [x.loss(sparse_grad=True, backend=backend) for x in (leaves, second)]

    sum(losses()).backward()
    assert_near(leaves.items.grad.to_dense(), sum(expected), torch.float64)
    for loss in losses():
        loss.backward()
    assert_near(leaves.items.grad.to_dense(), 2 * sum(expected), torch.float64)


def test_beside_the_same_rows(backend: str) -> None:
    """Queries from the same table, whose own gradient is dense: the sum is."""
    case = make_embeddings(6, 9, 8, 30, seed=52)
    found = []
    for sparse in (False, True):
        table = case.items.clone().requires_grad_()
        Embeddings(table[:6] * 2, table, case.pos_ids, case.neg_ids).loss(
            sparse_grad=sparse, backend=backend
        ).backward()
        found.append(table.grad)
    assert_near(found[1], found[0], torch.float64)


def test_hooks_see_a_coalesced_gradient(backend: str) -> None:
    leaves = make_embeddings(6, 9, 8, 30, seed=53).leaves()
    seen: list[bool] = []
    leaves.items.register_post_accumulate_grad_hook(lambda x: seen.append(x.grad.is_coalesced()))
    leaves.loss(sparse_grad=True, backend=backend).backward()
    assert seen == [True] and leaves.items.grad.is_coalesced()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint(backend: str, reentrant: bool) -> None:
    leaves = make_embeddings(6, 9, 8, 30, seed=56).leaves()
    expected = torch.autograd.grad(leaves.loss(backend=backend), leaves.items)[0]
    checkpoint(
        lambda _: leaves.loss(sparse_grad=True, backend=backend), leaves.queries, use_reentrant=reentrant
    ).backward()
    assert leaves.items.grad.is_coalesced()
    assert_near(leaves.items.grad.to_dense(), expected, torch.float64)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("name", _losses(37))
def test_memory_is_of_the_rows_alone(kernels: None, name: str) -> None:
    """Nothing that grows with the table, forward or backward."""
    peaks = []
    for num_items in (100_000, 400_000):
        loss = _losses(num_items)[name]
        queries = torch.randn(9, 24, requires_grad=True)
        table = torch.randn(num_items, 24, requires_grad=True)

        def step() -> None:
            table.grad = None
            loss(queries, table, sparse_grad=True).backward()

        step()  # popularity tables are made once
        peaks.append(peak_of(torch.device("cpu"))(step)[0])
    assert max(peaks) < 100_000, f"{peaks} bytes"


@pytest.mark.cpu_kernels
def test_the_gradient_is_not_copied(kernels: None) -> None:
    """It is what a large step spends its memory on."""
    queries, table = torch.randn(64, 64, requires_grad=True), torch.randn(50_000, 64, requires_grad=True)
    pos_ids, neg_ids = torch.arange(64), torch.randint(50_000, (64, 1000), generator=generator(54))

    def step() -> torch.Tensor:
        table.grad = None
        cw_loss_from_embeddings(queries, table, pos_ids, neg_ids, sparse_grad=True).backward()
        return table.grad

    gradient = step()
    assert gradient.is_coalesced()
    values = gradient.values().nbytes
    del gradient
    peak, largest = peak_of(torch.device("cpu"))(step)
    assert largest == values and peak < 1.5 * values

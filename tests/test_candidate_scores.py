"""candidate_scores against fp64 scores written out; padding, values that are not finite, ids out of range."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from cases import DTYPE_IDS, DTYPES, assert_near, child_environment, generator, loss_dtype
from memory import peak_of
from op_calls import OpCalls
from torch import Tensor, nn

import cw_ext
from cw_ext import candidate_scores, cw_loss, cw_loss_from_embeddings

CAPABILITIES = ("default", "avx2", "avx512")
SIMILARITIES = ("half_cosine", "cosine", "dot")
# B, K, D, I. Of the second, the CPU scores all items, as they are few beside the ids and the rows are many.
LOOKED_UP = ((1, 1, 1, 1), (5, 7, 3, 11), (3, 2049, 33, 50), (2, 4100, 16, 90), (300, 9, 64, 70), (130, 1, 7, 5))
PICKED = ((128, 1, 1, 1), (131, 30, 7, 31), (150, 20, 32, 33), (129, 40, 65, 127), (200, 900, 8, 2600))
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
each_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)


def _tables(rows: int, dim: int, items: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    return tuple(torch.randn(n, dim, generator=g, dtype=torch.float64) for n in (rows, items))  # type: ignore[return-value]


def _ids(rows: int, k: int, items: int, dtype: torch.dtype = torch.int64, seed: int = 2) -> Tensor:
    """About one in items + 1 is padding."""
    return torch.randint(-1, items, (rows, k), generator=generator(seed)).to(dtype)


def _truth(queries: Tensor, items: Tensor, ids: Tensor, similarity: str) -> Tensor:
    """By the whole product in fp64."""
    scores = queries.double() @ items.double().T
    if similarity != "dot":
        norms = queries.double().norm(dim=1, keepdim=True) * items.double().norm(dim=1)
        scores = torch.where(norms > 0, scores / norms, 0.0)
    scores = scores / 2 if similarity == "half_cosine" else scores
    return scores.gather(1, ids.long().clamp(min=0)).masked_fill(ids < 0, -math.inf)


def _assert_scores(found: Tensor, truth: Tensor) -> None:
    """Padding and all else in its place."""
    absent = truth == -math.inf
    assert torch.equal((found == -math.inf).cpu(), absent.cpu())
    assert_near(found.masked_fill(absent, 0), truth.masked_fill(absent, 0), found.dtype)


def _check(
    sizes: Sequence[tuple[int, ...]], backend: str, like: Tensor, similarity: str, ids_like: torch.dtype
) -> None:
    for rows, k, dim, count in sizes:
        queries, items = (x.to(like) for x in _tables(rows, dim, count))
        ids = _ids(rows, k, count, ids_like).to(like.device)
        found = candidate_scores(queries, items, ids, similarity=similarity, backend=backend)
        assert found.dtype == loss_dtype(like.dtype) and found.device == like.device
        _assert_scores(found, _truth(queries, items, ids, similarity))


@each_dtype
@each_similarity
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_values(backend: str, device: torch.device, dtype: torch.dtype, similarity: str, id_dtype: torch.dtype) -> None:
    _check(LOOKED_UP, backend, torch.empty(0, dtype=dtype, device=device), similarity, id_dtype)


@each_dtype
@each_similarity
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_values_of_many_rows(
    backend: str, device: torch.device, dtype: torch.dtype, similarity: str, id_dtype: torch.dtype
) -> None:
    _check(PICKED, backend, torch.empty(0, dtype=dtype, device=device), similarity, id_dtype)


@each_similarity
def test_they_are_the_scores_that_the_loss_computes(backend: str, device: torch.device, similarity: str) -> None:
    """The loss of these scores is the loss of the ids."""
    queries, items = (x.to(device) for x in _tables(140, 12, 50))
    ids, pos_ids = _ids(140, 60, 50).to(device), _ids(140, 1, 49, seed=3).to(device) + 1
    arguments = {"temperature": 0.3, "prior": 0.1, "backend": backend}
    neg, pos = (candidate_scores(queries, items, i, similarity=similarity, backend=backend) for i in (ids, pos_ids))
    masked = torch.zeros_like(neg).masked_fill(ids < 0, -math.inf)
    expected = cw_loss_from_embeddings(queries, items, pos_ids[:, 0], ids, similarity=similarity, **arguments)
    assert_near(cw_loss(pos[:, 0], neg, neg_log_weights=masked, **arguments), expected, torch.float64)


@pytest.mark.parametrize("rows", [6, pytest.param(130, id="many_rows")])
@each_similarity
def test_what_is_not_finite_stays_where_it_is(backend: str, device: torch.device, similarity: str, rows: int) -> None:
    """Items that no id names, and the item that padding might read, may hold anything; a query spoils its own row."""
    queries, items = (x.to(device, torch.float32) for x in _tables(rows, 19, 40))
    ids = 1 + _ids(rows, 30, 38).to(device)
    ids[ids == 0] = -1
    truth = candidate_scores(queries, items, ids, similarity=similarity, backend=backend)
    for value in (math.nan, math.inf, -math.inf):
        spoiled, queries_too = items.clone(), queries.clone()
        spoiled[[0, 39]] = value
        queries_too[3] = value
        found = candidate_scores(queries, spoiled, ids, similarity=similarity, backend=backend)
        assert torch.equal(found, truth)
        found = candidate_scores(queries_too, spoiled, ids, similarity=similarity, backend=backend)
        others = torch.arange(rows, device=device) != 3
        assert torch.equal(found[others], truth[others])
        padding = ids[3] < 0
        assert not found[3][~padding].isfinite().any() and (found[3][padding] == -math.inf).all()
        spoiled = items.clone()
        spoiled[7, 5] = value
        found = candidate_scores(queries, spoiled, ids, similarity=similarity, backend=backend)
        assert (
            (ids == 7).any() and not found[ids == 7].isfinite().any() and torch.equal(found[ids != 7], truth[ids != 7])
        )


@pytest.mark.parametrize("rows", [4, pytest.param(130, id="many_rows")])
def test_zero_vectors(backend: str, device: torch.device, rows: int) -> None:
    queries, items = (x.to(device) for x in _tables(rows, 5, 9))
    queries[1], items[2] = 0, 0
    ids = torch.arange(9, device=device).expand(rows, 9)
    for similarity in SIMILARITIES:
        found = candidate_scores(queries, items, ids, similarity=similarity, backend=backend)
        assert not found[1].any() and not found[:, 2].any()
        _assert_scores(found, _truth(queries, items, ids, similarity))


def test_no_rows_and_no_candidates(backend: str, device: torch.device) -> None:
    items = torch.ones(4, 3, device=device)
    for rows, k in ((0, 5), (0, 0), (3, 0)):
        ids = torch.empty(rows, k, dtype=torch.int64, device=device)
        assert candidate_scores(torch.ones(rows, 3, device=device), items, ids, backend=backend).shape == (rows, k)
    nothing = torch.ones(0, 3, device=device)
    assert candidate_scores(nothing, nothing, torch.ones(0, 5, dtype=torch.int32, device=device)).shape == (0, 5)


def test_any_strides(backend: str, device: torch.device) -> None:
    tables, ids = _tables(20, 12, 30), _ids(20, 14, 30)
    for change in (lambda x: x[::2, ::3], lambda x: x.flip(0)[:, 1:], lambda x: x.T.contiguous().T):
        queries, items, some = (change(x).to(device) for x in (*tables, ids.clamp(max=14)))
        found = candidate_scores(queries, items, some, backend=backend)
        _assert_scores(found, _truth(queries, items, some, "half_cosine"))


# ---- gradients, transforms, compilers --------------------------------------------------------------------------------


def test_no_gradient(backend: str) -> None:
    queries, items = (x.requires_grad_() for x in _tables(4, 6, 9))
    ids = _ids(4, 5, 9)
    found = candidate_scores(queries, items, ids, backend=backend)
    assert not found.requires_grad and queries.requires_grad
    jacobian = torch.func.jacrev(lambda q: candidate_scores(q, items, ids.clamp(min=0), backend=backend))(
        queries.detach()
    )
    assert not jacobian.any()
    with pytest.raises(NotImplementedError, match="vmap is not supported"):
        torch.func.vmap(lambda i: candidate_scores(queries, items, i, backend=backend))(ids[None])


def test_an_embedding(backend: str, device: torch.device) -> None:
    """A row at padding_idx is used as it is; a subclass that computes something else is refused."""
    queries, items = (x.to(device) for x in _tables(5, 6, 9))
    ids = _ids(5, 40, 9).to(device)
    expected = candidate_scores(queries, items, ids, backend=backend)
    for options in ({}, {"padding_idx": 2}, {"sparse": True}):
        embedding = nn.Embedding(9, 6, _weight=items.clone(), **options)
        found = candidate_scores(queries, embedding, ids, backend=backend)
        assert torch.equal(found, expected) and not found.requires_grad
    with pytest.raises(ValueError, match="items must have no max_norm"):
        candidate_scores(queries, nn.Embedding(9, 6, max_norm=1.0), ids)


def test_under_autocast(backend: str, device: torch.device) -> None:
    """Half precision is taken to fp32 first, and no product is in bf16."""
    queries, items = (x.to(device, torch.bfloat16) for x in _tables(5, 6, 9))
    ids = _ids(5, 40, 9).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        found = candidate_scores(queries, items, ids, backend=backend)
    _assert_scores(found, _truth(queries, items, ids, "half_cosine"))


@pytest.mark.cpu_kernels
def test_one_graph_for_all_sizes(backend: str, device: torch.device) -> None:
    def hardest(queries: Tensor, items: Tensor, ids: Tensor) -> Tensor:
        scores = candidate_scores(queries, items, ids, similarity="cosine", backend=backend)
        return ids.gather(1, scores.topk(2).indices)

    torch.compiler.reset()
    compiled = torch.compile(hardest, fullgraph=True, dynamic=True, backend="aot_eager")
    for count, (rows, k) in enumerate(((5, 7), (8, 20), (140, 9))):
        queries, items = (x.to(device) for x in _tables(rows, 6, 30))
        ids = torch.rand(rows, 30, generator=generator(3)).argsort()[:, :k].to(device)
        with torch._dynamo.config.patch(error_on_recompile=count > 0):
            assert torch.equal(compiled(queries, items, ids), hardest(queries, items, ids))


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("rows", [60, 200])
def test_ids_out_of_range(backend: str, rows: int) -> None:
    """The first of them is named, whichever thread finds it; wherever it lies, memory is not read by it."""
    queries, items = _tables(rows, 16, 50)
    good = _ids(rows, 130, 50)
    for bad in (50, -2, 2**40, -(2**63), 2**63 - 1):
        for place in ((0, 0), (rows // 2, 129), (rows - 1, 129)):
            ids = good.clone()
            ids[place], ids[-1, -1] = bad, 60 if place[0] < rows - 1 else bad
            with pytest.raises(IndexError, match=rf"ids must be in \[0, 50\), or −1 for padding, got {bad}\b"):
                candidate_scores(queries, items, ids, backend=backend)
    assert candidate_scores(queries, items, good, backend=backend).shape == good.shape


def test_bad_arguments(backend: str) -> None:
    queries, items = _tables(4, 6, 9)
    ids = _ids(4, 5, 9)
    for wrong, error, message in (
        ({"ids": ids[:3]}, ValueError, r"ids must have shape \[B, K\] with queries' B = 4, got \(3, 5\)"),
        ({"ids": ids[0]}, ValueError, r"ids must have shape \[B, K\] with queries' B = 4, got \(5,\)"),
        ({"ids": ids.float()}, TypeError, "ids must have dtype int32, int64, got float32"),
        ({"ids": ids.tolist()}, TypeError, "ids must be a torch.Tensor, got list"),
        ({"queries": queries[:, :5]}, ValueError, r"items must have shape \[I, D\] with queries' D = 5, got \(9, 6\)"),
        ({"queries": queries[:, :0]}, ValueError, "queries must have at least one dimension"),
        ({"queries": queries[0]}, ValueError, r"queries must have shape \[B, D\], got \(6,\)"),
        ({"items": items.float()}, TypeError, "items must have the dtype of queries, float64, got float32"),
        ({"items": items[:0]}, ValueError, r"items must have at least one row \(I ≥ 1\), got shape \(0, 6\)"),
        ({"items": None}, TypeError, "items must be a torch.Tensor or a torch.nn.Embedding, got NoneType"),
        ({"similarity": "euclidean"}, ValueError, "similarity must be one of .*, got 'euclidean'"),
        ({"backend": "cuda"}, ValueError, "backend must be one of .*, got 'cuda'"),
    ):
        arguments = {"queries": queries, "items": items, "ids": ids, "backend": backend} | wrong
        with pytest.raises(error, match=message):
            candidate_scores(**arguments)


# ---- execution -------------------------------------------------------------------------------------------------------


@pytest.mark.cpu_kernels
@pytest.mark.parametrize(("rows", "k", "items"), [(300, 200, 90), (300, 200, 900), (2, 9000, 40)])
def test_the_same_bits_on_any_number_of_threads(kernels: None, rows: int, k: int, items: int) -> None:
    queries, table = (x.float() for x in _tables(rows, 24, items))
    ids, threads, found = _ids(rows, k, items), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(candidate_scores(queries, table, ids, backend="fused"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


_CHILD = """
import sys, torch, cw_ext
calls = torch.load(sys.argv[1])
found = [cw_ext.candidate_scores(*tensors, similarity=similarity, backend="fused") for *tensors, similarity in calls]
torch.save((cw_ext.build_config()["cpu_capability"], found), sys.argv[2])
"""


@pytest.mark.cpu_kernels
def test_every_instruction_set(kernels: None, tmp_path: Path) -> None:
    """ATEN_CPU_CAPABILITY is read once per process, so each has its own."""
    best = cw_ext.build_config()["cpu_capability"]
    if best not in CAPABILITIES:
        pytest.skip(f"a machine of another kind: {best}")
    calls = []
    for dtype in DTYPES:
        for rows, k, dim, items in ((5, 71, 33, 40), (3, 2049, 16, 50), (131, 90, 35, 127)):
            for similarity in ("half_cosine", "dot"):
                queries, table = (x.to(dtype) for x in _tables(rows, dim, items))
                calls.append((queries, table, _ids(rows, k, items), similarity))
    torch.save(calls, tmp_path / "calls.pt")
    for capability in CAPABILITIES[: CAPABILITIES.index(best) + 1]:
        saved = tmp_path / f"{capability}.pt"
        subprocess.run(
            [sys.executable, "-c", _CHILD, str(tmp_path / "calls.pt"), str(saved)],
            env=child_environment(ATEN_CPU_CAPABILITY=capability),
            check=True,
            timeout=120,
        )
        ran_on, found = torch.load(saved)
        assert ran_on == capability
        for (queries, table, ids, similarity), scores in zip(calls, found, strict=True):
            _assert_scores(scores, _truth(queries, table, ids, similarity))


@pytest.mark.cpu_kernels
def test_a_table_of_more_than_31_bits(kernels: None, tmp_path: Path) -> None:
    """In a file of zeros, of which the rows that are written or read take memory alone."""
    queries, items = _tables(2, 64, 3)
    count = 2**31 // 64 + 7
    file = str(tmp_path / "table")
    table = torch.from_file(file, shared=True, size=count * 64, dtype=torch.bfloat16).view(count, 64)
    ids = torch.tensor([[5, count - 1, 2**31 // 64], [2**30 // 64 - 1, count - 1, -1]])
    table[ids[0]] = items.bfloat16()
    found = candidate_scores(queries.bfloat16(), table, ids, backend="fused")
    few = torch.tensor([[0, 1, 2], [3, 1, -1]])
    truth = _truth(queries.bfloat16(), torch.cat((items.bfloat16(), torch.zeros(1, 64))), few, "half_cosine")
    _assert_scores(found, truth)


@pytest.mark.parametrize("items", [90, 3000])
def test_nothing_of_size_b_k_d(kernels: None, device: torch.device, items: int) -> None:
    """Beside the scores, a norm per item at most."""
    queries, table = (x.to(device, torch.float32) for x in _tables(200, 64, items))
    ids = _ids(200, 300, items).to(device)
    peak, _ = peak_of(device)(lambda: candidate_scores(queries, table, ids, backend="fused"))
    assert 4 * ids.numel() <= peak <= 4 * (ids.numel() + items) + 1024


def test_the_kernel_is_called_once(kernels: None) -> None:
    queries, items = _tables(4, 6, 9)
    with OpCalls() as mode:
        candidate_scores(queries, items, _ids(4, 5, 9), backend="fused")
    assert [op._schema.name for op, _, _ in mode.calls] == ["cw_ext::candidate_scores"]

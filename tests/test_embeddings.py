"""The kernels from embeddings against the fp64 reference: every parameter, similarity, size, id pattern and dtype."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPE_IDS,
    DTYPES,
    VARIANTS,
    Embeddings,
    Scores,
    against_truth,
    assert_near,
    evaluate,
    exact,
    generator,
    make_embeddings,
)

from cw_ext import cw_loss_from_embeddings

SIMILARITIES = ("half_cosine", "cosine", "dot")
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
each_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)


def _weights(rows: int) -> torch.Tensor:
    """A grad_output for reduction="none"."""
    return torch.randn(rows, generator=generator(98), dtype=torch.float64)


@each_dtype
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter(kernels: None, device: torch.device, variant: str, dtype: torch.dtype) -> None:
    arguments = VARIANTS[variant]
    against_truth(make_embeddings(6, 19, 17, 23, seed=1), dtype, device, _weights(6), **arguments)
    full = make_embeddings(6, 21, 8, 11, 3, seed=2, padding=True, log_q=True, row_weights=True)
    against_truth(full, dtype, device, _weights(6), **arguments)


@each_dtype
@each_similarity
@pytest.mark.parametrize("arguments", [{}, {"weighting": "exponential", "weight_temperature": -0.3}], ids=["", "hard"])
def test_many_negatives(
    kernels: None, device: torch.device, similarity: str, dtype: torch.dtype, arguments: dict[str, Any]
) -> None:
    """More than CUDA's warps take in one turn, with the largest margins first, last, and anywhere."""
    for dim in (8, 32, 64, 128, 256, 512):
        scale = 0.5 / dim**0.5 if similarity == "dot" else 1.0
        case = make_embeddings(3, 300, dim, 50, dim % 3, seed=dim, padding=True, log_q=dim == 64, scale=scale)
        scores = case.queries[0] @ case.items.T
        for row, order in enumerate((scores.argsort(), scores.argsort(descending=True))):
            case.neg_ids[row] = order.repeat_interleave(6)
        against_truth(case, dtype, device, _weights(3), similarity=similarity, prior=0.05, **arguments)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("dim", [7, 8, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_padding_names_no_item(kernels: None, device: torch.device, dtype: torch.dtype, dim: int, shared: bool) -> None:
    """Not the first one either, which padding may read: NaN in it goes nowhere."""
    case = make_embeddings(6, 40, dim, 20, 3, seed=dim, padding=True, shared=shared)
    ids = (case.pos_ids, case.neg_ids, case.extra_ids)
    ids = [torch.where(i == 0, 1, i) for i in ids if i is not None]
    clean = replace(case, pos_ids=ids[0], neg_ids=ids[1], extra_ids=ids[2]).to(dtype)
    # The last row's positive is padding too, so that its query does not matter either.
    spoiled = replace(
        clean,
        items=clean.items.index_fill(0, torch.tensor([0]), torch.nan),
        queries=clean.queries.index_fill(0, torch.tensor([5]), torch.nan),
    )
    weight = torch.ones(6)
    expected = evaluate(clean.to(torch.float64), weight, prior=0.1, backend="reference")
    found = evaluate(spoiled.to(device=device), weight.to(device), prior=0.1, backend="fused")
    assert_near(found.loss, expected.loss, found.loss.dtype)
    for name, gradient in found.gradients.items():
        assert_near(gradient, expected.gradients[name], dtype, name)


@each_dtype
@each_similarity
def test_dimensions(kernels: None, device: torch.device, similarity: str, dtype: torch.dtype) -> None:
    """Around every vector width."""
    for dim in (1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 100, 128, 257):
        scale = 0.5 / dim**0.5 if similarity == "dot" else 1.0
        case = make_embeddings(4, 9, dim, 13, dim % 3, seed=dim, scale=scale)
        # In one dimension a cosine is ±1, and its gradient 0: two terms of the size 1/(τ·|x|) that cancel.
        shortest = torch.cat((case.queries, case.items)).norm(dim=1).min().item()
        cancelled = 10 / shortest if dim == 1 and similarity != "dot" else 0.0
        arguments = {"similarity": similarity, "prior": 0.05}
        against_truth(case, dtype, device, _weights(4), cancelled=cancelled, **arguments)


@each_dtype
@each_similarity
def test_shared_negatives(kernels: None, device: torch.device, similarity: str, dtype: torch.dtype) -> None:
    for n, log_q in ((1, False), (9, True), (130, True)):
        case = make_embeddings(6, n, 16, 40, 2, seed=3, shared=True, padding=n > 1, log_q=log_q, scale=0.4)
        against_truth(case, dtype, device, _weights(6), similarity=similarity, prior=0.05)


@each_similarity
def test_shared_negatives_equal_repeated_ones(backend: str, device: torch.device, similarity: str) -> None:
    shared = make_embeddings(6, 9, 16, 20, 2, seed=4, shared=True, padding=True).to(device=device)
    repeated = replace(shared, neg_ids=shared.neg_ids.expand(6, 9))
    results = [
        evaluate(case, _weights(6).to(device), similarity=similarity, prior=0.1, backend=backend)
        for case in (shared, repeated)
    ]
    assert_near(results[0].loss, results[1].loss, torch.float64)
    for name, gradient in results[0].gradients.items():
        assert_near(gradient, results[1].gradients[name], torch.float64, name)


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_ids_of_both_dtypes(kernels: None, device: torch.device, id_dtype: torch.dtype, shared: bool) -> None:
    case = make_embeddings(6, 9, 8, 20, 3, seed=5, shared=shared, padding=True, id_dtype=id_dtype)
    against_truth(case, torch.float32, device, _weights(6), prior=0.1)
    # The three id tensors need not agree among themselves.
    mixed = replace(case, neg_ids=case.neg_ids.long(), pos_ids=case.pos_ids.int())
    against_truth(mixed, torch.float32, device, _weights(6), prior=0.1)


@each_dtype
def test_duplicate_ids(kernels: None, device: torch.device, dtype: torch.dtype) -> None:
    """Two items: each gradient row is the sum of a hundred contributions, and positives are negatives too."""
    case = make_embeddings(20, 30, 8, 2, 2, seed=6)
    against_truth(case, dtype, device, _weights(20), prior=0.05)
    against_truth(case, dtype, device, prior=0.05, reduction="mean")


@pytest.mark.parametrize("items", [97, 230])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_many_rows(kernels: None, device: torch.device, dtype: torch.dtype, items: int) -> None:
    """Enough of them for every thread to have a share."""
    case = make_embeddings(300, 70, 24, items, 2, seed=7, padding=True, row_weights=True)
    against_truth(case, dtype, device, _weights(300), prior=0.05)


def test_embeddings_are_scores_on_similarities(backend: str, device: torch.device) -> None:
    """The similarities written with torch's own functions."""
    case = make_embeddings(5, 7, 6, 11, 2, seed=8).to(device=device)
    leaves = case.leaves(["queries", "items"])
    q, x = leaves.queries.unsqueeze(1), leaves.items

    def cosine(ids: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(q, x[ids], dim=-1)

    def dot(ids: torch.Tensor) -> torch.Tensor:
        return (q * x[ids]).sum(-1)

    for similarity, score in (
        ("half_cosine", lambda ids: cosine(ids) / 2),
        ("cosine", cosine),
        ("dot", dot),
    ):
        by_hand = Scores(score(case.pos_ids.unsqueeze(1)).squeeze(1), score(case.neg_ids), score(case.extra_ids)).loss(
            temperature=0.5, prior=0.1, backend="reference"
        )
        expected = torch.autograd.grad(by_hand, (leaves.queries, leaves.items), retain_graph=True)
        result = evaluate(case, similarity=similarity, temperature=0.5, prior=0.1, backend=backend)
        assert_near(result.loss, by_hand, torch.float64, similarity)
        assert_near(result.gradients["queries"], expected[0], torch.float64, similarity)
        assert_near(result.gradients["items"], expected[1], torch.float64, similarity)


def test_padding_equals_absence(backend: str, device: torch.device) -> None:
    case = make_embeddings(3, 6, 5, 9, 3, seed=9).to(device=device)
    padded = case.map(torch.clone)
    padded.neg_ids[:, 4:] = -1
    padded.extra_ids[:, 2] = -1
    padded.pos_ids[2] = -1
    short = Embeddings(case.queries[:2], case.items, case.pos_ids[:2], case.neg_ids[:2, :4], case.extra_ids[:2, :2])
    for reduction in ("mean", "sum"):
        found = evaluate(padded, prior=0.1, reduction=reduction, backend=backend)
        expected = evaluate(short, prior=0.1, reduction=reduction, backend="reference")
        assert_near(found.loss, expected.loss, torch.float64)
        assert_near(found.gradients["items"], expected.gradients["items"], torch.float64, "items")
        assert_near(found.gradients["queries"][:2], expected.gradients["queries"], torch.float64, "queries")
        assert not found.gradients["queries"][2].any()
    losses = padded.loss(prior=0.1, reduction="none", backend=backend)
    assert losses[2] == 0


def test_padded_further_positives_alone_are_none_at_all(backend: str) -> None:
    case = make_embeddings(3, 6, 5, 9, 2, seed=10)
    case.extra_ids[:] = -1
    without = replace(case, extra_ids=None)
    assert_near(case.loss(prior=0.1, backend=backend), without.loss(prior=0.1, backend="reference"), torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("num_items", [0, 4])
def test_no_rows(backend: str, device: torch.device, reduction: str, num_items: int) -> None:
    case = Embeddings(
        torch.empty(0, 3),
        torch.ones(num_items, 3),
        *(torch.empty(s, dtype=torch.int64) for s in ((0,), (0, 2))),
    ).to(device=device)
    leaves = case.leaves()
    loss = leaves.loss(reduction=reduction, backend=backend)
    assert loss.shape == ((0,) if reduction == "none" else ()) and loss.sum().item() == 0
    loss.sum().backward()
    gradients = leaves.gradients()
    assert gradients["queries"].shape == (0, 3)
    assert torch.equal(gradients["items"], torch.zeros_like(case.items))


@each_dtype
@pytest.mark.parametrize("similarity", ["half_cosine", "cosine"])
def test_zero_vectors(backend: str, device: torch.device, similarity: str, dtype: torch.dtype) -> None:
    """Cosine 0 with everything, and no gradient; the others are as if the score were the number 0."""
    case = make_embeddings(3, 4, 5, 12, seed=11).to(dtype, device)
    case.queries[1] = 0
    case.items[case.neg_ids[0, 2]] = 0
    case.items[case.pos_ids[2]] = 0
    result = evaluate(case, similarity=similarity, reduction="sum", backend=backend)
    assert all(g.isfinite().all() for g in result.gradients.values())
    assert not result.gradients["queries"][1].any()
    assert not result.gradients["items"][case.neg_ids[0, 2]].any()
    assert not result.gradients["items"][case.pos_ids[2]].any()
    assert result.gradients["queries"][0].any()
    losses = case.loss(similarity=similarity, reduction="none", backend=backend)
    expected = Scores(exact([0.0]), torch.zeros(1, 4, dtype=torch.float64)).loss(backend="reference")
    assert_near(losses[1].double().cpu(), expected, torch.float32)


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e3, 1e18])
def test_the_cosine_knows_no_length(backend: str, scale: float) -> None:
    """In fp32, where the square of a length of 1e18 still is a number and that of 1e−18 as well."""
    case = make_embeddings(3, 4, 5, 12, seed=12).to(torch.float32)
    expected = evaluate(case, backend="reference")
    scaled = replace(case, queries=case.queries * scale, items=case.items * scale)
    result = evaluate(scaled, backend=backend)
    assert_near(result.loss, expected.loss, torch.float32)
    for name in ("queries", "items"):
        assert_near(result.gradients[name] * scale, expected.gradients[name], torch.float32, name)
        # The gradient of a cosine stands at a right angle to its vector.
        dots = (result.gradients[name].double() * getattr(scaled, name).double()).sum(-1)
        assert_near(dots, torch.zeros_like(dots), torch.float32, name, slack=1e-5)


def test_strides(backend: str, device: torch.device) -> None:
    """The same numbers and ids, laid out in other ways."""
    case = make_embeddings(6, 9, 16, 13, 3, seed=13, padding=True, log_q=True).to(torch.float32, device)
    weight = _weights(6).to(device, torch.float32)
    expected = evaluate(case, weight, prior=0.1, backend=backend)

    def transposed(t: torch.Tensor) -> torch.Tensor:
        return t.transpose(0, -1).contiguous().transpose(0, -1)

    def sliced(t: torch.Tensor) -> torch.Tensor:
        return torch.stack((t, t.flip(0)), -1).flatten(-2)[..., ::2]

    def offset(t: torch.Tensor) -> torch.Tensor:
        """Off the alignment that a vector load would like."""
        return torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape)

    for layout in (transposed, sliced, offset):
        leaves = case.leaves()
        leaves.map(layout).loss(prior=0.1, backend=backend, reduction="none").backward(weight)
        for name, gradient in leaves.gradients().items():
            assert_near(gradient, expected.gradients[name], torch.float32, f"{layout.__name__} {name}")


def test_expanded_inputs(backend: str, device: torch.device) -> None:
    """One query, one positive and one row of ids, expanded over the batch."""
    case = make_embeddings(1, 9, 16, 13, 3, seed=14).to(device=device)
    leaves = case.leaves()
    expanded = Embeddings(
        leaves.queries.expand(4, 16),
        leaves.items,
        leaves.pos_ids.expand(4),
        leaves.neg_ids.expand(4, 9),
        leaves.extra_ids.expand(4, 3),
    )
    loss = expanded.loss(prior=0.1, reduction="sum", backend=backend)
    loss.backward()
    expected = evaluate(case, prior=0.1, reduction="sum", backend="reference")
    assert_near(loss, 4 * expected.loss, torch.float64)
    for name, gradient in leaves.gradients().items():
        assert_near(gradient, 4 * expected.gradients[name], torch.float64, name)


def test_gradients_of_some_inputs_only(backend: str, device: torch.device) -> None:
    case = make_embeddings(4, 9, 8, 13, 3, seed=15, log_q=True, row_weights=True).to(device=device)
    arguments = {"backend": backend, "prior": 0.1, "detach_weights": False}
    weight = _weights(4).to(device)
    all_of_them = evaluate(case, weight, **arguments)
    for name in all_of_them.gradients:
        one = evaluate(case, weight, names=[name], **arguments)
        assert one.gradients.keys() == {name}
        # Not bit-equal: an atomic sum on a GPU has no order of its own.
        assert_near(one.gradients[name], all_of_them.gradients[name], torch.float64, name)
        assert torch.equal(one.loss, all_of_them.loss)
    with torch.no_grad():
        assert torch.equal(case.loss(reduction="none", **arguments), all_of_them.loss)


@each_dtype
def test_dtypes_that_come_back(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    case = make_embeddings(4, 9, 8, 13, 3, log_q=True, row_weights=True).to(dtype, device)
    fp32 = torch.full((4,), 0.1, device=device)
    leaves = replace(case, log_q=case.log_q.float(), prior=fp32, threshold=fp32).leaves()
    loss = leaves.loss(confidence_temperature=1.0, backend=backend)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()
    for name, gradient in leaves.gradients().items():
        assert gradient.dtype == getattr(leaves, name).dtype, name


@each_dtype
@pytest.mark.parametrize("variant", ["confidence", "floor-binds", "everything"])
def test_prior_and_threshold_per_row(kernels: None, device: torch.device, variant: str, dtype: torch.dtype) -> None:
    rows = torch.arange(6, dtype=torch.float64)
    case = replace(make_embeddings(6, 19, 8, 23, 2, seed=16), prior=rows / 8, threshold=(rows - 3) / 5)
    arguments = {k: v for k, v in VARIANTS[variant].items() if k not in ("prior", "confidence_threshold")}
    against_truth(case, dtype, device, _weights(6), **arguments)


def test_inputs_are_left_as_they_were(backend: str, device: torch.device) -> None:
    case = make_embeddings(4, 9, 8, 13, 3, seed=17, padding=True, log_q=True).to(torch.float32, device)
    before = case.map(torch.clone)
    evaluate(case, _weights(4).to(device), backend=backend, prior=0.1)
    for name in ("queries", "items", "pos_ids", "neg_ids", "extra_ids", "log_q"):
        assert torch.equal(getattr(case, name), getattr(before, name)), name


def test_items_that_no_id_names_get_no_gradient(backend: str, device: torch.device) -> None:
    case = make_embeddings(4, 9, 8, 200, 3, seed=18).to(device=device)
    gradient = evaluate(case, backend=backend, prior=0.1).gradients["items"]
    named = torch.cat([case.pos_ids.flatten(), case.neg_ids.flatten(), case.extra_ids.flatten()]).unique()
    others = torch.ones(200, dtype=torch.bool, device=device)
    others[named] = False
    assert not gradient[others].any()
    assert gradient[case.pos_ids].any(-1).all()


@each_dtype
@pytest.mark.parametrize("dim", [3, 32, 100])
def test_a_table_larger_than_the_cache(kernels: None, device: torch.device, dim: int, dtype: torch.dtype) -> None:
    """Its rows are asked for ahead of their use, past a row's last id; rows that no id names may hold anything."""
    case = make_embeddings(7, 45, dim, 300_000 // dim, 2, seed=19, padding=True)
    against_truth(case, dtype, device, _weights(7), prior=0.05)
    case = case.to(dtype).to(device=device)
    named = torch.cat([case.pos_ids.flatten(), case.neg_ids.flatten(), case.extra_ids.flatten()])
    others = torch.ones(len(case.items), dtype=torch.bool, device=device)
    others[named[named >= 0]] = False
    assert others[0], "padding reads an item that may hold anything, too"
    spoiled = replace(case, items=case.items.masked_fill(others[:, None], math.nan))
    expected, found = (evaluate(each, backend="fused", prior=0.05) for each in (case, spoiled))
    assert torch.equal(found.loss, expected.loss)
    for name, gradient in expected.gradients.items():
        assert torch.equal(found.gradients[name], gradient), name
    assert not found.gradients["items"][others].any()


@each_similarity
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_shared_negative_that_all_rows_mask_out_may_hold_anything(
    backend: str, device: torch.device, similarity: str, value: float
) -> None:
    items = torch.randn(6, 4, generator=generator(91))
    items[5] = value
    items = items.to(device).requires_grad_()
    queries = torch.randn(3, 4, generator=generator(92)).to(device)
    masked = torch.tensor([0.0, 0.0, -math.inf], device=device)
    pos_ids, neg_ids = torch.tensor([0, 1, 2], device=device), torch.tensor([3, 4, 5], device=device)
    arguments = {"similarity": similarity, "backend": backend}
    loss = cw_loss_from_embeddings(queries, items, pos_ids, neg_ids, neg_log_weights=masked, **arguments)
    (found,) = torch.autograd.grad(loss, items)
    without = cw_loss_from_embeddings(queries, items, pos_ids, neg_ids[:2], **arguments)
    (expected,) = torch.autograd.grad(without, items)
    assert_near(loss, without, torch.float32)
    assert_near(found, expected, torch.float32)
    assert not found[5].any()

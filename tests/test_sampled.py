"""Sampled: the loss with negatives drawn inside is that from embeddings on the ids that draw_negatives returns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import (
    DTYPE_IDS,
    DTYPES,
    VARIANTS,
    Result,
    against_truth,
    assert_near,
    each_variant_in_few_dtypes,
    evaluate,
    generator,
)
from drawing import Drawn, make_drawn, make_interactions
from memory import peak_of
from torch import Tensor

from cw_ext import CWSampledLoss, cw_loss_from_embeddings, draw_negatives, sampled_cw_loss

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
recomputed = pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
SETTINGS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "popularity": {"distribution": "popularity"},
    "popularity-squared": {"distribution": "popularity", "popularity_exponent": 2.0},
    "uncorrected": {"distribution": "popularity", "log_q_correction": False},
    "shared": {"shared": True},
    "shared-popularity": {"shared": True, "distribution": "popularity"},
}


def _case(rows: int = 7, n: int = 19, m: int = 0, **more: Any) -> Drawn:
    case = make_drawn("sampled", rows, m=m, **{"interactions": make_interactions(pairs=400)} | more)
    return replace(case, settings=case.settings | {"num_negatives": n, "seed": 5})


def _weights(rows: int) -> Tensor:
    return torch.randn(rows, generator=generator(98), dtype=torch.float64)


def _dense(x: Tensor) -> Tensor:
    return x.to_dense() if x.is_sparse else x


def _by_hand(case: Drawn, **arguments: Any) -> Result:
    """The embeddings reference on the ids, with log weights as they are defined: −α·log of how often an item occurs."""
    settings = case.settings
    draws = {k: settings[k] for k in ("seed", "distribution", "popularity_exponent") if k in settings}
    shared = settings.get("shared", False)
    ids = draw_negatives(None if shared else case.query_ids, case.interactions, settings["num_negatives"], **draws)
    log_q = torch.zeros(ids.shape).double()
    if draws.get("distribution") == "popularity" and settings.get("log_q_correction", True):
        log_q = -draws.get("popularity_exponent", 0.75) * case.interactions.item_counts[ids].double().log()
    if shared:
        starts, known = case.interactions.starts.tolist(), case.interactions.items.tolist()
        left_out = [
            set(known[starts[q] : starts[q + 1]]) | {p} for q, p in zip(case.query_ids.tolist(), case.pos_ids.tolist())
        ]
        masked = torch.tensor([[i in out for i in ids.tolist()] for out in left_out])
        log_q = log_q.expand(len(left_out), -1).masked_fill(masked, -torch.inf)
    leaves = case.leaves()
    loss = cw_loss_from_embeddings(
        leaves.queries,
        leaves.items,
        leaves.pos_ids,
        ids,
        neg_log_weights=log_q,
        extra_pos_ids=leaves.extra_ids,
        row_weights=leaves.row_weights,
        backend="reference",
        **arguments,
    )
    loss.sum().backward()
    return Result(loss.detach(), leaves.gradients())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_loss_is_that_of_the_ids(backend: str, device: torch.device, settings: dict[str, Any]) -> None:
    case = _case(m=2, padding=True, row_weights=True, **settings)
    for arguments in ({}, {"prior": 0.1, "normalize_weights": True, "include_positive": True}):
        expected = _by_hand(case, **arguments)
        found = evaluate(case.to(device=device), backend=backend, **arguments)
        assert_near(found.loss, expected.loss, torch.float64, "loss")
        for name, gradient in found.gradients.items():
            assert_near(gradient, expected.gradients[name], torch.float64, name)


@each_variant_in_few_dtypes
@recomputed
def test_every_parameter(
    kernels: None, device: torch.device, variant: str, recompute: bool, dtype: torch.dtype
) -> None:
    case = _case(m=3, padding=True, row_weights=True, recompute=recompute)
    against_truth(case, dtype, device, _weights(7), **VARIANTS[variant])


@each_dtype
@recomputed
@pytest.mark.parametrize("similarity", ["half_cosine", "cosine", "dot"])
@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_distributions_and_similarities(
    kernels: None, device: torch.device, distribution: str, similarity: str, recompute: bool, dtype: torch.dtype
) -> None:
    for dim in (3, 8, 33, 64):
        scale = 0.5 / dim**0.5 if similarity == "dot" else 1.0
        case = _case(5, 300, dim=dim, scale=scale, distribution=distribution, recompute=recompute)
        against_truth(case, dtype, device, similarity=similarity, prior=0.05)


@recomputed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_many_parts(kernels: None, device: torch.device, dtype: torch.dtype, recompute: bool) -> None:
    """More pairs than are sorted at a time, so that sums are carried from part to part."""
    rows, n = 2600, 1700
    case = _case(rows, n, dim=4, recompute=recompute).to(dtype, device)
    ids = draw_negatives(case.query_ids, case.interactions.to(device), n, seed=5)
    found = evaluate(case, backend="fused")
    leaves = case.leaves()
    expected = cw_loss_from_embeddings(leaves.queries, leaves.items, leaves.pos_ids, ids, backend="fused")
    expected.backward()
    assert_near(found.loss, expected, torch.float32, "loss")
    for name, gradient in found.gradients.items():
        assert_near(gradient, leaves.gradients()[name], dtype, name)


@recomputed
def test_backward_again(kernels: None, device: torch.device, recompute: bool) -> None:
    """A kept graph gives the same gradients twice; what one asks for in part, it gets in part."""
    leaves = _case(distribution="popularity", recompute=recompute).to(torch.float32, device).leaves()
    loss = leaves.loss(backend="fused")
    inputs = (leaves.queries, leaves.items)
    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs, retain_graph=True)
    doubled = torch.autograd.grad(loss, inputs, 2 * torch.ones_like(loss), retain_graph=True)
    for a, b, c in zip(first, second, doubled):
        assert_near(b, a, torch.float32)
        assert_near(c, 2 * a, torch.float32)
    for i, x in enumerate(inputs):
        (alone,) = torch.autograd.grad(loss, [x], retain_graph=True)
        assert_near(alone, first[i], torch.float32)


@recomputed
@pytest.mark.parametrize("name", ["seed", "query_ids"])
def test_what_draws_is_not_to_be_written_to(kernels: None, device: torch.device, name: str, recompute: bool) -> None:
    """Backward would draw other negatives than forward did, in silence."""
    case = _case(recompute=recompute).to(torch.float32, device)
    seed = torch.tensor(5, device=device)
    leaves = replace(case.leaves(), settings=case.settings | {"seed": seed})
    loss = leaves.loss(backend="fused")
    (seed if name == "seed" else leaves.query_ids).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recompute": True},
        pytest.param({"distribution": "popularity"}, marks=pytest.mark.thorough),
        {"shared": True},
    ],
)
def test_double_backward(kernels: None, device: torch.device, settings: dict[str, Any]) -> None:
    case = _case(4, 6, m=2, **settings).to(device=device)

    def loss(queries: Tensor, items: Tensor, prior: Tensor) -> Tensor:
        arguments = {"confidence_temperature": 1.0, "detach_weights": False, "reduction": "none"}
        return replace(case, queries=queries, items=items, prior=prior).loss(backend="fused", **arguments)

    prior = torch.full((4,), 0.1, dtype=torch.float64, device=device)
    inputs = tuple(x.detach().requires_grad_() for x in (case.queries, case.items, prior))
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_sparse_gradient(backend: str, device: torch.device, settings: dict[str, Any]) -> None:
    case = _case(**settings).to(torch.float32, device)
    expected = evaluate(case, backend="reference")
    leaves = case.leaves()
    loss = leaves.loss(sparse_grad=True, backend=backend)
    loss.backward()
    assert leaves.items.grad.is_sparse and leaves.items.grad.is_coalesced()
    assert_near(loss, expected.loss, torch.float32)
    assert_near(leaves.items.grad.to_dense(), expected.gradients["items"], torch.float32)


def test_autocast(kernels: None, device: torch.device) -> None:
    case = _case(distribution="popularity").to(torch.bfloat16, device)
    expected = evaluate(case.to(torch.float32), backend="fused")
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(case.loss(backend="fused"), expected.loss)


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_the_module(kernels: None, device: torch.device, distribution: str) -> None:
    case = _case(distribution=distribution).to(torch.float32, device)
    criterion = CWSampledLoss(case.interactions, 19, distribution=distribution, temperature=0.2)
    inputs = (case.queries, case.items, case.query_ids, case.pos_ids)
    expected = sampled_cw_loss(
        *inputs, case.interactions.to(device), 19, seed=5, distribution=distribution, temperature=0.2, prior=0.1
    )
    assert torch.equal(criterion(*inputs, seed=5, prior=0.1), expected)
    assert torch.equal(criterion(*inputs, seed=5, prior=0.1, temperature=torch.tensor(0.2, device=device)), expected)
    assert not torch.equal(criterion(*inputs, seed=5, prior=0.1, temperature=0.3), expected)
    torch.manual_seed(3)
    first = criterion(*inputs)
    torch.manual_seed(3)
    assert torch.equal(criterion(*inputs), first) and not torch.equal(criterion(*inputs), first)
    assert "temperature=0.2" in repr(criterion) and f"distribution='{distribution}'" in repr(criterion)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@recomputed
def test_parts_of_a_batch_give_the_loss_of_the_whole(
    backend: str, device: torch.device, settings: dict[str, Any], recompute: bool
) -> None:
    """With first_row: the sums of their losses and gradients."""
    case = _case(12, recompute=recompute, **settings).to(device=device)
    expected = evaluate(case, backend=backend, reduction="sum")
    leaves = case.leaves()
    rows = ("queries", "query_ids", "pos_ids")
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for begin, end in ((0, 5), (5, 12)):
        part = replace(leaves, **{name: getattr(leaves, name)[begin:end] for name in rows})
        loss = loss + part.loss(backend=backend, reduction="sum", first_row=begin)
    loss.backward()
    assert_near(loss, expected.loss, torch.float64)
    for name, gradient in leaves.gradients().items():
        assert_near(gradient, expected.gradients[name], torch.float64, name)


@pytest.mark.parametrize("settings", [*SETTINGS.values(), {"sparse_grad": True}, {"recompute": True}])
def test_padding_needs_no_negative(backend: str, device: torch.device, settings: dict[str, Any]) -> None:
    """Query 1 knows everything. Its row is padding, or has no query at all, and the rest is as without it."""
    interactions = make_interactions(pairs=400, full=True)
    case = _case(6, m=2, interactions=interactions, **settings).to(device=device)
    case.query_ids[:] = torch.tensor([2, 1, 3, 1, 4, 5])
    case.pos_ids[1], case.pos_ids[3] = -1, -1
    found = evaluate(case, backend=backend)
    case.query_ids[1], case.query_ids[3] = -1, -1
    without = evaluate(case, backend=backend)
    case.query_ids[1], case.query_ids[3] = 2, 2
    expected = evaluate(case, backend=backend)
    for result in (found, without):
        assert_near(result.loss, expected.loss, torch.float64)
        for name, gradient in result.gradients.items():
            assert_near(_dense(gradient), _dense(expected.gradients[name]), torch.float64, name)


def test_no_rows(backend: str, device: torch.device) -> None:
    case = _case().to(torch.float32, device)
    leaves = replace(case, queries=case.queries[:0], pos_ids=case.pos_ids[:0], query_ids=case.query_ids[:0]).leaves()
    leaves.loss(backend=backend).backward()
    assert leaves.queries.grad.shape == (0, 8) and not leaves.items.grad.any()
    assert leaves.loss(backend=backend, reduction="none").shape == (0,)


def test_what_is_held(kernels: None, device: torch.device) -> None:
    """Of size B·N the coefficients, in fp32, and nothing where they are recomputed: only parts of a bounded size."""
    rows, n, dim = 600, 16000, 2
    many = make_interactions(num_items=50_000, pairs=400)  # too many to score all: test_dense.py has the same for few
    peaks = {}
    for recompute in (False, True):
        leaves = _case(rows, n, dim=dim, interactions=many, recompute=recompute).to(torch.float32, device).leaves()
        leaves.loss(backend="fused").backward()

        def step() -> object:
            leaves.loss(backend="fused").backward()
            return leaves

        peaks[recompute], _ = peak_of(device)(step)
    parts = 13 * 2**20 if device.type == "cpu" else 160 * 2**20
    parts += 8 * many.num_items * dim  # the gradient of the items, and what is known of each
    coefficients = 4 * rows * (n + 1)
    assert parts < coefficients or device.type != "cpu", "the bound says something"
    assert coefficients <= peaks[False] <= coefficients + parts
    assert peaks[True] <= parts


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"query_ids": torch.zeros(6, dtype=torch.int64)},
            ValueError,
            r"query_ids must have shape \(7,\), .* got \(6,\)",
        ),
        ({"query_ids": torch.full((7,), 20)}, IndexError, r"query_ids must be in \[0, 20\), got 20"),
        ({"items": torch.zeros(49, 8)}, ValueError, r"items must have one row per item of interactions, 50, got 49"),
        ({"query_ids": torch.full((7,), -1)}, IndexError, r"query_ids must be in \[0, 20\), got -1"),
        ({"pos_ids": torch.full((7,), 50)}, IndexError, r"pos_ids must be in \[0, 50\), or −1 for padding, got 50"),
        ({"num_negatives": 0}, ValueError, r"num_negatives must be an integer ≥ 1, got 0"),
        ({"first_row": -1}, ValueError, r"first_row must be an integer ≥ 0, got -1"),
        ({"popularity_smoothing": "1"}, TypeError, r"popularity_smoothing must be a number ≥ 0, got str"),
        ({"recompute": 1}, TypeError, r"recompute must be True or False, got 1"),
        ({"shared": None}, TypeError, r"shared must be True or False, got None"),
        ({"log_q_correction": "yes"}, TypeError, r"log_q_correction must be True or False, got 'yes'"),
        ({"sparse_grad": 1}, TypeError, r"sparse_grad must be True or False, got 1"),
        ({"distribution": "pop"}, ValueError, r"distribution must be one of"),
        ({"similarity": "l2"}, ValueError, r"similarity must be one of"),
        ({"temperature": 0.0}, ValueError, r"temperature must be > 0"),
        ({"interactions": None}, TypeError, r"interactions must be a cw_ext.Interactions, got NoneType"),
        ({"interactions": make_interactions(full=True)}, ValueError, r"query 1 has all 50 items"),
    ],
)
def test_bad_input(backend: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    case = _case().to(torch.float32)
    good = {name: getattr(case, name) for name in ("queries", "items", "query_ids", "pos_ids", "interactions")}
    with pytest.raises(error, match=message):
        sampled_cw_loss(**good | {"num_negatives": 3, "backend": backend} | arguments)

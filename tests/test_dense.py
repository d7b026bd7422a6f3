"""Few items, each row its own negatives: the CPU scores all items (csrc/dense_rule.h) and counts how often each is a
negative. Against the fp64 reference, which looks them up; counts in loops; and the other way to compute the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import (
    DTYPE_IDS,
    DTYPES,
    VARIANTS,
    Embeddings,
    against_truth,
    assert_near,
    each_variant_in_few_dtypes,
    evaluate,
    generator,
    item_gradient_arguments,
    make_embeddings,
)
from drawing import Drawn, make_drawn, make_interactions
from memory import peak_of
from torch import Tensor

from cw_ext import ScoreCurve, cw_loss_from_embeddings, draw_negatives, op_errors
from cw_ext.op_inputs import EMBEDDINGS, EmbeddingInputs, Wanted
from cw_ext.parameters import resolve
from cw_ext.row_values import CurveInputs, RowValues

pytestmark = pytest.mark.cpu_kernels

ROWS, N, DIM, ITEMS = 130, 140, 9, 60
CPU = torch.device("cpu")
# Not log_q: for its gradient the negatives are looked up.
LEAVES = ("queries", "items", "row_weights", "prior", "threshold", "temperature", "knots")
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)


def _case(rows: int = ROWS, n: int = N, dim: int = DIM, items: int = ITEMS, m: int = 0, **more: Any) -> Embeddings:
    return make_embeddings(rows, n, dim, items, m, **{"seed": 301} | more)


def _full_case(seed: int = 302) -> Embeddings:
    """Padding, extra positives, and draws of one item with log weights of their own, of which some are −∞."""
    return _case(m=3, seed=seed, padding=True, log_q=True, row_weights=True)


def _weights(rows: int = ROWS) -> Tensor:
    return torch.randn(rows, generator=generator(303), dtype=torch.float64)


def _is_dense(case: Embeddings) -> bool:
    """By what the forward pass leaves for backward."""
    arguments = item_gradient_arguments(case.to(torch.float32).map(torch.Tensor.detach))
    coefficients: Tensor = arguments["coefficients"]
    return len(arguments["pair_keys"]) == 0 and coefficients.shape == (len(case.queries), len(case.items))


def _rarer(case: Embeddings) -> Embeddings:
    """The same with items that no row has, of which there are too many to score all."""
    unused = torch.ones(4 * case.neg_ids.shape[1], case.items.shape[1], dtype=case.items.dtype)
    return replace(case, items=torch.cat((case.items, unused)))


# ---- the loss and its gradients --------------------------------------------------------------------------------------


@each_variant_in_few_dtypes
def test_every_parameter(kernels: None, variant: str, dtype: torch.dtype) -> None:
    for case in (_case(), _full_case()):
        against_truth(case, dtype, CPU, _weights(), names=LEAVES, **VARIANTS[variant])


@each_dtype
@pytest.mark.parametrize("similarity", ["half_cosine", "cosine", "dot"])
def test_sizes(kernels: None, similarity: str, dtype: torch.dtype) -> None:
    """Around the widths of vectors, panels and blocks of rows; more items than a block of their scores is meant for."""
    sizes = [(128, 128, 1, 1), (131, 129, 7, 31), (150, 128, 32, 33), (129, 300, 33, 127), (143, 150, 64, 128)]
    for rows, n, dim, items in [*sizes, (128, 2600, 65, 2600)]:
        scale = 0.5 / dim**0.5 if similarity == "dot" else 1.0
        case = _case(rows, n, dim, items, dim % 3, scale=scale)
        shortest = torch.cat((case.queries, case.items)).norm(dim=1).min().item()
        cancelled = 10 / min(shortest, 1.0) if items == 1 else 0.0  # the positive is the negative: all cancels
        against_truth(case, dtype, CPU, _weights(rows), cancelled=cancelled, similarity=similarity, prior=0.05)


def test_which_way_is_taken(kernels: None) -> None:
    """Not where it costs more: many items, few rows, few pairs, draws with log weights."""
    assert _is_dense(_case()) and not _is_dense(_rarer(_case()))
    assert _is_dense(_case(128, 128, 4, 320)) and not _is_dense(_case(128, 128, 4, 321))
    assert not _is_dense(_case(127, 140)) and not _is_dense(_case(130, 126))
    for items, width in ((3 * N // 2, 3 * N // 2), (3 * N // 2 + 1, 4 + N)):
        case = replace(_full_case().to(torch.float32), items=torch.ones(items, DIM))
        assert _forward(torch.ops.cw_ext.embeddings_forward, case)[6].shape == (ROWS, width)


def _forward(op: Callable[..., Any], case: Embeddings) -> Any:
    """The op's results with gradients."""
    inputs = EmbeddingInputs(
        queries=case.queries.detach(),
        items=case.items.detach(),
        pos_ids=case.pos_ids,
        neg_ids=case.neg_ids,
        extra_ids=case.extra_ids,
        log_q=case.log_q,
        exclude=False,
        history=None,
        row_values=RowValues(),
        curve=CurveInputs(),
        parameters=resolve({}).row,
        similarity="half_cosine",
        reduction="mean",
    )
    return op(*EMBEDDINGS.flat(inputs), *Wanted(True, False, False))


@each_dtype
def test_values_of_each_row_and_a_curve(kernels: None, dtype: torch.dtype) -> None:
    g = generator(304)
    rows = {name: torch.rand(ROWS, generator=g, dtype=torch.float64) for name in ("prior", "threshold", "temperature")}
    case = replace(_full_case(), prior=0.1 * rows["prior"], threshold=rows["threshold"] - 0.5)
    case = replace(case, temperature=0.1 + rows["temperature"])
    arguments = {"confidence_temperature": 0.7, "detach_weights": False}
    against_truth(case, dtype, CPU, _weights(), names=LEAVES, **arguments)
    against_truth(case, dtype, CPU, _weights(), names=LEAVES, normalize_weights=True, **arguments)
    curved = replace(case, knots=torch.randn(17, generator=g, dtype=torch.float64))
    for on in ("score", "margin"):
        curve = ScoreCurve(-0.4, 0.4, torch.zeros(17), on=on)
        for given in (curved, replace(curved, log_q=None)):
            against_truth(given, dtype, CPU, _weights(), names=LEAVES, score_curve=curve, **arguments)


def test_the_gradient_of_log_weights(kernels: None) -> None:
    """Is one of each draw."""
    against_truth(_full_case(), torch.float32, CPU, _weights(), prior=0.1)


@pytest.mark.parametrize("log_q", [False, True], ids=["", "log weights"])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_both_ways_agree(kernels: None, id_dtype: torch.dtype, log_q: bool) -> None:
    case = _case(m=2, padding=True, log_q=log_q, id_dtype=id_dtype).to(torch.float32)
    names = ("queries", "items")
    results = [evaluate(c, _weights(), names, prior=0.1, backend="fused") for c in (case, _rarer(case))]
    assert_near(results[0].loss, results[1].loss, torch.float32)
    assert_near(results[0].gradients["queries"], results[1].gradients["queries"], torch.float32)
    assert_near(results[0].gradients["items"], results[1].gradients["items"][:ITEMS], torch.float32)
    assert not results[1].gradients["items"][ITEMS:].any()


@pytest.mark.parametrize("masked", [False, True])
def test_above(kernels: None, masked: bool) -> None:
    """Counted draw by draw, of which an item has several; equal to the threshold is not above."""
    g = generator(305)
    case = _case(log_q=masked, padding=True)
    queries, items = (torch.randint(-2, 3, (k, DIM), generator=g).double() for k in (ROWS, ITEMS))
    threshold = torch.randint(-6, 7, (ROWS,), generator=g).double()
    case = replace(case, queries=queries, items=items, threshold=threshold)
    _, above = case.loss(similarity="dot", return_above=True, backend="fused")
    for b, ids in enumerate(case.neg_ids.tolist()):
        scores = (items @ queries[b]).tolist()
        weights = case.log_q[b].tolist() if masked else [0.0] * N
        expected = sum(i >= 0 and w > -math.inf and scores[i] > threshold[b] for i, w in zip(ids, weights))
        assert above[b] == (expected if case.pos_ids[b] >= 0 else 0)


def test_log_weights_of_any_size(kernels: None) -> None:
    """Weights are taken relative to the largest of an item's draws: none overflows, or is lost to another row's."""
    case = _case(log_q=True).to(torch.float32)
    shift = torch.linspace(-3e4, 3e4, ROWS).unsqueeze(1)
    results = [
        evaluate(replace(case, log_q=log_q), _weights(), ("queries", "items"), backend="fused")
        for log_q in (case.log_q, (case.log_q.double() + shift.double()).float())
    ]
    assert_near(results[1].loss, results[0].loss, torch.float32, slack=0.02)  # 3e4 has steps of .002
    assert_near(results[1].gradients["queries"], results[0].gradients["queries"], torch.float32, slack=0.02)


def test_rows_whose_draws_are_all_masked(kernels: None) -> None:
    """By padding, or by their log weights: no loss, no gradients, and their items may hold anything."""
    case = _case(log_q=True).to(torch.float32)
    case.neg_ids[0], case.log_q[1] = -1, -math.inf
    found = evaluate(case, torch.ones(ROWS), ("queries", "items"), backend="fused")
    assert not found.loss[:2].any() and found.loss[2:].all()
    assert not found.gradients["queries"][:2].any()


# ---- NaN -------------------------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("log_q", [False, True], ids=["", "log weights"])
def test_an_item_that_is_no_number(kernels: None, dtype: torch.dtype, value: float, log_q: bool) -> None:
    """Reaches the rows that have it and no others; item 1 is nobody's, and item 2 only that of masked draws."""
    case = _case(m=2, padding=True, log_q=log_q).to(dtype)
    for ids in (case.pos_ids, case.neg_ids, case.extra_ids):
        ids[(ids == 0) | (ids == 1)] = 3
        ids[ids == 2] = 4
    case.neg_ids[7, 5] = 0
    if case.log_q is not None:
        case.neg_ids[:, 3], case.log_q[:, 3] = 2, -math.inf
        case.log_q[7, 5] = 0.0
    items = case.items.clone()
    items[:3] = value
    names = ("queries", "items")
    clean = evaluate(case, torch.ones(ROWS), names, prior=0.05, backend="fused")
    found = evaluate(replace(case, items=items), torch.ones(ROWS), names, prior=0.05, backend="fused")
    others = torch.arange(ROWS) != 7
    assert found.loss[7].isnan() and torch.equal(found.loss[others], clean.loss[others])
    queries = found.gradients["queries"]
    assert queries[7].isnan().all() and torch.equal(queries[others], clean.gradients["queries"][others])
    reached = found.gradients["items"].isnan()
    expected = {0, *case.neg_ids[7].tolist(), *case.extra_ids[7].tolist(), int(case.pos_ids[7])} - {-1}
    assert {*reached.all(1).nonzero().flatten().tolist()} >= {0}
    assert {*reached.any(1).nonzero().flatten().tolist()} <= expected
    assert not found.gradients["items"][1:3].any()


def test_a_query_that_is_no_number(kernels: None) -> None:
    case = _case(m=2, padding=True).to(torch.float32)
    queries = case.queries.clone()
    queries[[4, -1]] = math.nan  # the last row is padding
    names = ("queries", "items")
    found = evaluate(replace(case, queries=queries), torch.ones(ROWS), names, backend="fused")
    assert found.loss.isnan().nonzero().flatten().tolist() == [4]
    assert not found.gradients["queries"][-1].any()
    had = {*case.neg_ids[4].tolist(), *case.extra_ids[4].tolist(), int(case.pos_ids[4])} - {-1}
    assert {*found.gradients["items"].isnan().any(1).nonzero().flatten().tolist()} == had


# ---- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_bad_ids(kernels: None, id_dtype: torch.dtype) -> None:
    """The first of the batch, in whatever order they are found."""
    limits = torch.iinfo(id_dtype)
    bad = {"pos_ids": (60, (97, ())), "extra_ids": (-2, (97, (1,))), "neg_ids": (limits.max, (96, (139,)))}
    order = sorted(bad, key=lambda name: bad[name][1][0])
    names = {"extra_ids": "extra_pos_ids"}
    while order:
        case = _case(m=2, id_dtype=id_dtype).to(torch.float32)
        for name in order:
            value, (row, rest) = bad[name]
            getattr(case, name)[(row, *rest)] = value
        value, (row, _) = bad[order[0]]
        name = names.get(order[0], order[0])
        message = rf"^{name} must be in \[0, 60\), or −1 for padding, got {value} in row {row}$"
        for threads in (1, 2, 5):
            with _threads(threads), pytest.raises(IndexError, match=message):
                case.loss(backend="fused")
        order = order[1:]
    for value in (-2, 60, limits.min, limits.max):
        case = _case(id_dtype=id_dtype, log_q=True).to(torch.float32)
        case.neg_ids[ROWS - 1, 0], case.log_q[ROWS - 1, 0] = value, -math.inf
        with pytest.raises(IndexError, match=rf"^neg_ids must be .*got {value} in row {ROWS - 1}$"):
            case.loss(backend="fused")


class _threads:
    def __init__(self, count: int) -> None:
        self._count, self._before = count, torch.get_num_threads()

    def __enter__(self) -> None:
        torch.set_num_threads(self._count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._before)


@pytest.mark.parametrize("name", ["coefficients", "unit_queries"])
def test_the_gradient_op_with_tensors_of_another_shape(kernels: None, name: str) -> None:
    arguments = item_gradient_arguments(_case().to(torch.float32))
    arguments[name] = arguments[name][:, :-1]
    with pytest.raises(op_errors.RAISED, match="ValueError: (coefficients|items) must have shape"):
        torch.ops.cw_ext.item_gradient(**arguments)
    arguments = item_gradient_arguments(_case().to(torch.float32))
    arguments["coefficients"] = arguments["coefficients"].double()
    with pytest.raises(op_errors.RAISED, match="TypeError: coefficients must have dtype"):
        torch.ops.cw_ext.item_gradient(**arguments)


# ---- drawn negatives -------------------------------------------------------------------------------------------------


def _drawn(rows: int = ROWS, n: int = N, **more: Any) -> Drawn:
    case = make_drawn("sampled", rows, **{"m": 2, "seed": 306, "interactions": make_interactions(pairs=400)} | more)
    return replace(case, settings=case.settings | {"num_negatives": n, "seed": 5})


@each_dtype
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_drawn(kernels: None, dtype: torch.dtype, recompute: bool, distribution: str) -> None:
    case = _drawn(padding=True, row_weights=True, distribution=distribution, recompute=recompute)
    for arguments in ({}, {"prior": 0.1, "normalize_weights": True, "detach_weights": False}):
        against_truth(case, dtype, CPU, _weights(), **arguments)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_drawn_is_the_loss_from_embeddings_with_these_ids(kernels: None, dtype: torch.dtype, distribution: str) -> None:
    """To the bit, also where an item's draws have weights."""
    for recompute in (False, True):
        case = _drawn(padding=True, distribution=distribution, recompute=recompute).to(dtype)
        ids = draw_negatives(case.query_ids, case.interactions, N, seed=5, distribution=distribution)
        log_q = None
        if distribution == "popularity":
            log_q = -0.75 * case.interactions.item_counts[ids.long()].double().log()
            log_q = log_q.to(torch.float64 if dtype == torch.float64 else torch.float32)
        given = Embeddings(case.queries, case.items, case.pos_ids, ids, case.extra_ids, log_q)
        assert _is_dense(replace(given, log_q=None))
        results = [evaluate(c, _weights(), ("queries", "items"), backend="fused") for c in (case, given)]
        if distribution == "uniform":
            assert torch.equal(results[0].loss, results[1].loss)
            for name, gradient in results[0].gradients.items():
                assert torch.equal(gradient, results[1].gradients[name]), name
        else:
            assert_near(results[0].loss, results[1].loss, results[0].loss.dtype)
            for name, gradient in results[0].gradients.items():
                assert_near(gradient, results[1].gradients[name], dtype, name)


def _parts(recompute: bool) -> Drawn:
    """More rows than are computed again at a time, of more than one size."""
    interactions = make_interactions(num_items=1000, pairs=400)
    return _drawn(2600, 400, dim=3, interactions=interactions, recompute=recompute, padding=True).to(torch.float32)


def test_parts(kernels: None) -> None:
    results = [evaluate(_parts(recompute), _weights(2600), prior=0.1, backend="fused") for recompute in (False, True)]
    assert torch.equal(results[0].loss, results[1].loss)
    for name, gradient in results[0].gradients.items():
        assert torch.equal(gradient, results[1].gradients[name]), name
    against_truth(_parts(True), torch.float32, CPU, _weights(2600), prior=0.1)


def test_what_is_held(kernels: None) -> None:
    """The coefficients of all items, 4 bytes each; where they are recomputed, parts of a bounded size."""
    rows, items, n = 20_000, 1000, 400
    interactions = make_interactions(num_items=items, pairs=400)
    peaks = {}
    for recompute in (False, True):
        case = _drawn(rows, n, dim=2, interactions=interactions, recompute=recompute).to(torch.float32)
        leaves = case.leaves(("queries", "items"))
        leaves.loss(backend="fused").backward()

        def step(leaves: Drawn = leaves) -> object:
            leaves.loss(backend="fused").backward()
            return leaves

        peaks[recompute], _ = peak_of(CPU)(step)
    parts, coefficients = 13 * 2**20, 4 * rows * items
    assert coefficients <= peaks[False] <= coefficients + parts
    assert peaks[True] <= parts


# ---- threads, compiled -----------------------------------------------------------------------------------------------


def _results(make: Callable[[], Any], names: Iterable[str], **arguments: Any) -> list[Tensor]:
    found = evaluate(make(), None, names, backend="fused", **arguments)
    return [found.loss, *found.gradients.values()]


@pytest.mark.parametrize("kind", ["ids", "log weights", "drawn", "recomputed"])
def test_the_same_bits_on_any_number_of_threads(kernels: None, kind: str) -> None:
    makes: dict[str, Callable[[], Any]] = {
        "ids": lambda: _case(300, 200, 40, 500, 2, padding=True).to(torch.float32),
        "log weights": lambda: _case(300, 200, 40, 300, 2, padding=True, log_q=True).to(torch.float32),
        "drawn": lambda: _drawn(300, 200, dim=40, padding=True).to(torch.float32),
        "recomputed": lambda: _parts(True),
    }
    arguments = {"prior": 0.1, "detach_weights": False, "confidence_temperature": 1.0}
    of_each = []
    for threads in (1, 2, 3, 7):
        with _threads(threads):
            of_each.append(_results(makes[kind], ("queries", "items"), **arguments))
    for found in of_each[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found, of_each[0]))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(kernels: None, dynamic: bool) -> None:
    """Dynamic shapes on both sides of the rule."""
    torch.compiler.reset()
    compiled = torch.compile(lambda c: c.loss(backend="fused"), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    sizes = [(140, 150, 60), (133, 160, 61), (140, 150, 700), (12, 20, 61), (150, 140, 62)]
    for rows, n, items in sizes if dynamic else sizes[:2]:
        case = _case(rows, n, 8, items, 2, padding=True).to(torch.float32)
        expected = evaluate(case, None, ("queries", "items"), backend="fused")
        leaves = case.leaves(("queries", "items"))
        loss = compiled(leaves)
        loss.backward()
        assert torch.equal(loss, expected.loss)
        for name, gradient in leaves.gradients().items():
            assert torch.equal(gradient, expected.gradients[name]), name


@pytest.mark.parametrize("log_q", [False, True], ids=["", "log weights"])
def test_opcheck(kernels: None, log_q: bool) -> None:
    """The op's fake, whose results have other shapes where it looks negatives up."""
    for rows, items in ((ROWS, ITEMS), (ROWS, 800), (0, ITEMS), (12, ITEMS)):
        case = _case(rows, N, DIM, items, 2, log_q=log_q).to(torch.float32)

        def check(*arguments: Any) -> Any:
            torch.library.opcheck(torch.ops.cw_ext.embeddings_forward.default, arguments, test_utils="test_faketensor")

        _forward(check, case)


@pytest.mark.parametrize("items", [64, 400])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_reaches_the_items(kernels: None, items: int, factor: float) -> None:
    """Whichever way the items' gradient is computed: mixed precision looks there for an overflow."""
    case = make_embeddings(128, 128, 16, items, 0, seed=23)
    queries, table = (torch.as_tensor(x, dtype=torch.float32) for x in (case.queries, case.items))
    table.requires_grad_()
    rows = cw_loss_from_embeddings(queries, table, case.pos_ids, case.neg_ids, reduction="none", backend="fused")
    weights = torch.ones(128)
    weights[5] = factor
    rows.backward(weights)
    named = torch.zeros(items, dtype=torch.bool)
    named[case.pos_ids[5]] = named[case.neg_ids[5]] = True
    assert not table.grad[named].isfinite().any()
    assert table.grad[~named].isfinite().all()

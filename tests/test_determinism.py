"""What docs/api/guarantees.md promises of the CPU: the same bits from run to run and on any number of threads, for
every form of the loss and backend, first and second gradients. Each case has 40,000 pairs of a row and a negative."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import Embeddings, generator, make_embeddings, make_scores
from torch import Tensor

from cw_ext import Interactions, ScoreCurve, cw_loss_full, cw_loss_in_batch, sampled_cw_loss

pytestmark = pytest.mark.cpu_kernels

# Too many items beside the negatives to score all of them: test_dense.py has the other way.
ROWS, NEGATIVES, DIM, ITEMS = 256, 166, 32, 500
LOSS: dict[str, Any] = {"prior": 0.1, "detach_weights": False, "confidence_temperature": 1.0}

Loss = Callable[..., Tensor]


def _table(rows: int = ROWS) -> Embeddings:
    return make_embeddings(rows, NEGATIVES, DIM, ITEMS, 2, seed=161, padding=True, row_weights=True).to(torch.float32)


def _history(rows: int) -> tuple[Tensor, Interactions]:
    g = generator(162)
    users = torch.arange(rows).repeat(3)
    known = torch.randint(ITEMS, (len(users),), generator=g)
    return torch.arange(rows), Interactions(users, known, num_queries=rows, num_items=ITEMS)


def _scores() -> tuple[Loss, list[Tensor]]:
    case = make_scores((ROWS,), NEGATIVES, 3, seed=163, log_q=True, row_weights=True).to(torch.float32).leaves()
    return case.loss, [case.pos, case.neg, case.extra, case.row_weights]


def _with_curve() -> tuple[Loss, list[Tensor]]:
    g = generator(165)
    knots, temperature = torch.randn(33, generator=g), 0.1 + torch.rand(ROWS, generator=g)
    names = ["queries", "items", "knots", "temperature"]
    leaves = replace(_table(), knots=knots, temperature=temperature).leaves(names)
    curve = ScoreCurve(-0.5, 0.5, torch.zeros(33))
    return lambda **more: leaves.loss(score_curve=curve, **more), [getattr(leaves, name) for name in names]


def _ids(*, shared: bool = False, **arguments: Any) -> tuple[Loss, list[Tensor]]:
    case = _table()
    if shared:
        case = Embeddings(case.queries, case.items, case.pos_ids, case.neg_ids[0], case.extra_ids)
    leaves = case.leaves(["queries", "items", "row_weights"])
    return lambda **more: leaves.loss(**arguments, **more), [leaves.queries, leaves.items]


def _drawn(**arguments: Any) -> tuple[Loss, list[Tensor]]:
    leaves = _table().leaves(["queries", "items"])
    users, known = _history(ROWS)
    pos_ids = leaves.pos_ids.clamp(min=0)

    def loss(**more: Any) -> Tensor:
        settings = {"seed": 7, **arguments, **more}
        return sampled_cw_loss(leaves.queries, leaves.items, users, pos_ids, known, NEGATIVES, **settings)

    return loss, [leaves.queries, leaves.items]


def _in_batch() -> tuple[Loss, list[Tensor]]:
    leaves = _table().leaves(["queries", "items"])
    users, known = _history(ROWS)
    settings = {"query_ids": users, "interactions": known, "seed": 7, "num_negatives": 50}

    def loss(**more: Any) -> Tensor:
        return cw_loss_in_batch(leaves.queries, leaves.items, leaves.pos_ids.clamp(min=0), **settings, **more)

    return loss, [leaves.queries, leaves.items]


def _full() -> tuple[Loss, list[Tensor]]:
    leaves = _table(100).leaves(["queries", "items"])
    return lambda **more: cw_loss_full(leaves.queries, leaves.items, leaves.pos_ids, **more), [
        leaves.queries,
        leaves.items,
    ]


FORMS: dict[str, Callable[[], tuple[Loss, list[Tensor]]]] = {
    "scores": _scores,
    "ids": _ids,
    "ids, curve": _with_curve,
    "shared": lambda: _ids(shared=True),
    "sparse": lambda: _ids(sparse_grad=True),
    "drawn": _drawn,
    "drawn, recomputed": lambda: _drawn(recompute=True),
    "drawn, popular": lambda: _drawn(distribution="popularity"),
    "drawn, shared": lambda: _drawn(shared=True),
    "in-batch": _in_batch,
    "full": _full,
}


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _numbers(loss: Loss, leaves: list[Tensor], second: bool, **arguments: Any) -> list[Tensor]:
    """The loss and its gradients, or its gradients and those of their squares' sum."""
    value = loss(**LOSS, **arguments)
    found = torch.autograd.grad(value, leaves, create_graph=second)
    numbers = [value, *found]
    if second:
        numbers += torch.autograd.grad(sum(g.square().sum() for g in found), leaves)
    return [(x.to_dense() if x.is_sparse else x).detach() for x in numbers]


# A sparse gradient has no second one.
CASES = [(form, second) for form in FORMS for second in (False, True) if not (second and form == "sparse")]


@pytest.mark.parametrize(("form", "second"), CASES, ids=[f"{f}, {'second' if s else 'first'}" for f, s in CASES])
def test_the_same_bits(backend: str, threads: Callable[[int], None], form: str, second: bool) -> None:
    loss, leaves = FORMS[form]()
    expected: list[Tensor] = []
    for count in (1, 2, 2, 2, 3):
        threads(count)
        numbers = _numbers(loss, leaves, second, backend=backend)
        expected = expected or numbers
        differing = [i for i, (x, y) in enumerate(zip(expected, numbers, strict=True)) if not torch.equal(x, y)]
        assert not differing, f"{count} threads"
    assert all(x.isfinite().all() for x in expected) and all(x.any() for x in expected)


@pytest.mark.parametrize("form", ["ids", "shared"])
def test_concurrent_callers(backend: str, threads: Callable[[int], None], form: str) -> None:
    loss, leaves = FORMS[form]()
    threads(2)
    expected = _numbers(loss, leaves, False, backend=backend)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: _numbers(loss, leaves, False, backend=backend), range(12)))
    assert all(torch.equal(x, y) for numbers in found for x, y in zip(expected, numbers, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "row weights"])
def test_many_rows(backend: str, threads: Callable[[int], None], reduction: str, weighted: bool) -> None:
    """So many that torch's own sum of them depends on the number of threads."""
    case = make_scores((100_000,), 2, seed=164, row_weights=True).to(torch.float32)
    prior, temperature, knots = (x.requires_grad_() for x in (torch.tensor(0.1), torch.tensor(0.2), torch.zeros(9)))
    more = {"prior": prior, "temperature": temperature, "score_curve": ScoreCurve(-0.5, 0.5, knots)}
    weights = case.row_weights if weighted else None
    found = []
    for count in (1, 2, 3):
        threads(count)
        leaves = type(case)(case.pos, case.neg, row_weights=weights).leaves()
        loss = leaves.loss(**more, reduction=reduction, backend=backend)
        inputs = [leaves.pos, leaves.neg, prior, temperature, knots]
        found.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
    assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other, strict=True))

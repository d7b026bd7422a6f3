"""Both implementations in fp64 against the formula in decimal arithmetic: losses and all gradients."""

from __future__ import annotations

import functools
import math

import oracle
import pytest
import torch
from cases import (
    VARIANTS,
    Embeddings,
    Scores,
    assert_near,
    evaluate,
    exact,
    generator,
    make_embeddings,
    make_scores,
    tolerance,
)
from levels import oracle_inputs
from torch import Tensor


def _losses(rows: list[oracle.Row]) -> Tensor:
    return exact([float(r.loss) for r in rows])


# The oracle's names of what the scores loss calls otherwise.
_NAMES = {
    "pos": "pos",
    "neg": "negatives",
    "extra": "extras",
    "log_q": "log_q",
    "prior": "prior",
    "threshold": "threshold",
}


def _with_tensors(case: Scores, arguments: dict) -> tuple[Scores, dict]:
    """π and β as tensors of one value per row, so that they have gradients."""
    rest = dict(arguments)
    prior, threshold = rest.pop("prior", 0.0), rest.pop("confidence_threshold", 0.0)
    rows = torch.arange(case.pos.shape[0], dtype=torch.float64)
    return Scores(case.pos, case.neg, case.extra, case.log_q, prior * (1 - rows / 20), threshold + rows / 10), rest


@functools.cache
def _truth(variant: str, m: int, log_q: bool) -> tuple[list[oracle.Row], list[dict]]:
    case, arguments = _with_tensors(make_scores((4,), 6, m, seed=3, log_q=log_q), VARIANTS[variant])
    rows = oracle_inputs(case)
    return [oracle.row(r, **arguments) for r in rows], [oracle.row_gradients(r, **arguments) for r in rows]


@pytest.mark.parametrize(("m", "log_q"), [(0, False), (3, True)], ids=["bare", "extras-weights"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores(variant: str, m: int, log_q: bool, backend: str) -> None:
    case, arguments = _with_tensors(make_scores((4,), 6, m, seed=3, log_q=log_q), VARIANTS[variant])
    rows, gradients = _truth(variant, m, log_q)
    result = evaluate(case, torch.ones(4), backend=backend, **arguments)
    assert_near(result.loss, _losses(rows), torch.float64, "loss")
    for name, gradient in result.gradients.items():
        expected = exact([g[_NAMES[name]] for g in gradients])
        assert_near(gradient, expected, torch.float64, f"gradient of {name}")


def test_the_cases_reach_both_sides_of_the_floor() -> None:
    bound = {v: [r.floor_binds for m in (0, 3) for r in _truth(v, m, m > 0)[0]] for v in VARIANTS}
    assert any(bound["floor-binds"]) and any(bound["min-margin-binds"])
    assert not all(bound["prior"]) and not all(bound["min-margin"])


def test_the_gradient_of_a_detached_weight_differs() -> None:
    """The finite difference with frozen weights is a statement of its own, not a copy of the plain one."""
    (row,) = oracle_inputs(make_scores((1,), 6))
    assert (
        abs(
            oracle.row_gradients(row, detach_weights=True)["pos"]
            - oracle.row_gradients(row, detach_weights=False)["pos"]
        )
        > 0.1
    )


def test_absent_scores(backend: str) -> None:
    """Masked negatives, scores of −inf and padded positives, in one row each and together."""
    inf, nan = math.inf, math.nan
    case = Scores(
        pos=exact([0.1, 0.2, 0.3, nan, 0.1]),
        neg=exact([[0.2, -inf, 0.1], [nan, 0.4, inf], [-inf, -inf, -inf], [nan, 0.1, 0.2], [0.3, 0.2, 0.1]]),
        extra=exact([[-inf, -inf], [0.3, -inf], [0.1, 0.1], [nan, inf], [0.2, 0.4]]),
        log_q=exact([[0.1, -0.2, 0.3], [-inf, 0.5, -inf], [0.0, 0.0, 0.0], [-inf, -inf, -inf], [-inf, 0.2, 0.1]]),
    )
    rows = oracle_inputs(case)
    for arguments in (
        {"prior": 0.1},
        {"prior": 0.1, "normalize_weights": True},
        {"prior": 0.1, "weighting": "exponential", "normalize_weights": True},
        {"prior": 0.1, "weighting": "linear", "detach_weights": False},
        {"prior": 0.1, "weighting": "none", "surrogate": "tanh", "confidence_temperature": 0.4},
    ):
        prior = arguments["prior"]
        moved = [r._replace(prior=prior) for r in rows]
        rest = {k: v for k, v in arguments.items() if k != "prior"}
        truth = [oracle.row(r, **rest) for r in moved]
        assert [r.live for r in truth] == [True, True, False, False, True]
        result = evaluate(case, torch.ones(5), backend=backend, **arguments)
        assert_near(result.loss, _losses(truth), torch.float64, f"loss {arguments}")
        for b in (0, 1, 4):
            expected = oracle.row_gradients(moved[b], **rest)
            for name in ("pos", "extra", "log_q"):
                # Of a single negative's weight the gradient is 0, as the difference of two ones.
                gradient, its_truth = result.gradients[name][b], exact(expected[_NAMES[name]])
                assert_near(gradient, its_truth, torch.float64, f"{name} {b}", tolerance(torch.float64))
        for name, gradient in result.gradients.items():
            assert not gradient[[2, 3]].any(), f"{name} {arguments}: a dead row has a gradient"
            assert gradient.isfinite().all(), f"{name} {arguments}"
        mean = case.loss(backend=backend, **arguments)
        assert_near(mean, exact(oracle.reduced(truth, None, "mean")), torch.float64, "mean")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(reduction: str, backend: str) -> None:
    case = make_scores((5,), 4, log_q=True, row_weights=True)
    assert case.log_q is not None and case.row_weights is not None
    case.log_q[2] = -math.inf
    rows = [oracle.row(r) for r in oracle_inputs(case)]
    expected = oracle.reduced(rows, case.row_weights.tolist(), reduction)
    result = evaluate(case, reduction=reduction, backend=backend)
    assert_near(result.loss, exact(expected), torch.float64)
    # A weight's gradient, written out: its row's loss, less the mean where the weight is in the divisor.
    losses = _losses(rows)
    live = torch.tensor([r.live for r in rows])
    total = case.row_weights[live].sum()
    by_hand = losses if reduction == "sum" else torch.where(live, (losses - expected) / total, 0.0)
    assert_near(result.gradients["row_weights"], by_hand, torch.float64, "gradient of row_weights")


def _rows_of(case: Embeddings, similarity: str, prior: float) -> list[oracle.Inputs]:
    queries, items = case.queries.tolist(), case.items.tolist()
    return [
        oracle.scores_of_row(
            queries[b],
            items,
            int(case.pos_ids[b]),
            (case.neg_ids if case.neg_ids.dim() == 1 else case.neg_ids[b]).tolist(),
            () if case.extra_ids is None else case.extra_ids[b].tolist(),
            None if case.log_q is None else case.log_q[b].tolist(),
            similarity,
            prior,
        )
        for b in range(len(queries))
    ]


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("similarity", ["half_cosine", "cosine", "dot"])
def test_embeddings(similarity: str, shared: bool, backend: str) -> None:
    """The losses, and the gradients along a random direction of both tables."""
    arguments = {"temperature": 0.4, "detach_weights": False}
    case = make_embeddings(4, 6, dim=3, items=7, m=2, seed=5, shared=shared, padding=True, log_q=True, scale=0.5)
    result = evaluate(case, torch.ones(4), backend=backend, similarity=similarity, prior=0.05, **arguments)
    rows = [oracle.row(r, **arguments) for r in _rows_of(case, similarity, 0.05)]
    assert [r.live for r in rows] == [True, True, True, False]
    assert_near(result.loss, _losses(rows), torch.float64, "loss")

    g = generator(6)
    for name in ("queries", "items"):
        table = getattr(case, name)
        direction = torch.randn(table.shape, generator=g, dtype=torch.float64)

        def summed(step: oracle.Decimal) -> oracle.Decimal:
            moved = [
                [oracle.Decimal(x) + step * oracle.Decimal(v) for x, v in zip(row, way)]
                for row, way in zip(table.tolist(), direction.tolist())
            ]
            tables = {"queries": case.queries.tolist(), "items": case.items.tolist(), name: moved}
            total = oracle.Decimal(0)
            for b in range(4):
                ids = case.neg_ids if shared else case.neg_ids[b]
                inputs = oracle.scores_of_row(
                    tables["queries"][b],
                    tables["items"],
                    int(case.pos_ids[b]),
                    ids.tolist(),
                    case.extra_ids[b].tolist(),
                    case.log_q[b].tolist(),
                    similarity,
                    0.05,
                )
                total += oracle.row(inputs, **arguments).loss
            return total

        expected = exact(oracle.derivative(summed))
        along = (result.gradients[name] * direction).sum()
        size = result.gradients[name].abs().max().item()
        assert_near(along, expected, torch.float64, name, slack=size * 1e-13)

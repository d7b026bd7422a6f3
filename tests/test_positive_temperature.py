"""A temperature of its own for the positive: L gains s⁺·(1/τ − 1/τ⁺), before the confidence multiplies it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import (
    DTYPE_IDS,
    DTYPES,
    VARIANTS,
    against_truth,
    assert_near,
    evaluate,
    exact,
    make_embeddings,
    make_scores,
)
from levels import ROWS, assert_is_the_oracles, each_level, make_level
from torch import Tensor

from cw_ext import CWLoss

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)


@pytest.mark.parametrize("positive_temperature", [0.05, 0.3, 10.0])
def test_without_weights_it_is_two_temperatures(backend: str, positive_temperature: float) -> None:
    """LSE_j(s_j/τ) − s⁺/τ⁺, with autograd's gradients."""
    tau, arguments = 0.2, {"weighting": "none", "reduction": "none", "backend": backend}
    case = make_scores((5,), 30, seed=1)
    leaves, by_hand = case.leaves(), case.leaves()
    loss = leaves.loss(temperature=tau, positive_temperature=positive_temperature, **arguments)
    expected = torch.logsumexp(by_hand.neg / tau, -1) - by_hand.pos / positive_temperature
    assert_near(loss, expected, torch.float64)
    loss.sum().backward()
    expected.sum().backward()
    for name, gradient in leaves.gradients().items():
        assert_near(gradient, by_hand.gradients()[name], torch.float64, name)


def test_of_embeddings(backend: str) -> None:
    tau, tau_plus, case = 0.2, 0.5, make_embeddings(5, 30, seed=2)

    def cosines(queries: Tensor, rows: Tensor) -> Tensor:
        return torch.nn.functional.cosine_similarity(queries, rows, dim=-1)

    for similarity, scale in (("half_cosine", 0.5), ("cosine", 1.0)):
        leaves, by_hand = case.leaves(), case.leaves()
        arguments = {"weighting": "none", "similarity": similarity, "reduction": "none", "backend": backend}
        loss = leaves.loss(temperature=tau, positive_temperature=tau_plus, **arguments)
        pos = scale * cosines(by_hand.queries, by_hand.items[case.pos_ids])
        neg = scale * cosines(by_hand.queries.unsqueeze(1), by_hand.items[case.neg_ids])
        expected = torch.logsumexp(neg / tau, -1) - pos / tau_plus
        assert_near(loss, expected, torch.float64)
        loss.sum().backward()
        expected.sum().backward()
        for name, gradient in leaves.gradients().items():
            assert_near(gradient, by_hand.gradients()[name], torch.float64, name)


@each_level
@pytest.mark.parametrize("tau", [0.125, 0.1, 0.37])
def test_the_same_temperature_changes_nothing(backend: str, device: torch.device, level: str, tau: float) -> None:
    """To the last bit."""
    for dtype in (torch.float64, torch.float32):
        case = make_level(level).to(dtype, device)
        arguments: dict[str, Any] = {"temperature": tau, "confidence_temperature": 0.5, "prior": 0.1}
        expected = evaluate(case, backend=backend, **arguments)
        found = evaluate(case, backend=backend, positive_temperature=tau, **arguments)
        assert torch.equal(found.loss, expected.loss)
        for name, gradient in found.gradients.items():
            assert torch.equal(gradient, expected.gradients[name]), name


@each_dtype
@each_level
def test_each_level(kernels: None, device: torch.device, level: str, dtype: torch.dtype) -> None:
    for arguments in ({"positive_temperature": 0.15}, {"positive_temperature": 0.4, "confidence_temperature": 0.5}):
        against_truth(make_level(level), dtype, device, **arguments)
        against_truth(make_level(level), dtype, device, torch.arange(ROWS) - 2.5, **arguments)


@pytest.mark.parametrize(
    ("variant", "temperature"),
    [
        *((name, "number") for name in ("defaults", "infonce", "floor-binds", "confidence-threshold", "everything")),
        *((name, "rows") for name in ("prior-through", "min-margin-binds", "confidence-through", "tanh-weighted")),
    ],
)
def test_loss_and_gradients_are_those_of_the_formula(backend: str, variant: str, temperature: str) -> None:
    """Also that of a temperature per row, which gains −s⁺/τ²."""
    case, arguments = make_scores((4,), 7, 2, seed=3, log_q=True), VARIANTS[variant]
    if temperature == "rows":
        case = replace(case, temperature=exact([0.1, 0.2, 0.3, 0.4]))
        arguments = {k: v for k, v in arguments.items() if k != "temperature"}
    assert_is_the_oracles(case, backend, positive_temperature=0.33, **arguments)


def test_gradcheck(backend: str) -> None:
    case = make_scores((3,), 6, seed=4)

    def loss(pos: Tensor, neg: Tensor, temperature: Tensor) -> Tensor:
        arguments = {"detach_weights": False, "confidence_temperature": 1.0, "backend": backend}
        scores = replace(case, pos=pos, neg=neg, temperature=temperature)
        return scores.loss(positive_temperature=0.3, reduction="none", **arguments)

    leaves = tuple(x.requires_grad_() for x in (case.pos, case.neg, exact([0.2, 0.3, 0.4])))
    assert torch.autograd.gradcheck(loss, leaves)
    assert torch.autograd.gradgradcheck(loss, leaves)


def test_a_row_without_negatives_stays_out(backend: str) -> None:
    case = replace(make_scores((3,), 6, seed=5), log_q=torch.zeros(3, 6, dtype=torch.float64))
    case.log_q[1] = -math.inf
    result = evaluate(case, torch.ones(3), positive_temperature=0.3, backend=backend)
    assert result.loss[1] == 0 and result.gradients["pos"][1] == 0 and result.loss[[0, 2]].all()


def test_large_scores(kernels: None, device: torch.device) -> None:
    """s⁺·(1/τ − 1/τ⁺) is not a difference of two large numbers."""
    case = make_scores((5,), 30, seed=6, spread=1e4)
    case = replace(case, pos=case.pos.round(), neg=case.neg.round())
    for dtype in (torch.float64, torch.float32):
        against_truth(case, dtype, device, exponents=1e6, temperature=0.1, positive_temperature=0.11)


def test_the_module(backend: str) -> None:
    case = make_scores((5,), 9, seed=7)
    criterion = CWLoss(positive_temperature=0.2, backend=backend)
    assert torch.equal(criterion(case.pos, case.neg), case.loss(positive_temperature=0.2, backend=backend))
    assert torch.equal(case.loss(positive_temperature=None, backend=backend), case.loss(backend=backend))
    assert "positive_temperature=0.2" in repr(criterion)


@pytest.mark.parametrize(
    ("value", "error", "got"),
    [
        (0, ValueError, "0"),
        (-0.1, ValueError, "-0.1"),
        (math.nan, ValueError, "nan"),
        (math.inf, ValueError, "inf"),
        ("0.1", TypeError, "str"),
        (True, TypeError, "bool"),
        (torch.tensor(0.1), TypeError, "Tensor"),
    ],
)
def test_bad_values(backend: str, value: Any, error: type[Exception], got: str) -> None:
    for case in (make_scores(), make_embeddings()):
        with pytest.raises(error, match=rf"^positive_temperature must be .*> 0.*got {got}$"):
            case.loss(positive_temperature=value, backend=backend)

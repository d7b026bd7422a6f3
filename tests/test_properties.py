"""What the mathematics promises for any input, and random inputs against the oracle."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
from cases import VARIANTS, Scores, assert_near, evaluate, exact, generator, make_scores, tolerance
from hypothesis import HealthCheck, given, settings
from strategies import loss_arguments, oracle_rows

from cw_ext import cw_loss

# Those in which the loss sees margins only.
OF_MARGINS = {name: v for name, v in VARIANTS.items() if "confidence_temperature" not in v}
each_of_margins = pytest.mark.parametrize("arguments", OF_MARGINS.values(), ids=OF_MARGINS.keys())
each_variant = pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS.keys())
ONES = torch.ones(4)


def _case(**arguments: Any) -> Scores:
    return make_scores((4,), 9, 3, seed=71, log_q=True, **arguments)


@each_of_margins
def test_a_common_shift_changes_nothing(backend: str, arguments: dict[str, Any]) -> None:
    case = _case()
    moved = replace(case, pos=case.pos + 8, neg=case.neg + 8, extra=case.extra + 8)
    a, b = (evaluate(c, ONES, backend=backend, **arguments) for c in (case, moved))
    # Adding 8 rounds a score to eps·8, and a temperature of .1 makes ten times that of it.
    slack = 80 * torch.finfo(torch.float64).eps
    assert_near(a.loss, b.loss, torch.float64, slack=slack)
    for name, gradient in a.gradients.items():
        assert_near(gradient, b.gradients[name], torch.float64, name, slack=100 * slack)


@each_of_margins
def test_the_gradients_of_a_row_sum_to_zero(backend: str, arguments: dict[str, Any]) -> None:
    """The same statement, for the gradient."""
    for dtype in (torch.float64, torch.float32):
        result = evaluate(_case().to(dtype), ONES, backend=backend, **arguments)
        pos, neg, extra = (result.gradients[name] for name in ("pos", "neg", "extra"))
        total = pos + neg.sum(1) + extra.sum(1)
        assert total.abs().max() <= tolerance(dtype) * pos.abs().max()


@each_variant
def test_the_order_of_negatives_does_not_matter(backend: str, arguments: dict[str, Any]) -> None:
    case = _case()
    order = torch.randperm(9, generator=generator(72))
    shuffled = replace(case, neg=case.neg[:, order], log_q=case.log_q[:, order], extra=case.extra.flip(1))
    a, b = (evaluate(c, ONES, backend=backend, **arguments) for c in (case, shuffled))
    assert_near(a.loss, b.loss, torch.float64)
    assert_near(a.gradients["neg"][:, order], b.gradients["neg"], torch.float64)
    assert_near(a.gradients["extra"].flip(1), b.gradients["extra"], torch.float64)
    assert_near(a.gradients["pos"], b.gradients["pos"], torch.float64)


@each_variant
def test_masking_is_leaving_out(backend: str, arguments: dict[str, Any]) -> None:
    case = make_scores((4,), 9, 3, seed=73)
    log_q = torch.randn((4, 9), generator=generator(74), dtype=torch.float64)
    log_q[:, [1, 4, 8]] = -math.inf
    kept = [0, 2, 3, 5, 6, 7]
    a = evaluate(replace(case, log_q=log_q), ONES, backend=backend, **arguments)
    b = evaluate(replace(case, neg=case.neg[:, kept], log_q=log_q[:, kept]), ONES, backend=backend, **arguments)
    assert_near(a.loss, b.loss, torch.float64)
    assert_near(a.gradients["pos"], b.gradients["pos"], torch.float64)
    for name in ("neg", "log_q"):
        assert_near(a.gradients[name][:, kept], b.gradients[name], torch.float64, name)
        assert not a.gradients[name][:, [1, 4, 8]].any()


@pytest.mark.parametrize("name", ["defaults", "prior-through", "linear-normalized-through", "floor-binds"])
def test_a_duplicate_is_a_weight_of_two(backend: str, name: str) -> None:
    """The same mean; N_eff counts the copy, so the loss grows by log(10/9)."""
    arguments = VARIANTS[name]
    case = make_scores((4,), 9, 3, seed=75)
    twice = replace(case, neg=torch.cat((case.neg, case.neg[:, 4:5]), 1))
    log_q = torch.zeros(4, 9, dtype=torch.float64)
    log_q[:, 4] = math.log(2)
    a = evaluate(twice, ONES, backend=backend, **arguments)
    b = evaluate(replace(case, log_q=log_q), ONES, backend=backend, **arguments)
    assert_near(a.loss, b.loss + math.log(10 / 9), torch.float64)
    assert_near(a.gradients["pos"], b.gradients["pos"], torch.float64)
    merged = a.gradients["neg"][:, :9].clone()
    merged[:, 4] += a.gradients["neg"][:, 9]
    assert_near(merged, b.gradients["neg"], torch.float64)


@each_variant
def test_the_scale_of_the_external_weights_does_not_matter(backend: str, arguments: dict[str, Any]) -> None:
    case = _case()
    for shift in (-700.0, 3.0, 700.0):
        a, b = (
            evaluate(c, ONES, backend=backend, **arguments) for c in (case, replace(case, log_q=case.log_q + shift))
        )
        slack = abs(shift) * 4 * torch.finfo(torch.float64).eps
        assert_near(a.loss, b.loss, torch.float64, slack=slack)
        assert_near(a.gradients["neg"], b.gradients["neg"], torch.float64, slack=100 * slack)


@pytest.mark.parametrize("weighting", ["none", "sigmoid", "exponential", "linear"])
def test_the_unit_of_the_scores_does_not_matter(backend: str, weighting: str) -> None:
    """Scores, τ and ρ in halves or in wholes: half the τ and ρ of the cosine for ½·cos."""
    case = _case()
    half = replace(case, pos=case.pos / 2, neg=case.neg / 2, extra=case.extra / 2)
    whole = evaluate(
        case, ONES, temperature=0.5, weighting=weighting, weight_temperature=2.0, prior=0.1, backend=backend
    )
    halved = evaluate(
        half, ONES, temperature=0.25, weighting=weighting, weight_temperature=1.0, prior=0.1, backend=backend
    )
    assert_near(whole.loss, halved.loss, torch.float64)
    assert_near(2 * whole.gradients["neg"], halved.gradients["neg"], torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_weights_and_prior_it_is_logsumexp(backend: str, dtype: torch.dtype) -> None:
    """To a few roundings, not to the tolerance of a corrected row."""
    case = make_scores((50,), 33, seed=76).to(dtype)
    loss = cw_loss(case.pos, case.neg, weighting="none", reduction="none", backend=backend)
    expected = torch.logsumexp((case.neg - case.pos.unsqueeze(1)) / 0.1, 1)
    assert torch.allclose(loss, expected, rtol=8 * torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["defaults", "prior", "linear-through", "min-margin"])
def test_a_further_positive_equal_to_the_positive_adds_nothing(backend: str, name: str) -> None:
    """C = ω(0)·e⁰ is what C is without extra positives."""
    case = make_scores((4,), 9, seed=77)
    with_it = replace(case, extra=case.pos.unsqueeze(1).expand(4, 2))
    a, b = (c.loss(backend=backend, **(VARIANTS[name] | {"prior": 0.1})) for c in (case, with_it))
    assert_near(a, b, torch.float64)


def test_a_prior_of_zero_does_not_see_further_positives(backend: str) -> None:
    case = make_scores((4,), 9, 3, seed=78)
    result = evaluate(case, ONES, backend=backend)
    without = evaluate(replace(case, extra=None), ONES, backend=backend)
    assert torch.equal(result.loss, without.loss)
    assert not result.gradients["extra"].any()


def test_where_the_floor_binds_further_positives_have_no_gradient(backend: str) -> None:
    case = make_scores((4,), 9, 3, seed=79)
    arguments = {"prior": 0.99, "floor": 0.9, "backend": backend}
    bound = evaluate(case, ONES, **arguments)
    assert not bound.gradients["extra"].any()
    # "the gradient is that of log A": of the uncorrected loss.
    plain = evaluate(replace(case, extra=None), ONES, backend=backend)
    for name in ("pos", "neg"):
        assert_near(bound.gradients[name], plain.gradients[name], torch.float64, name)
    assert_near(bound.loss, plain.loss + math.log(0.9 / (1 - 0.99)), torch.float64)


def test_no_row_is_amplified_more_than_the_floor_allows(backend: str) -> None:
    """Each negative's gradient is at most 1/ε of what it is without a correction, and never dead."""
    for seed in range(20):
        case = make_scores((20,), 9, 3, seed=1000 + seed)
        plain = evaluate(case, torch.ones(20), backend=backend).gradients["neg"]
        for floor in (0.05, 0.3):
            corrected = evaluate(case, torch.ones(20), prior=0.3, floor=floor, backend=backend)
            ratio = corrected.gradients["neg"] / plain
            assert ratio.min() >= 1 - 1e-12 and ratio.max() <= (1 + 1e-12) / floor


# ---- random inputs -----------------------------------------------------------------------------------------

_random = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the fixtures hold nothing to reset
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@_random
@given(rows=oracle_rows(), arguments=loss_arguments())
def test_random_rows(backend: str, dtype: torch.dtype, rows: list[oracle.Inputs], arguments: dict[str, Any]) -> None:
    threshold = arguments.pop("confidence_threshold")
    tensor = lambda name: torch.tensor([getattr(r, name) for r in rows], dtype=dtype)  # noqa: E731
    case = Scores(tensor("pos"), tensor("negatives"), tensor("extras"), tensor("log_q"), tensor("prior"))
    result = evaluate(case, torch.ones(len(rows)), confidence_threshold=threshold, backend=backend, **arguments)
    eps = torch.finfo(dtype).eps
    for b, inputs in enumerate(rows):
        inputs = inputs._replace(threshold=threshold)
        truth = oracle.row(inputs, **arguments)
        size = abs(float(truth.loss))
        # An exponent d/τ or d/ρ is as exact as its size allows; the correction may lose 1/ε of that.
        steepness = 1 / arguments["temperature"] + 1 / abs(arguments["weight_temperature"] or 1.0)
        left = 1.0 if truth.floor_binds or not inputs.prior else _left_after_correction(inputs, arguments)
        slack = 16 * eps * (1 + 8 * steepness) / left
        if arguments["confidence_temperature"] is not None:
            slack = 2 * slack + eps * size * (abs(inputs.pos - threshold) / arguments["confidence_temperature"])
        assert_near(result.loss[b], exact(float(truth.loss)), dtype, f"row {b}", slack=slack)
        for name, gradient in result.gradients.items():
            assert gradient[b].isfinite().all(), name
            assert truth.live or not gradient[b].any(), name


@_random
@given(rows=oracle_rows(), arguments=loss_arguments())
def test_random_gradients(kernels: None, rows: list[oracle.Inputs], arguments: dict[str, Any]) -> None:
    """The kernels' against the reference's, kinks of ω, of the surrogates and of the floor included."""
    tensor = lambda name: exact([getattr(r, name) for r in rows])  # noqa: E731
    case = Scores(tensor("pos"), tensor("negatives"), tensor("extras"), tensor("log_q"), tensor("prior"))
    ones = torch.ones(len(rows))
    fused, reference = (evaluate(case, ones, backend=b, **arguments) for b in ("fused", "reference"))
    oracles = {k: v for k, v in arguments.items() if k != "confidence_threshold"}
    steepness = 1 + 1 / arguments["temperature"] + 1 / abs(arguments["weight_temperature"] or 1.0)
    for b, inputs in enumerate(rows):
        left = _left_after_correction(inputs, oracles) if oracle.row(inputs, **oracles).live else 1.0
        largest = max(1.0, *(g[b].abs().max().item() for g in reference.gradients.values() if g[b].numel()))
        for name, gradient in fused.gradients.items():
            slack = 64 * torch.finfo(torch.float64).eps * steepness * largest / left
            assert_near(gradient[b], reference.gradients[name][b], torch.float64, f"{name} {b}", slack)


def _left_after_correction(inputs: oracle.Inputs, arguments: dict[str, Any]) -> float:
    """(A − πC)/A, from the oracle's loss with and without the correction."""
    plain = arguments | {"include_positive": False, "confidence_temperature": None, "floor": 1e-30}
    corrected = oracle.row(inputs, **plain)
    uncorrected = oracle.row(inputs._replace(prior=0.0), **plain)
    return max(1e-6, math.exp(min(0.0, float(corrected.loss - uncorrected.loss))) * (1 - inputs.prior))

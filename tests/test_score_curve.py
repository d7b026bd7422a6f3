"""Weights from a curve: its interpolation against numpy's, and the loss against what such weights are by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import (
    DTYPE_IDS,
    DTYPES,
    VARIANTS,
    against_truth,
    assert_near,
    evaluate,
    exact,
    generator,
    make_embeddings,
    make_scores,
    saved_and_loaded,
)
from levels import ROWS, assert_is_the_oracles, each_level, make_level
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from cw_ext import CWLoss, cw_loss
from cw_ext.score_curve import ScoreCurve

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
each_axis = pytest.mark.parametrize("on", ["score", "margin"])


def _knots(count: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=generator(seed), dtype=torch.float64)


# ---- the curve itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 7, 257])
@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.5), (-3.0, 1.7), (0.2, 0.3)])
def test_between_knots_it_is_the_line_that_numpy_draws(count: int, low: float, high: float) -> None:
    knots = _knots(count)
    x = torch.linspace(low - 0.4 * (high - low), high + 0.4 * (high - low), 997, dtype=torch.float64).reshape(-1, 1)
    for dtype in (torch.float64, torch.float32):
        rounded = x.to(dtype)
        expected = np.interp(rounded.double().numpy(), np.linspace(low, high, count), knots.numpy())
        found = ScoreCurve(low, high, knots)(rounded)
        assert found.dtype == dtype and found.shape == x.shape
        # A rounding of x, in the distance of two knots.
        slack = 4 * torch.finfo(dtype).eps * count / (high - low) * knots.diff().abs().max().item()
        assert_near(found, torch.from_numpy(expected), dtype, slack=slack)


def test_what_is_exact() -> None:
    """The ends, knots at places that a float can hold, and anything between equal knots."""
    knots = _knots(9)
    curve = ScoreCurve(-0.5, 0.5, knots)
    places = torch.linspace(-0.5, 0.5, 9, dtype=torch.float64)
    assert torch.equal(curve(places), knots)
    for low, high in ((-0.3, 0.1), (0.1, 0.7), (-0.74, 0.8)):  # whose places are rounded
        for dtype in (torch.float64, torch.float32):
            x = exact([low, high, low - 1, high + 1, -math.inf, math.inf]).to(dtype)
            assert torch.equal(ScoreCurve(low, high, knots)(x), knots[[0, -1, 0, -1, 0, -1]].to(dtype))
        level = ScoreCurve(low, high, torch.full((6,), 0.1))
        assert (level(torch.linspace(-1, 1, 1001)) == torch.tensor(0.1)).all()


def test_neither_a_cache_nor_a_line_of_text_takes_all_of_it() -> None:
    curve = ScoreCurve(-0.5, 0.5, _knots(257), on="margin")
    with pytest.raises(TypeError, match="unhashable"):
        hash(curve)
    assert repr(curve) == "ScoreCurve(-0.5, 0.5, 257 log weights, on='margin')"
    assert torch.equal(saved_and_loaded(curve).log_weights, curve.log_weights)
    assert curve.to("meta").log_weights.is_meta and curve.to("meta").on == "margin"


def test_half_precision_is_computed_in_fp32() -> None:
    x = torch.linspace(-1, 1, 101).bfloat16()
    curve = ScoreCurve(-0.5, 0.5, _knots().bfloat16())
    assert torch.equal(curve(x), replace(curve, log_weights=curve.log_weights.float())(x.float()))
    assert curve(x).dtype == torch.float32


def test_masks_and_nan() -> None:
    """Beside a knot of −inf only the finite knot itself is finite; NaN stays where it is."""
    inf, nan = math.inf, math.nan
    curve = ScoreCurve(0.0, 4.0, exact([1.0, -inf, 2.0, -inf, -inf]))
    x = exact([-1, 0, 0.25, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, nan])
    expected = exact([1, 1, -inf, -inf, -inf, 2, -inf, -inf, -inf, -inf, -inf, nan])
    assert torch.equal(curve(x).nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))
    knots = curve.log_weights.requires_grad_()
    curve(x)[:-1].exp().sum().backward()
    assert_near(knots.grad, exact([2 * math.e, 0, math.e**2, 0, 0]), torch.float64)
    assert not knots.grad[[1, 3, 4]].any()


def test_gradients_are_those_of_the_knots_alone() -> None:
    x = torch.linspace(-0.7, 0.7, 31, dtype=torch.float64, requires_grad=True)
    knots = _knots().requires_grad_()
    value = ScoreCurve(-0.5, 0.5, knots)(x)
    assert torch.autograd.grad(value.sum(), x, allow_unused=True, retain_graph=True) == (None,)
    # The value is linear in the knots: a knot's share of it is that of a curve which is 1 there and 0 elsewhere.
    for k in range(7):
        hat = ScoreCurve(-0.5, 0.5, torch.eye(7, dtype=torch.float64)[k])(x)
        weight = torch.randn(31, generator=generator(k), dtype=torch.float64)
        (found,) = torch.autograd.grad(value, knots, weight, retain_graph=True)
        assert_near(found[k], (weight * hat).sum(), torch.float64)
    assert torch.autograd.gradcheck(lambda w: ScoreCurve(-0.5, 0.5, w)(x.detach()), knots)
    assert torch.autograd.gradgradcheck(lambda w: ScoreCurve(-0.5, 0.5, w)(x.detach()).exp(), knots)


def test_a_sampled_function_is_as_near_as_it_says() -> None:
    """h²/8·max|f″|, and max|(log σ)″| = 1/(4ρ²)."""
    rho = 0.1
    x = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    for count in (33, 257):
        curve = ScoreCurve.from_function(lambda d: F.logsigmoid(-d / rho), -1.0, 1.0, count, on="margin")
        error = (curve(x) - F.logsigmoid(-x / rho)).abs().max().item()
        bound = (2 / (count - 1)) ** 2 / 8 / (4 * rho**2)
        assert 0.5 * bound < error <= bound
    assert curve.on == "margin" and curve.log_weights.shape == (257,)


def test_in_a_compiled_function(kernels: None) -> None:
    """One graph, for any values; a curve is made inside of it, too."""

    def function(x: Tensor, knots: Tensor) -> Tensor:
        return ScoreCurve(-0.5, 0.5, knots, on="margin")(x)

    x = torch.linspace(-1, 1, 101)
    for seed in range(3):
        knots = _knots(seed=seed)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(x, knots)
        assert torch.equal(compiled, function(x, knots))


LOG_WEIGHTS = torch.zeros(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"low": "0"}, TypeError, "low must be a number, got str"),
        ({"low": math.nan}, ValueError, "low must be a number, got nan"),
        ({"high": math.inf}, ValueError, "high must be a number, got inf"),
        ({"high": torch.tensor(1.0)}, TypeError, "high must be a number, got Tensor"),
        ({"low": -1e31}, ValueError, r"low must be a number in \[−1e\+30, 1e\+30\], got -1e\+31"),
        ({"high": -0.5}, ValueError, "high must be > low = -0.5, .*got -0.5"),
        ({"high": -1}, ValueError, "high must be > low = -0.5, .*got -1"),
        ({"low": 0.0, "high": 1e-40}, ValueError, "high must be > low = 0.0, by 1e-30 or more, got 1e-40"),
        ({"log_weights": [0.0, 1.0]}, TypeError, "log_weights must be a torch.Tensor, got list"),
        ({"log_weights": LOG_WEIGHTS.long()}, TypeError, "log_weights must have dtype float16, .*got int64"),
        ({"log_weights": LOG_WEIGHTS.to_sparse()}, TypeError, "log_weights must be a dense .*got layout .*"),
        ({"log_weights": LOG_WEIGHTS[:1]}, ValueError, r"log_weights must have shape \[K\] with K ≥ 2, got \(1,\)"),
        ({"log_weights": LOG_WEIGHTS[None]}, ValueError, r"log_weights must have .*K ≥ 2, got \(1, 3\)"),
        ({"log_weights": LOG_WEIGHTS[0]}, ValueError, r"log_weights must have .*K ≥ 2, got \(\)"),
        ({"log_weights": LOG_WEIGHTS + math.nan}, ValueError, "log_weights must be finite or −inf, got nan"),
        ({"log_weights": LOG_WEIGHTS + math.inf}, ValueError, "log_weights must be finite or −inf, got inf"),
        ({"on": "scores"}, ValueError, "on must be one of 'score', 'margin', got 'scores'"),
        ({"on": None}, ValueError, "on must be one of 'score', 'margin', got None"),
    ],
)
def test_bad_curves(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        ScoreCurve(**{"low": -0.5, "high": 0.5, "log_weights": LOG_WEIGHTS} | arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"knots": 1}, ValueError, "knots must be an integer ≥ 2, got 1"),
        ({"knots": 2.0}, TypeError, "knots must be an integer ≥ 2, got float"),
        ({"function": lambda x: 1.0}, TypeError, r"function\(x\) must be a torch.Tensor, got float"),
        ({"function": lambda x: x[1:]}, ValueError, r"function\(x\) must have shape \(257,\), .*, got \(256,\)"),
        ({"function": lambda x: x.exp() / 0}, ValueError, "log_weights must be finite or −inf, got inf"),
        ({"high": -1}, ValueError, "high must be > low = -0.5, .*got -1"),
    ],
)
def test_bad_functions(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        ScoreCurve.from_function(**{"function": torch.zeros_like, "low": -0.5, "high": 0.5} | arguments)


def test_bad_places() -> None:
    curve = ScoreCurve(-0.5, 0.5, LOG_WEIGHTS)
    with pytest.raises(TypeError, match="^x must be a torch.Tensor, got float"):
        curve(0.1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^x must have dtype .*got int64"):
        curve(torch.arange(3))
    with pytest.raises(ValueError, match="^x must be on the device of log_weights, cpu, got meta"):
        curve(LOG_WEIGHTS.to("meta"))


# ---- in the loss ---------------------------------------------------------------------------------------------------


def _curve(on: str, low: float = -0.8, high: float = 0.6, count: int = 33) -> ScoreCurve:
    """Places for a case's knots."""
    return ScoreCurve(low, high, torch.zeros(count), on)  # type: ignore[arg-type]


@each_level
@each_axis
@pytest.mark.cpu_kernels  # elsewhere the two may take different kernels: to ask would be to wait for the device
def test_a_curve_of_zero_is_no_curve(backend: str, device: torch.device, level: str, on: str) -> None:
    """To the last bit."""
    for dtype in (torch.float64, torch.float32):
        case = make_level(level).to(dtype, device)
        expected = evaluate(case, prior=0.1, backend=backend)
        zero = ScoreCurve(-0.3, 0.3, torch.zeros(7, device=device), on)  # type: ignore[arg-type]
        found = evaluate(case, prior=0.1, backend=backend, score_curve=zero)
        assert torch.equal(found.loss, expected.loss)
        for name, gradient in found.gradients.items():
            assert torch.equal(gradient, expected.gradients[name]), name


@each_dtype
@each_level
@pytest.mark.parametrize(
    ("on", "arguments"),
    [("score", {}), ("margin", {"prior": 0.1, "normalize_weights": True, "detach_weights": False})],
)
def test_each_level(
    kernels: None, device: torch.device, level: str, on: str, dtype: torch.dtype, arguments: dict[str, Any]
) -> None:
    case = replace(make_level(level), knots=_knots(33))
    against_truth(case, dtype, device, score_curve=_curve(on), **arguments)
    against_truth(case, dtype, device, torch.arange(ROWS) - 2.5, score_curve=_curve(on), **arguments)


@each_axis
@pytest.mark.parametrize(
    "variant", ["defaults", "infonce", "sigmoid-normalized-through", "min-margin-through", "confidence-through", "tanh"]
)
def test_loss_and_gradients_are_those_of_the_formula(backend: str, variant: str, on: str) -> None:
    case = replace(make_scores((4,), 7, 2, seed=3, log_q=True), knots=_knots(5))
    case.knots[3] = -math.inf
    assert_is_the_oracles(case, backend, score_curve=_curve(on, -0.5, 0.5, 5), **VARIANTS[variant])


@each_axis
def test_it_is_neg_log_weights_of_the_same_values(backend: str, device: torch.device, on: str) -> None:
    """Of random knots, by numpy, as constants. And the gradient of the knots is theirs, by the shares of the knots."""
    case, knots, places = make_scores((5,), 40, 2, seed=4, log_q=True), _knots(6), np.linspace(-0.4, 0.5, 6)
    x = (case.neg if on == "score" else case.neg - case.pos.unsqueeze(-1)).numpy()
    by_hand = replace(case, log_q=case.log_q + torch.from_numpy(np.interp(x, places, knots.numpy())))
    arguments = {"prior": 0.05, "include_positive": True, "backend": backend}
    expected = evaluate(by_hand.to(device=device), torch.ones(5, device=device), **arguments)
    curved = replace(case, knots=knots).to(device=device)
    found = evaluate(curved, torch.ones(5, device=device), score_curve=_curve(on, -0.4, 0.5, 6), **arguments)
    assert_near(found.loss, expected.loss, torch.float64)
    for name, gradient in expected.gradients.items():
        assert_near(found.gradients[name], gradient, torch.float64, name)
    hats = torch.stack([torch.from_numpy(np.interp(x, places, hat)) for hat in np.eye(6)])
    by_knot = (hats * expected.gradients["log_q"].cpu()).flatten(1).sum(1)
    assert_near(found.gradients["knots"], by_knot, torch.float64, "knots", slack=1e-13)


def test_of_embeddings_it_is_a_function_of_the_cosine(backend: str) -> None:
    case = make_embeddings(5, 30, 8, 11, seed=6)
    knots, places = _knots(6), np.linspace(-0.4, 0.5, 6)
    for similarity, scale in (("half_cosine", 0.5), ("cosine", 1.0)):
        items, queries = case.items[case.neg_ids], case.queries.unsqueeze(1)
        scores = scale * F.cosine_similarity(queries, items, dim=-1)
        by_hand = replace(case, log_q=torch.from_numpy(np.interp(scores.numpy(), places, knots.numpy())))
        curve = ScoreCurve(-0.4, 0.5, knots)
        expected = by_hand.loss(similarity=similarity, backend=backend)
        assert_near(case.loss(similarity=similarity, backend=backend, score_curve=curve), expected, torch.float64)


@each_level
def test_a_sigmoid_sampled_at_257_margins_is_the_sigmoid(backend: str, level: str) -> None:
    """A curve is in Σ q, too, so that it is the normalized weights that it stands for."""
    rho, case = 0.1, make_level(level)
    curve = ScoreCurve.from_function(lambda d: F.logsigmoid(-d / rho), -1.0, 1.0, on="margin")
    found = evaluate(case, weighting="none", score_curve=curve, backend=backend)
    expected = evaluate(case, weighting="sigmoid", weight_temperature=rho, normalize_weights=True, backend=backend)
    assert abs(found.loss - expected.loss) < 1e-4
    for name, gradient in found.gradients.items():
        if name not in ("log_q", "row_weights"):  # those of log q go through ω in the one and not in the other
            error = (gradient - expected.gradients[name]).norm()
            assert error <= 1e-3 * expected.gradients[name].norm(), name


def test_the_sum_of_the_weights_is_what_a_sampled_sigmoid_is_divided_by(backend: str) -> None:
    """Without normalize_weights the row is log mean ω larger."""
    rho, case = 0.1, make_scores((5,), 40, seed=2)
    curve = ScoreCurve.from_function(lambda d: F.logsigmoid(-d / rho), -1.0, 1.0, on="margin")
    found = case.loss(weighting="none", score_curve=curve, reduction="none", backend=backend)
    sigmoid = case.loss(weighting="sigmoid", weight_temperature=rho, reduction="none", backend=backend)
    mean = torch.sigmoid(-(case.neg - case.pos.unsqueeze(-1)) / rho).mean(-1)
    assert ((found + mean.log() - sigmoid).abs() < 1e-4).all()


@each_axis
def test_minus_infinity_masks_as_neg_log_weights_do(backend: str, device: torch.device, on: str) -> None:
    """Also from N_eff; and a row whose negatives are all masked is left out."""
    case = make_scores((6,), 9, 2, seed=7)
    case.neg[2] = case.neg[2] + 3.0  # all of row 2 is beyond
    x = case.neg if on == "score" else case.neg - case.pos.unsqueeze(-1)
    masked = replace(case, log_q=torch.where(x > 0, -math.inf, 0.0)).to(device=device)
    case = case.to(device=device)
    curve = ScoreCurve(-0.75, 0.25, exact([0.0, 0.0, 0.0, 0.0, -math.inf]).to(device), on)  # type: ignore[arg-type]
    assert (x[2] > 0).all() and ((x > 0).any(1) & (x < 0).any(1)).any()
    for arguments in ({"reduction": "none"}, {}, {"prior": 0.1, "normalize_weights": True}):
        found = evaluate(case, score_curve=curve, backend=backend, **arguments)
        expected = evaluate(masked, backend=backend, **arguments)
        assert_near(found.loss, expected.loss, torch.float64)
        for name, gradient in found.gradients.items():
            assert gradient.isfinite().all() and not gradient[2].any(), name
            assert_near(gradient, expected.gradients[name], torch.float64, name)


def test_masked_knots_have_no_gradient(backend: str) -> None:
    case = replace(make_scores((6,), 9, seed=7), knots=exact([0.1, -0.3, 0.2, -math.inf, -math.inf]))
    gradient = evaluate(case, score_curve=_curve("score", -0.5, 0.5, 5), backend=backend).gradients["knots"]
    assert gradient.isfinite().all() and gradient[:3].all() and not gradient[3:].any()


@pytest.mark.parametrize("on", ["score", "margin"])
def test_a_nan_is_nowhere_on_a_curve_that_masks_at_its_ends(backend: str, device: torch.device, on: str) -> None:
    """It spoils its row, as it does without a curve."""
    knots = torch.zeros(5, dtype=torch.float64)
    knots[[0, -1]] = -math.inf
    case = replace(make_scores((4,), 9, seed=8), knots=knots)
    case.neg[1, 3] = math.nan
    found = evaluate(case.to(device=device), torch.ones(4), score_curve=_curve(on, -1.5, 1.5, 5), backend=backend)
    assert found.loss.isnan().tolist() == [False, True, False, False]
    assert found.gradients["neg"][[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite(backend: str, device: torch.device, value: float) -> None:
    """It makes its own row NaN; −inf has no mass, and the weight of the curve's first knot."""
    case = replace(make_scores((4,), 9, seed=8), knots=_knots(33))
    case.neg[1, 3] = value
    found = evaluate(case.to(device=device), torch.ones(4), score_curve=_curve("score"), backend=backend)
    assert found.loss.isnan().tolist() == [False, not value == -math.inf, False, False]
    assert found.gradients["neg"][[0, 2, 3]].isfinite().all()
    if value == -math.inf:
        lowest = replace(case, log_q=ScoreCurve(-0.8, 0.6, case.knots)(case.neg), knots=None)
        assert_near(found.loss, lowest.loss(reduction="none", backend="reference"), torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradcheck_of_the_knots(backend: str, reduction: str) -> None:
    case = make_scores((3,), 6, 2, seed=9, log_q=True)

    def loss(knots: Tensor, log_q: Tensor) -> Tensor:
        curve = ScoreCurve(-0.5, 0.5, knots, on="margin")
        arguments = {"prior": 0.05, "detach_weights": False, "normalize_weights": True, "reduction": reduction}
        return replace(case, log_q=log_q).loss(score_curve=curve, backend=backend, **arguments)

    log_q = case.log_q.clamp(min=-3.0).requires_grad_()
    inputs = (_knots(5).requires_grad_(), log_q)
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)


def test_the_loss_compiled_with_other_knots_is_not_compiled_again(kernels: None, backend: str) -> None:
    case = make_scores((5,), 40, seed=10).to(torch.float32)
    counter = CompileCounter()

    def loss(pos: Tensor, neg: Tensor, knots: Tensor) -> Tensor:
        return cw_loss(pos, neg, score_curve=ScoreCurve(-0.5, 0.5, knots), backend=backend)

    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for seed in range(3):
        knots = _knots(seed=seed).float()
        assert_near(compiled(case.pos, case.neg, knots), loss(case.pos, case.neg, knots), torch.float32)
    assert counter.frame_count == 1


def test_the_module_learns_its_knots(backend: str) -> None:
    """A step down their gradient lowers the loss."""
    case = make_scores((50,), 40, seed=11)
    knots = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    criterion = CWLoss(weighting="none", score_curve=ScoreCurve(-0.5, 0.5, knots), backend=backend)
    first = criterion(case.pos, case.neg)
    first.backward()
    with torch.no_grad():
        knots -= 0.1 * knots.grad
    assert criterion(case.pos, case.neg) < first - 0.05 * knots.grad.square().sum()
    assert "score_curve=ScoreCurve(" in repr(criterion)


@pytest.mark.parametrize(
    ("curve", "error", "message"),
    [
        (torch.zeros(3), TypeError, "score_curve must be .*ScoreCurve.* or None, got Tensor"),
        ((-1.0, 1.0), TypeError, "score_curve must be .*ScoreCurve.* or None, got tuple"),
        (torch.sigmoid, TypeError, "score_curve must be .*ScoreCurve.* or None, got builtin_function"),
        (ScoreCurve(-1, 1, torch.zeros(3, device="meta")), ValueError, "score_curve.* device of .*, cpu, got meta"),
    ],
)
def test_what_is_no_curve(backend: str, curve: Any, error: type[Exception], message: str) -> None:
    for case in (make_scores(), make_embeddings()):
        with pytest.raises(error, match=f"^{message}"):
            case.loss(score_curve=curve, backend=backend)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_log_weights_make_their_rows_nan(backend: str, value: float) -> None:
    """They can come to be after the curve was made: a learned curve diverges."""
    log_weights = torch.zeros(3)
    curve = ScoreCurve(0.0, 1.0, log_weights)
    log_weights[2] = value
    pos, neg = torch.zeros(2), torch.tensor([[0.1, 0.2], [0.3, 0.9]])
    loss = cw_loss(pos, neg, score_curve=curve, reduction="none", backend=backend)
    assert loss.isnan().tolist() == [False, True]

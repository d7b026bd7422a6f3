"""The temperature as a tensor: one for all rows or one per row, with its gradient, at every level."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
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
    generator,
    make_embeddings,
    make_scores,
)
from levels import ROWS, assert_is_the_oracles, each_level, make_level
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from cw_ext import CWLoss, cw_loss, cw_loss_from_embeddings

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
# ρ follows τ and is a constant or not, or is a number; each floor; each surrogate; the positive's confidence.
SOME = [
    *("defaults", "sl", "infonce", "sigmoid-normalized-through", "prior-through", "linear-through", "min-margin"),
    *("min-margin-binds", "min-margin-through", "floor-binds-through", "confidence-through", "tanh", "atan-weighted"),
    *("relu-weighted", "exponential-hard-normalized-through", "everything"),
]


def _variant(name: str) -> dict[str, Any]:
    return {k: v for k, v in VARIANTS[name].items() if k != "temperature"}


def _per_row(rows: int = ROWS) -> Tensor:
    return 0.1 + 0.05 * torch.arange(rows, dtype=torch.float64)


@each_dtype
@each_level
@pytest.mark.parametrize(
    ("form", "arguments"),
    [("one", {}), ("rows", {"prior": 0.1, "detach_weights": False, "normalize_weights": True})],
    ids=["one", "rows"],
)
def test_each_level(
    kernels: None, device: torch.device, level: str, dtype: torch.dtype, form: str, arguments: dict[str, Any]
) -> None:
    case = replace(make_level(level), temperature=_per_row() if form == "rows" else exact(0.2))
    against_truth(case, dtype, device, **arguments)
    against_truth(case, dtype, device, torch.arange(ROWS) - 2.5, **arguments)


@pytest.mark.parametrize("variant", SOME)
def test_every_parameter(kernels: None, device: torch.device, variant: str) -> None:
    for dtype in (torch.float64, torch.float32):
        for case in (make_scores((5,), 37, 3, seed=2, log_q=True), make_embeddings(5, 21, 8, 11, 3, seed=2)):
            warm = replace(case, temperature=_per_row(5))
            against_truth(warm, dtype, device, torch.arange(5) - 1.5, **_variant(variant))


@pytest.mark.parametrize(
    ("variant", "form"),
    [*((name, "rows") for name in SOME), ("defaults", "one"), ("everything", "one"), ("min-margin-binds", "one")],
)
def test_loss_and_gradients_are_those_of_the_formula(backend: str, variant: str, form: str) -> None:
    case = make_scores((4,), 7, 2, seed=3, log_q=True)
    case = replace(case, temperature=_per_row(4) if form == "rows" else exact(0.2))
    assert_is_the_oracles(case, backend, **_variant(variant))


@each_level
@pytest.mark.parametrize("value", [0.125, 0.1, 1.7])
def test_equal_temperatures_are_the_number(backend: str, device: torch.device, level: str, value: float) -> None:
    """To the last bit: the number is one that fp32 holds, as a tensor is rounded to what the row is computed in."""
    value = torch.tensor(value).item()
    for dtype in (torch.float64, torch.float32):
        case = make_level(level).to(dtype, device)
        arguments = {"prior": 0.1, "detach_weights": False, "backend": backend}
        expected = evaluate(case, temperature=value, **arguments)
        for shape in ((), (ROWS,)):
            tensor = torch.full(shape, value, dtype=dtype, device=device)
            found = evaluate(case, temperature=tensor, **arguments)
            assert torch.equal(found.loss, expected.loss)
            for name, gradient in found.gradients.items():
                assert torch.equal(gradient, expected.gradients[name]), name


def test_any_leading_shape_and_dtype(backend: str, device: torch.device) -> None:
    case = make_scores((2, 3), 9, seed=4)
    rows = _per_row(6).reshape(2, 3)
    of_one = [
        replace(case, pos=pos, neg=neg).loss(temperature=tau.item(), backend="reference")
        for pos, neg, tau in zip(case.pos.flatten(), case.neg.flatten(0, 1), rows.flatten())
    ]
    for dtype in DTYPES:
        temperature = rows.to(dtype)
        leaves = replace(case, temperature=temperature).to(device=device).leaves()
        loss = leaves.loss(reduction="none", backend=backend)
        assert loss.shape == (2, 3)
        loss.sum().backward()
        assert leaves.temperature.grad.dtype == dtype and leaves.temperature.grad.shape == (2, 3)
        if dtype == torch.float64:
            assert_near(loss, torch.stack(of_one).reshape(2, 3), dtype)


def test_only_the_temperature_wants_a_gradient(backend: str, device: torch.device) -> None:
    case = replace(make_scores((5,), 9, 2, seed=5), temperature=_per_row(5)).to(device=device)
    arguments = {"prior": 0.1, "detach_weights": False, "backend": backend}
    all_of_them = evaluate(case, **arguments)
    alone = evaluate(case, names=["temperature"], **arguments)
    assert alone.gradients.keys() == {"temperature"} and all_of_them.gradients["temperature"].all()
    assert torch.equal(alone.gradients["temperature"], all_of_them.gradients["temperature"])
    without = evaluate(case, names=["pos", "neg"], **arguments)
    assert torch.equal(without.gradients["neg"], all_of_them.gradients["neg"])


@pytest.mark.parametrize("shape", [(), (3,)])
def test_gradcheck(backend: str, shape: tuple[int, ...]) -> None:
    case = make_scores((3,), 6, 2, seed=6, log_q=True)
    table = make_embeddings(3, 6, 4, 7, 2, seed=6)
    arguments: dict[str, Any] = {"prior": 0.05, "detach_weights": False, "reduction": "none", "backend": backend}

    def of_scores(pos: Tensor, neg: Tensor, temperature: Tensor) -> Tensor:
        return replace(case, pos=pos, neg=neg).loss(temperature=temperature, **arguments)

    def of_embeddings(queries: Tensor, items: Tensor, temperature: Tensor) -> Tensor:
        return replace(table, queries=queries, items=items).loss(temperature=temperature, **arguments)

    for loss, inputs in ((of_scores, (case.pos, case.neg)), (of_embeddings, (table.queries, table.items))):
        leaves = tuple(x.clone().requires_grad_() for x in (*inputs, torch.full(shape, 0.3, dtype=torch.float64)))
        assert torch.autograd.gradcheck(loss, leaves)
        assert torch.autograd.gradgradcheck(loss, leaves)


def test_a_row_without_negatives_has_no_gradient(backend: str) -> None:
    case = replace(make_scores((3,), 6, seed=7), temperature=_per_row(3))
    case = replace(case, log_q=torch.zeros(3, 6, dtype=torch.float64))
    case.log_q[1] = -math.inf
    gradient = evaluate(case, backend=backend).gradients["temperature"]
    assert gradient.isfinite().all() and gradient[1] == 0 and gradient[[0, 2]].all()


@pytest.mark.parametrize("surrogate", ["relu", "atan"])
def test_a_surrogate_of_zero_has_no_share_in_the_gradient(backend: str, surrogate: str) -> None:
    """0^(1/τ) is 0 for every τ, though its logarithm's derivative is not a number."""
    case = replace(make_scores((3,), 6, 2, seed=7), temperature=_per_row(3))
    case.neg[:, ::2] -= 4.0
    case.extra[0, 0] -= 4.0
    assert_is_the_oracles(case, backend, surrogate=surrogate, prior=0.05)
    case.neg[1] = -4.0
    gradients = evaluate(case, torch.ones(3), surrogate=surrogate, backend=backend).gradients
    assert all(g.isfinite().all() and not g[1].any() for g in gradients.values()), "no negative has any mass"


@pytest.mark.parametrize("level", ["scores", "embeddings"])
def test_a_learned_temperature_reaches_its_optimum(backend: str, level: str) -> None:
    """As in CLIP, log τ is a parameter. Positives are drawn from the softmax at τ = 0.2, so that the best τ for them is
    inside; a search on the formula in numpy finds where."""
    g = generator(8)
    case = make_embeddings(300, 12, 6, 12, seed=9)
    half_cosines = 0.5 * nn.functional.normalize(case.queries) @ nn.functional.normalize(case.items).T
    pos_ids = torch.multinomial((half_cosines / 0.2).softmax(1), 1, generator=g).squeeze(1)
    rest = torch.stack([torch.arange(12)[torch.arange(12) != p] for p in pos_ids])
    pos, neg = half_cosines.gather(1, pos_ids.unsqueeze(1)).squeeze(1), half_cosines.gather(1, rest)

    def cross_entropy(log_tau: float) -> float:
        scores = half_cosines.numpy() / np.exp(log_tau)
        return float(np.mean(logsumexp(scores, axis=1) - scores[np.arange(300), pos_ids]))

    best = minimize_scalar(cross_entropy, bounds=(-4, 2), method="bounded", options={"xatol": 1e-8}).x
    assert 0.1 < math.exp(best) < 0.4
    log_tau = nn.Parameter(exact(0.0))
    optimizer = torch.optim.Adam([log_tau], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    arguments: dict[str, Any] = {"weighting": "none", "include_positive": True, "backend": backend}
    for _ in range(250):
        optimizer.zero_grad()
        if level == "scores":
            loss = cw_loss(pos, neg, temperature=log_tau.exp(), **arguments)
        else:
            loss = cw_loss_from_embeddings(
                case.queries, case.items, pos_ids, rest, temperature=log_tau.exp(), **arguments
            )
        loss.backward()
        optimizer.step()
        schedule.step()
    assert abs(log_tau.item() - best) < 1e-3
    assert abs(loss.item() - cross_entropy(best)) < 1e-6


@pytest.mark.parametrize("shape", [(), (5,)])
def test_another_value_is_not_compiled_again(kernels: None, backend: str, shape: tuple[int, ...]) -> None:
    case, table = make_scores((5,), 40, seed=10).to(torch.float32), make_embeddings(5, 40, seed=10).to(torch.float32)

    def loss(temperature: Tensor) -> Tensor:
        return case.loss(temperature=temperature, backend=backend) + table.loss(
            temperature=temperature.exp(), detach_weights=False, backend=backend
        )

    counter = CompileCounter()
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for value in (0.1, 0.2, 1.0):
        own, plain = (torch.full(shape, value, requires_grad=True) for _ in range(2))
        result, expected = compiled(own), loss(plain)
        assert_near(result, expected, torch.float32)
        result.backward()
        expected.backward()
        assert_near(own.grad, plain.grad, torch.float32)
    assert counter.frame_count == 1


def test_the_module_with_a_parameter(backend: str) -> None:
    case = make_scores((5,), 9, seed=11)
    tau = nn.Parameter(exact(0.3))
    criterion = CWLoss(temperature=tau, backend=backend)
    criterion(case.pos, case.neg).backward()
    expected = evaluate(replace(case, temperature=exact(0.3)), names=["temperature"], backend="reference")
    assert_near(tau.grad, expected.gradients["temperature"], torch.float64)


@pytest.mark.parametrize(
    ("temperature", "error", "message"),
    [
        (exact(0.0), ValueError, "> 0, got 0.0"),
        (exact([0.1, -0.2, 0.1]), ValueError, "> 0, got -0.2"),
        (exact([0.1, 0.1, math.nan]), ValueError, ".*got nan"),
        (exact(math.inf), ValueError, ".*got inf"),
        (exact([0.1, 0.1]), ValueError, r".*or a tensor of shape \(\) or \(3,\), one value per row, got \(2,\)"),
        (exact([0.1]), ValueError, r".*or a tensor of shape \(\) or \(3,\), one value per row, got \(1,\)"),
        (
            exact([[0.1, 0.1, 0.1]]),
            ValueError,
            r".*or a tensor of shape \(\) or \(3,\), one value per row, got \(1, 3\)",
        ),
        (torch.ones(3, dtype=torch.int64), TypeError, "dtype .*got int64"),
        (torch.ones(3, device="meta"), ValueError, "on the device of .*, cpu, got meta"),
        (torch.ones(3).to_sparse(), TypeError, r"a dense \(strided\) tensor"),
        (None, TypeError, "a number > 0.*got NoneType"),
        ([0.1, 0.1, 0.1], TypeError, "a number > 0.*got list"),
    ],
)
def test_bad_temperatures(backend: str, temperature: Any, error: type[Exception], message: str) -> None:
    for case in (make_scores((3,), 4), make_embeddings(3, 4)):
        with pytest.raises(error, match=rf"^temperature must (be|have) {message}|^temperature must {message}"):
            case.loss(temperature=temperature, backend=backend)

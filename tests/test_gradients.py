"""First and second derivatives: gradcheck where the loss itself is differentiated, frozen weights where
it is not, and backward called in every way that autograd allows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import Case, Scores, assert_near, evaluate, exact, generator, make_embeddings, make_scores
from levels import each_level, make_level
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

WEIGHTINGS: dict[str, dict[str, Any]] = {
    "none": {"weighting": "none"},
    "sigmoid": {"weighting": "sigmoid", "weight_temperature": 0.3},
    "exponential": {"weighting": "exponential"},
    "exponential-hard": {"weighting": "exponential", "weight_temperature": -0.5},
    "linear": {"weighting": "linear"},
    "sigmoid-normalized": {"weighting": "sigmoid", "normalize_weights": True},
    "linear-normalized": {"weighting": "linear", "normalize_weights": True},
}
FLOORS: dict[str, dict[str, Any]] = {
    "off": {"prior": 0.05, "floor": 0.01},
    "bound": {"prior": 0.8, "floor": 0.95},
    "margin-off": {"prior": 0.05, "min_margin": -3.0},
    "margin-bound": {"prior": 0.05, "min_margin": 0.9},
}
REST: dict[str, Any] = {"temperature": 0.3, "confidence_temperature": 0.8, "include_positive": True}

each_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)
each_floor = pytest.mark.parametrize("floor", FLOORS)


def _scores() -> Scores:
    case = make_scores((2,), 4, 2, seed=21, log_q=True, row_weights=True, spread=0.2)
    return replace(case, threshold=exact([0.1, -0.2]))


def _embeddings() -> Case:
    case = make_embeddings(2, 4, 3, 6, 2, seed=22, padding=False, log_q=True)
    return replace(case, threshold=exact([0.1, -0.2]))


def _function(case: Case, arguments: dict[str, Any]) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The loss as a function of the case's floating tensors, and those."""
    names = list(case.leaves().gradients())

    def function(*values: Tensor) -> Tensor:
        return replace(case, **dict(zip(names, values))).loss(reduction="none", **arguments)

    return function, tuple(getattr(case, name).clone().requires_grad_() for name in names)


def _finite_differences_hold(case: Case, arguments: dict[str, Any]) -> None:
    # Masked negatives stand at −inf, where a finite difference is NaN: their weights are finite here.
    assert case.log_q is not None
    function, inputs = _function(replace(case, log_q=case.log_q.clamp(min=-3)), arguments)
    assert gradcheck(function, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


@each_floor
@each_weighting
def test_gradcheck_scores(backend: str, weighting: str, floor: str) -> None:
    arguments = REST | WEIGHTINGS[weighting] | FLOORS[floor]
    _finite_differences_hold(_scores(), arguments | {"detach_weights": False, "backend": backend})


@each_floor
@each_weighting
def test_gradcheck_embeddings(backend: str, weighting: str, floor: str) -> None:
    arguments = REST | WEIGHTINGS[weighting] | FLOORS[floor]
    _finite_differences_hold(_embeddings(), arguments | {"detach_weights": False, "backend": backend})


@pytest.mark.parametrize("surrogate", ["tanh", "atan", "relu"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_gradcheck_surrogates(backend: str, surrogate: str, similarity: str) -> None:
    arguments = {"surrogate": surrogate, "prior": 0.05, "detach_weights": False, "backend": backend}
    _finite_differences_hold(_scores(), arguments)
    _finite_differences_hold(_embeddings(), arguments | {"similarity": similarity, "temperature": 2.0})


@each_floor
@each_weighting
def test_the_floor_is_where_it_should_be(weighting: str, floor: str) -> None:
    """The names above are true of each of their rows, for the case of scores."""
    case, arguments = _scores(), WEIGHTINGS[weighting] | FLOORS[floor]
    prior = arguments.pop("prior")
    for b in range(2):
        inputs = oracle.Inputs(
            case.pos[b].item(), case.neg[b].tolist(), case.extra[b].tolist(), case.log_q[b].tolist(), prior
        )
        row = oracle.row(inputs, temperature=REST["temperature"], **arguments)
        assert row.floor_binds == floor.endswith("bound")


@each_floor
@each_weighting
def test_detached_weights_are_frozen(backend: str, weighting: str, floor: str) -> None:
    """A finite difference of the loss would move ω as well; the oracle's holds it still."""
    case = _scores()
    arguments = REST | WEIGHTINGS[weighting] | FLOORS[floor]
    prior = arguments.pop("prior")
    result = evaluate(replace(case, row_weights=None), torch.ones(2), prior=prior, backend=backend, **arguments)
    for b in range(2):
        inputs = oracle.Inputs(
            case.pos[b].item(),
            case.neg[b].tolist(),
            case.extra[b].tolist(),
            case.log_q[b].tolist(),
            prior,
            case.threshold[b].item(),
        )
        truth = oracle.row_gradients(inputs, **arguments)
        for name, its_name in (("pos", "pos"), ("neg", "negatives"), ("extra", "extras"), ("log_q", "log_q")):
            assert_near(result.gradients[name][b], exact(truth[its_name]), torch.float64, name)


def _log_omega(margin: Tensor, weighting: dict[str, Any]) -> Tensor:
    rho = weighting.get("weight_temperature", 1.0)
    match weighting["weighting"]:
        case "sigmoid":
            return F.logsigmoid(-margin / rho)
        case "exponential":
            return -margin / rho
        case "linear":
            return torch.log(1 - margin / rho)
    return torch.zeros_like(margin)


@pytest.mark.parametrize("weighting", ["none", "sigmoid", "exponential", "exponential-hard", "linear"])
@pytest.mark.parametrize("level", [1, 2])
def test_detached_weights_equal_external_ones(backend: str, weighting: str, level: int) -> None:
    """Without a correction, a detached ω is an external weight log q + log ω: the same gradient of the
    scores, and a loss that is off by the constant log(Σ qω / Σ q)."""
    arguments = WEIGHTINGS[weighting]
    case: Any = _scores() if level == 1 else _embeddings()
    case = replace(case, log_q=case.log_q.clamp(min=-3), row_weights=None)
    if level == 1:
        margin = case.neg - case.pos.unsqueeze(1)
    else:
        unit = F.normalize(case.queries, dim=-1).unsqueeze(1)
        score = lambda ids: 0.5 * (unit * F.normalize(case.items, dim=-1)[ids]).sum(-1)  # noqa: E731
        margin = score(case.neg_ids) - score(case.pos_ids.unsqueeze(1))
    log_omega = _log_omega(margin, arguments)
    external = replace(case, log_q=case.log_q + log_omega)
    ones = torch.ones(2)
    detached = evaluate(case, ones, temperature=0.3, backend=backend, **arguments)
    frozen = evaluate(external, ones, temperature=0.3, weighting="none", backend="reference")
    constant = torch.logsumexp(external.log_q, 1) - torch.logsumexp(case.log_q, 1)
    assert_near(detached.loss, frozen.loss + constant, torch.float64)
    for name in ("pos", "neg", "extra") if level == 1 else ("queries", "items"):
        assert_near(detached.gradients[name], frozen.gradients[name], torch.float64, name)
    # And the frozen form is one that a finite difference can check.
    _finite_differences_hold(external, {"temperature": 0.3, "weighting": "none", "backend": backend})


@pytest.mark.parametrize("weighting", ["none", "sigmoid", "exponential-hard", "linear-normalized"])
@pytest.mark.parametrize("floor", ["off", "bound", "margin-bound"])
@pytest.mark.parametrize("case", [_scores(), _embeddings()], ids=["scores", "embeddings"])
def test_double_backward(backend: str, case: Case, weighting: str, floor: str) -> None:
    arguments = REST | WEIGHTINGS[weighting] | FLOORS[floor] | {"detach_weights": False, "backend": backend}
    case = replace(case, log_q=case.log_q.clamp(min=-3))
    function, inputs = _function(case, arguments)
    assert gradgradcheck(function, inputs, eps=1e-6, atol=1e-5, rtol=1e-4, gen_non_contig_grad_outputs=True)


@pytest.mark.parametrize("case", [_scores(), _embeddings()], ids=["scores", "embeddings"])
@pytest.mark.parametrize("detach", [True, False])
def test_second_derivatives_of_the_kernels_are_the_references(kernels: None, case: Case, detach: bool) -> None:
    """Masked negatives included. With detached weights the second derivative, too, takes ω as a constant."""
    found = []
    for backend in ("fused", "reference"):
        arguments = {
            "detach_weights": detach,
            "prior": 0.1,
            "confidence_temperature": 0.8,
            "backend": backend,
        }
        function, inputs = _function(case, arguments)
        weight = torch.randn(2, generator=generator(23), dtype=torch.float64)
        first = torch.autograd.grad(function(*inputs), inputs, weight, create_graph=True)
        plain = torch.autograd.grad(function(*inputs), inputs, weight)
        directions = [torch.randn(g.shape, generator=generator(24), dtype=torch.float64) for g in first]
        second = torch.autograd.grad(first, inputs, directions, allow_unused=True)
        found.append((first, plain, second))
    for parts in zip(*found):
        for name, fused, reference in zip(_names(case), *parts):
            assert (fused is None) == (reference is None)
            if fused is not None:
                assert_near(fused, reference, torch.float64, name)


def _names(case: Case) -> list[str]:
    return list(case.leaves().gradients())


@pytest.mark.parametrize("case", [_scores(), _embeddings()], ids=["scores", "embeddings"])
def test_hessian_vector_product(backend: str, case: Case) -> None:
    """Against a difference of first gradients, which no double backward has touched."""
    case = replace(case, log_q=None, threshold=None, row_weights=None)
    function, inputs = _function(case, {"prior": 0.1, "detach_weights": False, "backend": backend})
    way = tuple(torch.randn(t.shape, generator=generator(25), dtype=torch.float64) for t in inputs)
    _, product = torch.autograd.functional.hvp(lambda *x: function(*x).sum(), inputs, way)

    def gradient(step: float) -> tuple[Tensor, ...]:
        moved = [(t + step * v).detach().requires_grad_() for t, v in zip(inputs, way)]
        return torch.autograd.grad(function(*moved).sum(), moved)

    step = 1e-6
    for found, above, below in zip(product, gradient(step), gradient(-step)):
        assert torch.allclose(found, (above - below) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", [_scores(), _embeddings()], ids=["scores", "embeddings"])
def test_backward_twice(backend: str, device: torch.device, case: Case, reduction: str) -> None:
    """The second backward sees what the first saw, for any two values of grad_output."""
    leaves = case.to(torch.float32, device).leaves()
    inputs = [getattr(leaves, name) for name in _names(case)]
    loss = leaves.loss(prior=0.1, confidence_temperature=1.0, reduction=reduction, backend=backend)
    weights = torch.randn(loss.shape, generator=generator(26)).to(device)
    grad = functools.partial(torch.autograd.grad, loss, inputs, retain_graph=True)
    first, other, second = grad(weights), grad(-100 * weights), grad(weights)
    for name, a, b, c in zip(_names(case), first, other, second):
        assert_near(c, a, torch.float32, name)
        assert_near(b, -100 * a, torch.float32, name)
        assert a.abs().max() > 0, name


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("case", [make_scores((4,), 5, 2), make_embeddings(4, 5)], ids=["scores", "embeddings"])
def test_the_last_backward_leaves_earlier_results_alone(backend: str, case: Case, reduction: str) -> None:
    """It may write to what the graph has saved, being about to free it, but not to what anyone holds."""
    leaves = case.leaves()
    inputs = [getattr(leaves, name) for name in _names(case)]
    loss = leaves.loss(backend=backend, reduction=reduction).sum()
    kept = torch.autograd.grad(loss, inputs, retain_graph=True)
    copies = [gradient.clone() for gradient in kept]
    last = torch.autograd.grad(-3 * loss, inputs)
    for name, a, copy, b in zip(_names(case), kept, copies, last):
        assert torch.equal(a, copy), name
        assert_near(b, -3 * copy, torch.float64, name)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("case", [make_scores((4,), 5), make_embeddings(4, 5)], ids=["scores", "embeddings"])
def test_each_row_is_scaled_by_its_own_grad_output(backend: str, case: Case) -> None:
    """Row b alone gives row b's gradient: nothing is scaled by the first row's grad_output."""
    name = "neg" if isinstance(case, Scores) else "queries"
    whole = evaluate(case, torch.arange(4.0), backend=backend).gradients[name]
    assert not whole[0].any()
    for b in range(1, 4):
        alone = evaluate(case, F.one_hot(torch.tensor(b), 4), backend=backend).gradients[name]
        assert_near(whole[b], b * alone[b], torch.float64)
        alone[b] = 0
        assert not alone.any()


def test_gradients_accumulate(backend: str) -> None:
    leaves = make_embeddings(4, 5).leaves()
    leaves.loss(backend=backend).backward()
    once = leaves.items.grad.clone()
    leaves.loss(backend=backend).backward()
    assert_near(leaves.items.grad, 2 * once, torch.float64)


@each_level
def test_inputs_computed_from_one_another(backend: str, device: torch.device, level: str) -> None:
    """Queries and temperatures from the items, as in a model that shares its table: by way of each, once."""
    case = make_level(level).to(device=device)
    source = (case.neg[0] if isinstance(case, Scores) else case.items).detach()

    def gradient(source: Tensor, create_graph: bool = False) -> Tensor:
        if isinstance(case, Scores):
            own = replace(case, pos=source[:6].tanh(), neg=source.expand(6, -1))
        else:
            own = replace(case, queries=source[:6].tanh(), items=source)
        own = replace(own, temperature=0.3 + source.reshape(-1)[:6].sigmoid())
        loss = own.loss(detach_weights=False, backend=backend)
        return torch.autograd.grad(loss, source, create_graph=create_graph)[0]

    first = gradient(source.requires_grad_(), create_graph=True)
    plain = gradient(source)
    assert_near(first, plain, torch.float64)
    (second,) = torch.autograd.grad(first, source, plain)
    there, back = (gradient((source.detach() + step * plain).requires_grad_()) for step in (1e-5, -1e-5))
    torch.testing.assert_close(second, (there - back) / 2e-5, rtol=1e-6, atol=1e-8)


def test_functional_grad(backend: str) -> None:
    """torch.func's transform gives the gradient that backward gives."""
    case = make_scores((4,), 5, seed=27)
    expected = evaluate(case, backend=backend, reduction="mean").gradients["neg"]
    found = torch.func.grad(lambda neg: replace(case, neg=neg).loss(backend=backend))(case.neg)
    assert_near(found, expected, torch.float64)

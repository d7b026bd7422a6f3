"""torch.func over the loss: every transform against the same thing done sample by sample with autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from cases import Embeddings, Scores, assert_near, evaluate, generator, make_embeddings, make_scores
from drawing import make_drawn
from op_calls import OpCalls
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, jacrev, vmap

from cw_ext import CWEmbeddingLoss, ScoreCurve, cw_loss, cw_loss_from_embeddings

SAMPLES = 4
NAMES = [f.name for f in fields(Scores) if f.name != "knots"]  # a curve is one for all rows
# Without row weights the kernels reduce, and a vmapped call reduces in their place.
REDUCED = [name for name in NAMES if name != "row_weights"]
# Through the weights too, so that a second derivative has all its terms.
ARGUMENTS = {"detach_weights": False, "confidence_temperature": 0.7}


@pytest.fixture(params=["auto", "fused", "reference"])
def any_backend(request: pytest.FixtureRequest) -> str:
    """Every value of the argument."""
    if request.param != "reference":
        request.getfixturevalue("kernels")
    return request.param


def _scores(names: list[str], shape: tuple[int, ...] = (SAMPLES, 3)) -> Scores:
    """All that is named. Row 0 of sample 0 has no negative left: a mean leaves it out, there alone."""
    case = make_scores(shape, 7, 2, seed=91, log_q=True, row_weights="row_weights" in names)
    case.log_q.view(-1, 7)[0] = -math.inf
    g = generator(92)
    prior, threshold = (torch.rand(shape, generator=g, dtype=torch.float64) * 0.3 for _ in range(2))
    temperature = torch.rand(shape, generator=g, dtype=torch.float64) * 0.3 + 0.1
    return replace(case, prior=prior, threshold=threshold, temperature=temperature)


def _tensors(case: Scores, names: list[str]) -> tuple[Tensor, ...]:
    return tuple(getattr(case, name) for name in names)


def _loss(names: list[str], rest: Scores | None = None, **arguments: Any) -> Callable[..., Tensor]:
    """The loss as a function of the named tensors; those of `rest`, and nothing else, are constants."""
    rest = Scores(None, None) if rest is None else rest  # type: ignore[arg-type]
    return lambda *tensors: replace(rest, **dict(zip(names, tensors))).loss(**ARGUMENTS | arguments)


def _samples(case: Scores) -> Iterator[Scores]:
    return (case.map(lambda t, i=i: t[i]) for i in range(SAMPLES))


def _truth(case: Scores, **arguments: Any) -> list[Any]:
    """Loss and gradients of each sample, by autograd through the reference."""
    return [evaluate(sample, backend="reference", **ARGUMENTS | arguments) for sample in _samples(case)]


def _assert_all_near(found: tuple[Tensor, ...], expected: list[Tensor], names: list[str]) -> None:
    for name, gradient, wanted in zip(names, found, expected, strict=True):
        assert_near(gradient, wanted, torch.float64, name)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_grad_and_value(any_backend: str, device: torch.device, reduction: str) -> None:
    case = _scores(NAMES, (3,))
    value_of = _loss(NAMES, reduction=reduction, backend=any_backend)
    transform = grad_and_value(lambda *tensors: value_of(*tensors).sum(), argnums=tuple(range(len(NAMES))))
    gradients, loss = transform(*_tensors(case.to(device=device), NAMES))
    expected = evaluate(case, reduction=reduction, backend="reference", **ARGUMENTS)
    assert_near(loss, expected.loss.sum(), torch.float64)
    _assert_all_near(gradients, [expected.gradients[name] for name in NAMES], NAMES)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("names", [NAMES, REDUCED], ids=["weighted", "reduced"])
@pytest.mark.parametrize("vmapped", [[name] for name in REDUCED] + [["pos", "neg"], REDUCED], ids="-".join)
def test_vmap(any_backend: str, device: torch.device, vmapped: list[str], names: list[str], reduction: str) -> None:
    """Over any tensor or several, the others being the same for all samples."""
    case = _scores(names)
    shared = replace(case.map(lambda t: t[0]), **{name: getattr(case, name) for name in vmapped})
    loss = _loss(names, reduction=reduction, backend=any_backend)
    in_dims = tuple(0 if name in vmapped else None for name in names)
    found = vmap(loss, in_dims)(*_tensors(shared.to(device=device), names))
    for i in range(SAMPLES):
        sample = replace(shared, **{name: getattr(case, name)[i] for name in vmapped})
        expected = sample.loss(reduction=reduction, backend="reference", **ARGUMENTS)
        assert_near(found[i], expected, torch.float64, f"sample {i}")
    assert found.shape == (SAMPLES, *expected.shape)


@pytest.mark.parametrize("own_curves", [False, True], ids=["one curve", "curve of each"])
def test_vmap_of_a_curve_and_counts(any_backend: str, device: torch.device, own_curves: bool) -> None:
    case = make_scores((SAMPLES, 3), 7, 2, seed=95, log_q=True).to(device=device)
    knots = torch.randn(SAMPLES, 5, generator=generator(96), dtype=torch.float64).to(device)

    def loss(pos: Tensor, neg: Tensor, knots: Tensor, backend: str = any_backend) -> Tensor:
        curve = ScoreCurve(-0.5, 0.5, knots, on="margin")
        return cw_loss(pos, neg, score_curve=curve, return_above=True, backend=backend)

    given = knots if own_curves else knots[0]
    found, above = vmap(loss, (0, 0, 0 if own_curves else None))(case.pos, case.neg, given)
    gradients = vmap(grad(lambda *x: loss(*x)[0], argnums=2), (0, 0, 0 if own_curves else None))(
        case.pos, case.neg, given
    )
    for i in range(SAMPLES):
        own = (given[i] if own_curves else given).clone().requires_grad_()
        expected, counts = loss(case.pos[i], case.neg[i], own, backend="reference")
        expected.backward()
        assert_near(found[i], expected, torch.float64, f"sample {i}")
        assert torch.equal(above[i], counts)
        assert_near(gradients[i], own.grad, torch.float64, f"gradient of sample {i}")


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)], ids=str)
def test_shapes_of_a_sample(any_backend: str, shape: tuple[int, ...]) -> None:
    case = make_scores((SAMPLES, *shape), 7, seed=93)
    for reduction in ("mean", "sum", "none"):
        found = vmap(_loss(["pos", "neg"], reduction=reduction, backend=any_backend))(case.pos, case.neg)
        samples = [s.loss(reduction=reduction, backend="reference", **ARGUMENTS) for s in _samples(case)]
        assert_near(found, torch.stack(samples), torch.float64, reduction)


def test_in_dims_and_nesting(any_backend: str) -> None:
    """Any place of the axis, from the end too, and a vmap in a vmap."""
    case = make_scores((SAMPLES, 5), 7, seed=94)
    loss = _loss(["pos", "neg"], backend=any_backend)
    expected = torch.stack([r.loss for r in _truth(case)])
    found = vmap(loss, (1, -1))(case.pos.T, case.neg.movedim(0, -1))
    assert_near(found, expected, torch.float64)
    each = _loss(["pos", "neg"], reduction="none", backend=any_backend)
    rows = vmap(vmap(each), (0, 0), out_dims=1)(case.pos, case.neg)  # [5, SAMPLES]
    assert_near(rows.mean(0), expected, torch.float64)


@pytest.mark.parametrize("names", [NAMES, REDUCED], ids=["weighted", "reduced"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_of_each_sample(any_backend: str, device: torch.device, reduction: str, names: list[str]) -> None:
    """vmap(grad_and_value(...)) of every tensor."""
    case = _scores(names)
    value_of = _loss(names, reduction=reduction, backend=any_backend)
    transform = grad_and_value(lambda *tensors: value_of(*tensors).sum(), argnums=tuple(range(len(names))))
    gradients, loss = vmap(transform)(*_tensors(case.to(device=device), names))
    truth = _truth(case, reduction=reduction)
    assert_near(loss, torch.stack([r.loss.sum() for r in truth]), torch.float64)
    _assert_all_near(gradients, [torch.stack([r.gradients[n] for r in truth]) for n in names], names)


@pytest.mark.parametrize("names", [NAMES, REDUCED], ids=["weighted", "reduced"])
def test_gradients_of_a_vmapped_loss(any_backend: str, names: list[str]) -> None:
    """The other way round: torch.func.grad, and plain backward, of a sum of samples."""
    case = _scores(names)
    total = lambda *tensors: vmap(_loss(names, backend=any_backend))(*tensors).sum()  # noqa: E731
    truth = _truth(case)
    expected = [torch.stack([r.gradients[name] for r in truth]) for name in names]
    found = grad(total, argnums=tuple(range(len(names))))(*_tensors(case, names))
    _assert_all_near(found, expected, names)
    leaves = case.leaves()
    total(*_tensors(leaves, names)).backward()
    _assert_all_near(tuple(leaves.gradients().values()), expected, names)


def test_jacobian_and_second_derivatives(any_backend: str) -> None:
    case = make_scores((3,), 5, seed=95)
    rows = _loss(["pos", "neg"], reduction="none", backend=any_backend)
    truth = _loss(["pos", "neg"], reduction="none", backend="reference")
    inputs = (case.pos, case.neg)
    with torch.no_grad():  # where vjp asks for no graph
        found = jacrev(rows, argnums=(0, 1))(*inputs)
    _assert_all_near(found, torch.autograd.functional.jacobian(truth, inputs), ["pos", "neg"])
    found = jacrev(grad(lambda *t: rows(*t).sum(), argnums=1), argnums=(0, 1))(*inputs)
    hessian = torch.autograd.functional.hessian(lambda *t: truth(*t).sum(), inputs)
    _assert_all_near(found, list(hessian[1]), ["pos", "neg"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_keep_their_dtype(any_backend: str, dtype: torch.dtype) -> None:
    case = make_scores((SAMPLES, 3), 7, seed=96).to(dtype)
    gradients = vmap(grad(_loss(["pos", "neg"], backend=any_backend), argnums=(0, 1)))(case.pos, case.neg)
    truth = _truth(case.to(torch.float64))
    for name, gradient in zip(("pos", "neg"), gradients):
        assert gradient.dtype == dtype
        assert_near(gradient, torch.stack([r.gradients[name] for r in truth]), dtype, name)


def test_gradients_of_a_model_for_each_sample(any_backend: str) -> None:
    """The recipe of per-sample gradients: functional_call, grad, vmap."""
    torch.manual_seed(97)
    model = nn.Linear(6, 8).double()
    users, items = torch.randn(SAMPLES, 6).double(), torch.randn(SAMPLES, 9, 8).double()

    def loss(parameters: dict[str, Tensor], user: Tensor, candidates: Tensor, backend: str) -> Tensor:
        scores = candidates @ torch.tanh(functional_call(model, parameters, user))
        return cw_loss(scores[0], scores[1:], prior=0.05, temperature=0.5, backend=backend)

    parameters = dict(model.named_parameters())
    detached = {name: p.detach() for name, p in parameters.items()}
    found = vmap(grad(loss), (None, 0, 0, None))(detached, users, items, any_backend)
    for i in range(SAMPLES):
        expected = torch.autograd.grad(loss(parameters, users[i], items[i], "reference"), parameters.values())
        _assert_all_near(tuple(found[name][i] for name in parameters), list(expected), list(parameters))


def test_one_call_of_the_kernels_for_all_samples(kernels: None) -> None:
    case = make_scores((SAMPLES, 3), 7, seed=98)
    with OpCalls() as mode:
        vmap(_loss(["pos", "neg"], backend="fused"))(case.pos, case.neg)
    assert [(op.name(), args[0].shape) for op, args, _ in mode.calls] == [("cw_ext::scores_forward", (SAMPLES * 3,))]


def test_a_prior_out_of_range_in_any_sample(any_backend: str) -> None:
    case = make_scores((SAMPLES, 3), 7, seed=99)
    prior = torch.full((SAMPLES, 3), 0.1, dtype=torch.float64)
    prior[2, 1] = 1.5
    names = ["pos", "neg", "prior"]
    for transform in (vmap, lambda f: vmap(grad(f))):
        with pytest.raises(ValueError, match=r"prior must be in \[0, 1\), got 1.5"):
            transform(_loss(names, backend=any_backend))(case.pos, case.neg, prior)


@pytest.mark.thorough
def test_compiled_transforms(kernels: None) -> None:
    """torch.compile would drop the kernels' gradients in silence; left to itself it leaves the transform out."""
    case = make_scores((SAMPLES, 3), 7, seed=100).to(torch.float32)
    transform = {b: vmap(grad(_loss(["pos", "neg"], backend=b), argnums=(0, 1))) for b in ("fused", "reference")}
    expected = transform["reference"](case.pos, case.neg)
    for backend, fullgraph in (("fused", False), ("reference", True)):
        torch.compiler.reset()
        found = torch.compile(transform[backend], fullgraph=fullgraph, backend="aot_eager")(case.pos, case.neg)
        for gradient, wanted in zip(found, expected, strict=True):
            assert_near(gradient, wanted, torch.float32)
    torch.compiler.reset()
    with pytest.raises(Exception, match="use backend='reference' there"):
        torch.compile(transform["fused"], fullgraph=True, backend="aot_eager")(case.pos, case.neg)
    torch.compiler.reset()


# ---- embeddings and sampled --------------------------------------------------------------------------------


def _embedding_loss(case: Embeddings, **arguments: Any) -> Callable[..., Tensor]:
    return lambda queries, items, neg_ids: replace(case, queries=queries, items=items, neg_ids=neg_ids).loss(
        **arguments
    )


def test_grad_of_the_loss_on_embeddings(any_backend: str) -> None:
    case = make_embeddings(4, 5, 6, 9, 2, seed=101, padding=True, log_q=True)
    arguments = {"prior": 0.1, "detach_weights": False}
    transform = grad_and_value(_embedding_loss(case, backend=any_backend, **arguments), argnums=(0, 1))
    gradients, loss = transform(case.queries, case.items, case.neg_ids)
    expected = evaluate(case, names=["queries", "items"], backend="reference", **arguments)
    assert_near(loss, expected.loss, torch.float64)
    _assert_all_near(gradients, list(expected.gradients.values()), ["queries", "items"])


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sampled", {"num_negatives": 5, "seed": 3}),
        ("sampled", {"num_negatives": 5, "seed": 3, "shared": True}),
        ("in_batch", {"num_negatives": 3, "seed": 3}),
        ("full", {}),
    ],
    ids=["sampled", "shared", "mixed", "full"],
)
def test_grad_of_losses_that_find_negatives(any_backend: str, kind: str, settings: dict[str, Any]) -> None:
    case = replace(make_drawn(kind, m=2), settings=settings)

    def loss(queries: Tensor, items: Tensor, backend: str = any_backend) -> Tensor:
        return replace(case, queries=queries, items=items).loss(prior=0.1, backend=backend)

    inputs = [case.queries.clone().requires_grad_(), case.items.clone().requires_grad_()]
    expected = torch.autograd.grad(loss(*inputs, backend="reference"), inputs)
    _assert_all_near(grad(loss, argnums=(0, 1))(case.queries, case.items), list(expected), ["queries", "items"])


@pytest.mark.parametrize("vmapped", ["queries", "items", "pos_ids", "neg_ids", "extra_ids", "log_q", "prior"])
def test_no_vmap_over_embeddings(kernels: None, vmapped: str) -> None:
    case = make_embeddings(4, 5, 6, 9, 2, seed=102, log_q=True)
    case = replace(case, prior=torch.full((4,), 0.1, dtype=torch.float64))
    stacked = getattr(case, vmapped).expand(SAMPLES, *getattr(case, vmapped).shape)
    message = "torch.func.vmap is not supported where the loss looks embeddings up by id. Use it with cw_loss"
    transform = vmap(lambda t: replace(case, **{vmapped: t}).loss(backend="fused"))
    with pytest.raises(NotImplementedError, match=message):
        transform(stacked)


def test_no_vmap_over_embeddings_inside_other_transforms(any_backend: str) -> None:
    case = make_embeddings(4, 5, 6, 9, seed=103)
    criterion = CWEmbeddingLoss(backend=any_backend)
    loss = lambda queries: criterion(queries, case.items, case.pos_ids, case.neg_ids)  # noqa: E731
    stacked = case.queries.expand(SAMPLES, -1, -1)
    for transform in (vmap(loss), vmap(grad(loss)), grad(lambda q: vmap(loss)(q).sum())):
        with pytest.raises(NotImplementedError, match="torch.func.vmap is not supported"):
            transform(stacked)
    ids = case.pos_ids.expand(SAMPLES, -1)
    with pytest.raises(NotImplementedError, match="torch.func.vmap is not supported"):
        vmap(lambda i: cw_loss_from_embeddings(case.queries, case.items, i, case.neg_ids, backend=any_backend))(ids)

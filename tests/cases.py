"""Inputs and parameters that the tests share, and the tolerances, stated once."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cw_ext import cw_loss, cw_loss_from_embeddings

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPE_IDS = ("fp64", "fp32", "bf16", "fp16")

# How far a result may be from another of the same precision, in units of the dtype's eps and of the largest
# value in the result. fp32 and fp64 results carry the rounding of exponents d/τ of size 10 to 100.
# Half-precision inputs are computed in fp32, and their gradients rounded once.
_ROUNDINGS = {torch.float64: 256, torch.float32: 64, torch.bfloat16: 1, torch.float16: 1}


def tolerance(dtype: torch.dtype) -> float:
    """Relative to the largest value of a result."""
    return _ROUNDINGS[dtype] * torch.finfo(dtype).eps


def loss_dtype(dtype: torch.dtype) -> torch.dtype:
    """The loss of fp16 and bf16 inputs is computed, and returned, in fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def child_environment(**changes: str) -> dict[str, str]:
    """The environment of a process of its own that imports what the tests import."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path} | changes


def saved_and_loaded(value: Any) -> Any:
    """What torch.save writes, read again."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# Every parameter of the loss, each weighting with its gradient let through and not, each floor bound and not.
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "sl": {"weighting": "none"},
    "infonce": {"weighting": "none", "include_positive": True},
    "temperature": {"temperature": 0.37},
    "sigmoid": {"weight_temperature": 0.23, "detach_weights": False},
    "sigmoid-normalized": {"normalize_weights": True, "prior": 0.05},
    "sigmoid-normalized-through": {"normalize_weights": True, "detach_weights": False, "prior": 0.05},
    "exponential": {"weighting": "exponential"},
    "exponential-through": {"weighting": "exponential", "weight_temperature": 0.4, "detach_weights": False},
    "exponential-hard": {"weighting": "exponential", "weight_temperature": -0.3},
    "exponential-hard-normalized-through": {
        "weighting": "exponential",
        "weight_temperature": -0.3,
        "detach_weights": False,
        "normalize_weights": True,
    },
    "linear": {"weighting": "linear"},
    "linear-some-zero": {"weighting": "linear", "weight_temperature": 0.2},
    "linear-through": {"weighting": "linear", "weight_temperature": 0.5, "detach_weights": False},
    "linear-normalized-through": {
        "weighting": "linear",
        "weight_temperature": 0.5,
        "detach_weights": False,
        "normalize_weights": True,
    },
    "prior": {"prior": 0.1},
    "prior-through": {"prior": 0.1, "detach_weights": False},
    "prior-none": {"prior": 0.2, "weighting": "none", "floor": 0.01},
    "floor-binds": {"prior": 0.95, "floor": 0.6},
    "floor-binds-through": {"prior": 0.95, "floor": 0.6, "detach_weights": False},
    "floor-one": {"prior": 0.3, "floor": 1.0},
    "min-margin": {"prior": 0.1, "min_margin": -1.0},
    "min-margin-binds": {"prior": 0.1, "min_margin": 0.4, "include_positive": True},
    "min-margin-through": {"prior": 0.1, "min_margin": -0.1, "detach_weights": False},
    "confidence": {"confidence_temperature": 2.5},
    "confidence-threshold": {"confidence_temperature": 0.3, "confidence_threshold": 0.2, "prior": 0.1},
    "confidence-through": {
        "confidence_temperature": 0.4,
        "detach_weights": False,
        "include_positive": True,
        "prior": 0.05,
    },
    "include-positive": {"include_positive": True, "prior": 0.05},
    "tanh": {"surrogate": "tanh", "weighting": "none"},
    "tanh-weighted": {"surrogate": "tanh", "prior": 0.1, "detach_weights": False},
    "atan": {"surrogate": "atan", "weighting": "none"},
    "atan-weighted": {"surrogate": "atan", "prior": 0.1, "weighting": "linear"},
    "relu": {"surrogate": "relu", "weighting": "none"},
    "relu-weighted": {"surrogate": "relu", "prior": 0.1, "weighting": "exponential", "detach_weights": False},
    "everything": {
        "temperature": 0.2,
        "prior": 0.1,
        "weighting": "sigmoid",
        "weight_temperature": 0.3,
        "detach_weights": False,
        "normalize_weights": True,
        "floor": 0.2,
        "confidence_temperature": 0.7,
        "confidence_threshold": 0.05,
        "include_positive": True,
        "surrogate": "tanh",
    },
}


# The row code is the same for every level, and scores and embeddings cross all variants with all dtypes.
_IN_EVERY_DTYPE = ("defaults", "exponential-hard-normalized-through", "linear-some-zero", "everything")


def _variant_and_dtype(variant: str, dtype: torch.dtype, dtype_id: str) -> Any:
    always = dtype == torch.float32 or variant in _IN_EVERY_DTYPE
    return pytest.param(variant, dtype, id=f"{variant}-{dtype_id}", marks=() if always else pytest.mark.thorough)


# Every variant in fp32 and a few in each other dtype; the full cross is thorough (conftest.py).
each_variant_in_few_dtypes = pytest.mark.parametrize(
    ("variant", "dtype"),
    [_variant_and_dtype(variant, *dtype) for variant in VARIANTS for dtype in zip(DTYPES, DTYPE_IDS)],
)


class _Tensors:
    """A dataclass of tensors (or None) that changes dtype and device as one."""

    def map(self, change: Callable[[Tensor], Tensor]) -> Any:
        changed = {
            f.name: change(getattr(self, f.name))
            for f in fields(self)  # type: ignore[arg-type]
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)  # type: ignore[type-var]

    def to(self, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> Any:
        """Floating tensors to the dtype, all to the device."""
        return self.map(lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))

    def leaves(self, names: Iterable[str] | None = None) -> Any:
        """Fresh leaves that require gradients: the named ones, or all that can."""

        fresh = self.map(lambda t: t.detach().clone())
        for f in fields(fresh):
            value = getattr(fresh, f.name)
            if isinstance(value, Tensor) and value.is_floating_point() and (names is None or f.name in names):
                value.requires_grad_()
        return fresh

    def gradients(self) -> dict[str, Tensor]:
        """The gradients of the leaves, by name; zeros where none came."""
        found = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Tensor) and value.requires_grad:
                found[f.name] = value.grad if value.grad is not None else torch.zeros_like(value)
        return found


@dataclass(frozen=True)
class Scores(_Tensors):
    """The inputs of the loss of scores."""

    pos: Tensor
    neg: Tensor
    extra: Tensor | None = None
    log_q: Tensor | None = None
    prior: Tensor | None = None
    threshold: Tensor | None = None
    row_weights: Tensor | None = None
    temperature: Tensor | None = None
    knots: Tensor | None = None

    def loss(self, **arguments: Any) -> Tensor:
        return cw_loss(
            self.pos,
            self.neg,
            extra_pos_scores=self.extra,
            neg_log_weights=self.log_q,
            row_weights=self.row_weights,
            **_with_tensors(arguments, self),
        )


@dataclass(frozen=True)
class Embeddings(_Tensors):
    """The inputs of the loss from embeddings."""

    queries: Tensor
    items: Tensor
    pos_ids: Tensor
    neg_ids: Tensor
    extra_ids: Tensor | None = None
    log_q: Tensor | None = None
    prior: Tensor | None = None
    threshold: Tensor | None = None
    row_weights: Tensor | None = None
    temperature: Tensor | None = None
    knots: Tensor | None = None

    def loss(self, **arguments: Any) -> Tensor:
        return cw_loss_from_embeddings(
            self.queries,
            self.items,
            self.pos_ids,
            self.neg_ids,
            extra_pos_ids=self.extra_ids,
            neg_log_weights=self.log_q,
            row_weights=self.row_weights,
            **_with_tensors(arguments, self),
        )


Case = Scores | Embeddings


def _with_tensors(arguments: dict[str, Any], case: Any) -> dict[str, Any]:
    """The case's tensors in place of the numbers, and its knots in place of the curve's."""
    given = {"prior": case.prior, "confidence_threshold": case.threshold, "temperature": case.temperature}
    if case.knots is not None:
        given["score_curve"] = replace(arguments["score_curve"], log_weights=case.knots)
    return arguments | {name: value for name, value in given.items() if value is not None}


def exact(values: Any) -> Tensor:
    """Python numbers as an fp64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _log_weights(shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Mostly finite; about one in six masks its negative, never the first of a row."""
    log_q = torch.randn(shape, generator=g, dtype=torch.float64)
    masked = torch.rand(shape, generator=g) < 1 / 6
    masked[..., 0] = False
    return log_q.masked_fill(masked, -math.inf)


def make_scores(
    shape: tuple[int, ...] = (5,),
    n: int = 17,
    m: int = 0,
    *,
    seed: int = 0,
    log_q: bool = False,
    row_weights: bool = False,
    spread: float = 0.5,
) -> Scores:
    """Scores in [−spread, spread]; with m > 1 the last extra positive of row 0 is padding."""
    g = generator(seed)

    def uniform(*size: int) -> Tensor:
        return (2 * torch.rand(size, generator=g, dtype=torch.float64) - 1) * spread

    extra = uniform(*shape, m) if m else None
    if extra is not None and m > 1 and extra.numel():
        extra.view(-1, m)[0, -1] = -math.inf
    return Scores(
        pos=uniform(*shape),
        neg=uniform(*shape, n),
        extra=extra,
        log_q=_log_weights((*shape, n), g) if log_q else None,
        row_weights=0.1 + torch.rand(shape, generator=g, dtype=torch.float64) if row_weights else None,
    )


def make_embeddings(
    rows: int = 5,
    n: int = 17,
    dim: int = 8,
    items: int = 11,
    m: int = 0,
    *,
    seed: int = 0,
    shared: bool = False,
    padding: bool = False,
    log_q: bool = False,
    row_weights: bool = False,
    id_dtype: torch.dtype = torch.int64,
    scale: float = 1.0,
) -> Embeddings:
    """Random tables and ids (few items: many duplicates); `padding` puts −1 among the ids of each kind."""
    g = generator(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=g, dtype=torch.float64) * scale

    def ids(*size: int) -> Tensor:
        return torch.randint(items, size, generator=g).to(id_dtype)

    pos_ids, neg_ids = ids(rows), ids(n) if shared else ids(rows, n)
    extra_ids = ids(rows, m) if m else None
    if padding and rows > 1:
        pos_ids[-1] = -1
        neg_ids.view(-1)[1::5] = -1
        if extra_ids is not None:
            extra_ids[0, -1] = -1
            extra_ids[1] = -1
    return Embeddings(
        queries=normal(rows, dim),
        items=normal(items, dim),
        pos_ids=pos_ids,
        neg_ids=neg_ids,
        extra_ids=extra_ids,
        log_q=_log_weights((rows, n), g) if log_q else None,
        row_weights=0.1 + torch.rand(rows, generator=g, dtype=torch.float64) if row_weights else None,
    )


@dataclass(frozen=True)
class Result:
    """A loss, and the gradients of everything that asked for one."""

    loss: Tensor
    gradients: dict[str, Tensor]


def evaluate(
    case: Case, grad_output: Tensor | None = None, names: Iterable[str] | None = None, **arguments: Any
) -> Result:
    """The loss and its gradients. A `grad_output` asks for reduction="none", and weighs the rows in it."""
    leaves = case.leaves(names)
    if grad_output is None:
        loss = leaves.loss(**arguments)
        loss.sum().backward()
    else:
        loss = leaves.loss(reduction="none", **arguments)
        loss.backward(grad_output.to(loss))
    return Result(loss.detach(), leaves.gradients())


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str = "", slack: float = 0.0) -> None:
    """The largest error, against the largest value and the dtype's tolerance; NaN just where expected."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert torch.equal(actual.isnan(), expected.isnan()), f"{what}: NaN in other places than expected"
    if not expected.numel():
        return
    error = (actual - expected).nan_to_num().abs().max().item()
    allowed = tolerance(dtype) * expected.nan_to_num().abs().max().item() + slack
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"


def largest_error(actual: Tensor, expected: Tensor) -> float:
    if not expected.numel():
        return 0.0
    return (actual.detach().double().cpu() - expected.detach().double().cpu()).abs().max().item()


def assert_as_good(
    fused: Result,
    unfused: Result,
    truth: Result,
    dtype: torch.dtype,
    cancelled: float = 0.0,
    exponents: float = 100.0,
) -> None:
    """A fused result may not be further from the fp64 truth than the unfused one of the same precision is,
    up to a few roundings (the rule of Apple's cut cross-entropy). `cancelled`: the size of terms that a
    gradient adds to a sum of less, and whose roundings are left in it. `exponents`: their size, d/τ, whose roundings
    are left in the loss; the tolerance covers 100."""
    of_loss = loss_dtype(dtype)
    slack = largest_error(unfused.loss, truth.loss) + tolerance(of_loss) * exponents / 100
    assert_near(fused.loss, truth.loss, of_loss, "loss", slack)
    assert fused.loss.dtype == of_loss
    assert fused.gradients.keys() == truth.gradients.keys()
    for name, gradient in fused.gradients.items():
        assert gradient.dtype == unfused.gradients[name].dtype, f"{name}'s gradient has dtype {gradient.dtype}"
        slack = largest_error(unfused.gradients[name], truth.gradients[name]) + cancelled * tolerance(dtype)
        assert_near(gradient, truth.gradients[name], dtype, f"gradient of {name}", slack)


def against_truth(
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    grad_output: Tensor | None = None,
    *,
    names: Iterable[str] | None = None,
    cancelled: float = 0.0,
    exponents: float = 100.0,
    **arguments: Any,
) -> None:
    """The kernels against the fp64 reference on the same rounded inputs; the reference sets the measure."""
    rounded = case.to(dtype)
    truth = evaluate(rounded.to(torch.float64), grad_output, names, backend="reference", **arguments)
    unfused = evaluate(rounded, grad_output, names, backend="reference", **arguments)
    there = rounded.to(device=device)
    weight = None if grad_output is None else grad_output.to(device)
    fused = evaluate(there, weight, names, backend="fused", **arguments)
    assert_as_good(fused, unfused, truth, dtype, cancelled, exponents)


class _ItemGradient(TorchDispatchMode):
    """The arguments of the op's last call."""

    arguments: tuple[Any, ...] = ()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.name() == "cw_ext::item_gradient":
            self.arguments = args
        return op(*args, **(kwargs or {}))


def item_gradient_arguments(case: Embeddings) -> dict[str, Any]:
    """What the backward pass of the case hands to the op, by name, every row's gradient being 1."""
    with _ItemGradient() as mode:
        evaluate(case, torch.ones(len(case.queries), device=case.queries.device), backend="fused")
    names = [a.name for a in torch.ops.cw_ext.item_gradient.default._schema.arguments]
    given = (a.detach().clone() if isinstance(a, Tensor) else a for a in mode.arguments)
    return dict(zip(names, given))

"""The loss's keyword arguments: names, types, defaults, meaning and checks, once for every level and backend."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar, Unpack

import torch
from torch import Tensor

from cw_ext import checks

Weighting = Literal["none", "sigmoid", "exponential", "linear"]
Surrogate = Literal["exp", "tanh", "atan", "relu"]
Reduction = Literal["mean", "sum", "none"]
Backend = Literal["auto", "fused", "reference"]

WEIGHTINGS = ("none", "sigmoid", "exponential", "linear")
SURROGATES = ("exp", "tanh", "atan", "relu")
REDUCTIONS = ("mean", "sum", "none")
BACKENDS = ("auto", "fused", "reference")


class LossArguments(TypedDict, total=False):
    """Keyword arguments that every form of the loss takes."""

    temperature: float
    prior: float | Tensor
    weighting: Weighting
    weight_temperature: float | None
    detach_weights: bool
    normalize_weights: bool
    floor: float
    min_margin: float | None
    confidence_temperature: float | None
    confidence_threshold: float | Tensor
    include_positive: bool
    surrogate: Surrogate
    reduction: Reduction
    backend: Backend


DEFAULTS: LossArguments = {
    "temperature": 0.1,
    "prior": 0.0,
    "weighting": "sigmoid",
    "weight_temperature": None,
    "detach_weights": True,
    "normalize_weights": False,
    "floor": 0.3,
    "min_margin": None,
    "confidence_temperature": None,
    "confidence_threshold": 0.0,
    "include_positive": False,
    "surrogate": "exp",
    "reduction": "mean",
    "backend": "auto",
}

_DOCUMENTATION = """
    Loss arguments (keywords):
        temperature: τ > 0, on the scale of the scores (for ½·cosine, half the value used with the cosine).
        prior: π in [0, 1), the share of sampled negatives that are really positives; a float, or a tensor
            with one value per row. A tensor's values are checked on the CPU outside torch.compile; elsewhere
            a value out of range makes its row NaN.
        weighting: weight ω(d) of a negative with margin d = s_j − s⁺: "none" 1, "sigmoid" σ(−d/ρ),
            "exponential" exp(−d/ρ), "linear" max(0, 1 − d/ρ).
        weight_temperature: ρ > 0; default τ for "sigmoid", 1 for "exponential" and "linear". A negative ρ
            (harder negatives count more) is allowed for "exponential" only.
        detach_weights: take ω as a constant in the gradient (an importance weight); False lets the gradient
            flow through it.
        normalize_weights: divide the weighted sum by Σ q·ω in place of Σ q (the convention of HCL).
        floor: ε in (0, 1]; the correction may take away at most the share 1 − ε of the negative mass.
        min_margin: None, or m: replaces the relative floor by the absolute one, A − π·C ≥ exp(m/τ), with no
            gradient where it binds (the floor of DCL, for bounded scores).
        confidence_temperature: None, or τ_c > 0: multiplies each row by 2σ((s⁺ − β)/τ_c).
        confidence_threshold: β, a float, or a tensor with one value per row.
        include_positive: L = log(1 + N·G) in place of log(N·G) (the InfoNCE form).
        surrogate: what stands in place of exp(d/τ): "exp", or PSL's "tanh" (tanh d + 1)^(1/τ),
            "atan" (atan d + 1)^(1/τ), "relu" max(0, d + 1)^(1/τ).
        reduction: "mean" (Σ w·L / Σ w over the live rows), "sum" or "none".
        backend: "auto" (the kernels where they exist, else the reference), "fused" (the kernels, or an
            error that says why not) or "reference" (pure PyTorch).
"""


class RowParameters(NamedTuple):
    """What a kernel needs to know about the formula, in the order in which the ops take it."""

    temperature: float
    weighting: str
    weight_temperature: float
    detach_weights: bool
    normalize_weights: bool
    floor: float
    min_margin: float | None
    confidence_temperature: float | None
    include_positive: bool
    surrogate: str


class LossOptions(NamedTuple):
    """All keyword arguments, checked and with their defaults resolved."""

    row: RowParameters
    prior: float | Tensor
    confidence_threshold: float | Tensor
    reduction: str
    backend: str


def _choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    checks.choice(name, value, choices)
    return value


def _flag(name: str, value: bool) -> bool:
    checks.flag(name, value)
    return value


def _weight_temperature(value: float | None, weighting: str, temperature: float) -> float:
    if value is None:
        return temperature if weighting == "sigmoid" else 1.0
    number = checks.number("weight_temperature", value, "a number > 0 or None")
    if number == 0 or (number < 0 and weighting != "exponential"):
        raise ValueError(
            f"weight_temperature must be > 0 (or, with weighting='exponential' only, < 0), got {value} "
            f"with weighting={weighting!r}"
        )
    return number


def resolve(loss: LossArguments) -> LossOptions:
    """Check the keyword arguments and fill in the defaults.

    Raises:
        TypeError: an unknown keyword, or a value of the wrong type.
        ValueError: a value out of its range. The message names the argument, the range and the value.
    """
    # The same few arguments come with every batch, and checking them costs as much as a small batch's loss.
    if torch.compiler.is_compiling() or any(isinstance(value, Tensor) for value in loss.values()):
        return _resolve(**loss)
    try:
        hash(tuple(loss.values()))
    except TypeError:
        return _resolve(**loss)
    return _resolve_once(**loss)


def _resolve(**loss: Unpack[LossArguments]) -> LossOptions:
    for name in loss:
        if name not in DEFAULTS:
            raise TypeError(f"unknown loss argument {name!r}; the known ones are {', '.join(DEFAULTS)}")
    given: LossArguments = {**DEFAULTS, **loss}

    temperature = checks.positive_number("temperature", given["temperature"])
    weighting = _choice("weighting", given["weighting"], WEIGHTINGS)
    prior = given["prior"]
    if not isinstance(prior, Tensor):
        prior = checks.number("prior", prior, "a number in [0, 1) or a tensor with one value per row")
        if not 0 <= prior < 1:
            raise ValueError(f"prior must be in [0, 1), got {prior}")
    threshold = given["confidence_threshold"]
    if not isinstance(threshold, Tensor):
        threshold = checks.number("confidence_threshold", threshold, "a number or a tensor with one value per row")
    floor = checks.number("floor", given["floor"], "a number in (0, 1]")
    if not 0 < floor <= 1:
        raise ValueError(f"floor must be in (0, 1], got {floor}")
    min_margin = given["min_margin"]
    if min_margin is not None:
        min_margin = checks.number("min_margin", min_margin, "a number or None")
    confidence_temperature = given["confidence_temperature"]
    if confidence_temperature is not None:
        confidence_temperature = checks.positive_number("confidence_temperature", confidence_temperature)

    row = RowParameters(
        temperature=temperature,
        weighting=weighting,
        weight_temperature=_weight_temperature(given["weight_temperature"], weighting, temperature),
        detach_weights=_flag("detach_weights", given["detach_weights"]),
        normalize_weights=_flag("normalize_weights", given["normalize_weights"]),
        floor=floor,
        min_margin=min_margin,
        confidence_temperature=confidence_temperature,
        include_positive=_flag("include_positive", given["include_positive"]),
        surrogate=_choice("surrogate", given["surrogate"], SURROGATES),
    )
    return LossOptions(
        row=row,
        prior=prior,
        confidence_threshold=threshold,
        reduction=_choice("reduction", given["reduction"], REDUCTIONS),
        backend=_choice("backend", given["backend"], BACKENDS),
    )


_resolve_once = functools.lru_cache(maxsize=64, typed=True)(_resolve)

_F = TypeVar("_F", bound=Callable[..., Any])


def documents_loss_arguments(function: _F) -> _F:
    """Show the keyword arguments in the function's help() and signature, where `**loss` alone says nothing."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    types = LossArguments.__annotations__
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name].__forward_arg__)
        for name, default in DEFAULTS.items()
    ]
    function.__signature__ = signature.replace(parameters=own + shared)  # type: ignore[attr-defined]
    function.__doc__ = (function.__doc__ or "") + _DOCUMENTATION
    return function

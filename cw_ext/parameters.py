"""The loss's keyword arguments, each described once: type, default, check and documentation.

A new argument is an entry of :class:`LossArguments`, and a field of :class:`RowParameters` (a number for all rows that
the kernels take) or of :class:`LossOptions` (anything else). Defaults, documentation, signatures and checks follow from
the entry.
"""

from __future__ import annotations

import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, TypeVar, Unpack, cast, get_args, get_type_hints

import torch
from torch import Tensor

from cw_ext import checks
from cw_ext.score_curve import ScoreCurve

Weighting = Literal["none", "sigmoid", "exponential", "linear"]
Surrogate = Literal["exp", "tanh", "atan", "relu"]
Reduction = Literal["mean", "sum", "none"]
Backend = Literal["auto", "fused", "reference"]

WEIGHTINGS: tuple[str, ...] = get_args(Weighting)
SURROGATES: tuple[str, ...] = get_args(Surrogate)
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
BACKENDS: tuple[str, ...] = get_args(Backend)

# Takes an argument's name and value; returns the value to compute with, or raises.
Check = Callable[[str, Any], Any]


class Argument(NamedTuple):
    """An entry of :class:`LossArguments`, apart from the argument's name and type."""

    default: Any
    check: Check
    meaning: str


def _number(
    within: str = "", contains: Callable[[float], bool] | None = None, *, none: bool = False, rows: bool = False
) -> Check:
    """A check for a finite number.

    Args:
        within: the range in words, for the messages.
        contains: whether a number is in that range.
        none: None is allowed too.
        rows: a tensor is allowed too. Its shape and values are checked later, against the scores. The argument is then
            a field of :class:`LossOptions`.
    """
    expected = " or ".join(
        [f"a number {within}".strip()] + ["None"] * none + ["a tensor with one value per row"] * rows
    )

    def check(name: str, value: Any) -> Any:
        if (none and value is None) or (rows and isinstance(value, Tensor)):
            return value
        number = checks.number(name, value, expected)
        if contains is not None and not contains(number):
            raise ValueError(f"{name} must be {within}, got {value}")
        return number

    return check


def _choice(choices: tuple[str, ...]) -> Check:
    def check(name: str, value: Any) -> Any:
        checks.choice(name, value, choices)
        return value

    return check


def _flag(name: str, value: Any) -> Any:
    checks.flag(name, value)
    return value


def _curve(name: str, value: Any) -> Any:
    if value is not None and not isinstance(value, ScoreCurve):
        raise TypeError(f"{name} must be a cw_ext.ScoreCurve or None, got {type(value).__name__}")
    return value


def _is_positive(x: float) -> bool:
    return x > 0


class LossArguments(TypedDict, total=False):
    """The keyword arguments that every form of the loss takes.

    If your own function passes them on, declare them as ``**loss: Unpack[LossArguments]``, so that a type checker knows
    them::

        from typing import Unpack
        from cw_ext.parameters import LossArguments

        def my_loss(pos_scores, neg_scores, **loss: Unpack[LossArguments]): ...
    """

    temperature: Annotated[
        float | Tensor,
        Argument(
            0.1,
            _number("> 0", _is_positive, rows=True),
            "τ > 0, on the scale of the scores: for ½·cosine, half of a temperature tuned for the cosine. A float, or "
            "a tensor of shape [] or with one value per row. A tensor can be learned: it gets a gradient if it "
            "requires one. Its values are checked like those of `prior`. A module stores the tensor, but does not "
            "register it among its parameters().",
        ),
    ]
    prior: Annotated[
        float | Tensor,
        Argument(
            0.0,
            _number("in [0, 1)", lambda x: 0 <= x < 1, rows=True),
            "π in [0, 1), the share of sampled negatives that are really positives; 0 switches the correction off. A "
            "float, or a tensor of shape [] or with one value per row. A tensor's values are checked on the CPU "
            "outside torch.compile; elsewhere a value out of range makes the loss of its row NaN.",
        ),
    ]
    weighting: Annotated[
        Weighting,
        Argument(
            "sigmoid",
            _choice(WEIGHTINGS),
            'the weight ω(d) of a negative with margin d = s_j − s⁺. "none": 1; "sigmoid": σ(−d/ρ); "exponential": '
            'exp(−d/ρ); "linear": max(0, 1 − d/ρ).',
        ),
    ]
    weight_temperature: Annotated[
        float | None,
        Argument(
            None,
            _number("> 0", none=True),  # the sign: see _check_together
            'ρ > 0. None is τ (each row\'s own) for "sigmoid", and 1 for "exponential" and "linear". With '
            '"exponential" it may be negative, so that harder negatives count more.',
        ),
    ]
    positive_temperature: Annotated[
        float | None,
        Argument(
            None,
            _number("> 0", _is_positive, none=True),
            "None, or τ⁺ > 0, a separate temperature for the positive: it adds s⁺·(1/τ − 1/τ⁺) to L, so that with "
            "π = 0 and ω = 1 a row is logsumexp_j(s_j/τ) − s⁺/τ⁺.",
        ),
    ]
    score_curve: Annotated[
        ScoreCurve | None,
        Argument(
            None,
            _curve,
            "None, or a cw_ext.ScoreCurve. The weight q_j of each negative is multiplied by the exponential of the "
            "curve at its score or margin.",
        ),
    ]
    detach_weights: Annotated[
        bool,
        Argument(
            True,
            _flag,
            "treat ω as a constant in the gradient, as an importance weight. False: the gradient flows through it.",
        ),
    ]
    normalize_weights: Annotated[
        bool,
        Argument(False, _flag, "divide the weighted sum by Σ q·ω instead of Σ q, as HCL does."),
    ]
    floor: Annotated[
        float,
        Argument(
            0.3,
            _number("in (0, 1]", lambda x: 0 < x <= 1),
            "ε in (0, 1]: the correction takes away at most the share 1 − ε of the negative mass, so that every row "
            "keeps a gradient.",
        ),
    ]
    min_margin: Annotated[
        float | None,
        Argument(
            None,
            _number(none=True),
            "None, or m: replaces the relative floor by an absolute one, A − π·C ≥ exp(m/τ), which has no gradient "
            "where it binds. This is the floor of DCL, for bounded scores.",
        ),
    ]
    confidence_temperature: Annotated[
        float | None,
        Argument(
            None,
            _number("> 0", _is_positive, none=True),
            "None, or τ_c > 0: multiplies each row by the confidence in its positive, 2σ((s⁺ − β)/τ_c).",
        ),
    ]
    confidence_threshold: Annotated[
        float | Tensor,
        Argument(
            0.0,
            _number(rows=True),
            "β of that confidence: a float, or a tensor of shape [] or with one value per row.",
        ),
    ]
    include_positive: Annotated[
        bool,
        Argument(False, _flag, "L = log(1 + N·G) instead of log(N·G), the InfoNCE form."),
    ]
    surrogate: Annotated[
        Surrogate,
        Argument(
            "exp",
            _choice(SURROGATES),
            'the function of the margin that is summed. "exp": exp(d/τ); or those of PSL, "tanh": (tanh d + 1)^(1/τ), '
            '"atan": (atan d + 1)^(1/τ), "relu": max(0, d + 1)^(1/τ).',
        ),
    ]
    reduction: Annotated[
        Reduction,
        Argument(
            "mean",
            _choice(REDUCTIONS),
            '"mean", "sum" or "none". The mean is Σ w·L / Σ w over the rows that have negatives, with w the '
            "`row_weights`, or 1.",
        ),
    ]
    return_above: Annotated[
        bool,
        Argument(
            False,
            _flag,
            "return (loss, above [...]) instead of the loss. above (int64) counts, for each row, the negatives that "
            "are not masked out and score above its `confidence_threshold`. Type checkers see a Tensor, which they let "
            "you unpack.",
        ),
    ]
    backend: Annotated[
        Backend,
        Argument(
            "auto",
            _choice(BACKENDS),
            '"auto": the compiled kernels where they run, else the reference; "fused": the kernels, or an error that '
            'says why they cannot run; "reference": plain PyTorch.',
        ),
    ]


_HINTS = get_type_hints(LossArguments, include_extras=True)
ARGUMENTS: dict[str, Argument] = {name: hint.__metadata__[0] for name, hint in _HINTS.items()}
DEFAULTS = cast(LossArguments, {name: argument.default for name, argument in ARGUMENTS.items()})


class RowParameters(NamedTuple):
    """What a kernel needs to know about the formula, in the order in which the ops take it."""

    positive_temperature: float | None
    weighting: str
    weight_temperature: float | None  # None: τ with sigmoid weights, else 1
    detach_weights: bool
    normalize_weights: bool
    floor: float
    min_margin: float | None
    confidence_temperature: float | None
    include_positive: bool
    surrogate: str
    return_above: bool


# The values of the choices among them.
CHOICES = {
    name: get_args(_HINTS[name].__origin__)
    for name in RowParameters._fields
    if isinstance(ARGUMENTS[name].default, str)
}

# Those that are no numbers.
FLAGS_AND_CHOICES = tuple(name for name in RowParameters._fields if isinstance(ARGUMENTS[name].default, (str, bool)))


def as_numbers(parameters: RowParameters) -> tuple[float, ...]:
    """The same as the ops take it: None as NaN, a flag as 0 or 1, a choice as its place in the list."""
    return tuple(
        math.nan if value is None else float(CHOICES[name].index(value) if name in CHOICES else value)
        for name, value in zip(RowParameters._fields, parameters)
    )


# The same few come with every batch.
as_numbers_once = functools.lru_cache(maxsize=64)(as_numbers)


def from_numbers(numbers: Sequence[float]) -> RowParameters:
    """The inverse of :func:`as_numbers`."""
    values: dict[str, Any] = {}
    for name, number in zip(RowParameters._fields, numbers):
        kinds = get_args(_HINTS[name].__origin__) or (_HINTS[name].__origin__,)
        if name in CHOICES:
            values[name] = CHOICES[name][int(number)]
        elif bool in kinds:
            values[name] = bool(number)
        else:
            values[name] = None if type(None) in kinds and number != number else number
    return RowParameters(**values)


class LossOptions(NamedTuple):
    """All keyword arguments, checked and with their defaults resolved."""

    row: RowParameters
    prior: float | Tensor
    confidence_threshold: float | Tensor
    temperature: float | Tensor
    score_curve: ScoreCurve | None
    reduction: str
    backend: str


def resolve(loss: LossArguments) -> LossOptions:
    """Check the keyword arguments and fill in the defaults.

    Raises:
        TypeError: an unknown keyword, or a value of the wrong type.
        ValueError: a value out of its range. The message contains the argument, the range and the value.
    """
    if torch.compiler.is_compiling():
        return _resolve(**loss)
    if any(isinstance(value, (Tensor, ScoreCurve)) for value in loss.values()):
        return _resolve_with_tensors(loss)
    # The same few arguments come with every batch, and checking them costs as much as a small batch's loss.
    try:
        hash(tuple(loss.values()))
    except TypeError:
        return _resolve(**loss)
    return _resolve_once(**loss)  # type: ignore[arg-type]


def _resolve_with_tensors(loss: LossArguments) -> LossOptions:
    """Tensors change from batch to batch, and a cache would keep them alive: it holds the other arguments only."""
    rest: Any = {}
    tensors = {}
    for name, value in loss.items():
        if isinstance(value, (Tensor, ScoreCurve)):
            tensors[name] = _argument(name).check(name, value)
        else:
            rest[name] = value
    return resolve(rest)._replace(**tensors)


def _argument(name: str) -> Argument:
    if name not in ARGUMENTS:
        raise TypeError(f"unknown loss argument {name!r}; the known ones are {', '.join(ARGUMENTS)}")
    return ARGUMENTS[name]


def _resolve(**loss: Unpack[LossArguments]) -> LossOptions:
    values = {**DEFAULTS, **{name: _argument(name).check(name, value) for name, value in loss.items()}}
    _check_together(values)
    row = RowParameters(**{name: values.pop(name) for name in RowParameters._fields})
    return LossOptions(row, **values)


def _check_together(values: dict[str, Any]) -> None:
    """Checks of arguments that depend on one another."""
    rho, weighting = values["weight_temperature"], values["weighting"]
    if rho is not None and (rho == 0 or (rho < 0 and weighting != "exponential")):
        raise ValueError(
            f"weight_temperature must be > 0 (or, with weighting='exponential' only, < 0), got {rho} "
            f"with weighting={weighting!r}"
        )


_resolve_once = functools.lru_cache(maxsize=64, typed=True)(_resolve)


# Defines the symbols that the arguments' documentation uses.
FORMULA = """\
The loss of a row is L = log(N·G), with G = max(A − π·C, ε·A)/(1 − π). A = Σ q_j·ω(d_j)·exp(d_j/τ) / Σ q_j is the
weighted mean over its N negatives, with margins d_j = s_j − s⁺ and weights q_j, 1 by default. C is the mean of
ω(d_k)·exp(d_k/τ) over its extra positives; without any, over its own positive."""


def _documentation() -> str:
    wrapper = textwrap.TextWrapper(
        112, initial_indent=" " * 4, subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False
    )
    entries = (
        wrapper.fill(f"{name}: {argument.meaning} Default: {argument.default!r}.")
        for name, argument in ARGUMENTS.items()
    )
    return "\n".join([FORMULA, "", "Loss arguments (keywords):", *entries])


LossArguments.__doc__ = f"{inspect.cleandoc(LossArguments.__doc__ or '')}\n\n{_documentation()}\n"


_F = TypeVar("_F", bound=Callable[..., Any])


def documents_loss_arguments(function: _F) -> _F:
    """Show the keyword arguments in the function's help() and signature, where `**loss` alone would hide them."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    shared = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=argument.default, annotation=_HINTS[name].__origin__
        )
        for name, argument in ARGUMENTS.items()
    ]
    function.__signature__ = signature.replace(parameters=own + shared)  # type: ignore[attr-defined]
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{_documentation()}\n"
    return function

"""docs/how-it-works/formula.md, one row at a time and as it is printed there: the truth behind the truth.

Written without torch and without logarithmic tricks. Decimal numbers do not overflow (exp(1e7) is a number
like any other), and with 60 digits a finite difference is good to far more digits than fp64 has. So the
code below can compute `exp(d / τ)`, `A − π·C` and `max` as they are written.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from typing import Any, NamedTuple

Number = float | Decimal

_CONTEXT = Context(prec=60, Emax=MAX_EMAX, Emin=MIN_EMIN)
_STEP = Decimal("1e-20")
_ZERO, _ONE = Decimal(0), Decimal(1)

# The API's defaults, as documented.
DEFAULTS: dict[str, Any] = {
    "temperature": 0.1,
    "prior": 0.0,
    "weighting": "sigmoid",
    "weight_temperature": None,
    "positive_temperature": None,
    "score_curve": None,
    "detach_weights": True,
    "normalize_weights": False,
    "floor": 0.3,
    "min_margin": None,
    "confidence_temperature": None,
    "confidence_threshold": 0.0,
    "include_positive": False,
    "surrogate": "exp",
}


class Row(NamedTuple):
    """The result of the formula for a row."""

    loss: Decimal
    live: bool
    floor_binds: bool = False


class Inputs(NamedTuple):
    """One row's numbers. −inf in `log_q` masks a negative; −inf in `extras` is padding.

    `temperature` is the row's own, in place of the argument; `knots` are the log weights of `score_curve`.
    """

    pos: Number
    negatives: Sequence[Number]
    extras: Sequence[Number] = ()
    log_q: Sequence[Number] | None = None
    prior: Number = 0.0
    threshold: Number = 0.0
    temperature: Number | None = None
    knots: Sequence[Number] | None = None


class Curve(NamedTuple):
    """Where the knots are: equally spaced from `low` to `high`, on the axis of "score" or "margin"."""

    low: Number
    high: Number
    on: str = "score"


def _precise(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with localcontext(_CONTEXT):
            return function(*args, **kwargs)

    return wrapped


def _tangent(x: Decimal) -> Decimal:
    """tan of a number of the size of π/2 or less, by the series of sin and cos."""
    sine, cosine, term, n = _ZERO, _ZERO, _ONE, 0
    while abs(term) > Decimal("1e-70") or n < 4:
        part = term if n % 4 < 2 else -term
        if n % 2:
            sine += part
        else:
            cosine += part
        n += 1
        term = term * x / n
    return sine / cosine


def _arctangent(x: Decimal) -> Decimal:
    """The fp64 value, and the tiny angle that it is off by."""
    first = Decimal(math.atan(float(x)))
    tangent = _tangent(first)
    rest = (x - tangent) / (1 + x * tangent)
    return first + rest - rest**3 / 3 + rest**5 / 5


def _omega(d: Decimal, loss: dict[str, Any]) -> Decimal:
    weighting, rho = loss["weighting"], loss["weight_temperature"]
    if weighting == "none":
        return _ONE
    if rho is None:
        rho = loss["temperature"] if weighting == "sigmoid" else 1.0
    scaled = d / Decimal(rho)
    if weighting == "sigmoid":
        return 1 / (1 + scaled.exp())
    if weighting == "exponential":
        return (-scaled).exp()
    return max(_ZERO, 1 - scaled)


def _omega_at_minus_infinity(loss: dict[str, Any]) -> Decimal:
    """The limit of ω for a negative without mass; nothing where it is infinite."""
    return _ONE if loss["weighting"] in ("none", "sigmoid") else _ZERO


def _exp_or_surrogate(d: Decimal, loss: dict[str, Any]) -> Decimal:
    tau = Decimal(loss["temperature"])
    match loss["surrogate"]:
        case "exp":
            return (d / tau).exp()
        case "tanh":  # 1 + tanh d = 2 / (1 + e^{−2d}), which 60 digits do not cancel to 0 at d = −1e4
            base = 2 / (1 + (-2 * d).exp())
        case "atan":
            base = max(_ZERO, _arctangent(d) + 1)
        case _:
            base = max(_ZERO, d + 1)
    return (base.ln() / tau).exp() if base else _ZERO


def _on_curve(x: Number, curve: Curve, knots: Sequence[Number]) -> Number:
    """The log weight at x: the straight line between the two knots beside it, −inf where it needs one of −inf."""
    low, high = Decimal(curve.low), Decimal(curve.high)
    at = min(max(Decimal(x), low), high)
    places = [low + (high - low) * k / (len(knots) - 1) for k in range(len(knots))]
    for place, value in zip(places, knots):
        if at == place:
            return value
    right = next(k for k, place in enumerate(places) if place > at)
    if _is_minus_infinity(knots[right - 1]) or _is_minus_infinity(knots[right]):
        return -math.inf
    share = (at - places[right - 1]) / (places[right] - places[right - 1])
    return (1 - share) * Decimal(knots[right - 1]) + share * Decimal(knots[right])


def _is_minus_infinity(x: Number) -> bool:
    return float(x) == -math.inf


def _spoils(x: Number) -> bool:
    """NaN or +inf."""
    return not float(x) < math.inf


def _log_weights(inputs: Inputs, curve: Curve | None, at: Inputs) -> list[Number]:
    """log q of each negative: the external one and the curve's, for the scores in `at`."""
    log_q: list[Number] = list(inputs.log_q) if inputs.log_q is not None else [0.0] * len(inputs.negatives)
    if curve is None:
        return log_q
    assert inputs.knots is not None
    for j, score in enumerate(at.negatives):
        if _is_minus_infinity(log_q[j]) or math.isnan(score):  # a NaN makes its row NaN in any case
            continue
        x = score if curve.on == "score" else Decimal(score) - Decimal(at.pos)
        further = _on_curve(x, curve, inputs.knots)
        log_q[j] = -math.inf if _is_minus_infinity(further) else Decimal(log_q[j]) + Decimal(further)
    return log_q


@_precise
def above(inputs: Inputs, score_curve: Curve | None = None) -> int:
    """How many negatives that are not masked out score above the threshold."""
    log_q = _log_weights(inputs, score_curve, inputs)
    return sum(s > inputs.threshold for s, q in zip(inputs.negatives, log_q) if not _is_minus_infinity(q))


@_precise
def row(inputs: Inputs, *, weights_at: Inputs | None = None, curve_at: Inputs | None = None, **arguments: Any) -> Row:
    """The loss of one row.

    Args:
        inputs: the row.
        weights_at: the row at which ω is evaluated: given, ω is a constant in a finite difference.
        curve_at: likewise the scores at which the curve is.
        **arguments: the loss arguments of the API; `score_curve` as a Curve, with the knots in `inputs`.
    """
    loss = DEFAULTS | arguments
    seen = weights_at or inputs
    of_weights = loss | ({} if seen.temperature is None else {"temperature": seen.temperature})
    if inputs.temperature is not None:
        loss |= {"temperature": inputs.temperature}
    log_q = _log_weights(inputs, loss["score_curve"], curve_at or inputs)
    live = [j for j, value in enumerate(log_q) if not _is_minus_infinity(value)]
    if not live:
        return Row(_ZERO, live=False)
    further = [k for k, value in enumerate(inputs.extras) if not _is_minus_infinity(value)]
    if (
        not math.isfinite(inputs.pos)
        or any(_spoils(inputs.negatives[j]) for j in live)
        or any(_spoils(inputs.extras[k]) for k in further)
    ):
        return Row(Decimal("nan"), live=True)

    pos, pos_seen = Decimal(inputs.pos), Decimal(seen.pos)
    prior = Decimal(inputs.prior)
    sum_q, sum_q_omega, mass = _ZERO, _ZERO, _ZERO
    for j in live:
        q = Decimal(log_q[j]).exp()
        sum_q += q
        if _is_minus_infinity(inputs.negatives[j]):
            sum_q_omega += q * _omega_at_minus_infinity(loss)
            continue
        omega = _omega(Decimal(seen.negatives[j]) - pos_seen, of_weights)
        sum_q_omega += q * omega
        mass += q * omega * _exp_or_surrogate(Decimal(inputs.negatives[j]) - pos, loss)
    if mass == 0:
        return Row(_ZERO, live=False)
    a = mass / (sum_q_omega if loss["normalize_weights"] else sum_q)

    c = _omega(_ZERO, of_weights)
    if further:
        c = _ZERO
        for k in further:
            omega = _omega(Decimal(seen.extras[k]) - pos_seen, of_weights)
            c += omega * _exp_or_surrogate(Decimal(inputs.extras[k]) - pos, loss) / len(further)

    if loss["min_margin"] is None:
        least = Decimal(loss["floor"]) * a
    else:
        least = (Decimal(loss["min_margin"]) / Decimal(loss["temperature"])).exp()
    g = max(a - prior * c, least) / (1 - prior)
    value = (len(live) * g + (1 if loss["include_positive"] else 0)).ln()
    if loss["positive_temperature"] is not None:
        value += pos * (1 / Decimal(loss["temperature"]) - 1 / Decimal(loss["positive_temperature"]))
    if loss["confidence_temperature"] is not None:
        sharpness = Decimal(loss["confidence_temperature"])
        value *= 2 / (1 + (-(pos - Decimal(inputs.threshold)) / sharpness).exp())
    return Row(value, live=True, floor_binds=a - prior * c < least)


@_precise
def derivative(function: Callable[[Decimal], Decimal]) -> float:
    """d function(x + t) / dt at t = 0, to more digits than fp64 has."""
    return float((function(_STEP) - function(-_STEP)) / (2 * _STEP))


@_precise
def row_gradients(inputs: Inputs, **arguments: Any) -> dict[str, Any]:
    """The gradient of one row's loss in each of its numbers: a float per scalar, a list per sequence."""
    frozen = inputs if (DEFAULTS | arguments)["detach_weights"] else None

    def along(name: str, place: int | None) -> float:
        value = getattr(inputs, name)
        here = value if place is None else value[place]
        if _is_minus_infinity(here):
            return 0.0  # also of a knot: what is masked out stays so

        def moved(step: Decimal) -> Decimal:
            new: Any = Decimal(here) + step
            if place is not None:
                new = [*value[:place], new, *value[place + 1 :]]
            return row(inputs._replace(**{name: new}), weights_at=frozen, curve_at=inputs, **arguments).loss

        return derivative(moved)

    found: dict[str, Any] = {}
    for name, value in inputs._asdict().items():
        if isinstance(value, Sequence):
            found[name] = [along(name, place) for place in range(len(value))]
        elif value is not None:
            found[name] = along(name, None)
    return found


@_precise
def score(query: Sequence[Number], item: Sequence[Number], similarity: str) -> Decimal:
    """The similarity of two vectors. A zero vector has cosine 0 with everything."""
    product = sum((Decimal(x) * Decimal(y) for x, y in zip(query, item)), _ZERO)
    if similarity == "dot":
        return product
    squared = [sum((Decimal(x) ** 2 for x in vector), _ZERO) for vector in (query, item)]
    if not all(squared):
        return _ZERO
    cosine = product / (squared[0].sqrt() * squared[1].sqrt())
    return cosine / 2 if similarity == "half_cosine" else cosine


def scores_of_row(
    query: Sequence[Number],
    items: Sequence[Sequence[Number]],
    pos_id: int,
    neg_ids: Sequence[int],
    extra_ids: Sequence[int],
    log_q: Sequence[Number] | None,
    similarity: str,
    prior: Number = 0.0,
    threshold: Number = 0.0,
) -> Inputs:
    """A row of embeddings as a row of scores. −1 is padding: masked negative, absent extra positive, dead row."""

    def scored(item_id: int, padding: float) -> Number:
        return score(query, items[item_id], similarity) if item_id >= 0 else padding

    given = log_q if log_q is not None else [0.0] * len(neg_ids)
    return Inputs(
        pos=scored(pos_id, 0.0),
        negatives=[scored(j, 0.0) for j in neg_ids],
        extras=[scored(k, -math.inf) for k in extra_ids],
        log_q=[-math.inf if j < 0 or pos_id < 0 else value for j, value in zip(neg_ids, given)],
        prior=prior,
        threshold=threshold,
    )


@_precise
def reduced(rows: Sequence[Row], row_weights: Sequence[float] | None, reduction: str) -> float:
    """The mean over the live rows, or the sum."""
    weights = [Decimal(w) for w in row_weights] if row_weights is not None else [_ONE] * len(rows)
    total = sum((w * r.loss for w, r in zip(weights, rows) if r.live), _ZERO)
    if reduction == "sum":
        return float(total)
    weight = sum((w for w, r in zip(weights, rows) if r.live), _ZERO)
    return float(total / weight) if weight else float(total)

"""Weights of negatives as a function of their scores: a piecewise linear curve of log weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from cw_ext import checks

# Within these limits the places and their distances are finite in fp32, and an index computed from them is in range.
_FURTHEST, _SHORTEST = 1e30, 1e-30

CurveArgument = Literal["score", "margin"]


@dataclass(frozen=True, eq=False, repr=False)  # a comparison of tensors is not a bool
class ScoreCurve:
    """A weight for each negative as a function of its score: log weights at K equally spaced places, and straight lines
    between them.

    The weight q_j of each negative is multiplied by exp(curve(x)), where x is its score or its margin. The curve can be
    any weight that depends on the score alone: an estimated probability that the item is a true negative, a published
    weighting, or your own.

    The weight is a constant in the gradient of the scores; `log_weights` gets a gradient if it requires one. Like every
    q_j, it is in the denominator Σ q too. So adding a number to the whole curve changes nothing, and a curve with the
    values of a weighting ω is that weighting with normalize_weights=True.

    Args:
        low: the first place, on the scale of the scores in the loss, by default ½·cosine. Below it the curve keeps its
            first value.
        high: the last place, > low. Above it the curve keeps its last value.
        log_weights: [K], K ≥ 2, fp16, bf16, fp32 or fp64; the values at low, …, high. −inf masks out the negatives at
            that place, and strictly between it and its neighbours. NaN and +inf raise an error on the CPU outside
            torch.compile; elsewhere they make the rows that they reach NaN.
        on: what x is: "score" for s_j, or "margin" for s_j − s⁺.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.

    Example:
        Negatives with a score above 0 count less:

        >>> import torch
        >>> from cw_ext import ScoreCurve, cw_loss
        >>> curve = ScoreCurve(-0.5, 0.5, torch.tensor([0.0, 0.0, -1.0]))
        >>> curve(torch.tensor([-0.2, 0.25, 0.9]))
        tensor([ 0.0000, -0.5000, -1.0000])
        >>> pos_scores = torch.tensor([0.4, 0.1])
        >>> neg_scores = torch.tensor([[0.3, -0.2], [0.2, -0.4]])
        >>> loss = cw_loss(pos_scores, neg_scores, score_curve=curve)
    """

    low: float
    high: float
    log_weights: Tensor
    on: CurveArgument = "score"

    __hash__ = None  # type: ignore[assignment]  # so that no cache of arguments keeps the tensor alive

    def __post_init__(self) -> None:
        low, high = _end("low", self.low), _end("high", self.high)
        if not high - low >= _SHORTEST:
            raise ValueError(f"high must be > low = {low}, by {_SHORTEST} or more, got {self.high}")
        checks.has_dtype("log_weights", self.log_weights, checks.FLOATING)
        shape = tuple(self.log_weights.shape)
        if len(shape) != 1 or shape[0] < 2:
            raise ValueError(f"log_weights must have shape [K] with K ≥ 2, got {shape}")
        _check_values(self.log_weights)
        checks.choice("on", self.on, get_args(CurveArgument))

    @classmethod
    def from_function(
        cls,
        function: Callable[[Tensor], Tensor],
        low: float,
        high: float,
        knots: int = 257,
        on: CurveArgument = "score",
    ) -> ScoreCurve:
        """A curve through the values of a function.

        Args:
            function: takes the places x [K] in fp64 and returns the log weights there, [K].
            low: the first place.
            high: the last place, > low.
            knots: K ≥ 2, the number of places. Between them the curve differs from the function by at most
                h²/8 · max abs(function″), where h = (high − low)/(K − 1).
            on: what x is: "score" for s_j, or "margin" for s_j − s⁺.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.

        Example:
            >>> import torch.nn.functional as F
            >>> from cw_ext import ScoreCurve
            >>> log_weight = lambda d: F.logsigmoid(-d / 0.1)
            >>> ScoreCurve.from_function(log_weight, -1.0, 1.0, on="margin")
            ScoreCurve(-1.0, 1.0, 257 log weights, on='margin')
        """
        checks.whole_number("knots", knots, 2)
        places = torch.linspace(_end("low", low), _end("high", high), knots, dtype=torch.float64)
        if not callable(function):
            raise TypeError(f"function must be a function of the places, got {type(function).__name__}")
        log_weights = function(places)
        checks.is_tensor("function(x)", log_weights)
        checks.has_shape("function(x)", log_weights, (knots,), "one log weight per place")
        return cls(low, high, log_weights, on)

    def to(self, device: torch.device | str) -> ScoreCurve:
        """The same curve, with its log weights on this device."""
        return replace(self, log_weights=self.log_weights.to(device))

    def __repr__(self) -> str:
        return f"ScoreCurve({self.low}, {self.high}, {len(self.log_weights)} log weights, on={self.on!r})"

    def __call__(self, x: Tensor) -> Tensor:
        """The log weights at x.

        Args:
            x: scores or margins of any shape, on the device of `log_weights`. They get no gradient.

        Returns:
            The log weights in the shape of x, fp64 for fp64, else fp32. NaN where x is NaN.
        """
        checks.has_dtype("x", x, checks.FLOATING)
        checks.matches("x", x, "log_weights", self.log_weights, dtype=False)
        dtype = torch.promote_types(x.dtype, torch.float32)
        flat = x.detach().to(dtype).reshape(1, -1)
        return curve_log_weights(flat, self.log_weights.to(dtype).unsqueeze(0), self.low, self.high).reshape(x.shape)


def curve_log_weights(x: Tensor, w: Tensor, low: float, high: float) -> Tensor:
    """The value at x [..., N] of the curve with the values w [..., K] at equally spaced places from low to high."""
    last = w.shape[-1] - 1
    # Position k + f on the scale of the knots. high must give exactly the last knot, however t is rounded.
    nan = x.isnan()
    t = (torch.where(nan, low, x).clamp(low, high) - low) * (last / (high - low))
    beyond = x >= high
    k = torch.where(beyond, last - 1, t.long().clamp(max=last - 1))
    f = torch.where(beyond, 1.0, (t - k).clamp(max=1.0))
    left, right = w.gather(-1, k), w.gather(-1, k + 1)

    # lerp is exact at both ends and between equal values. Values that it must not see are replaced before, and the
    # results after: where() alone would pass NaN through the gradient of the branch that was not taken.
    masked = (left == -torch.inf) | (right == -torch.inf)
    between = torch.lerp(torch.where(masked, 0.0, left), torch.where(masked, 0.0, right), f)
    end = torch.where(f == 0, left, torch.where(f == 1, right, -torch.inf))
    value = torch.where(masked, torch.where(end == -torch.inf, -torch.inf, end), between)
    return torch.where(nan, torch.nan, value)


def _end(name: str, value: object) -> float:
    number = checks.number(name, value, "a number")
    if abs(number) > _FURTHEST:
        raise ValueError(f"{name} must be a number in [−{_FURTHEST}, {_FURTHEST}], got {value}")
    return number


def _check_values(log_weights: Tensor) -> None:
    """Checked where that costs no synchronisation and breaks no graph."""
    if log_weights.device.type != "cpu" or torch.compiler.is_compiling():
        return
    log_weights = torch.func.debug_unwrap(log_weights)
    bad = ~(log_weights < torch.inf)
    if bad.any():
        raise ValueError(f"log_weights must be finite or −inf, got {log_weights[bad].flatten()[0].item()}")

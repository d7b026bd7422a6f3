"""The loss arguments that can get a gradient: those that may differ from row to row, and the curve."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cw_ext import checks, sums
from cw_ext.parameters import LossOptions


class RowValues(NamedTuple):
    """Each is a tensor with a value per row, or a number for all rows, in the order in which the ops take them.

    An op has two arguments for each, NAME_rows and NAME, and a row of its result d_row_values [K, B].
    """

    prior: Tensor | float = 0.0
    threshold: Tensor | float = 0.0
    temperature: Tensor | float = 1.0


class CurveInputs(NamedTuple):
    """Log weights as a function of the score: :class:`cw_ext.ScoreCurve`."""

    curve: Tensor | None = None  # [B, K], or None: none
    curve_low: float = 0.0
    curve_high: float = 1.0
    curve_on_margin: bool = False


NO_CURVE = CurveInputs()


def row_values(options: LossOptions, like_name: str, like: Tensor, dtype: torch.dtype) -> RowValues:
    """The values of a batch, checked, in `dtype` and with one value per element of `like`."""
    given = RowValues(options.prior, options.confidence_threshold, options.temperature)
    if {*map(type, given)} == {float}:  # the most common case: nothing to check
        return given
    checks.per_row("prior", given.prior, like_name, like)
    checks.per_row("confidence_threshold", given.threshold, like_name, like)
    checks.per_row("temperature", given.temperature, like_name, like)
    checks.in_range("prior", given.prior, dtype, "in [0, 1)", lambda x: (x >= 0) & (x < 1))
    checks.in_range("temperature", given.temperature, dtype, "> 0", lambda x: (x > 0) & (x < math.inf))
    return RowValues(*[sums.expanded(x.to(dtype), like.shape) if isinstance(x, Tensor) else x for x in given])


def curve_inputs(options: LossOptions, like_name: str, like: Tensor, dtype: torch.dtype) -> CurveInputs:
    """The curve of a batch in `dtype`, with one row of log weights per element of `like`."""
    curve = options.score_curve
    if curve is None:
        return NO_CURVE
    checks.matches("score_curve.log_weights", curve.log_weights, like_name, like, dtype=False)
    log_weights = curve.log_weights.to(dtype)
    rows = log_weights.expand(*like.shape, log_weights.shape[0])
    return CurveInputs(rows, float(curve.low), float(curve.high), curve.on == "margin")

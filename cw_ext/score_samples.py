"""Samples of scores for the estimates: tensors, arrays or sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cw_ext import checks

Scores = Tensor | np.ndarray | Sequence[float]


def sorted_scores(name: str, scores: Scores) -> Tensor:
    """All scores in increasing order, in fp64, which keeps the order and the ties of every narrower dtype."""
    if isinstance(scores, Tensor):
        checks.is_tensor(name, scores)
        checks.has_values(name, scores)
    else:
        try:
            scores = np.asarray(scores)
        except ValueError:  # numpy's error for lists of different lengths
            raise ValueError(f"{name} must be an array of scores, got sequences of different lengths") from None
    floating = scores.is_floating_point() if isinstance(scores, Tensor) else scores.dtype.kind == "f"
    if not floating:
        raise TypeError(f"{name} must hold floating-point scores, got {str(scores.dtype).removeprefix('torch.')}")
    if isinstance(scores, Tensor):
        values = scores.detach().double().flatten()
    else:
        # A copy: the array may be read-only, or have strides or a byte order that torch does not support.
        values = torch.from_numpy(scores.astype(np.float64).reshape(-1))
    if values.numel() == 0:
        raise ValueError(f"{name} must hold at least one score, got shape {tuple(scores.shape)}")
    nan = values.isnan()
    if nan.any():
        raise ValueError(f"{name} must hold no NaN, got {int(nan.sum())} among {values.numel()} scores")
    return values.sort().values

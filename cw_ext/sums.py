"""Sums that do not depend on the number of threads. torch splits a sum of 32,768 numbers or more by its threads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FEWEST_SPLIT = 32768
_AT_ONCE = 1024


def _needs_parts(count: int) -> bool:
    return not torch.compiler.is_compiling() and count >= _FEWEST_SPLIT


def total(x: Tensor) -> Tensor:
    """The sum of x [B]."""
    if not _needs_parts(x.numel()):
        return x.sum()
    padded = F.pad(x.flatten(), (0, -x.numel() % _AT_ONCE))
    return padded.reshape(-1, _AT_ONCE).sum(-1).sum()


def expanded(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """value.expand(shape), where the gradient of a single number is such a sum."""
    # First the cases that need no count, which torch.export would turn into a constant.
    if value.dim() > 0 or not value.requires_grad or torch.compiler.is_compiling():
        return value.expand(shape)
    count = torch.Size(shape).numel()
    if not _needs_parts(count):
        return value.expand(shape)
    parts = -(-count // _AT_ONCE)
    return value.reshape(1, 1).expand(parts, 1).expand(parts, _AT_ONCE).flatten()[:count].reshape(shape)

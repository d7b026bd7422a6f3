"""Questions to torch whose answers torch.compile takes as they are at the time of compiling.

torch 2.11 cannot compile the first and the last, and would answer the second with yes wherever it compiles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

_Question = TypeVar("_Question", bound=Callable[..., bool])


def _constant(question: _Question) -> _Question:
    """As torch.compiler.assume_constant_result, which takes the time to import the compiler."""
    question._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return question


@_constant
def has_autocast(device: str) -> bool:
    """Some devices, such as "meta", have none."""
    return torch.amp.is_autocast_available(device)


@_constant
def is_exporting() -> bool:
    """Whether torch.export traces, which looks through an autograd.Function to what it calls."""
    return torch.compiler.is_exporting()


@_constant
def has_medium_precision() -> bool:
    """Whether torch.set_float32_matmul_precision("medium") holds. torch.compile compiles again when that changes from
    or to "highest", the default."""
    return torch.get_float32_matmul_precision() == "medium"

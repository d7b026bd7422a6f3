"""What torch.compile is told: questions to torch whose answers are taken as they are at the time of compiling, and
functions that it does not trace.

torch 2.11 cannot compile the first question and the last, and would answer the second with yes wherever it compiles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_Question = TypeVar("_Question", bound=Callable[..., bool])
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def uncompiled(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Run the function between two graphs of torch.compile; with fullgraph=True that is an error, which says so.

    As torch.compiler.disable, which takes the time to import the compiler.
    """

    @functools.wraps(function)
    def wrapper(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        called = function
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(msg="torch.compile cannot capture what depends on ids or on other processes")
            called = torch.compiler.disable(called)
        return called(*arguments, **named)

    return wrapper


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

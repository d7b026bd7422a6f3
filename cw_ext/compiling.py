"""For torch.compile: questions to torch whose answers become constants when compiling, and functions it does not trace.

torch 2.11 cannot compile has_autocast and has_medium_precision, and would answer is_exporting with yes whenever it
compiles.
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
    """Runs the function between two graphs of torch.compile. With fullgraph=True that is an error, which says so.

    Like torch.compiler.disable, but without importing the compiler, which takes time.
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
    """Like torch.compiler.assume_constant_result, but without importing the compiler, which takes time."""
    question._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return question


@_constant
def has_autocast(device: str) -> bool:
    """Whether the device type has autocast. Some, such as "meta", do not."""
    return torch.amp.is_autocast_available(device)


@_constant
def is_exporting() -> bool:
    """Whether torch.export is tracing. It looks through an autograd.Function to what that calls."""
    return torch.compiler.is_exporting()


@_constant
def has_medium_precision() -> bool:
    """Whether torch.set_float32_matmul_precision("medium") is in effect. torch.compile compiles again when that changes
    from or to "highest", the default."""
    return torch.get_float32_matmul_precision() == "medium"

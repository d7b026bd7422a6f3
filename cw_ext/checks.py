"""Checks of the user's arguments: each error names the argument, what was expected, and what it got."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.int32, torch.int64)
# The built-in types first, as a check against an abstract class is slow.
REAL, WHOLE = (float, Real), (int, Integral)
# A draw's place in its row is a counter of 32 bits (csrc/negative_sampling.h).
MOST_DRAWS = 2**32
NO_VMAP = (
    "torch.func.vmap is not supported where the loss looks embeddings up by id. Use it with cw_loss, on scores, or use "
    "reduction='none', which gives a loss per row without it"
)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(d).removeprefix("torch.") for d in dtypes)


def is_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    # Checked for every tensor: few operations support other layouts, and their errors do not name the argument.
    if value.layout != torch.strided or value.is_nested:
        got = f"layout {value.layout}" if value.layout != torch.strided else "a nested tensor"
        raise TypeError(f"{name} must be a dense (strided) tensor, got {got}")


def has_values(name: str, tensor: Tensor) -> None:
    """Needed to check the values."""
    if tensor.is_meta:
        raise ValueError(f"{name} must hold values, got a tensor on the device meta")


def number(name: str, value: object, expected: str) -> float:
    """A finite number. `expected` goes into the message."""
    if isinstance(value, bool) or not isinstance(value, REAL):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    # Unlike math.isfinite, traceable when torch.compile takes the number for dynamic. numbers.Real has no types for it.
    if not -math.inf < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} must be {expected}, got {value}")
    try:
        return float(value)
    except OverflowError:  # an integer or a fraction that no float can hold
        raise ValueError(f"{name} must be {expected} that a float can hold, got {value}") from None


def positive_number(name: str, value: object) -> float:
    result = number(name, value, "a number > 0")
    if result <= 0:
        raise ValueError(f"{name} must be > 0, got {value}")
    return result


def non_negative_number(name: str, value: object) -> float:
    result = number(name, value, "a number ≥ 0")
    if result < 0:
        raise ValueError(f"{name} must be a number ≥ 0, got {value}")
    return result


def whole_number(name: str, value: object, smallest: int, largest: int | None = None) -> None:
    expected = f"an integer ≥ {smallest}" if largest is None else f"an integer in [{smallest}, {largest}]"
    if isinstance(value, bool) or not isinstance(value, WHOLE):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    if int(value) < smallest or (largest is not None and int(value) > largest):
        raise ValueError(f"{name} must be {expected}, got {value}")


def num_negatives(value: object, smallest: int = 1) -> None:
    """How many negatives to draw."""
    whole_number("num_negatives", value, smallest)
    if int(value) > MOST_DRAWS:  # type: ignore[call-overload]
        raise ValueError(f"num_negatives must be at most 2**32, got {value}")


def flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def flags(**values: object) -> None:
    for name, value in values.items():
        flag(name, value)


def choice(name: str, value: object, choices: Iterable[str]) -> None:
    # Only strings: an array of one of them is equal to it, and a list has no hash.
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def has_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    is_tensor(name, tensor)
    if tensor.dtype not in allowed:
        raise TypeError(f"{name} must have dtype {_names(allowed)}, got {_names((tensor.dtype,))}")


def has_shape(name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    # Sizes go into the message only when it is needed: under torch.compile, printing one makes it a constant.
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, {meaning}, got {tuple(tensor.shape)}")


def matches(name: str, tensor: Tensor, other_name: str, other: Tensor, *, dtype: bool = True) -> None:
    """The same device, and the same dtype unless dtype=False."""
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}")
    if dtype and tensor.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the dtype of {other_name}, {_names((other.dtype,))}, got {_names((tensor.dtype,))}"
        )


def per_row(name: str, value: Tensor | float, like_name: str, like: Tensor) -> None:
    """A float, or a tensor with one value per row (or a single one)."""
    if not isinstance(value, Tensor):
        return
    has_dtype(name, value, FLOATING)
    matches(name, value, like_name, like, dtype=False)
    if value.dim() and value.shape != like.shape:
        raise ValueError(
            f"{name} must be a number or a tensor of shape () or {tuple(like.shape)}, one value per row, "
            f"got {tuple(value.shape)}"
        )


def in_range(
    name: str, values: Tensor | float, dtype: torch.dtype, within: str, contains: Callable[[Any], Any]
) -> None:
    """Checks a tensor's values, rounded to `dtype`, if reading them neither synchronises nor breaks a graph."""
    if not isinstance(values, Tensor) or values.device.type != "cpu" or torch.compiler.is_compiling():
        return
    values = torch.func.debug_unwrap(values)  # torch.func.vmap hides a sample's values, but not those of all samples
    rounded = values.to(dtype)
    if rounded.numel() == 1:  # most often, and looked at in less time than two operations on tensors take
        bad = values.flatten() if not contains(rounded.item()) else None
    else:
        outside = ~contains(rounded)
        bad = values[outside] if outside.any() else None
    if bad is not None:
        value = bad.flatten()[0]
        note = f", which is {value.to(dtype).item():g} in {dtype}" if contains(value.item()) else ""
        raise ValueError(f"{name} must be {within}, got {value.item()}{note}")


def row_weights(value: Tensor | None, like_name: str, like: Tensor) -> None:
    if value is None:
        return
    is_tensor("row_weights", value)
    if value.is_complex() or value.is_quantized:
        raise TypeError(f"row_weights must be real, got {_names((value.dtype,))}")
    matches("row_weights", value, like_name, like, dtype=False)
    has_shape("row_weights", value, like.shape, "one weight per row")


def log_weights(value: Tensor | None, shape: tuple[int, ...], like_name: str, like: Tensor) -> None:
    """External log weights: in the shape of the negatives, or one that broadcasts to it over the leading dimensions."""
    if value is None:
        return
    has_dtype("neg_log_weights", value, FLOATING)
    matches("neg_log_weights", value, like_name, like, dtype=False)
    own = tuple(value.shape)
    fits = 0 < len(own) <= len(shape) and own[-1] == shape[-1]
    if not fits or any(a != 1 and a != b for a, b in zip(own[::-1], shape[::-1])):
        raise ValueError(
            f"neg_log_weights must have shape {shape}, or one that broadcasts to it with a last dimension of "
            f"{shape[-1]}, got {own}"
        )


def item_counts(value: Tensor, like_name: str, like: Tensor, rows: int) -> None:
    """How often each item occurs. Values are checked where `ids_in_range` checks them."""
    has_dtype("item_counts", value, INTEGER + FLOATING)
    matches("item_counts", value, like_name, like, dtype=False)
    has_shape("item_counts", value, (rows,), "one count per row of items")
    if value.device.type != "cpu" or rows == 0 or torch.compiler.is_compiling():
        return
    for bound in value.aminmax():  # NaN, where there is one
        if not 0 <= bound.item() < math.inf:
            raise ValueError(f"item_counts must be finite and ≥ 0, got {bound.item()}")


def scores(pos: Tensor, neg: Tensor, extra: Tensor | None) -> None:
    """The tensors of the loss on scores."""
    has_dtype("pos_scores", pos, FLOATING)
    is_tensor("neg_scores", neg)
    matches("neg_scores", neg, "pos_scores", pos)
    if neg.dim() == 0 or neg.shape[:-1] != pos.shape:
        raise ValueError(
            f"neg_scores must have shape [..., N], where ... is the shape of pos_scores, {tuple(pos.shape)}, "
            f"got {tuple(neg.shape)}"
        )
    if neg.shape[-1] == 0:
        raise ValueError(f"neg_scores must hold at least one negative per row (N ≥ 1), got shape {tuple(neg.shape)}")
    if extra is not None:
        is_tensor("extra_pos_scores", extra)
        matches("extra_pos_scores", extra, "pos_scores", pos)
        if extra.dim() == 0 or extra.shape[:-1] != pos.shape:
            raise ValueError(
                f"extra_pos_scores must have shape [..., M], where ... is the shape of pos_scores, "
                f"{tuple(pos.shape)}, got {tuple(extra.shape)}"
            )


def not_vmapped(*tensors: Tensor | None) -> None:
    """Refuse tensors with an axis that torch.func.vmap hides."""
    if not torch._C._are_functorch_transforms_active():
        return
    for tensor in tensors:
        while isinstance(tensor, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            if torch._C._functorch.is_batchedtensor(tensor):
                raise NotImplementedError(NO_VMAP)
            tensor = torch._C._functorch.get_unwrapped(tensor)


def tables(queries: Tensor, items: Tensor) -> None:
    """Rows of the same length, and at least one item if there are queries."""
    not_vmapped(queries, items)
    has_dtype("queries", queries, FLOATING)
    is_tensor("items", items)
    matches("items", items, "queries", queries)
    if queries.dim() != 2:
        raise ValueError(f"queries must have shape [B, D], got {tuple(queries.shape)}")
    rows, dim = queries.shape
    if dim == 0:
        raise ValueError(f"queries must have at least one dimension per row (D ≥ 1), got shape {tuple(queries.shape)}")
    if items.dim() != 2 or items.shape[1] != dim:
        raise ValueError(f"items must have shape [I, D] with queries' D = {dim}, got {tuple(items.shape)}")
    if rows and items.shape[0] == 0:
        raise ValueError(f"items must have at least one row (I ≥ 1), got shape {tuple(items.shape)}")


def embeddings(queries: Tensor, items: Tensor, pos_ids: Tensor, extra_ids: Tensor | None) -> None:
    """The tensors of a batch, except its negatives."""
    tables(queries, items)
    not_vmapped(pos_ids, extra_ids)
    rows = queries.shape[0]
    has_dtype("pos_ids", pos_ids, INTEGER)
    matches("pos_ids", pos_ids, "queries", queries, dtype=False)
    has_shape("pos_ids", pos_ids, (rows,), "one id per row of queries")
    if extra_ids is None:
        return
    has_dtype("extra_pos_ids", extra_ids, INTEGER)
    matches("extra_pos_ids", extra_ids, "queries", queries, dtype=False)
    if extra_ids.dim() != 2 or extra_ids.shape[0] != rows:
        raise ValueError(f"extra_pos_ids must have shape [B, M] with queries' B = {rows}, got {tuple(extra_ids.shape)}")


def negative_ids(neg_ids: Tensor, queries: Tensor) -> None:
    """[B, N], or [N] where all rows share them."""
    not_vmapped(neg_ids)
    has_dtype("neg_ids", neg_ids, INTEGER)
    matches("neg_ids", neg_ids, "queries", queries, dtype=False)
    rows = queries.shape[0]
    if neg_ids.dim() not in (1, 2) or (neg_ids.dim() == 2 and neg_ids.shape[0] != rows):
        raise ValueError(
            f"neg_ids must have shape [B, N] with queries' B = {rows}, or [N] where all rows share them, "
            f"got {tuple(neg_ids.shape)}"
        )
    if neg_ids.shape[-1] == 0:
        raise ValueError(f"neg_ids must hold at least one negative per row (N ≥ 1), got shape {tuple(neg_ids.shape)}")


def candidate_ids(ids: Tensor, queries: Tensor) -> None:
    """[B, K]."""
    not_vmapped(ids)
    has_dtype("ids", ids, INTEGER)
    matches("ids", ids, "queries", queries, dtype=False)
    rows = queries.shape[0]
    if ids.dim() != 2 or ids.shape[0] != rows:
        raise ValueError(f"ids must have shape [B, K] with queries' B = {rows}, got {tuple(ids.shape)}")


def ids_in_range(
    name: str, ids: Tensor | None, count: int, *, padding: bool = True, unless_padding: Tensor | None = None
) -> None:
    """Checks the ids on the CPU. On CUDA, and inside torch.compile, the look-up itself checks.

    −1 is allowed with `padding`, and otherwise where `unless_padding` is −1.
    """
    if ids is None or ids.device.type != "cpu" or ids.numel() == 0 or torch.compiler.is_compiling():
        return
    outside = (ids < (-1 if padding else 0)) | (ids >= count)
    if unless_padding is not None and outside.any():
        outside &= (ids != -1) | (unless_padding >= 0)
    if outside.any():
        expected = f"in [0, {count})" + (", or −1 for padding" if padding else "")
        raise IndexError(f"{name} must be {expected}, got {ids[outside].flatten()[0].item()}")

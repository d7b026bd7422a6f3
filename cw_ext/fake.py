"""Shapes and dtypes of the ops' results, for torch.compile. Imported where the ops are there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cw_ext.reference import compute_dtype


def _width(x: Tensor | None) -> int:
    return 0 if x is None else x.shape[1]


def _loss_shape(rows: int, reduction: str) -> tuple[int, ...]:
    return (rows,) if reduction == "none" else ()


def _kept_dtype(x: Tensor) -> torch.dtype:
    """What the gradients of the negatives' scores are kept in until backward: csrc/ops.cpp has the same rule."""
    return x.dtype if x.device.type == "cuda" and x.dtype == torch.bfloat16 else compute_dtype(x.dtype)


@torch.library.register_fake("cw_ext::scores_forward")
def _scores_forward(
    pos: Tensor, neg: Tensor, extra: Tensor | None, log_q: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    *_, reduction, with_gradients, with_log_q_gradient = arguments
    rows, n = neg.shape

    def new(*shape: int, wanted: bool = True) -> Tensor:
        return pos.new_empty(shape if wanted else (0,), dtype=compute_dtype(pos.dtype))

    d_neg = pos.new_empty((rows, n), dtype=_kept_dtype(pos)) if with_gradients else new(0)
    return (
        new(*_loss_shape(rows, reduction)),
        pos.new_empty((rows,), dtype=torch.bool),
        new(wanted=reduction == "mean"),
        new(rows, wanted=with_gradients),
        d_neg,
        new(rows, _width(extra), wanted=with_gradients),
        new(rows, n, wanted=with_log_q_gradient and log_q is not None),
        new(rows),
        new(rows),
    )


def _sorted_pairs(queries: Tensor, width: int, items: int, *, wanted: bool) -> tuple[Tensor, Tensor]:
    """The order that the CPU leaves the pairs in: csrc/cpu/bucketed_pairs.h has the same rule."""
    if not wanted or queries.device.type != "cpu":
        return queries.new_empty((0,), dtype=torch.int16), queries.new_empty((0,), dtype=torch.int32)
    rows = queries.shape[0]
    buckets = (items + 63) // 64
    # torch.sym_min and sym_max, unlike min and max, are for any size at once.
    grown = torch.sym_min((4 * buckets + width - 1) // width, rows // 128)
    rows_per_block = torch.sym_min(1024, torch.sym_max(torch.sym_max(1, 16384 // width), grown))
    blocks = (rows + rows_per_block - 1) // rows_per_block
    return queries.new_empty((rows, width), dtype=torch.int16), queries.new_empty((blocks, buckets), dtype=torch.int32)


@torch.library.register_fake("cw_ext::embeddings_forward")
def _embeddings_forward(
    queries: Tensor,
    items: Tensor,
    pos_ids: Tensor,
    neg_ids: Tensor,
    extra_ids: Tensor | None,
    log_q: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    *_, reduction, with_gradients, with_log_q_gradient = arguments
    rows, dim = queries.shape
    n = neg_ids.shape[-1]
    shared = neg_ids.dim() == 1
    own = 1 + _width(extra_ids)

    def new(*shape: int, wanted: bool = True) -> Tensor:
        return queries.new_empty(shape if wanted else (0,), dtype=compute_dtype(queries.dtype))

    shared_coefficients = new(0)
    if with_gradients and shared:
        shared_coefficients = queries.new_empty((rows, n), dtype=_kept_dtype(queries))
    return (
        new(*_loss_shape(rows, reduction)),
        queries.new_empty((rows,), dtype=torch.bool),
        new(wanted=reduction == "mean"),
        new(rows, dim, wanted=with_gradients),
        new(rows, dim, wanted=with_gradients),
        new(rows, own if shared else own + n, wanted=with_gradients),
        shared_coefficients,
        *_sorted_pairs(queries, own + n, items.shape[0], wanted=with_gradients and not shared),
        new(rows, n, wanted=with_log_q_gradient and log_q is not None),
        new(rows),
        new(rows),
    )


@torch.library.register_fake("cw_ext::draw_negatives")
def _draw_negatives(
    rows: int,
    num_items: int,
    query_ids: Tensor | None,
    starts: Tensor | None,
    known: Tensor | None,
    seed: Tensor,
    first_row: int,
    num_negatives: int,
    *tables: Any,
) -> Tensor:
    return seed.new_empty((rows, num_negatives), dtype=torch.int32)


@torch.library.register_fake("cw_ext::sampled_forward")
def _sampled_forward(
    queries: Tensor,
    items: Tensor,
    pos_ids: Tensor,
    extra_ids: Tensor | None,
    query_ids: Tensor | None,
    starts: Tensor | None,
    known: Tensor | None,
    seed: Tensor,
    first_row: int,
    num_negatives: int,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    *_, reduction, with_gradients, keep_coefficients = arguments
    rows, dim = queries.shape

    def new(*shape: int, wanted: bool = True) -> Tensor:
        return queries.new_empty(shape if wanted else (0,), dtype=compute_dtype(queries.dtype))

    return (
        new(*_loss_shape(rows, reduction)),
        queries.new_empty((rows,), dtype=torch.bool),
        new(wanted=reduction == "mean"),
        new(rows, dim, wanted=with_gradients),
        new(rows, dim, wanted=with_gradients),
        new(rows, 1 + _width(extra_ids) + num_negatives, wanted=with_gradients and keep_coefficients),
        new(rows),
        new(rows),
    )


@torch.library.register_fake("cw_ext::sampled_item_gradient")
def _sampled_item_gradient(
    unit_queries: Tensor,
    factor: Tensor | None,
    coefficients: Tensor | None,
    queries: Tensor,
    items: Tensor,
    *arguments: Any,
) -> Tensor:
    return torch.empty_like(items, memory_format=torch.contiguous_format)


@torch.library.register_fake("cw_ext::full_forward")
def _full_forward(queries: Tensor, items: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *_, reduction, with_gradients, _factor = arguments
    rows, dim = queries.shape

    def new(*shape: int, wanted: bool = True) -> Tensor:
        return queries.new_empty(shape if wanted else (0,), dtype=compute_dtype(queries.dtype))

    return (
        new(*_loss_shape(rows, reduction)),
        queries.new_empty((rows,), dtype=torch.bool),
        new(wanted=reduction == "mean"),
        new(rows, dim, wanted=with_gradients),
        items.new_empty(items.shape if with_gradients else (0,)),
        new(rows),
        new(rows),
    )


@torch.library.register_fake("cw_ext::item_gradient")
def _item_gradient(
    unit_queries: Tensor,
    factor: Tensor | None,
    coefficients: Tensor,
    shared_coefficients: Tensor,
    pair_keys: Tensor,
    pair_ends: Tensor,
    items: Tensor,
    *ids: Any,
) -> Tensor:
    return torch.empty_like(items, memory_format=torch.contiguous_format)


@torch.library.register_fake("cw_ext::scale_rows")
def _scale_rows(gradients: list[Tensor], factor: Tensor, dtype: torch.dtype) -> list[Tensor]:
    return [x.new_empty(x.shape, dtype=dtype) for x in gradients]

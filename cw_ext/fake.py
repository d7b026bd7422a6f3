"""Shapes and dtypes of the ops' results, for torch.compile. Only imported if the ops exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cw_ext.op_inputs import (
    DRAWS,
    EMBEDDINGS,
    FULL,
    SAMPLED,
    SCORES,
    EmbeddingResults,
    EmbeddingsWanted,
    FullResults,
    FullWanted,
    Losses,
    SampledResults,
    SampledWanted,
    ScoreResults,
    Wanted,
)
from cw_ext.reference import compute_dtype
from cw_ext.row_values import RowValues


class _New:
    """Makes tensors in the compute dtype of `like`; without elements where they are not wanted."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._rows = like.shape[0]

    def __call__(self, *shape: int, wanted: bool = True) -> Tensor:
        return self._like.new_empty(shape if wanted else (0,), dtype=compute_dtype(self._like.dtype))

    def kept(self, *shape: int, wanted: bool = True) -> Tensor:
        """In the dtype of the negatives' gradients that are kept for backward: csrc/checks.h has the same rule."""
        narrow = self._like.device.type == "cuda" and self._like.dtype == torch.bfloat16
        return self._like.new_empty(shape, dtype=torch.bfloat16) if narrow and wanted else self(*shape, wanted=wanted)

    def losses(self, reduction: str, return_above: bool) -> Losses:
        loss = self(*((self._rows,) if reduction == "none" else ()))
        above = self._like.new_empty((self._rows if return_above else 0,), dtype=torch.int64)
        return Losses(loss, self._like.new_empty((self._rows,), dtype=torch.bool), above)

    def rescale(self, reduction: str) -> Tensor:
        return self(wanted=reduction == "mean")

    def row_values(self) -> Tensor:
        return self(len(RowValues._fields), self._rows)

    def curve(self, curve: Tensor | None, *, wanted: bool) -> Tensor:
        return self(0) if curve is None or not wanted else self(self._rows, curve.shape[1])


def _width(x: Tensor | None) -> int:
    return 0 if x is None else x.shape[1]


@torch.library.register_fake("cw_ext::scores_forward")
def _scores_forward(*arguments: Any) -> tuple[Tensor | None, ...]:
    inputs, wanted = SCORES.split(arguments, Wanted)
    new, (rows, n) = _New(inputs.pos), inputs.neg.shape
    gradients = wanted.with_gradients
    losses = new.losses(inputs.reduction, inputs.parameters.return_above)
    own_values = any(isinstance(value, Tensor) for value in inputs.row_values)
    results = ScoreResults(
        rescale=new.rescale(inputs.reduction),
        d_pos=new(rows) if gradients else None,
        d_neg=new.kept(rows, n) if gradients else None,
        d_extra=new(rows, inputs.extra.shape[1]) if gradients and inputs.extra is not None else None,
        d_log_q=new(rows, n) if wanted.with_log_q_gradient and inputs.log_q is not None else None,
        d_row_values=new.row_values() if gradients and own_values else None,
        d_curve=new.curve(inputs.curve.curve, wanted=True) if wanted.with_curve_gradient else None,
    )
    return (*losses._replace(above=losses.above if inputs.parameters.return_above else None), *results)


def _sorted_pairs(queries: Tensor, rows: int, width: int, items: int, *, wanted: bool) -> tuple[Tensor, Tensor]:
    """The order in which the CPU leaves the pairs: csrc/cpu/bucketed_pairs.h has the same rule."""
    if not wanted or queries.device.type != "cpu":
        return queries.new_empty((0,), dtype=torch.int16), queries.new_empty((0,), dtype=torch.int32)
    buckets = (items + 63) // 64
    # Unlike min and max, torch.sym_min and sym_max work for symbolic sizes.
    grown = torch.sym_min((4 * buckets + width - 1) // width, rows // 128)
    rows_per_block = torch.sym_min(1024, torch.sym_max(torch.sym_max(1, 16384 // width), grown))
    blocks = (rows + rows_per_block - 1) // rows_per_block
    return queries.new_empty((rows, width), dtype=torch.int16), queries.new_empty((blocks, buckets), dtype=torch.int32)


def _at_most(x: int, most: int) -> int:
    """1 if x ≤ most, else 0; unlike a condition, for symbolic sizes too."""
    found: int = torch.sym_max(0, torch.sym_min(1, most - x + 1))
    return found


def _dense(queries: Tensor, negatives: int, items: int, *, by_draw: bool, by_item: bool) -> int:
    """1 if the CPU scores all items, else 0: csrc/dense_rule.h has the same rule."""
    if queries.device.type != "cpu":
        return 0
    rows = queries.shape[0]
    most = 4 if by_item or queries.dtype != torch.float32 else 5
    most = 2 if queries.dtype == torch.float64 else 3 if by_draw else most
    enough = _at_most(1, items) * _at_most(128, rows) * _at_most(16384, rows * negatives)
    return enough * _at_most(negatives, (1 << 24) - 1) * _at_most(2 * items, most * negatives)


@torch.library.register_fake("cw_ext::embeddings_forward")
def _embeddings_forward(*arguments: Any) -> tuple[Tensor | None, ...]:
    inputs, wanted = EMBEDDINGS.split(arguments, EmbeddingsWanted)
    new, (rows, dim), n = _New(inputs.queries), inputs.queries.shape, inputs.neg_ids.shape[-1]
    shared, own = inputs.neg_ids.dim() == 1, 1 + _width(inputs.extra_ids)
    gradients, items = wanted.with_gradients, inputs.items.shape[0]
    of_log_q = wanted.with_log_q_gradient and inputs.log_q is not None
    by_draw, by_item = inputs.log_q is not None, inputs.curve.curve is not None
    is_sorted = gradients and wanted.sorted_pairs and not shared
    dense = 0
    if is_sorted and not of_log_q:
        dense = _dense(inputs.queries, n, items, by_draw=by_draw, by_item=by_item)
    sorted_rows = rows - rows * dense
    keys, ends = _sorted_pairs(inputs.queries, sorted_rows, own + n, items, wanted=is_sorted)
    results = EmbeddingResults(
        rescale=new.rescale(inputs.reduction),
        d_queries=new(rows, dim, wanted=gradients),
        unit_queries=new(rows, dim, wanted=gradients),
        coefficients=new(rows, own if shared else own + n + dense * (items - own - n), wanted=gradients),
        shared_coefficients=new.kept(rows, n, wanted=gradients and shared),
        pair_keys=keys,
        pair_ends=ends,
        d_log_q=new(rows, n, wanted=of_log_q),
        d_row_values=new.row_values(),
        d_curve=new.curve(inputs.curve.curve, wanted=wanted.with_curve_gradient),
    )
    return (*new.losses(inputs.reduction, inputs.parameters.return_above), *results)


@torch.library.register_fake("cw_ext::candidate_scores")
def _candidate_scores(queries: Tensor, items: Tensor, ids: Tensor, similarity: str) -> Tensor:
    return queries.new_empty(ids.shape, dtype=compute_dtype(queries.dtype))


@torch.library.register_fake("cw_ext::draw_negatives")
def _draw_negatives(rows: int, num_items: int, *arguments: Any) -> Tensor:
    draws = DRAWS.rebuilt(arguments)
    return draws.seed.new_empty((rows, draws.num_negatives), dtype=torch.int32)


@torch.library.register_fake("cw_ext::sampled_forward")
def _sampled_forward(*arguments: Any) -> tuple[Tensor | None, ...]:
    inputs, wanted = SAMPLED.split(arguments, SampledWanted)
    new, (rows, dim) = _New(inputs.queries), inputs.queries.shape
    kept = wanted.with_gradients and wanted.keep_coefficients
    gradients, n, items = wanted.with_gradients, inputs.draws.num_negatives, inputs.items.shape[0]
    by_item = inputs.draws.log_weights is not None or inputs.curve.curve is not None
    width = 1 + _width(inputs.extra_ids) + n
    if kept and not wanted.sparse:
        width += _dense(inputs.queries, n, items, by_draw=False, by_item=by_item) * (items - width)
    results = SampledResults(
        rescale=new.rescale(inputs.reduction),
        d_queries=new(rows, dim, wanted=gradients),
        unit_queries=new(rows, dim, wanted=gradients),
        coefficients=new(rows, width, wanted=kept),
        d_row_values=new.row_values(),
        d_curve=new.curve(inputs.curve.curve, wanted=wanted.with_curve_gradient),
    )
    return (*new.losses(inputs.reduction, inputs.parameters.return_above), *results)


@torch.library.register_fake("cw_ext::full_forward")
def _full_forward(*arguments: Any) -> tuple[Tensor | None, ...]:
    inputs, wanted = FULL.split(arguments, FullWanted)
    new, (rows, dim) = _New(inputs.queries), inputs.queries.shape
    results = FullResults(
        rescale=new.rescale(inputs.reduction),
        d_queries=new(rows, dim, wanted=wanted.with_gradients),
        d_items=inputs.items.new_empty(inputs.items.shape if wanted.with_gradients else (0,)),
        d_row_values=new.row_values(),
        d_curve=new.curve(inputs.curve.curve, wanted=wanted.with_curve_gradient),
    )
    return (*new.losses(inputs.reduction, inputs.parameters.return_above), *results)


@torch.library.register_fake("cw_ext::sampled_item_gradient")
def _sampled_item_gradient(unit_queries: Tensor, factor: Any, coefficients: Any, *arguments: Any) -> Tensor:
    return torch.empty_like(SAMPLED.rebuilt(arguments[:-1]).items, memory_format=torch.contiguous_format)


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

"""The throughput benchmark's steps in which all rows share one set of negatives, without each row's known positives.

What a row leaves out is found without sorting or searching. A table holds the positions of the set's items, and the
query's known positives are looked up in it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.throughput.eager import TEMPERATURE, one_set
from benchmarks.throughput.inputs import Inputs
from benchmarks.throughput.shapes import Shape
from cw_ext import cw_loss_full, cw_loss_in_batch, draw_negatives, sampled_cw_loss

SEED = 1


def fused(shape: Shape, inputs: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
    """Return cw_ext's loss of (queries, items)."""
    pos_ids, query_ids = inputs.ids
    known = {"query_ids": query_ids, "interactions": inputs.interactions}
    loss = {"temperature": TEMPERATURE, "backend": "fused"}
    match shape.kind:
        case "shared":
            ids = (query_ids, pos_ids, inputs.interactions, shape.negatives)
            return lambda queries, items: sampled_cw_loss(queries, items, *ids, seed=SEED, shared=True, **loss)
        case "full":
            return lambda queries, items: cw_loss_full(queries, items, pos_ids, **known, **loss)
        case _:
            drawn = {"num_negatives": shape.negatives, "seed": SEED}
            return lambda queries, items: cw_loss_in_batch(queries, items, pos_ids, **known, **drawn, **loss)


def eager(
    shape: Shape, inputs: Inputs, loss: Callable[..., Tensor] = one_set, rows: slice = slice(None)
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of (queries, items) in plain PyTorch, with negatives drawn before.

    Args:
        shape, inputs: of the step.
        loss: :func:`eager.one_set`, or a compiled one.
        rows: which rows of the batch the queries are; the set is that of the whole batch.
    """
    pos_ids, query_ids = (ids[rows] for ids in inputs.ids)
    neg_ids = negative_ids(shape, inputs)

    def of_rows(queries: Tensor, items: Tensor) -> Tensor:
        left_out = _left_out(shape, inputs, pos_ids, query_ids, neg_ids)
        log_q = _log_weights(shape, inputs, neg_ids)
        return loss(queries, items, pos_ids, neg_ids, left_out, None if log_q is None else log_q.to(queries.dtype))

    return of_rows


def negative_ids(shape: Shape, inputs: Inputs) -> Tensor | None:
    """The set, int64 [C]; None for all items."""
    if shape.kind == "full":
        return None
    pos_ids, _ = inputs.ids
    batch = [pos_ids] if shape.kind != "shared" else []
    if shape.negatives:
        batch.append(draw_negatives(None, inputs.interactions, shape.negatives, seed=SEED))
    return torch.cat(batch)


def _left_out(shape: Shape, inputs: Inputs, pos_ids: Tensor, query_ids: Tensor, neg_ids: Tensor | None) -> Tensor:
    """Whether a row leaves a negative out, bool [B, C]."""
    starts, items = inputs.interactions.starts, inputs.interactions.items
    counts = starts[query_ids + 1] - starts[query_ids]
    rows = torch.arange(len(query_ids), device=query_ids.device)
    known_rows = rows.repeat_interleave(counts)
    places = torch.arange(len(known_rows), device=query_ids.device)
    places += (starts[query_ids] - (counts.cumsum(0) - counts))[known_rows]
    known_rows, known = torch.cat([known_rows, rows]), torch.cat([items[places].long(), pos_ids])
    if neg_ids is None:
        return _marked(known_rows, known, (len(rows), shape.items))
    # An item that is in the set more than once has one place, which its other places refer to.
    slots = torch.full((shape.items,), -1, device=query_ids.device)
    slots[neg_ids] = torch.arange(len(neg_ids), device=query_ids.device)
    in_set = slots[known] >= 0
    marked = _marked(known_rows[in_set], slots[known[in_set]], (len(rows), len(neg_ids)))
    return marked.index_select(1, slots[neg_ids])


def _marked(rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
    marked = torch.zeros(size, dtype=torch.bool, device=rows.device)
    marked.view(-1).index_fill_(0, rows * size[1] + columns, True)
    return marked


def _log_weights(shape: Shape, inputs: Inputs, neg_ids: Tensor | None) -> Tensor | None:
    """log of uniform over actual probability, fp64 [C], where positives of the batch are among the negatives."""
    if shape.kind not in ("in-batch", "mixed"):
        return None
    popularity = inputs.interactions.item_counts.double()[neg_ids] / len(inputs.interactions)
    share = shape.negatives / shape.columns
    return -((1 - share) * popularity * shape.items + share).log()

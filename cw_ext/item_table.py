"""The item table that a user passes: a tensor, or an nn.Embedding with its options."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cw_ext.compiling import is_exporting
from cw_ext.op_function import may_overwrite
from cw_ext.sparse_rows import sparse_gradient, stay_coalesced


class _NoGradientAt(torch.autograd.Function):
    """The table, with zeros in one row of its gradient; a sparse gradient leaves the row out."""

    @staticmethod
    def forward(table: Tensor, row: int) -> Tensor:
        return table.view_as(table)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        _, ctx.row = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if not grad.is_sparse:
            row = torch.full((1,), ctx.row, device=grad.device)  # filled on the device, without waiting for it
            # In place: this gradient is not used elsewhere, and copying a whole table is slow.
            own = may_overwrite() and not grad.requires_grad
            return (grad.index_fill_ if own else grad.index_fill)(0, row, 0), None
        ids, values = grad._indices(), grad._values()  # coalesced, as cw_ext.sparse_rows makes them
        kept = ids[0] != ctx.row
        if not kept.all():
            grad = sparse_gradient(ids[0][kept], values[kept], grad.shape)
        ctx.kept = stay_coalesced(grad, ctx.next_functions[0][0])
        return grad, None


def item_table(items: Tensor | nn.Embedding) -> tuple[Tensor, bool]:
    """(the table [I, D], whether its gradient should be sparse), with an embedding's options as in `items(ids)`.

    Raises:
        TypeError: neither a tensor nor an nn.Embedding, or a subclass with another forward.
        ValueError: an option that the loss does not support.
    """
    if isinstance(items, Tensor):
        return items, False
    if not isinstance(items, nn.Embedding):
        raise TypeError(f"items must be a torch.Tensor or a torch.nn.Embedding, got {type(items).__name__}")
    if type(items).forward is not nn.Embedding.forward:
        raise TypeError(
            f"items must have the forward of torch.nn.Embedding, got {type(items).__name__}, which overrides it; pass "
            "the table itself"
        )
    if items.max_norm is not None:
        raise ValueError(
            f"items must have no max_norm, which rescales rows in place as they are looked up, got {items.max_norm}; "
            "rescale the rows yourself, and pass items.weight"
        )
    if items.scale_grad_by_freq:
        raise ValueError(
            "items must have scale_grad_by_freq=False, since the loss does not divide gradients by how often an id "
            "occurs, got True; pass items.weight to train without it"
        )
    if items.padding_idx is None:
        return items.weight, items.sparse
    if is_exporting():  # torch.export looks through an autograd.Function: a copy of the table, by plain ops
        row = torch.full((1,), items.padding_idx, device=items.weight.device)
        return items.weight.index_copy(0, row, items.weight.detach()[row]), items.sparse
    table: Tensor = _NoGradientAt.apply(items.weight, items.padding_idx)  # type: ignore[no-untyped-call]
    return table, items.sparse

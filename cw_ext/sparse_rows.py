"""Sparse gradients of a table: only the rows that occur in a batch."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from cw_ext import reference
from cw_ext.op_inputs import EmbeddingInputs

_Ids = TypeVar("_Ids", bound=tuple[Tensor | None, ...])


def sparse_gradient(ids: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """The coalesced gradient of a table whose rows `ids`, sorted and distinct, have the gradients `values`."""
    # The op itself, because torch.sparse_coo_tensor before torch 2.13 warns of unchecked invariants even with
    # check_invariants=False.
    gradient: Tensor = torch.ops.aten._sparse_coo_tensor_unsafe(ids.unsqueeze(0), values, shape, is_coalesced=True)
    return gradient


def stay_coalesced(gradient: Tensor, goes_to: Any) -> Tensor | None:
    """Makes a table's .grad report that it is coalesced. Called when backward is about to return its gradient.

    A gradient that nothing else refers to becomes .grad without a copy, but loses the flag. Otherwise it is copied
    and keeps the flag, but the copy takes as long as the kernels. So the flag is set again after the backward pass.

    Args:
        gradient: what backward returns for the table.
        goes_to: the node in backward's ctx.next_functions that it goes to.

    Returns:
        What the caller must keep a reference to, so that the gradient is copied: needed where something may read .grad
        before the backward pass is over. Otherwise None.
    """
    if type(goes_to).__name__ != "AccumulateGrad" or goes_to.variable.grad is not None:
        return None
    table: Tensor = goes_to.variable
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed or table._post_accumulate_grad_hooks:
        return gradient
    parts = _addresses(gradient)

    def set_flag() -> None:
        found = table.grad
        if found is not None and found.is_sparse and _addresses(found) == parts:  # else it is a sum with others
            found._coalesced_(True)

    torch.autograd.Variable._execution_engine.queue_callback(set_flag)
    return None


def _addresses(x: Tensor) -> tuple[int, int, int]:
    return x._indices().data_ptr(), x._values().data_ptr(), x._nnz()


class _RowsWithSparseGradient(torch.autograd.Function):
    """table[unique_ids], whose backward gives the table a coalesced sparse gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, unique_ids: Tensor) -> Tensor:
        ctx.save_for_backward(unique_ids)
        ctx.shape = table.shape
        # If all ids are padding: the kernels need a table with at least one row.
        return table[unique_ids] if unique_ids.numel() else table[:1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (unique_ids,) = ctx.saved_tensors
        gradient = sparse_gradient(unique_ids, grad[: unique_ids.numel()], ctx.shape)
        ctx.kept = stay_coalesced(gradient, ctx.next_functions[0][0])
        return gradient, None


def compact_table(table: Tensor, ids: _Ids) -> tuple[Tensor, _Ids]:
    """Keep only the rows of `table` that occur in `ids`.

    Args:
        table: [I, D].
        ids: id tensors of any shape, values in [0, I) or −1 for padding; None is passed through.

    Returns:
        (compact [U, D], remapped ids): the rows in increasing order of id, and each id tensor with positions among
        these (−1 stays −1). If there are no ids, an arbitrary row. `table` gets a coalesced sparse gradient.
    """
    present = [t.reshape(-1) for t in ids if t is not None]
    # A flag per table row. For the usual batch, with more ids than rows, this is ten times as fast as sorting. The last
    # flag is for the padding.
    flags = torch.zeros(table.shape[0] + 1, dtype=torch.bool, device=table.device)
    for t in present:
        flags[t.long()] = True
    unique_ids = flags[:-1].nonzero().squeeze(1)
    place = torch.full((table.shape[0] + 1,), -1, dtype=torch.int64, device=table.device)
    place[unique_ids] = torch.arange(unique_ids.numel(), device=table.device)
    remapped = tuple(None if t is None else place[t.long()].to(t.dtype) for t in ids)
    rows = _RowsWithSparseGradient.apply(table, unique_ids)  # type: ignore[no-untyped-call]
    return rows, remapped  # type: ignore[return-value]  # None where None was


def compacted(inputs: EmbeddingInputs) -> EmbeddingInputs:
    """The same batch on only those rows of the table that occur in it, which get a sparse gradient."""
    if inputs.exclude:  # ids in a compact table differ from those in the history
        dtype = reference.compute_dtype(inputs.queries.dtype)
        log_q = reference.leave_out(
            inputs.log_q, inputs.pos_ids, inputs.neg_ids, inputs.history, inputs.items.shape[0], dtype
        )
        inputs = inputs._replace(log_q=log_q, exclude=False, history=None)
    items, (pos_ids, neg_ids, extra_ids) = compact_table(
        inputs.items, (inputs.pos_ids, inputs.neg_ids, inputs.extra_ids)
    )
    return inputs._replace(items=items, pos_ids=pos_ids, neg_ids=neg_ids, extra_ids=extra_ids)

"""The rows of a table that a batch touches, as a small table of their own, with a coalesced sparse gradient."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

_Ids = TypeVar("_Ids", bound=tuple[Tensor | None, ...])


class _RowsWithSparseGradient(torch.autograd.Function):
    """table[unique_ids], whose backward gives the table a coalesced sparse gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, unique_ids: Tensor) -> Tensor:
        ctx.save_for_backward(unique_ids)
        ctx.shape = table.shape
        # If all ids are padding: the kernels need a table with at least a row.
        return table[unique_ids] if unique_ids.numel() else table[:1].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (unique_ids,) = ctx.saved_tensors
        # unique_ids is sorted and has no duplicates, which is what "coalesced" means. The extra reference keeps the
        # flag: a gradient without other references becomes its tensor's .grad without it. The op, as before torch 2.13
        # torch.sparse_coo_tensor warns of unchecked invariants even where check_invariants=False is passed.
        ctx.result = torch.ops.aten._sparse_coo_tensor_unsafe(
            unique_ids.unsqueeze(0), grad[: unique_ids.numel()], ctx.shape, is_coalesced=True
        )
        return ctx.result, None


def compact_table(table: Tensor, ids: _Ids) -> tuple[Tensor, _Ids]:
    """Keep only the rows of `table` that occur in `ids`.

    Args:
        table: [I, D].
        ids: id tensors of any shape, values in [0, I) or −1 for padding; None is passed through.

    Returns:
        (compact [U, D], remapped ids): the rows in increasing order of id, and each id tensor with positions in these
        (−1 stays −1); an arbitrary row if there are no ids. The gradient to `table` is a coalesced sparse tensor.
    """
    present = [t.reshape(-1) for t in ids if t is not None]
    # A flag per table row: for the usual batch, with more ids than rows, ten times as fast as sorting. The last flag is
    # for the padding.
    flags = torch.zeros(table.shape[0] + 1, dtype=torch.bool, device=table.device)
    for t in present:
        flags[t.long()] = True
    unique_ids = flags[:-1].nonzero().squeeze(1)
    place = torch.full((table.shape[0] + 1,), -1, dtype=torch.int64, device=table.device)
    place[unique_ids] = torch.arange(unique_ids.numel(), device=table.device)
    remapped = tuple(None if t is None else place[t.long()].to(t.dtype) for t in ids)
    rows = _RowsWithSparseGradient.apply(table, unique_ids)  # type: ignore[no-untyped-call]
    return rows, remapped  # type: ignore[return-value]  # None where None was

"""The ops that an exported program calls, torch.ops.cw_ext_export.*.

torch.export looks through an autograd.Function, to an op whose results have no gradient, and whose further results
would bind the number of rows by their sizes. These have the arguments of cw_ext's ops of the same names, but for what
says which gradients to compute: they compute the loss, and backward does the whole of it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cw_ext import autograd
from cw_ext.parameters import RowParameters
from cw_ext.reference_sampling import History


def _either(rows: Tensor | None, number: float) -> autograd.PerRow:
    """The inverse of :func:`cw_ext.autograd.split`."""
    return number if rows is None else rows


def _loss_of_scores(*inputs: Any) -> Tensor:
    pos, neg, extra, log_q, prior_rows, prior, threshold_rows, threshold, *parameters, reduction = inputs
    per_row = (_either(prior_rows, prior), _either(threshold_rows, threshold))
    return autograd.score_rows(pos, neg, extra, log_q, *per_row, RowParameters(*parameters), reduction)[0]


def _loss_of_embeddings(*inputs: Any) -> Tensor:
    queries, items, pos_ids, neg_ids, extra_ids, log_q, exclude, query_ids, starts, known = inputs[:10]
    prior_rows, prior, threshold_rows, threshold = inputs[10:14]
    *parameters, similarity, reduction = inputs[14:]
    per_row = (_either(prior_rows, prior), _either(threshold_rows, threshold))
    history = None if query_ids is None else History(query_ids, starts, known)
    batch = (queries, items, pos_ids, neg_ids, extra_ids, log_q)
    row = RowParameters(*parameters)
    return autograd.embedding_rows(*batch, *per_row, similarity, row, reduction, exclude, history)[0]


def _define(name: str, loss_of: Callable[..., Tensor]) -> None:
    """The op's schema and results (loss, live), and its gradients: those of `loss_of` with the same arguments."""
    op = getattr(torch.ops.cw_ext, name).default
    arguments = str(op._schema).partition("(")[2].partition(", bool with_gradients")[0]
    exported = f"cw_ext_export::{name}"

    def loss_and_live(*inputs: Any) -> tuple[Tensor, ...]:
        return tuple(op(*inputs, False, False)[:2])

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))

    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        if grad is None:
            return (None,) * len(needs)
        inputs = [other if saved is None else saved for saved, other in zip(ctx.saved_tensors, ctx.others)]
        wanted = [x for x, needed in zip(inputs, needs) if needed]
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            found = iter(torch.autograd.grad(loss_of(*inputs), wanted, grad, create_graph=create_graph))
        return tuple(next(found) if needed else None for needed in needs)

    torch.library.define(exported, f"({arguments}) -> (Tensor loss, Tensor live)")
    torch.library.impl(exported, "CompositeExplicitAutograd", loss_and_live)
    torch.library.register_fake(exported, loss_and_live)
    torch.library.register_autograd(exported, backward, setup_context=setup_context)


_define("scores_forward", _loss_of_scores)
_define("embeddings_forward", _loss_of_embeddings)

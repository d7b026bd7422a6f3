"""The ops that an exported program calls, torch.ops.cw_ext_export.*.

torch.export sees through an autograd.Function to the op inside. The results of that op have no gradient, and the sizes
of its other results would fix the number of rows. The ops here have the arguments of cw_ext's ops of the same names,
except those that choose which gradients to compute. They compute the loss, and backward computes everything again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cw_ext import autograd
from cw_ext.op_inputs import EMBEDDINGS, SCORES, Layout, Losses, Wanted


def _define(name: str, layout: Layout[Any], rows_of: Callable[[Any], Losses]) -> None:
    """Defines the op's schema, results and gradients; the latter are those of rows_of(inputs).loss."""
    op = getattr(torch.ops.cw_ext, name).default
    arguments = str(op._schema).partition("(")[2].partition(", bool with_gradients")[0]
    exported = f"cw_ext_export::{name}"

    def losses(*inputs: Any) -> tuple[Tensor, ...]:
        return tuple(op(*inputs, *Wanted(False, False, False))[: len(Losses._fields)])

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))

    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        if grad is None:
            return (None,) * len(needs)
        inputs = [other if saved is None else saved for saved, other in zip(ctx.saved_tensors, ctx.others)]
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = [x.view_as(x) if needed else x for x, needed in zip(inputs, needs)]  # see through_reference()
            wanted = [x for x, needed in zip(inputs, needs) if needed]
            loss = rows_of(layout.rebuilt(inputs)).loss
            found = iter(torch.autograd.grad(loss, wanted, grad, create_graph=create_graph))
        return tuple(next(found) if needed else None for needed in needs)

    torch.library.define(exported, f"({arguments}) -> (Tensor loss, Tensor live, Tensor above)")
    torch.library.impl(exported, "CompositeExplicitAutograd", losses)
    torch.library.register_fake(exported, losses)
    torch.library.register_autograd(exported, backward, setup_context=setup_context)


_define("scores_forward", SCORES, autograd.score_rows)
_define("embeddings_forward", EMBEDDINGS, autograd.embedding_rows)

"""torch.autograd.Function over the ops whose negatives nobody hands over: drawn, or the whole catalogue.

What autograd.py says of forward, backward and create_graph holds here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cw_ext import reference
from cw_ext.autograd import (
    NO_HISTORY,
    PerRow,
    apply,
    needs_gradient,
    row_grad,
    scaled,
    split,
    through_reference,
    wants_graph,
)
from cw_ext.parameters import RowParameters
from cw_ext.reference_sampling import Draws, History


class _SampledRows(torch.autograd.Function):
    """Level 3: (reduced loss, live [B], rescale, gradients of each row's loss …)."""

    @staticmethod
    def forward(
        queries: Tensor,
        items: Tensor,
        pos_ids: Tensor,
        extra_ids: Tensor | None,
        prior: PerRow,
        threshold: PerRow,
        draws: Draws,
        similarity: str,
        parameters: RowParameters,
        reduction: str,
        recompute: bool,
        with_gradients: bool,
    ) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch.ops.cw_ext.sampled_forward(
            queries,
            items,
            pos_ids,
            extra_ids,
            *draws,
            *split(prior),
            *split(threshold),
            *parameters,
            similarity,
            reduction,
            with_gradients,
            not recompute,
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, prior, threshold, draws, ctx.similarity, ctx.parameters, ctx.reduction, ctx.recompute, _ = inputs
        ctx.prior, ctx.threshold = split(prior)[1], split(threshold)[1]
        ctx.num_negatives, ctx.first_row = draws.num_negatives, draws.first_row
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        # Saved, and not just kept: a seed or ids that are written to before backward would draw others in silence.
        draws = draws._replace(num_negatives=None, first_row=None)
        ctx.save_for_backward(*tensors, split(prior)[0], split(threshold)[0], *draws, *output[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 12
        queries, items, pos_ids, extra_ids, prior, threshold, *saved = ctx.saved_tensors
        numbers = {"num_negatives": ctx.num_negatives, "first_row": ctx.first_row}
        draws = Draws(*saved[: len(Draws._fields)])._replace(**numbers)
        rescale, d_queries, unit_queries, coefficients, *row_gradients = saved[len(Draws._fields) :]
        prior = ctx.prior if prior is None else prior
        threshold = ctx.threshold if threshold is None else threshold
        needs = ctx.needs_input_grad
        if wants_graph():
            neg_ids = torch.ops.cw_ext.draw_negatives(queries.shape[0], items.shape[0], *draws)
            log_q = None if draws.log_weights is None else draws.log_weights[neg_ids]

            def rows(queries: Tensor, items: Tensor, pos_ids: Tensor, extra_ids: Any, prior: Any, beta: Any) -> Any:
                batch = (queries, items, pos_ids, neg_ids, extra_ids, log_q, prior, beta)
                return reference.embedding_rows(*batch, ctx.similarity, ctx.parameters)

            inputs = [queries, items, pos_ids, extra_ids, prior, threshold]
            return (*through_reference(rows, inputs, needs[:6], grad, ctx.reduction), *(None,) * 6)
        grad = row_grad(grad, rescale, ctx.reduction)
        grad_items = None
        if needs[1]:
            grad_items = torch.ops.cw_ext.sampled_item_gradient(
                unit_queries,
                grad,
                None if ctx.recompute else coefficients,
                queries,
                items,
                pos_ids,
                extra_ids,
                *draws,
                *split(prior),
                *split(threshold),
                *ctx.parameters,
                ctx.similarity,
                ctx.reduction,
            )
        grad_queries, grad_prior, grad_threshold = scaled(
            (d_queries, *row_gradients), grad, (queries, prior, threshold), (needs[0], needs[4], needs[5])
        )
        return (grad_queries, grad_items, None, None, grad_prior, grad_threshold, *(None,) * 6)


def sampled_rows(
    queries: Tensor,
    items: Tensor,
    pos_ids: Tensor,
    extra_ids: Tensor | None,
    prior: PerRow,
    threshold: PerRow,
    draws: Draws,
    similarity: str,
    parameters: RowParameters,
    reduction: str,
    recompute: bool,
) -> tuple[Tensor, Tensor]:
    """Level 3 on the kernels: (loss [B], or reduced; live [B]) with negatives drawn inside."""
    inputs = (queries, items, pos_ids, extra_ids, prior, threshold)
    settings = (draws, similarity, parameters, reduction, recompute)
    loss, live, *_ = apply(_SampledRows, *inputs, *settings, needs_gradient(inputs))
    return loss, live


class _FullRows(torch.autograd.Function):
    """All items as negatives: (reduced loss, live [B], rescale, gradients …).

    The gradient of the items is a sum over rows. Where the rows' losses are summed too it comes with the forward pass;
    where each row's loss has a gradient of its own, backward does the forward pass over again. So it does for half
    precision, whose gradients would be rounded before they are scaled.
    """

    @staticmethod
    def forward(
        queries: Tensor,
        items: Tensor,
        pos_ids: Tensor,
        extra_ids: Tensor | None,
        prior: PerRow,
        threshold: PerRow,
        history: History | None,
        similarity: str,
        parameters: RowParameters,
        reduction: str,
        with_gradients: bool,
    ) -> tuple[Tensor, ...]:
        with_gradients = with_gradients and _FullRows.gradients_come_forward(items, reduction)
        settings = (similarity, reduction, with_gradients, None)
        return _full_forward(queries, items, pos_ids, extra_ids, prior, threshold, history, parameters, *settings)

    @staticmethod
    def gradients_come_forward(items: Tensor, reduction: str) -> bool:
        return reduction != "none" and items.dtype == reference.compute_dtype(items.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, prior, threshold, history, ctx.similarity, ctx.parameters, ctx.reduction, _ = inputs
        ctx.prior, ctx.threshold = split(prior)[1], split(threshold)[1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        per_row = (split(prior)[0], split(threshold)[0])
        ctx.save_for_backward(*tensors, *per_row, *(history or NO_HISTORY), *output[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 11
        queries, items, pos_ids, extra_ids, prior, threshold, *saved = ctx.saved_tensors
        history = None if saved[0] is None else History(*saved[:3])
        rescale, d_queries, d_items, *row_gradients = saved[3:]
        prior = ctx.prior if prior is None else prior
        threshold = ctx.threshold if threshold is None else threshold
        needs = ctx.needs_input_grad
        inputs: Sequence[Any]
        wanted: Sequence[bool]
        if wants_graph():

            def rows(queries: Tensor, items: Tensor, pos_ids: Tensor, extra_ids: Any, prior: Any, beta: Any) -> Any:
                batch = (queries, items, pos_ids, extra_ids, prior, beta)
                return reference.full_rows(*batch, history, ctx.similarity, ctx.parameters)

            inputs = [queries, items, pos_ids, extra_ids, prior, threshold]
            return (*through_reference(rows, inputs, needs[:6], grad, ctx.reduction), *(None,) * 5)
        grad = row_grad(grad, rescale, ctx.reduction)
        if _FullRows.gradients_come_forward(items, ctx.reduction):
            inputs, wanted = (queries, items, prior, threshold), (needs[0], needs[1], needs[4], needs[5])
            gradients = scaled((d_queries, d_items, *row_gradients), grad, inputs, wanted)
            grad_queries, grad_items, grad_prior, grad_threshold = gradients
        else:
            tensors = (queries, items, pos_ids, extra_ids, prior, threshold)
            factor = grad.expand(queries.shape[0])
            settings = (ctx.similarity, ctx.reduction, True, factor)
            again = _full_forward(*tensors, history, ctx.parameters, *settings)
            grad_queries, grad_items = again[3].to(queries.dtype), again[4]
            inputs, wanted = (prior, threshold), (needs[4], needs[5])
            grad_prior, grad_threshold = scaled(row_gradients, grad, inputs, wanted)
        return (grad_queries, grad_items, None, None, grad_prior, grad_threshold, *(None,) * 5)


def _full_forward(
    queries: Tensor,
    items: Tensor,
    pos_ids: Tensor,
    extra_ids: Tensor | None,
    prior: PerRow,
    threshold: PerRow,
    history: History | None,
    parameters: RowParameters,
    similarity: str,
    reduction: str,
    with_gradients: bool,
    factor: Tensor | None,
) -> tuple[Tensor, ...]:
    batch = (queries, items, pos_ids, extra_ids, *(history or NO_HISTORY))
    settings = (similarity, reduction, with_gradients, factor)
    per_row = (*split(prior), *split(threshold))
    result: tuple[Tensor, ...] = torch.ops.cw_ext.full_forward(*batch, *per_row, *parameters, *settings)
    return result


def full_rows(
    queries: Tensor,
    items: Tensor,
    pos_ids: Tensor,
    extra_ids: Tensor | None,
    prior: PerRow,
    threshold: PerRow,
    history: History | None,
    similarity: str,
    parameters: RowParameters,
    reduction: str = "none",
) -> tuple[Tensor, Tensor]:
    """The kernels' counterpart of :func:`cw_ext.reference.full_rows`: (loss [B], or reduced; live [B])."""
    inputs = (queries, items, pos_ids, extra_ids, prior, threshold)
    settings = (history, similarity, parameters, reduction)
    loss, live, *_ = apply(_FullRows, *inputs, *settings, needs_gradient(inputs))
    return loss, live

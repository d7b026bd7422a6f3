"""torch.autograd.Function over the compiled ops.

The forward op returns, beside each row's loss, that loss's gradient; backward multiplies it by grad_output row by
row. Nothing that is saved is ever written to, so a second backward sees the same numbers. Under create_graph the
gradient is taken through the reference instead, which autograd can differentiate again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cw_ext import extension, reference
from cw_ext.parameters import RowParameters

if extension.available():
    from cw_ext import fake  # noqa: F401  (registers the fake kernels)

PerRow = Tensor | float


def _split(value: PerRow) -> tuple[Tensor | None, float]:
    """A per-row quantity as the ops take it: a tensor or None, and a number for all rows."""
    return (value, 0.0) if isinstance(value, Tensor) else (None, value)


def _needs_gradient(inputs: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs)


def _scaled(
    row_gradients: Sequence[Tensor], grad: Tensor, inputs: Sequence[Any], needs: Sequence[bool]
) -> list[Tensor | None]:
    """row_gradients [B, ...] times grad [B], in the dtypes of their inputs; None where not needed."""
    gradients: list[Tensor | None] = [None] * len(inputs)
    wanted = [i for i, needed in enumerate(needs) if needed]
    for dtype in {inputs[i].dtype for i in wanted}:
        group = [i for i in wanted if inputs[i].dtype == dtype]
        scaled = torch.ops.cw_ext.scale_rows([row_gradients[i] for i in group], grad, dtype)
        for i, gradient in zip(group, scaled):
            gradients[i] = gradient
    return gradients


def _through_reference(
    function: Any, inputs: Sequence[Any], needs: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """The gradients of `function(*inputs)[0]` with a graph of their own, None where not needed."""
    wanted = [i for i, needed in enumerate(needs) if needed]
    with torch.enable_grad():
        loss, _ = function(*inputs)
        found = torch.autograd.grad(loss, [inputs[i] for i in wanted], grad, create_graph=True, allow_unused=True)
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found):
        gradients[i] = gradient
    return gradients


def _wants_graph() -> bool:
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _with_signature(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the signature, which apply() would otherwise work out at each call: more than a small batch's loss takes."""
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


class _ScoreRows(torch.autograd.Function):
    """Level 1: (loss [R], live [R], gradients of the loss …)."""

    @staticmethod
    @_with_signature
    def forward(
        pos: Tensor,
        neg: Tensor,
        extra: Tensor | None,
        log_q: Tensor | None,
        prior: PerRow,
        threshold: PerRow,
        parameters: RowParameters,
        with_gradients: bool,
    ) -> tuple[Tensor, ...]:
        return torch.ops.cw_ext.scores_forward(
            pos,
            neg,
            extra,
            log_q,
            *_split(prior),
            *_split(threshold),
            *parameters,
            with_gradients,
            with_gradients and log_q is not None and log_q.requires_grad,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pos, neg, extra, log_q, prior, threshold, ctx.parameters, _ = inputs
        ctx.prior, ctx.threshold = _split(prior)[1], _split(threshold)[1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(pos, neg, extra, log_q, _split(prior)[0], _split(threshold)[0], *output[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 8
        pos, neg, extra, log_q, prior, threshold, d_pos, d_neg, d_extra, d_log_q, d_prior, d_threshold = (
            ctx.saved_tensors
        )
        inputs = [
            pos,
            neg,
            extra,
            log_q,
            ctx.prior if prior is None else prior,
            ctx.threshold if threshold is None else threshold,
        ]
        needs = ctx.needs_input_grad[:6]
        if _wants_graph():
            gradients = _through_reference(lambda *args: reference.rows(*args, ctx.parameters), inputs, needs, grad)
        else:
            rows = (d_pos, d_neg, d_extra, d_log_q, d_prior, d_threshold)
            gradients = _scaled(rows, grad, inputs, needs)
        return (*gradients, None, None)


def score_rows(
    pos: Tensor,
    neg: Tensor,
    extra: Tensor | None,
    log_q: Tensor | None,
    prior: PerRow,
    threshold: PerRow,
    parameters: RowParameters,
) -> tuple[Tensor, Tensor]:
    """The kernels' counterpart of :func:`cw_ext.reference.rows`: (loss [...], live [...])."""
    shape = pos.shape

    def flat(value: Any, width: int = 0) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 1 + bool(width):
            return value
        # Not −1: it is ambiguous for a tensor without elements.
        return value.reshape(shape.numel(), value.shape[-1]) if width else value.reshape(shape.numel())

    inputs = (
        flat(pos),
        flat(neg, 1),
        flat(extra, 1),
        flat(log_q, 1),
        flat(prior),
        flat(threshold),
    )
    loss, live, *_ = _ScoreRows.apply(*inputs, parameters, _needs_gradient(inputs))
    return (loss, live) if len(shape) == 1 else (loss.reshape(shape), live.reshape(shape))


class _EmbeddingRows(torch.autograd.Function):
    """Level 2: (loss [B], live [B], gradients of the loss …)."""

    @staticmethod
    @_with_signature
    def forward(
        queries: Tensor,
        items: Tensor,
        pos_ids: Tensor,
        neg_ids: Tensor,
        extra_ids: Tensor | None,
        log_q: Tensor | None,
        prior: PerRow,
        threshold: PerRow,
        similarity: str,
        parameters: RowParameters,
        with_gradients: bool,
    ) -> tuple[Tensor, ...]:
        return torch.ops.cw_ext.embeddings_forward(
            queries,
            items,
            pos_ids,
            neg_ids,
            extra_ids,
            log_q,
            *_split(prior),
            *_split(threshold),
            *parameters,
            similarity,
            with_gradients,
            with_gradients and log_q is not None and log_q.requires_grad,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, prior, threshold, ctx.similarity, ctx.parameters, _ = inputs
        ctx.prior, ctx.threshold = _split(prior)[1], _split(threshold)[1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, _split(prior)[0], _split(threshold)[0], *output[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 11
        queries, items, pos_ids, neg_ids, extra_ids, log_q, prior, threshold, *computed = ctx.saved_tensors
        d_queries, unit_queries, coefficients, shared_coefficients, keys, ends, d_log_q, d_prior, d_threshold = computed
        prior = ctx.prior if prior is None else prior
        threshold = ctx.threshold if threshold is None else threshold
        needs = ctx.needs_input_grad
        if _wants_graph():
            gradients = _through_reference(
                lambda *args: reference.embedding_rows(*args, ctx.similarity, ctx.parameters),
                [queries, items, pos_ids, neg_ids, extra_ids, log_q, prior, threshold],
                needs[:8],
                grad,
            )
            return (*gradients, None, None, None)
        grad_items = None
        if needs[1]:
            grad_items = torch.ops.cw_ext.item_gradient(
                unit_queries * grad.unsqueeze(1),
                coefficients,
                shared_coefficients,
                keys,
                ends,
                items,
                pos_ids,
                neg_ids,
                extra_ids,
                ctx.similarity,
            )
        grad_queries, grad_log_q, grad_prior, grad_threshold = _scaled(
            (d_queries, d_log_q, d_prior, d_threshold),
            grad,
            (queries, log_q, prior, threshold),
            (needs[0], *needs[5:8]),
        )
        return (grad_queries, grad_items, None, None, None, grad_log_q, grad_prior, grad_threshold, None, None, None)


def embedding_rows(
    queries: Tensor,
    items: Tensor,
    pos_ids: Tensor,
    neg_ids: Tensor,
    extra_ids: Tensor | None,
    log_q: Tensor | None,
    prior: PerRow,
    threshold: PerRow,
    similarity: str,
    parameters: RowParameters,
) -> tuple[Tensor, Tensor]:
    """The kernels' counterpart of :func:`cw_ext.reference.embedding_rows`: (loss [B], live [B])."""
    inputs = (queries, items, pos_ids, neg_ids, extra_ids, log_q, prior, threshold)
    loss, live, *_ = _EmbeddingRows.apply(*inputs, similarity, parameters, _needs_gradient(inputs))
    return loss, live

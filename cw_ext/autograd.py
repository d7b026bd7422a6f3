"""torch.autograd.Function over the compiled ops.

The forward op returns, beside each row's loss, that loss's gradient; backward multiplies it by grad_output row by
row. What is saved is written to only where autograd is about to free it, so a second backward sees the same numbers.
Under create_graph the gradient is taken through the reference instead, which autograd can differentiate again; so it is
in the transforms of torch.func, which can be nested and always ask for that.

A small batch takes the kernels less time than Python, so the reduction is part of the op: that spares autograd its
nodes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from cw_ext import checks, extension, reference
from cw_ext.parameters import RowParameters
from cw_ext.reference_sampling import History

if extension.available():
    from cw_ext import fake  # noqa: F401  (registers the fake kernels)

PerRow = Tensor | float
NO_HISTORY = (None, None, None)


def split(value: PerRow) -> tuple[Tensor | None, float]:
    """A per-row quantity as the ops take it: a tensor or None, and a number for all rows."""
    return (value, 0.0) if isinstance(value, Tensor) else (None, value)


def needs_gradient(inputs: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in inputs)


# Whether the backward pass in hand leaves the graph for another. Where this torch does not tell, it may.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def may_overwrite() -> bool:
    """Whether the backward pass in hand may write to what was saved for it, which nobody will see again."""
    return not torch.compiler.is_compiling() and not _keeps_graph()


def scaled(
    row_gradients: Sequence[Tensor], grad: Tensor, inputs: Sequence[Any], needs: Sequence[bool]
) -> list[Tensor | None]:
    """row_gradients [B, ...] times grad, [B] or one number, in the dtypes of their inputs; None where not needed."""
    gradients: list[Tensor | None] = [None] * len(inputs)
    wanted = [i for i, needed in enumerate(needs) if needed]
    if may_overwrite():
        # In place: fresh memory takes the system longer to hand out than the multiplication takes.
        own = [i for i in wanted if row_gradients[i].dtype == inputs[i].dtype]
        torch.ops.cw_ext.scale_rows_([row_gradients[i] for i in own], grad)
        for i in own:
            gradients[i] = row_gradients[i]
        wanted = [i for i in wanted if gradients[i] is None]
    for dtype in {inputs[i].dtype for i in wanted}:
        group = [i for i in wanted if inputs[i].dtype == dtype]
        scaled = torch.ops.cw_ext.scale_rows([row_gradients[i] for i in group], grad, dtype)
        for i, gradient in zip(group, scaled):
            gradients[i] = gradient
    return gradients


def through_reference(
    function: Any, inputs: Sequence[Any], needs: Sequence[bool], grad: Tensor, reduction: str
) -> list[Tensor | None]:
    """The gradients of `function(*inputs)`, reduced, with a graph of their own; None where not needed."""
    wanted = [i for i, needed in enumerate(needs) if needed]
    of = [inputs[i] for i in wanted]

    def loss(*values: Tensor) -> Tensor:
        given = dict(zip(wanted, values))
        rows, live = function(*(given.get(i, x) for i, x in enumerate(inputs)))
        return reference.reduce(rows, live, None, reduction)

    if torch._C._are_functorch_transforms_active():  # where torch.autograd.grad does not see a vmapped grad
        found = torch.func.vjp(loss, *of)[1](grad)
    else:
        with torch.enable_grad():
            found = torch.autograd.grad(loss(*of), of, grad, create_graph=True, allow_unused=True)
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found):
        gradients[i] = gradient
    return gradients


def wants_graph() -> bool:
    """Whether the gradients are to have a graph, which torch.func's transforms always want."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


def row_grad(grad: Tensor, rescale: Tensor, reduction: str) -> Tensor:
    """What the rows' gradients are still to be multiplied by, [B] or one number for all."""
    return grad * rescale if reduction == "mean" else grad


@functools.cache
def _directly(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The same function without a setup_context, for which apply() works out forward's signature at each call."""

    class Direct(function):  # type: ignore[misc, valid-type]
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        setup_context = torch.autograd.Function.setup_context

    return Direct


def apply(function: type[torch.autograd.Function], *inputs: Any) -> tuple[Tensor, ...]:
    # torch.func's transforms and torch.compile want the setup_context.
    compiling, transformed = torch.compiler.is_compiling(), torch._C._are_functorch_transforms_active()
    if compiling and transformed:
        raise NotImplementedError(
            "torch.compile loses the kernels' gradients in torch.func's transforms: use backend='reference' there, or "
            "leave the transform out of what is compiled"
        )
    called = function if compiling or transformed else _directly(function)
    result: tuple[Tensor, ...] = called.apply(*inputs)
    return result


class _ScoreRows(torch.autograd.Function):
    """Level 1: (reduced loss, live [R], rescale, gradients of each row's loss …)."""

    @staticmethod
    def forward(
        pos: Tensor,
        neg: Tensor,
        extra: Tensor | None,
        log_q: Tensor | None,
        prior: PerRow,
        threshold: PerRow,
        parameters: RowParameters,
        reduction: str,
        with_gradients: bool,
    ) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch.ops.cw_ext.scores_forward(
            pos,
            neg,
            extra,
            log_q,
            *split(prior),
            *split(threshold),
            *parameters,
            reduction,
            with_gradients,
            with_gradients and log_q is not None and log_q.requires_grad,
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pos, neg, extra, log_q, prior, threshold, ctx.parameters, ctx.reduction, _ = inputs
        ctx.prior, ctx.threshold = split(prior)[1], split(threshold)[1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(pos, neg, extra, log_q, split(prior)[0], split(threshold)[0], *output[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 9
        pos, neg, extra, log_q, prior, threshold, rescale, *rows = ctx.saved_tensors
        inputs = [
            pos,
            neg,
            extra,
            log_q,
            ctx.prior if prior is None else prior,
            ctx.threshold if threshold is None else threshold,
        ]
        needs = ctx.needs_input_grad[:6]
        if wants_graph():

            def function(*inputs: Any) -> tuple[Tensor, Tensor]:
                pos, neg, extra, log_q, prior, threshold = inputs
                return reference.rows(pos, neg, extra, log_q, prior, threshold, ctx.parameters)

            gradients = through_reference(function, inputs, needs, grad, ctx.reduction)
        else:
            gradients = scaled(rows, row_grad(grad, rescale, ctx.reduction), inputs, needs)
        return (*gradients, None, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """The axis is folded into the rows, which know nothing of one another."""
        samples = info.batch_size

        def folded(x: Any, dim: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.expand(samples, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        *rows, parameters, reduction, _ = map(folded, inputs, in_dims)
        loss, live, *rest = apply(_ScoreRows, *rows, parameters, "none", needs_gradient(rows))
        # Not unflatten to (samples, -1): it is ambiguous for a tensor without elements.
        loss, live = (x.unflatten(0, (samples, x.shape[0] // samples)) for x in (loss, live))
        loss = torch.vmap(lambda loss, live: reference.reduce(loss, live, None, reduction))(loss, live)
        # The rest serves a backward pass through the kernels, and that of a vmapped call goes through the reference.
        return (loss, live, *rest), (0, 0, *(None for _ in rest))


def score_rows(
    pos: Tensor,
    neg: Tensor,
    extra: Tensor | None,
    log_q: Tensor | None,
    prior: PerRow,
    threshold: PerRow,
    parameters: RowParameters,
    reduction: str = "none",
) -> tuple[Tensor, Tensor]:
    """The kernels' counterpart of :func:`cw_ext.reference.rows`: (loss [...], or reduced; live [...])."""
    inputs: tuple[Any, ...] = (pos, neg, extra, log_q, prior, threshold)
    shape = pos.shape
    if len(shape) != 1:
        # Not −1: it is ambiguous for a tensor without elements.
        inputs = tuple(x.reshape(shape.numel(), *x.shape[len(shape) :]) if isinstance(x, Tensor) else x for x in inputs)
    if torch.compiler.is_exporting():
        tensors, per_row = inputs[:4], (*split(inputs[4]), *split(inputs[5]))
        loss, live = torch.ops.cw_ext_export.scores_forward(*tensors, *per_row, *parameters, reduction)
    else:
        loss, live, *_ = apply(_ScoreRows, *inputs, parameters, reduction, needs_gradient(inputs))
    if len(shape) == 1:
        return loss, live
    return loss.reshape(shape) if reduction == "none" else loss, live.reshape(shape)


class _EmbeddingRows(torch.autograd.Function):
    """Level 2: (reduced loss, live [B], rescale, gradients of each row's loss …)."""

    @staticmethod
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
        reduction: str,
        exclude: bool,
        history: History | None,
        with_gradients: bool,
    ) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = torch.ops.cw_ext.embeddings_forward(
            queries,
            items,
            pos_ids,
            neg_ids,
            extra_ids,
            log_q,
            exclude,
            *(history or NO_HISTORY),
            *split(prior),
            *split(threshold),
            *parameters,
            similarity,
            reduction,
            with_gradients,
            with_gradients and log_q is not None and log_q.requires_grad,
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, prior, threshold, ctx.similarity, ctx.parameters, ctx.reduction, ctx.exclude, history, _ = inputs
        ctx.prior, ctx.threshold = split(prior)[1], split(threshold)[1]
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        per_row = (split(prior)[0], split(threshold)[0])
        ctx.save_for_backward(*tensors, *per_row, *(history or NO_HISTORY), *output[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 14
        queries, items, pos_ids, neg_ids, extra_ids, log_q, prior, threshold, *saved = ctx.saved_tensors
        history, computed = None if saved[0] is None else History(*saved[:3]), saved[3:]
        rescale, d_queries, unit_queries, coefficients, shared_coefficients, keys, ends, *row_gradients = computed
        prior = ctx.prior if prior is None else prior
        threshold = ctx.threshold if threshold is None else threshold
        needs = ctx.needs_input_grad
        if wants_graph():

            def rows(queries: Tensor, items: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
                pos_ids, neg_ids, extra_ids, log_q, prior, threshold = rest
                if ctx.exclude:
                    dtype = reference.compute_dtype(queries.dtype)
                    log_q = reference.leave_out(log_q, pos_ids, neg_ids, history, items.shape[0], dtype)
                batch = (queries, items, pos_ids, neg_ids, extra_ids, log_q, prior, threshold)
                return reference.embedding_rows(*batch, ctx.similarity, ctx.parameters)

            gradients = through_reference(
                rows,
                [queries, items, pos_ids, neg_ids, extra_ids, log_q, prior, threshold],
                needs[:8],
                grad,
                ctx.reduction,
            )
            return (*gradients, *(None,) * 6)
        grad = row_grad(grad, rescale, ctx.reduction)
        grad_items = None
        if needs[1]:
            overwrite = may_overwrite()
            if overwrite:
                torch.ops.cw_ext.scale_rows_([unit_queries], grad)
            grad_items = torch.ops.cw_ext.item_gradient(
                unit_queries,
                None if overwrite else grad,
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
        grad_queries, grad_log_q, grad_prior, grad_threshold = scaled(
            (d_queries, *row_gradients),
            grad,
            (queries, log_q, prior, threshold),
            (needs[0], *needs[5:8]),
        )
        gradients = [grad_queries, grad_items, None, None, None, grad_log_q, grad_prior, grad_threshold]
        return (*gradients, *(None,) * 6)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> NoReturn:
        raise NotImplementedError(checks.NO_VMAP)


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
    reduction: str = "none",
    exclude: bool = False,
    history: History | None = None,
) -> tuple[Tensor, Tensor]:
    """The kernels' counterpart of :func:`cw_ext.reference.embedding_rows`: (loss [B], or reduced; live [B]).

    With `exclude`, of shared negatives, as after :func:`cw_ext.reference.leave_out`.
    """
    tensors = (queries, items, pos_ids, neg_ids, extra_ids, log_q)
    if torch.compiler.is_exporting():
        inputs = (*tensors, exclude, *(history or NO_HISTORY), *split(prior), *split(threshold), *parameters)
        loss, live = torch.ops.cw_ext_export.embeddings_forward(*inputs, similarity, reduction)
    else:
        settings = (prior, threshold, similarity, parameters, reduction, exclude, history)
        wanted = needs_gradient((*tensors, prior, threshold))
        loss, live, *_ = apply(_EmbeddingRows, *tensors, *settings, wanted)
    return loss, live

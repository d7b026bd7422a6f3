"""The loss by the kernels, with gradients: the counterparts of reference.py's functions of the same names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cw_ext import extension, reference
from cw_ext.op_function import Gradients, Op, Saved, may_overwrite
from cw_ext.op_inputs import (
    EMBEDDINGS,
    FULL,
    SAMPLED,
    SCORES,
    EmbeddingInputs,
    EmbeddingResults,
    FullInputs,
    FullResults,
    FullWanted,
    SampledInputs,
    SampledResults,
    SampledWanted,
    ScoreInputs,
    ScoreResults,
    Wanted,
)

if extension.available():
    from cw_ext import fake  # noqa: F401  (registers the fake kernels)


class _Scores(Op):
    def vmap(self, info: Any, in_dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
        """The axis is folded into the rows, which know nothing of one another."""
        samples = info.batch_size

        def folded(x: Any, dim: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            x = x.expand(samples, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        inputs: ScoreInputs = self.inputs([folded(x, dim) for x, dim in zip(arguments[:-1], in_dims)])
        as_rows = inputs._replace(reduction="none")
        loss, live, *rest = self(as_rows, _wanted(as_rows))
        # Not unflatten to (samples, -1): it is ambiguous for a tensor without elements.
        loss, live = (x.unflatten(0, (samples, x.shape[0] // samples)) for x in (loss, live))
        loss = torch.vmap(lambda loss, live: reference.reduce(loss, live, None, inputs.reduction))(loss, live)
        # The rest serves a backward pass through the kernels, and that of a vmapped call goes through the reference.
        return (loss, live, *rest), (0, 0, *(None for _ in rest))


_SCORES = _Scores("scores_forward", SCORES, ScoreResults, reference.score_rows)


def _wanted(inputs: ScoreInputs | EmbeddingInputs) -> Callable[[bool], Wanted]:
    log_q = inputs.log_q
    return lambda gradient: Wanted(gradient, gradient and log_q is not None and log_q.requires_grad)


def score_rows(inputs: ScoreInputs) -> tuple[Tensor, Tensor]:
    """Level 1: (loss [...], or reduced; live [...])."""
    shape = inputs.pos.shape
    if len(shape) != 1:
        # Not −1: it is ambiguous for a tensor without elements.
        as_rows = [
            x.reshape(shape.numel(), *x.shape[len(shape) :]) if isinstance(x, Tensor) else x
            for x in _SCORES.arguments(inputs)
        ]
        inputs = _SCORES.inputs(as_rows)
    if torch.compiler.is_exporting():
        loss, live = torch.ops.cw_ext_export.scores_forward(*SCORES.flat(inputs))
    else:
        loss, live, *_ = _SCORES(inputs, _wanted(inputs))
    if len(shape) == 1:
        return loss, live
    return loss.reshape(shape) if inputs.reduction == "none" else loss, live.reshape(shape)


class _Embeddings(Op):
    def gradients(self, saved: Saved, grad: Tensor, wanted: list[str]) -> Gradients:
        if "items" not in wanted:
            return self.scaled(saved, grad, wanted)
        inputs: EmbeddingInputs = saved.inputs()
        results: EmbeddingResults = saved.results()
        overwrite = may_overwrite()
        if overwrite:
            torch.ops.cw_ext.scale_rows_([results.unit_queries], grad)
        items = torch.ops.cw_ext.item_gradient(
            results.unit_queries,
            None if overwrite else grad,
            results.coefficients,
            results.shared_coefficients,
            results.pair_keys,
            results.pair_ends,
            inputs.items,
            inputs.pos_ids,
            inputs.neg_ids,
            inputs.extra_ids,
            inputs.similarity,
        )
        return {"items": items} | self.scaled(saved, grad, [name for name in wanted if name != "items"])


_EMBEDDINGS = _Embeddings("embeddings_forward", EMBEDDINGS, EmbeddingResults, reference.embedding_rows)


def embedding_rows(inputs: EmbeddingInputs) -> tuple[Tensor, Tensor]:
    """Level 2: (loss [B], or reduced; live [B])."""
    if torch.compiler.is_exporting():
        loss, live = torch.ops.cw_ext_export.embeddings_forward(*EMBEDDINGS.flat(inputs))
    else:
        loss, live, *_ = _EMBEDDINGS(inputs, _wanted(inputs))
    return loss, live


def _sampled_by_reference(inputs: SampledInputs) -> tuple[Tensor, Tensor]:
    """With the negatives that the kernels draw."""
    queries, items, pos_ids, extra_ids, draws, *rest = inputs
    neg_ids = torch.ops.cw_ext.draw_negatives(queries.shape[0], items.shape[0], *draws)
    log_q = None if draws.log_weights is None else draws.log_weights[neg_ids]
    ids = (pos_ids, neg_ids, extra_ids)
    return reference.embedding_rows(EmbeddingInputs(queries, items, *ids, log_q, False, None, *rest))


class _Sampled(Op):
    def gradients(self, saved: Saved, grad: Tensor, wanted: list[str]) -> Gradients:
        if "items" not in wanted:
            return self.scaled(saved, grad, wanted)
        results: SampledResults = saved.results()
        coefficients = results.coefficients if saved.wanted.keep_coefficients else None
        items = torch.ops.cw_ext.sampled_item_gradient(
            results.unit_queries, grad, coefficients, *SAMPLED.flat(saved.inputs())
        )
        return {"items": items} | self.scaled(saved, grad, [name for name in wanted if name != "items"])


_SAMPLED = _Sampled("sampled_forward", SAMPLED, SampledResults, _sampled_by_reference)


def sampled_rows(inputs: SampledInputs, recompute: bool) -> tuple[Tensor, Tensor]:
    """Level 3, with negatives drawn inside: (loss [B], or reduced; live [B])."""
    loss, live, *_ = _SAMPLED(inputs, lambda gradient: SampledWanted(gradient, keep_coefficients=not recompute))
    return loss, live


class _Full(Op):
    """The gradient of the items is a sum over rows. Where the rows' losses are summed too it comes with the forward
    pass; where each row's loss has a gradient of its own, backward does the forward pass over again. So it does for
    half precision, whose gradients would be rounded before they are scaled.
    """

    def gradients(self, saved: Saved, grad: Tensor, wanted: list[str]) -> Gradients:
        if saved.wanted.with_gradients:
            return self.scaled(saved, grad, wanted)
        inputs: FullInputs = saved.inputs()
        again = FullWanted(with_gradients=True, factor=grad.expand(inputs.queries.shape[0]))
        _, _, *computed = self.op(*FULL.flat(inputs), *again)
        results = FullResults(*computed)
        tables = {"queries": results.d_queries.to(inputs.queries.dtype), "items": results.d_items}
        return tables | self.scaled(saved, grad, [name for name in wanted if name not in tables])


_FULL = _Full("full_forward", FULL, FullResults, reference.full_rows)


def full_rows(inputs: FullInputs) -> tuple[Tensor, Tensor]:
    """All items as negatives: (loss [B], or reduced; live [B])."""
    at_once = inputs.reduction != "none" and inputs.items.dtype == reference.compute_dtype(inputs.items.dtype)
    loss, live, *_ = _FULL(inputs, lambda gradient: FullWanted(gradient and at_once, factor=None))
    return loss, live

"""The loss by the kernels, with gradients: the counterparts of reference.py's functions of the same names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cw_ext import extension, reference
from cw_ext.compiling import has_medium_precision, is_exporting
from cw_ext.op_function import Gradients, Op, Saved, may_overwrite
from cw_ext.op_inputs import (
    DRAWS,
    EMBEDDINGS,
    FULL,
    SAMPLED,
    SCORES,
    EmbeddingInputs,
    EmbeddingResults,
    EmbeddingsWanted,
    FullInputs,
    FullResults,
    FullWanted,
    Losses,
    SampledInputs,
    SampledResults,
    SampledWanted,
    ScoreInputs,
    ScoreResults,
    Wanted,
)
from cw_ext.row_values import RowValues
from cw_ext.sparse_rows import compacted, sparse_gradient

if extension.available():
    from cw_ext import fake  # noqa: F401  (registers the fake kernels)

# Without fullgraph=True, the call runs uncompiled between two graphs.
NO_SPARSE_GRAPH = (
    "sparse_grad=True makes a sparse gradient, which torch.compile cannot capture: "
    "leave out fullgraph=True, or sparse_grad=True"
)
# A library with only the CUDA kernels has none.
_HAS_SPARSE_OPS = extension.available() and hasattr(torch.ops.cw_ext, "sparse_item_gradient")


def _item_sums() -> str:
    """How CUDA sums per item; an op on LibTorch's stable ABI cannot ask this itself."""
    return "sorted" if torch.are_deterministic_algorithms_enabled() else "chosen"


class _WithLogQ(Op):
    def wanted(self, inputs: ScoreInputs | EmbeddingInputs, needs_gradient: bool) -> Wanted:
        log_q = inputs.log_q
        of_log_q = needs_gradient and log_q is not None and log_q.requires_grad
        return Wanted(needs_gradient, of_log_q, _wants_curve(inputs, needs_gradient))


class _Scores(_WithLogQ):
    def vmap(self, samples: int, in_dims: Sequence[Any], tensors: Sequence[Any], together: Callable[..., Any]) -> Any:
        """Folds the axis into the rows, which are independent of one another."""

        def folded(x: Tensor, dim: int | None) -> Tensor:
            x = x.expand(samples, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        inputs: ScoreInputs = together([folded(x, dim) for x, dim in zip(tensors, in_dims)])
        results = self(inputs._replace(reduction="none"))
        losses, rest = results[: len(Losses._fields)], results[len(Losses._fields) :]
        # Not unflatten to (samples, -1): it is ambiguous for a tensor without elements.
        loss, live, above = (None if x is None else x.unflatten(0, (samples, x.shape[0] // samples)) for x in losses)
        loss = torch.vmap(lambda loss, live: reference.reduce(loss, live, None, inputs.reduction))(loss, live)
        # The other results are for a backward pass through the kernels; that of a vmapped call uses the reference.
        return (loss, live, above, *rest), (0, 0, None if above is None else 0, *(None for _ in rest))


SCORES_OP = _Scores("scores_forward", SCORES, ScoreResults, reference.score_rows)


def _wants_curve(inputs: Any, needs_gradient: bool) -> bool:
    curve = inputs.curve.curve
    return needs_gradient and curve is not None and curve.requires_grad


def _losses(results: tuple[Tensor, ...]) -> Losses:
    return Losses(*results[: len(Losses._fields)])


def score_rows(inputs: ScoreInputs) -> Losses:
    """The loss on scores, with rows of any shape [...]."""
    shape = inputs.pos.shape
    if len(shape) != 1:
        # Not −1: it is ambiguous for a tensor without elements.
        as_rows = [
            x.reshape(shape.numel(), *x.shape[len(shape) :]) if isinstance(x, Tensor) else x
            for x in SCORES.flat(inputs)
        ]
        inputs = SCORES.rebuilt(as_rows)
    if is_exporting():
        losses = Losses(*torch.ops.cw_ext_export.scores_forward(*SCORES.flat(inputs)))
    else:
        losses = _losses(SCORES_OP(inputs))
    if len(shape) == 1:
        return losses
    loss, live, above = losses
    loss = loss.reshape(shape) if inputs.reduction == "none" else loss
    return Losses(loss, live.reshape(shape), None if above is None else above.reshape(shape))


class _Embeddings(_WithLogQ):
    def gradients(self, saved: Saved, grad: Tensor, needed: dict[str, Tensor]) -> Gradients:
        if "items" not in needed:
            return self.scaled(saved, grad, needed)
        results: EmbeddingResults = saved.results
        overwrite = may_overwrite()
        if overwrite:
            torch.ops.cw_ext.scale_rows_([results.unit_queries], grad)
        items = self.of_items(saved.arguments(), results, None if overwrite else grad)
        del needed["items"]
        return {"items": items, **self.scaled(saved, grad, needed)}

    def of_items(self, inputs: Any, results: EmbeddingResults, factor: Tensor | None) -> Tensor:
        """The gradient of the items; `inputs` by name."""
        gradient: Tensor = torch.ops.cw_ext.item_gradient(
            results.unit_queries,
            factor,
            results.coefficients,
            results.shared_coefficients,
            results.pair_keys,
            results.pair_ends,
            inputs.items,
            inputs.pos_ids,
            inputs.neg_ids,
            inputs.extra_ids,
            inputs.similarity,
            _item_sums(),
        )
        return gradient


class _SparseEmbeddings(_Embeddings):
    """With a sparse gradient of the items."""

    sparse_items = True

    def wanted(self, inputs: EmbeddingInputs, needs_gradient: bool) -> EmbeddingsWanted:  # type: ignore[override]
        return EmbeddingsWanted(*super().wanted(inputs, needs_gradient), sorted_pairs=False)

    def of_items(self, inputs: Any, results: EmbeddingResults, factor: Tensor | None) -> Tensor:
        ids, values = torch.ops.cw_ext.sparse_item_gradient(
            results.unit_queries,
            factor,
            results.coefficients,
            results.shared_coefficients,
            inputs.items,
            inputs.pos_ids,
            inputs.neg_ids,
            inputs.extra_ids,
            inputs.similarity,
        )
        return sparse_gradient(ids, values, inputs.items.shape)


def _compact_by_reference(inputs: EmbeddingInputs) -> Losses:
    return reference.embedding_rows(compacted(inputs))


_EMBEDDINGS = _Embeddings("embeddings_forward", EMBEDDINGS, EmbeddingResults, reference.embedding_rows)
_SPARSE_EMBEDDINGS = _SparseEmbeddings("embeddings_forward", EMBEDDINGS, EmbeddingResults, _compact_by_reference)


def has_sparse_gradients(device: str) -> bool:
    """Whether the kernels compute them on such a device; otherwise the table has to be made compact."""
    return device == "cpu" and _HAS_SPARSE_OPS and not is_exporting()


def _uncompiled(rows: Callable[..., Losses], *arguments: Any) -> Losses:
    """rows(*arguments), outside the graph of torch.compile, which cannot hold a sparse gradient."""
    if torch.compiler.is_compiling():
        torch._dynamo.graph_break(msg=NO_SPARSE_GRAPH)
        rows = torch.compiler.disable(rows)
    return rows(*arguments)


def embedding_rows(inputs: EmbeddingInputs) -> Losses:
    """The loss on embeddings."""
    if is_exporting():
        return Losses(*torch.ops.cw_ext_export.embeddings_forward(*EMBEDDINGS.flat(inputs)))
    return _losses(_EMBEDDINGS(inputs))


def sparse_embedding_rows(inputs: EmbeddingInputs) -> Losses:
    """The loss on embeddings, with a sparse gradient of the items."""
    return _uncompiled(lambda: _losses(_SPARSE_EMBEDDINGS(inputs)))


def _with_drawn(inputs: SampledInputs) -> EmbeddingInputs:
    """With the negatives that the kernels draw."""
    rows, draws = inputs.queries.shape[0], inputs.draws
    neg_ids = torch.ops.cw_ext.draw_negatives(rows, inputs.items.shape[0], *DRAWS.flat(draws))
    return EmbeddingInputs(
        inputs.queries,
        inputs.items,
        inputs.pos_ids,
        neg_ids,
        inputs.extra_ids,
        None if draws.log_weights is None else draws.log_weights[neg_ids],
        exclude=False,
        history=None,
        row_values=inputs.row_values,
        curve=inputs.curve,
        parameters=inputs.parameters,
        similarity=inputs.similarity,
        reduction=inputs.reduction,
    )


def _sampled_by_reference(inputs: SampledInputs) -> Losses:
    return reference.embedding_rows(_with_drawn(inputs))


def _compact_sampled_by_reference(inputs: SampledInputs) -> Losses:
    return _compact_by_reference(_with_drawn(inputs))


class _Sampled(Op):
    def wanted(self, inputs: SampledInputs, needs_gradient: bool, recompute: bool) -> SampledWanted:
        return SampledWanted(needs_gradient, not recompute, _wants_curve(inputs, needs_gradient))

    def gradients(self, saved: Saved, grad: Tensor, needed: dict[str, Tensor]) -> Gradients:
        if "items" not in needed:
            return self.scaled(saved, grad, needed)
        results: SampledResults = saved.results
        coefficients = results.coefficients if saved.wanted.keep_coefficients else None
        items = self.of_items(results.unit_queries, grad, coefficients, saved.arguments())
        del needed["items"]
        return {"items": items, **self.scaled(saved, grad, needed)}

    def of_items(self, unit_queries: Tensor, factor: Tensor, coefficients: Tensor | None, inputs: Any) -> Tensor:
        """The gradient of the items; `inputs` by name."""
        gradient: Tensor = torch.ops.cw_ext.sampled_item_gradient(
            unit_queries, factor, coefficients, *inputs, _item_sums()
        )
        return gradient


class _SparseSampled(_Sampled):
    """With a sparse gradient of the items."""

    sparse_items = True

    def wanted(self, inputs: SampledInputs, needs_gradient: bool, recompute: bool) -> SampledWanted:
        return super().wanted(inputs, needs_gradient, recompute)._replace(sparse=True)

    def of_items(self, unit_queries: Tensor, factor: Tensor, coefficients: Tensor | None, inputs: Any) -> Tensor:
        ids, values = torch.ops.cw_ext.sparse_sampled_item_gradient(unit_queries, factor, coefficients, *inputs)
        return sparse_gradient(ids, values, inputs.items.shape)


_SAMPLED = _Sampled("sampled_forward", SAMPLED, SampledResults, _sampled_by_reference)
_SPARSE_SAMPLED = _SparseSampled("sampled_forward", SAMPLED, SampledResults, _compact_sampled_by_reference)


def sampled_rows(inputs: SampledInputs, recompute: bool) -> Losses:
    """The sampled loss: the negatives are drawn inside."""
    return _losses(_SAMPLED(inputs, recompute))


def sparse_sampled_rows(inputs: SampledInputs, recompute: bool) -> Losses:
    """The sampled loss, with a sparse gradient of the items."""
    return _uncompiled(lambda: _losses(_SPARSE_SAMPLED(inputs, recompute)))


class _Full(Op):
    """The gradient of the items is a sum over rows. If the rows' losses are summed too, the forward pass computes it.
    If each row's loss gets its own gradient, backward repeats the forward pass. It does so for fp16 too, where the
    gradients of a mean would underflow before a loss scale brings them back.
    """

    def wanted(self, inputs: FullInputs, needs_gradient: bool) -> FullWanted:
        of_curve = _wants_curve(inputs, needs_gradient)
        at_once = inputs.reduction != "none" and inputs.items.dtype != torch.float16
        return FullWanted(needs_gradient and at_once, None, at_once and of_curve, _item_sums(), has_medium_precision())

    def gradients(self, saved: Saved, grad: Tensor, needed: dict[str, Tensor]) -> Gradients:
        if saved.wanted.with_gradients:
            if "items" not in needed or needed["items"].dtype != torch.bfloat16:
                return self.scaled(saved, grad, needed)
            # Too large to have twice, so it is in the dtype of the items already.
            found = self.scaled(saved, grad, {name: x for name, x in needed.items() if name != "items"})
            d_items: Tensor = saved.results.d_items
            found["items"] = d_items.mul_(grad) if may_overwrite() else d_items * grad
            return found
        inputs = saved.arguments()
        factor = grad.expand(inputs.queries.shape[0])
        computed = self.op(*inputs, *FullWanted(True, factor, "curve" in needed, *saved.wanted[3:]))
        results = FullResults(*computed[len(Losses._fields) :])
        found = {"queries": results.d_queries.to(inputs.queries.dtype), "items": results.d_items}
        for value, gradient in zip(RowValues._fields, results.d_row_values):
            found[f"{value}_rows"] = gradient * grad
        if "curve" in needed:
            found["curve"] = results.d_curve * factor.unsqueeze(-1)
        return {name: found[name] for name in needed}


_FULL = _Full("full_forward", FULL, FullResults, reference.full_rows)


def full_rows(inputs: FullInputs) -> Losses:
    """All items as negatives."""
    return _losses(_FULL(inputs))

"""What all forms of the loss on embeddings share: a checked batch, and the loss of negatives given by their ids."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cw_ext import autograd, checks, extension, reference
from cw_ext.autocast import floating_input, without_autocast
from cw_ext.collectives import ProcessGroup, sum_over_processes
from cw_ext.item_table import item_table
from cw_ext.op_inputs import EmbeddingInputs, Losses
from cw_ext.parameters import LossArguments, LossOptions, RowParameters, resolve
from cw_ext.reference_sampling import History
from cw_ext.row_values import CurveInputs, RowValues, curve_inputs, row_values
from cw_ext.sparse_rows import compacted

Similarity = Literal["half_cosine", "cosine", "dot"]


def check_similarity(similarity: str) -> None:
    checks.choice("similarity", similarity, reference.SCORE_SCALE)


class EmbeddingBatch(NamedTuple):
    """The arguments of the loss on embeddings, except its negatives."""

    queries: Tensor  # [B, D]
    items: Tensor  # [I, D]
    pos_ids: Tensor  # [B]
    extra_ids: Tensor | None  # [B, M]
    row_weights: Tensor | None  # [B]
    row_values: RowValues
    curve: CurveInputs
    similarity: str
    options: LossOptions
    fused: bool
    sparse_items: bool  # the embedding has sparse=True
    process_group: ProcessGroup | None = None  # a mean is over the rows of all its processes

    @property
    def rows(self) -> int:
        return self.queries.shape[0]

    @property
    def device(self) -> str:
        return self.queries.device.type

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the loss is computed."""
        return reference.compute_dtype(self.queries.dtype)

    @property
    def reduction(self) -> str:
        """The reduction inside the op: "none" if row weights must still be applied."""
        return self.options.reduction if self.row_weights is None and self.process_group is None else "none"

    @property
    def of_loss(self) -> tuple[RowValues, CurveInputs, RowParameters, str, str]:
        """The last fields of the inputs of every op."""
        return self.row_values, self.curve, self.options.row, self.similarity, self.reduction

    def result(self, rows: Losses) -> Tensor:
        """What the user gets, from rows with the `reduction` above."""
        already = self.row_weights is None and self.process_group is None
        loss = rows.loss if already else self.reduced(rows.loss, rows.live)
        return (loss, rows.above) if self.options.row.return_above else loss  # type: ignore[return-value]

    def reduced(self, loss: Tensor, live: Tensor) -> Tensor:
        """The rows' losses with row weights, reduced as the user asks."""
        group = self.process_group
        # Divides by the mean weight of a process's rows: the mean of the processes' results is then that of all rows.
        mean_over = (
            None if group is None else lambda weight: sum_over_processes(weight, group) / dist.get_world_size(group)
        )
        return reference.reduce(loss, live, self.row_weights, self.options.reduction, mean_over)


def embedding_batch(
    queries: Tensor,
    items: Tensor | nn.Embedding,
    pos_ids: Tensor,
    extra_ids: Tensor | None,
    row_weights: Tensor | None,
    similarity: str,
    loss: LossArguments,
) -> EmbeddingBatch:
    """Checks the user's arguments, with autocast off where the loss is computed with autocast off."""
    options = resolve(loss)
    check_similarity(similarity)
    table, sparse_items = item_table(items)
    queries, items = floating_input("queries", queries), floating_input("items", table)
    device = queries.device.type
    with without_autocast(device):
        checks.embeddings(queries, items, pos_ids, extra_ids)
        row_like = queries[:, 0]
        checks.row_weights(row_weights, "queries", row_like)
        dtype = reference.compute_dtype(queries.dtype)
        return EmbeddingBatch(
            queries,
            items,
            pos_ids,
            extra_ids,
            row_weights,
            row_values(options, "queries", row_like, dtype),
            curve_inputs(options, "queries", row_like, dtype),
            similarity,
            options,
            extension.use_kernels(options.backend, device),
            sparse_items,
        )


def loss_of_ids(
    batch: EmbeddingBatch,
    neg_ids: Tensor,
    log_q: Tensor | None,
    *,
    sparse_grad: bool,
    exclude: bool = False,
    history: History | None = None,
) -> Tensor:
    """The loss with these negatives; the arguments are those of :func:`rows_of_ids`."""
    return batch.result(rows_of_ids(batch, neg_ids, log_q, sparse_grad=sparse_grad, exclude=exclude, history=history))


def rows_of_ids(
    batch: EmbeddingBatch,
    neg_ids: Tensor,
    log_q: Tensor | None,
    *,
    sparse_grad: bool,
    exclude: bool = False,
    history: History | None = None,
) -> Losses:
    """The rows' losses with these negatives, [B, N] or shared [N], and their log weights [B, N] or None.

    With `exclude`, each row leaves out the shared negatives that are its positive, or known in `history`.

    Returns:
        The rows, without row weights.
    """
    inputs = EmbeddingInputs(
        batch.queries,
        batch.items,
        batch.pos_ids,
        neg_ids,
        batch.extra_ids,
        log_q,
        exclude,
        history,
        *batch.of_loss,
    )
    compact = sparse_grad and not (batch.fused and autograd.has_sparse_gradients(batch.device))
    if compact or not batch.fused:
        for name in ("pos_ids", "neg_ids", "extra_ids"):
            checks.ids_in_range(name.replace("extra", "extra_pos"), getattr(inputs, name), batch.items.shape[0])
    if compact:
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(msg=autograd.NO_SPARSE_GRAPH)
        inputs = compacted(inputs)
    elif sparse_grad:
        return autograd.sparse_embedding_rows(inputs)
    return autograd.embedding_rows(inputs) if batch.fused else reference.embedding_rows(inputs)

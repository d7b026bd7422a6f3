"""Scores of given items for each query: level 2's look-up, without the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cw_ext import checks, extension, op_errors, reference
from cw_ext.autocast import floating_input, without_autocast
from cw_ext.embedding_batch import Similarity, check_similarity
from cw_ext.item_table import item_table
from cw_ext.parameters import BACKENDS, Backend


def candidate_scores(
    queries: Tensor,
    items: Tensor | nn.Embedding,
    ids: Tensor,
    *,
    similarity: Similarity = "half_cosine",
    backend: Backend = "auto",
) -> Tensor:
    """The scores of some items for each query, as :func:`cw_ext.cw_loss_from_embeddings` sees them, to choose by.

    Nothing of size B·K·D is allocated (the reference backend does allocate it). The scores have no gradient.

    Args:
        queries: [B, D], fp16, bf16, fp32 or fp64.
        items: [I, D], in the dtype of `queries`, or the nn.Embedding that holds it.
        ids: [B, K], int32 or int64, rows of `items`; −1 is padding.
        similarity: "half_cosine" ½·cos(q, x) in [−½, ½], "cosine" or "dot". A zero vector has cosine 0 with everything.
        backend: "auto" (the kernels where they exist, else the reference), "fused" (the kernels, or an error that says
            why not) or "reference" (pure PyTorch).

    Returns:
        [B, K], fp64 for fp64 tables, else fp32; −inf where an id is −1. What is not finite in a query or an item gets
        into the scores of that query or item, and no others.

    Raises:
        TypeError, ValueError: the message contains the argument, what was expected and what came.
        IndexError: an id out of range, which the message contains, on the CPU; on CUDA a device-side assertion.
        NotImplementedError: inside torch.func.vmap.
        RuntimeError: backend="fused" where the kernels cannot run.

    Example:
        The ten hardest of a hundred negatives that were drawn for each query::

            drawn = cw_ext.draw_negatives(query_ids, known, 100)
            scores = cw_ext.candidate_scores(queries, items, drawn)
            hardest = drawn.gather(1, scores.topk(10).indices)
    """
    check_similarity(similarity)
    checks.choice("backend", backend, BACKENDS)
    with torch.no_grad():
        table, _ = item_table(items)
    queries, items = floating_input("queries", queries).detach(), floating_input("items", table).detach()
    device = queries.device.type
    with without_autocast(device):
        checks.tables(queries, items)
        checks.candidate_ids(ids, queries)
        if not extension.use_kernels(backend, device):
            checks.ids_in_range("ids", ids, items.shape[0])
            return reference.candidate_scores(queries, items, ids, similarity)
        try:
            scores: Tensor = torch.ops.cw_ext.candidate_scores(queries, items, ids, similarity)
        except op_errors.RAISED as error:
            raise op_errors.restored(error) from None
        return scores

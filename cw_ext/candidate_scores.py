"""Scores of given items for each query: the look-up of the loss on embeddings, without the loss."""

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
    """The scores of some items for each query, as :func:`cw_ext.cw_loss_from_embeddings` computes them.

    Use it to choose among items, for example hard negatives. It allocates nothing of size B·K·D, except in the
    reference backend. The scores have no gradient.

    Args:
        queries: [B, D], the query vectors, fp16, bf16, fp32 or fp64.
        items: [I, D], the embedding table in the dtype of `queries`, or the nn.Embedding that holds it.
        ids: [B, K], int32 or int64, the items to score, as rows of `items`. −1 is padding.
        similarity: "half_cosine": ½·cos(q, x), in [−½, ½]; "cosine"; or "dot", the inner product. A zero vector has the
            cosine 0 with every vector.
        backend: "auto": the compiled kernels where they run, else the reference; "fused": the kernels, or an error that
            says why they cannot run; "reference": plain PyTorch.

    Returns:
        [B, K], fp64 for fp64 tables, else fp32; −inf where an id is −1. A value that is not finite in a query or an
        item only affects the scores of that query or item.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
        IndexError: an id out of range, with that id in the message, on the CPU. On CUDA it is a device-side assertion.
        NotImplementedError: inside torch.func.vmap.
        RuntimeError: backend="fused" where the kernels cannot run.

    Example:
        The three hardest of ten negatives drawn for each query:

        >>> import torch
        >>> from cw_ext import Interactions, candidate_scores, draw_negatives
        >>> query_ids = torch.tensor([0, 1, 2])
        >>> known = Interactions(query_ids, [10, 11, 42], num_queries=3, num_items=50)
        >>> queries, items = torch.randn(3, 16), torch.randn(50, 16)
        >>> drawn = draw_negatives(query_ids, known, 10)
        >>> scores = candidate_scores(queries, items, drawn)
        >>> hardest = drawn.gather(1, scores.topk(3).indices)
        >>> hardest.shape
        torch.Size([3, 3])
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

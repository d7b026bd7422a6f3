"""The losses that choose their own negatives: drawn ones, or the whole catalogue."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from cw_ext import autograd, checks, reference
from cw_ext.autocast import without_autocast
from cw_ext.embedding_batch import Similarity, embedding_batch, loss_of_ids
from cw_ext.interactions import Candidates, Interactions
from cw_ext.known_positives import check_item_count, history_of_batch
from cw_ext.negative_sampling import Distribution, check_interactions, check_query_ids, draw, draws_of
from cw_ext.op_inputs import FullInputs, SampledInputs
from cw_ext.parameters import LossArguments, documents_loss_arguments
from cw_ext.reference_sampling import history_of


@documents_loss_arguments
def sampled_cw_loss(
    queries: Tensor,
    items: Tensor | nn.Embedding,
    query_ids: Tensor,
    pos_ids: Tensor,
    interactions: Interactions,
    num_negatives: int,
    *,
    seed: int | Tensor | None = None,
    first_row: int = 0,
    distribution: Distribution = "uniform",
    popularity_exponent: float = 0.75,
    popularity_smoothing: float = 0.0,
    candidates: Tensor | Candidates | None = None,
    log_q_correction: bool = True,
    shared: bool = False,
    extra_pos_ids: Tensor | None = None,
    row_weights: Tensor | None = None,
    similarity: Similarity = "half_cosine",
    sparse_grad: bool = False,
    recompute: bool = False,
    **loss: Unpack[LossArguments],
) -> Tensor:
    """The CW loss ("Correct and Weight", arXiv 2601.04291) with sampled negatives, drawn inside the operation.

    It equals :func:`cw_ext.cw_loss_from_embeddings` with the ids of :func:`cw_ext.draw_negatives`, but these ids never
    exist as a tensor. At most the gradients of the scores take B·N numbers, in fp32. Only the reference backend, double
    backward, and `sparse_grad` on CUDA write the ids into a tensor.

    Args:
        queries: [B, D], the query vector of each row: one row per positive; fp16, bf16, fp32 or fp64.
        items: [I, D], the embedding table of all items of `interactions`, in the dtype of `queries`; or an
            nn.Embedding, as for :func:`cw_ext.cw_loss_from_embeddings`.
        query_ids: [B], int32 or int64, the query of each row, as a row of `interactions`. The query's known positives
            are never among its negatives. It may be −1 where the row is padding.
        pos_ids: [B], int32 or int64, the positive of each row, as a row of `items`. −1 is padding: the row is left out,
            and draws nothing.
        interactions: the known positives, on the device of `queries`.
        num_negatives: N in [1, 2^32], how many negatives each row draws, with replacement.
        seed: an integer in [0, 2^63), or an int64 tensor without dimensions on the device of `queries`. The same seed
            gives the same negatives on every device and number of threads. None takes a seed from torch's generator, so
            that torch.manual_seed() makes a run reproducible; a captured CUDA graph draws new negatives at each replay.
            Where torch.distributed is initialised, each process changes that seed by its rank.
        first_row: in [0, 2^63 − 1 − B]. Row b draws what row first_row + b would. If processes with parts of a batch
            give the same seed, and each the position of its first row in the whole batch, they draw what one process
            would draw for the whole batch. It has no effect with `shared`, where a seed gives one set.
        distribution: "uniform", or "popularity": an item that occurs n times in `interactions` is drawn with
            probability ∝ (n + popularity_smoothing)^popularity_exponent.
        popularity_exponent: α ≥ 0.
        popularity_smoothing: ≥ 0. With 0, items that never occur are never drawn.
        candidates: the items that can be negatives: a mask, bool [I]; or ids, int32 or int64 [C]; or the result of
            interactions.candidates() for one of these, which torch.compile needs. None: all items. Positives need not
            be among them.
        log_q_correction: weight popular negatives by the inverse of the probability of drawing them, so that the loss
            estimates the one with uniform negatives (Bengio & Senécal, 2008; Yi et al., RecSys 2019). Uniform means
            over the items that can be drawn: the candidates that occur or, with smoothing, all candidates.
        shared: draw one set of N negatives for all rows. Each row leaves out its own positive and its query's known
            positives. This is faster, because a matrix product replaces the look-ups; but all rows share one sampling
            error, so draw more.
        extra_pos_ids: [B, M], extra positives of the same query for the correction. −1 is padding.
        row_weights: [B], the weight w of each row. The mean is then Σ w·L / Σ w.
        similarity: "half_cosine", "cosine" or "dot", as for :func:`cw_ext.cw_loss_from_embeddings`.
        sparse_grad: give `items` a coalesced sparse gradient instead of a dense one.
        recompute: keep nothing of size B·N. Backward draws the negatives and computes the gradients of the scores
            again, which takes longer but makes room for very many negatives. It has no effect with `shared`.
        **loss: see below.

    Returns:
        A scalar, or [B] with reduction="none"; fp64 for fp64 tables, else fp32. Each input gets its gradient in its
        own dtype.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got. Also for a query
            without any item left to draw; with shared=True such rows have no negatives, and the loss 0.
        IndexError: an id out of range, with that id in the message, on the CPU. On CUDA it is a device-side assertion.
        RuntimeError: backend="fused" where the kernels cannot run.

    Example:
        >>> import torch
        >>> from cw_ext import Interactions, sampled_cw_loss
        >>> _ = torch.manual_seed(0)
        >>> users = torch.nn.Embedding(3, 16)
        >>> items = torch.nn.Embedding(50, 16)
        >>> user_ids = torch.tensor([0, 0, 1, 2])
        >>> item_ids = torch.tensor([10, 11, 11, 42])
        >>> known = Interactions(user_ids, item_ids, num_queries=3, num_items=50)
        >>> loss = sampled_cw_loss(
        ...     users(user_ids), items, user_ids, item_ids, known, 20, seed=1
        ... )
        >>> loss.backward()
        >>> print(f"{loss.item():.2f}")
        2.24
    """
    batch = embedding_batch(queries, items, pos_ids, extra_pos_ids, row_weights, similarity, loss)
    checks.flags(log_q_correction=log_q_correction, shared=shared, sparse_grad=sparse_grad, recompute=recompute)
    sparse_grad = sparse_grad or batch.sparse_items
    with without_autocast(batch.device):
        check_interactions(interactions, "queries", batch.queries)
        check_item_count(batch, interactions)
        check_query_ids(query_ids, interactions, pos_ids)
        draws = draws_of(
            None if shared else query_ids,
            interactions,
            num_negatives,
            seed,
            first_row,
            distribution,
            popularity_exponent,
            popularity_smoothing,
            candidates,
            pos_ids=pos_ids,
            log_weights_dtype=batch.dtype if log_q_correction else None,
        )
        inside = batch.fused and not (sparse_grad and not autograd.has_sparse_gradients(batch.device))
        if shared or not inside:
            neg_ids = draw(draws, 1 if shared else batch.rows, interactions.num_items, batch.fused)
            neg_ids = neg_ids[0] if shared else neg_ids
            log_q = None if draws.log_weights is None else draws.log_weights[neg_ids]
            if shared and log_q is not None:
                log_q = log_q.expand(batch.rows, -1)
            history = history_of(query_ids, interactions) if shared else None
            return loss_of_ids(batch, neg_ids, log_q, sparse_grad=sparse_grad, exclude=shared, history=history)
        inputs = SampledInputs(
            batch.queries,
            batch.items,
            batch.pos_ids,
            batch.extra_ids,
            draws,
            *batch.of_loss,
        )
        rows = autograd.sparse_sampled_rows if sparse_grad else autograd.sampled_rows
        return batch.result(rows(inputs, recompute))


@documents_loss_arguments
def cw_loss_full(
    queries: Tensor,
    items: Tensor | nn.Embedding,
    pos_ids: Tensor,
    *,
    query_ids: Tensor | None = None,
    interactions: Interactions | None = None,
    extra_pos_ids: Tensor | None = None,
    row_weights: Tensor | None = None,
    similarity: Similarity = "half_cosine",
    **loss: Unpack[LossArguments],
) -> Tensor:
    """The CW loss with all items as negatives, except each row's own positive and its query's known positives.

    It equals :func:`cw_ext.cw_loss` on the scores of all items, [B, I], with those masked out. The kernels work on a
    part of the rows at a time, so that a tensor of this size never exists. Only the reference backend and double
    backward allocate it. With include_positive=True, weighting="none" and no interactions it is the cross-entropy of
    the full softmax.

    Under torch.set_float32_matmul_precision("medium"), processors with AVX512_BF16 round fp32 tables to bf16 for the
    scores of the negatives and for both gradients, and also the gradients of the scores that multiply them.

    Args:
        queries: [B, D], the query vector of each row: one row per positive; fp16, bf16, fp32 or fp64.
        items: [I, D], the embedding table of the catalogue in the dtype of `queries`, or an nn.Embedding that is not
            sparse.
        pos_ids: [B], int32 or int64, the positive of each row, as a row of `items`. −1 is padding: the row is left out.
        query_ids: [B], int32 or int64, the query of each row, as a row of `interactions`. Give both or neither. It may
            be −1 where the row is padding.
        interactions: the known positives, on the device of `queries`.
        extra_pos_ids: [B, M], extra positives of the same query for the correction. −1 is padding.
        row_weights: [B], the weight w of each row. The mean is then Σ w·L / Σ w.
        similarity: "half_cosine", "cosine" or "dot", as for :func:`cw_ext.cw_loss_from_embeddings`.
        **loss: see below.

    Returns:
        A scalar, or [B] with reduction="none". A row that has no negative left has the loss 0 and is left out of the
        mean.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as for :func:`cw_ext.sampled_cw_loss`.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from cw_ext import cw_loss_full, presets
        >>> _ = torch.manual_seed(0)
        >>> queries, items = torch.randn(4, 16), torch.randn(50, 16)
        >>> pos_ids = torch.tensor([10, 11, 12, 42])
        >>> settings = presets.infonce(1.0, similarity="dot")
        >>> loss = cw_loss_full(queries, items, pos_ids, **settings)
        >>> torch.allclose(loss, F.cross_entropy(queries @ items.T, pos_ids))
        True
    """
    batch = embedding_batch(queries, items, pos_ids, extra_pos_ids, row_weights, similarity, loss)
    if batch.sparse_items:
        raise ValueError("items must have sparse=False, since every row gets a gradient, got sparse=True")
    with without_autocast(batch.device):
        if interactions is not None and query_ids is None:
            raise ValueError("query_ids must be given with interactions, one id per row of queries, got None")
        history = history_of_batch(batch, query_ids, interactions)
        inputs = FullInputs(
            batch.queries,
            batch.items,
            batch.pos_ids,
            batch.extra_ids,
            history,
            *batch.of_loss,
        )
        if batch.fused:
            return batch.result(autograd.full_rows(inputs))
        for name, ids in (("pos_ids", pos_ids), ("extra_pos_ids", extra_pos_ids)):
            checks.ids_in_range(name, ids, batch.items.shape[0])
        return batch.result(reference.full_rows(inputs))

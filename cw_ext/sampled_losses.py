"""The losses that find their negatives themselves, by draws or in the whole catalogue."""

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
    """The CW loss ("Correct and Weight", arXiv 2601.04291) with negatives drawn inside.

    Equal to :func:`cw_ext.cw_loss_from_embeddings` with the ids of :func:`cw_ext.draw_negatives`, but these never exist
    as a tensor: the only thing of size B·N is, at most, the gradients of the scores, in fp32. (The reference backend,
    double backward and, on CUDA, `sparse_grad` do draw the ids into a tensor.)

    Args:
        queries: [B, D], one row per positive, already gathered; fp16, bf16, fp32 or fp64.
        items: [I, D], one row per item of `interactions`, in the dtype of `queries`; or an nn.Embedding, as in
            :func:`cw_ext.cw_loss_from_embeddings`.
        query_ids: [B], int32 or int64, rows of `interactions`: known positives of its query are not a row's negatives.
            A row of padding may have −1.
        pos_ids: [B], int32 or int64, rows of `items`. −1 is padding: the row is left out, and draws nothing.
        interactions: the known positives, on the device of `queries`.
        num_negatives: N in [1, 2^32], draws per row, with replacement.
        seed: an integer in [0, 2^63), or an int64 tensor without dimensions on the device of `queries`; the same seed
            gives the same negatives everywhere. None takes one from torch's generator, so that torch.manual_seed()
            reproduces a run; in a captured CUDA graph each replay draws anew. Where torch.distributed is initialised,
            each process makes another seed of its generator's by its rank.
        first_row: in [0, 2^63 − 1 − B]: row b draws as row first_row + b. Processes with parts of a batch that give the
            same seed, and the place of their first row in the whole batch, draw what one process draws for all of it.
            Without effect with `shared`, where one seed has one set.
        distribution: "uniform", or "popularity": an item that occurs n times in `interactions` is drawn with
            probability ∝ (n + popularity_smoothing)^popularity_exponent.
        popularity_exponent: α ≥ 0.
        popularity_smoothing: ≥ 0. With 0, items that never occur are never drawn.
        candidates: the items that can be negatives: a mask, bool [I], or ids, int32 or int64 [C], or what
            interactions.candidates() made of one of these (to be called before where torch.compile is used). None: all.
            Positives need not be among them.
        log_q_correction: weigh popular negatives by the inverse of the probability with which they are drawn, so that
            the loss estimates the one with uniform negatives (Bengio & Senécal, 2008; Yi et al., RecSys 2019): uniform
            over the items that can be drawn, which are the candidates that occur or, with smoothing, all candidates.
        shared: draw one set of N negatives for all rows, each of which leaves out its own and its known positives: a
            matrix product replaces look-ups.
        extra_pos_ids: [B, M], extra positives of the same query for the correction. −1 is padding.
        row_weights: [B], multiplies the rows.
        similarity: as in :func:`cw_ext.cw_loss_from_embeddings`.
        sparse_grad: give `items` a coalesced sparse gradient in place of a dense one.
        recompute: keep nothing of size B·N: backward draws and computes the scores' gradients again. For slower steps
            with very many negatives. Without effect on `shared`.
        **loss: see below.

    Returns:
        A scalar, or [B] with reduction="none"; fp64 for fp64 tables, else fp32. Gradients come back in the dtype of
        each input.

    Raises:
        TypeError, ValueError: the message contains the argument, what was expected and what came; also for a query with
            no item left to draw (with shared=True its rows have no negative, and loss 0).
        IndexError: an id out of range, which the message contains, on the CPU; on CUDA a device-side assertion.
        RuntimeError: backend="fused" where the kernels cannot run.
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

    Equal to :func:`cw_ext.cw_loss` on the dense scores [B, I] with those masked out, a part of the rows at a time, so
    that nothing of that size exists (the reference backend and double backward do allocate it). With
    include_positive=True, weighting="none" and no interactions it is the cross-entropy of the full softmax. Under
    torch.set_float32_matmul_precision("medium"), tables in fp32 are rounded to bf16 for the scores of the negatives and
    for both gradients, and so are the scores' gradients that multiply them, on processors with AVX512_BF16.

    Args:
        queries: [B, D], one row per positive; fp16, bf16, fp32 or fp64.
        items: [I, D], the catalogue, in the dtype of `queries`, or an nn.Embedding that is not sparse.
        pos_ids: [B], int32 or int64, rows of `items`. −1 is padding: the row is left out.
        query_ids: [B], int32 or int64, rows of `interactions`; both are given, or none. A row of padding may have −1.
        interactions: the known positives, on the device of `queries`.
        extra_pos_ids: [B, M], extra positives of the same query for the correction. −1 is padding.
        row_weights: [B], multiplies the rows.
        similarity: as in :func:`cw_ext.cw_loss_from_embeddings`.
        **loss: see below.

    Returns:
        A scalar, or [B] with reduction="none". A row for which no negative is left has loss 0 and is left out of the
        mean.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`cw_ext.sampled_cw_loss`.
    """
    batch = embedding_batch(queries, items, pos_ids, extra_pos_ids, row_weights, similarity, loss)
    if batch.sparse_items:
        raise ValueError("items must be dense here, as every row gets a gradient, got an nn.Embedding with sparse=True")
    with without_autocast(batch.device):
        if interactions is not None and query_ids is None:
            raise ValueError("query_ids must be given with interactions, one row of them per row of queries, got None")
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

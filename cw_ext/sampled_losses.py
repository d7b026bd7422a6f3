"""The losses that find their negatives themselves: drawn ones, the batch's other positives, or all items."""

from __future__ import annotations

import math
import warnings
from typing import Unpack

import torch
from torch import Tensor, nn

from cw_ext import autograd, checks, reference
from cw_ext.autocast import without_autocast
from cw_ext.candidates import CandidateItems
from cw_ext.embedding_batch import EmbeddingBatch, Similarity, embedding_batch, loss_of_ids
from cw_ext.estimate_full import check_estimate_full, loss_over_all_items
from cw_ext.interactions import Candidates, Interactions, count_bounds
from cw_ext.negative_sampling import (
    Distribution,
    check_interactions,
    check_query_ids,
    check_seed,
    draw,
    draws_of,
    uniform_draws,
)
from cw_ext.op_inputs import FullInputs, SampledInputs
from cw_ext.parameters import LossArguments, documents_loss_arguments
from cw_ext.reference_sampling import History, history_of


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
        _check_item_count(batch, interactions)
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
def cw_loss_in_batch(
    queries: Tensor,
    items: Tensor | nn.Embedding,
    pos_ids: Tensor,
    *,
    query_ids: Tensor | None = None,
    interactions: Interactions | None = None,
    item_counts: Tensor | None = None,
    log_q_correction: bool = True,
    estimate_full: bool = False,
    num_negatives: int = 0,
    seed: int | Tensor | None = None,
    candidates: Tensor | Candidates | None = None,
    extra_pos_ids: Tensor | None = None,
    row_weights: Tensor | None = None,
    similarity: Similarity = "half_cosine",
    sparse_grad: bool = False,
    **loss: Unpack[LossArguments],
) -> Tensor:
    """The CW loss with the other rows' positives as negatives; with `num_negatives`, mixed with uniform ones.

    A row leaves out its own positive, in whatever rows it occurs, and the known positives of its query. In-batch
    negatives are popular ones, as the batch is drawn from interactions: with the log-Q correction (Bengio & Senécal,
    2008; Yi et al., RecSys 2019) the loss estimates the one with uniform negatives. With num_negatives > 0 that many
    uniform negatives are drawn for all rows, and what is corrected is the mixture (Yang et al., "Mixed negative
    sampling", WWW 2020).

    Args:
        queries: [B, D], one row per positive; fp16, bf16, fp32 or fp64.
        items: [I, D], any table that `pos_ids` point into, in the dtype of `queries`, or an nn.Embedding. A model that
            encodes the batch's items passes distinct ones, and as pos_ids the inverse of
            torch.unique(item_ids, return_inverse=True).
        pos_ids: [B], int32 or int64, rows of `items`. −1 is padding: the row is left out, and is no negative.
        query_ids: [B], int32 or int64, rows of `interactions` (to be given too), whose known positives are left out. A
            row of padding may have −1.
        interactions: the known positives. Without query_ids nothing is left out, only the item counts are used, and a
            warning says so; item_counts=interactions.item_counts does the same without one.
        item_counts: [I], finite and ≥ 0, how often each item is a positive of the batches; default:
            interactions.item_counts. The counts must follow what the batches are drawn from. If pairs repeat and the
            batches repeat them, make the interactions with keep_counts=True. If the batches have each pair once, pass
            the counts of distinct pairs. The values are checked on the CPU outside torch.compile. They are read
            whole at each call; those of `interactions` are not.
        log_q_correction: needs item_counts or interactions.
        estimate_full: estimate the softmax over all items, that is :func:`cw_loss_full` with include_positive=True:
            log(1 + I′·G), where I′ is the number of items that the row does not leave out, in place of the number of
            negatives. The gradient is the one of Khrylchenko et al., "Correcting the LogQ Correction" (RecSys 2025,
            arXiv 2507.09331): that of the loss without the positive, times 1 − P(positive). The positive is in
            the sum with certainty, so it is not corrected. Needs include_positive=True and log_q_correction=True, takes
            no confidence and no candidates, and `items` must be the whole catalogue.
        num_negatives: K in [0, 2^32], uniform negatives to mix in, the same for all rows.
        seed: of those; as in :func:`cw_ext.sampled_cw_loss`.
        candidates: the items that can be negatives, drawn or of the batch, as in :func:`cw_ext.sampled_cw_loss`; what
            is estimated is the loss with uniform negatives from these. A mask or ids need no `interactions`.
        extra_pos_ids: [B, M], extra positives of the same query for the correction. −1 is padding.
        row_weights: [B], multiplies the rows.
        similarity, sparse_grad: as in :func:`cw_ext.cw_loss_from_embeddings`.
        **loss: see below.

    Returns:
        A scalar, or [B] with reduction="none". A row for which no negative is left has loss 0 and is left out of the
        mean.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as :func:`cw_ext.sampled_cw_loss`.
    """
    batch = embedding_batch(queries, items, pos_ids, extra_pos_ids, row_weights, similarity, loss)
    checks.flags(log_q_correction=log_q_correction, estimate_full=estimate_full, sparse_grad=sparse_grad)
    sparse_grad = sparse_grad or batch.sparse_items
    checks.num_negatives(num_negatives, 0)
    check_estimate_full(estimate_full, batch.options, log_q_correction, candidates)
    with without_autocast(batch.device):
        check_seed(seed, batch.queries.device)
        if item_counts is not None:
            checks.item_counts(item_counts, "queries", batch.queries, batch.items.shape[0])
        history = _history(batch, query_ids, interactions)
        if interactions is not None and query_ids is None and not torch.compiler.is_compiling():
            warnings.warn(
                "interactions without query_ids leave no known positives out of the negatives. Give query_ids, or say "
                "that only the counts are meant with item_counts=interactions.item_counts instead of interactions",
                stacklevel=2,
            )
        counts = _item_counts(interactions, item_counts) if log_q_correction else None
        chosen = _chosen(batch, interactions, candidates)
        checks.ids_in_range("pos_ids", pos_ids, batch.items.shape[0])
        if batch.rows + num_negatives == 0:  # nothing to lose
            return loss_of_ids(batch, pos_ids.new_full((1,), -1), None, sparse_grad=sparse_grad)
        neg_ids = pos_ids.long().view(-1)  # a tensor of its own to torch.compile, which takes none twice
        if num_negatives > 0:
            drawn = uniform_draws(num_negatives, seed, batch.items.device, None if chosen is None else chosen.ids)
            neg_ids = torch.cat([neg_ids, draw(drawn, 1, batch.items.shape[0], batch.fused)[0].long()])
        log_q = None
        if counts is not None:
            drawable = batch.items.shape[0] if chosen is None else len(chosen)
            log_q = _mixture_log_weights(neg_ids, *counts, batch, num_negatives, drawable)
        if chosen is not None:  # positives of the batch need not be candidates
            log_q = torch.zeros_like(neg_ids, dtype=batch.dtype) if log_q is None else log_q
            log_q = torch.where(chosen.is_candidate[neg_ids.clamp(min=0)], log_q, -math.inf)
        log_q = None if log_q is None else log_q.expand(batch.rows, -1)
        if estimate_full and log_q is not None:
            return loss_over_all_items(batch, neg_ids, log_q, history, interactions, sparse_grad=sparse_grad)
        return loss_of_ids(batch, neg_ids, log_q, sparse_grad=sparse_grad, exclude=True, history=history)


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
        history = _history(batch, query_ids, interactions)
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


def _check_item_count(batch: EmbeddingBatch, interactions: Interactions) -> None:
    if batch.items.shape[0] != interactions.num_items:
        raise ValueError(
            f"items must have one row per item of interactions, {interactions.num_items}, got {batch.items.shape[0]}"
        )


def _history(batch: EmbeddingBatch, query_ids: Tensor | None, interactions: Interactions | None) -> History | None:
    """The known positives that rows leave out, where both arguments are given."""
    if interactions is None:
        if query_ids is not None:
            raise ValueError("interactions must be given with query_ids, which point into them, got None")
        return None
    check_interactions(interactions, "queries", batch.queries)
    _check_item_count(batch, interactions)
    if query_ids is None:
        return None
    check_query_ids(query_ids, interactions, batch.pos_ids)
    return history_of(query_ids, interactions)


def _item_counts(interactions: Interactions | None, item_counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The counts, and their count_bounds()."""
    if item_counts is not None:
        return item_counts, count_bounds(item_counts)
    if interactions is None:
        raise ValueError(
            "log_q_correction=True needs to know how popular the items are: give interactions or item_counts, or "
            "switch it off with log_q_correction=False"
        )
    if interactions.num_events != len(interactions) and not interactions.keep_counts:
        raise ValueError(
            "interactions must tell what the batches follow for the log-Q correction, got "
            f"{interactions.num_events} pairs of which {len(interactions)} are distinct. If the batches repeat pairs "
            "as they came, make the interactions with keep_counts=True. If they have each pair once, pass "
            "item_counts=interactions.item_counts"
        )
    return interactions.item_counts, interactions.count_bounds


def _chosen(
    batch: EmbeddingBatch, interactions: Interactions | None, candidates: Tensor | Candidates | None
) -> Candidates | CandidateItems | None:
    """The items that can be in-batch negatives; None: all."""
    if candidates is None:
        return None
    if interactions is not None:
        return interactions.candidates(candidates)
    if not isinstance(candidates, Candidates):
        return CandidateItems(candidates, batch.items.shape[0], "items", batch.items)
    checks.matches("candidates", candidates.ids, "items", batch.items, dtype=False)
    if candidates.is_candidate.shape != batch.items.shape[:1]:
        got = candidates.is_candidate.numel()
        raise ValueError(f"candidates must be of as many items as there are rows, {batch.items.shape[0]}, got {got}")
    return candidates


def _mixture_log_weights(
    neg_ids: Tensor, item_counts: Tensor, bounds: Tensor, batch: EmbeddingBatch, uniform: int, drawable: int
) -> Tensor:
    """log of uniform over actual probability, [B + K], of B in-batch and K uniform negatives from `drawable` items.

    Rows of padding bring no negative, so B counts the others.
    """
    total, least = bounds.unbind()
    found = item_counts[neg_ids.clamp(min=0)].double()
    # A positive of the batch occurs at least once, even if its count is 0; a drawn item may not occur at all.
    found[: batch.rows] = found[: batch.rows].maximum(least)
    popular = found / torch.where(total > 0, total, 1.0) * drawable
    in_batch = (neg_ids[: batch.rows] >= 0).sum()
    mixture = (in_batch * popular + uniform) / (in_batch + uniform).clamp(min=1)
    return torch.where(mixture > 0, -mixture.log(), 0.0).to(batch.dtype)

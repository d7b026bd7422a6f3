"""The loss with the batch's other positives as negatives."""

from __future__ import annotations

import warnings
from typing import Unpack

import torch
from torch import Tensor, nn

from cw_ext import checks
from cw_ext.autocast import without_autocast
from cw_ext.collectives import Parts, ProcessGroup
from cw_ext.compiling import uncompiled
from cw_ext.embedding_batch import EmbeddingBatch, Similarity, embedding_batch, loss_of_ids, rows_of_ids
from cw_ext.estimate_full import check_estimate_full, count_items_left, loss_over_all_items, without_positive
from cw_ext.in_batch_calls import check_same_table, in_all_processes
from cw_ext.in_batch_form import catalogue_size, check_form
from cw_ext.in_batch_pairs import PairBatch, loss_of_pairs, query_weights
from cw_ext.in_batch_weights import LogWeights, chosen_items, counts_of
from cw_ext.interactions import Candidates, Interactions
from cw_ext.known_positives import known_positives
from cw_ext.negative_sampling import check_seed, draw, uniform_draws
from cw_ext.parameters import LossArguments, documents_loss_arguments
from cw_ext.reference_sampling import History, history_of


@documents_loss_arguments
def cw_loss_in_batch(
    queries: Tensor,
    items: Tensor | nn.Embedding,
    pos_ids: Tensor,
    *,
    item_ids: Tensor | None = None,
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
    symmetric: bool = False,
    process_group: ProcessGroup | None = None,
    gather_gradients: bool = True,
    ring: bool = False,
    similarity: Similarity = "half_cosine",
    sparse_grad: bool = False,
    **loss: Unpack[LossArguments],
) -> Tensor:
    """The CW loss with the other rows' positives as negatives.

    Each row leaves out its own positive, in whichever rows it occurs, and the known positives of its query. In-batch
    negatives are popular items, since batches are drawn from interactions. With the log-Q correction (Bengio & Senécal,
    2008; Yi et al., RecSys 2019) the loss estimates the one with uniform negatives. With `num_negatives`, that many
    uniform negatives are drawn for all rows as well, and the correction is that of the mixture (Yang et al., "Mixed
    negative sampling", WWW 2020).

    Args:
        queries: [B, D], the query vector of each row: one row per positive; fp16, bf16, fp32 or fp64.
        items: [I, D], in the dtype of `queries`. Either the embedding table that `pos_ids` index, or an nn.Embedding;
            or, with `item_ids`, the vectors that an encoder computed for the batch's items.
        pos_ids: [B], int32 or int64, the positive of each row, as a row of `items`. −1 is padding: the row is left out,
            and is no negative of other rows.
        item_ids: [I], int32 or int64, ≥ 0, for encoded items: which item of the catalogue each row of `items` is. Two
            rows may be the same item; then neither is a negative of a row that has it as its positive. None: row i of
            `items` is item i of `interactions`, `item_counts` and `candidates`, so if a batch encodes an item twice,
            the one counts as a negative of the other. Needs num_negatives=0. torch.compile breaks its graph here.
        query_ids: [B], int32 or int64, the query of each row, as a row of `interactions`, whose known positives are
            then left out. Needs `interactions`, unless symmetric=True. It may be −1 where the row is padding.
        interactions: the known positives. Without `query_ids` only their item counts are used, nothing is left out, and
            a warning tells you so; item_counts=interactions.item_counts does the same without the warning.
        item_counts: [number of items], finite and ≥ 0, how often each item is a positive in the batches. By default
            interactions.item_counts. The counts must match the data that batches are drawn from. If the batches repeat
            pairs as the data does, make the interactions with keep_counts=True. If they contain each pair once, pass
            the counts of distinct pairs. With `item_ids`, there is one count per item of the catalogue. Values are
            checked on the CPU outside torch.compile. Every call reads all of `item_counts`, but not the counts of
            `interactions`.
        log_q_correction: correct for the popularity of in-batch negatives. Needs `item_counts` or `interactions`.
        estimate_full: estimate the softmax over all items, that is :func:`cw_ext.cw_loss_full` with
            include_positive=True. The row is log(1 + I′·G), where I′ is the number of items that the row does not leave
            out, instead of the number of negatives. Its gradient is the one of Khrylchenko et al., "Correcting the LogQ
            Correction" (RecSys 2025, arXiv 2507.09331): that of the loss without the positive, times 1 − P(positive).
            The positive is in the sum with certainty, so it is not corrected. Needs include_positive=True and
            log_q_correction=True, no confidence and no candidates; without `item_ids`, `items` must be the whole
            catalogue.
        num_negatives: K in [0, 2^32], how many uniform negatives to mix in, the same ones for all rows.
        seed: the seed of these, as for :func:`cw_ext.sampled_cw_loss`. With `process_group` each process draws for its
            own rows: the same negatives if they give the same seed, others without a seed.
        candidates: the items that can be negatives, whether drawn or from the batch, as for
            :func:`cw_ext.sampled_cw_loss`. The loss then estimates the one with uniform negatives from these. A mask or
            ids need no `interactions`.
        extra_pos_ids: [B, M], extra positives of the same query for the correction. −1 is padding.
        row_weights: [B], the weight w of each row. The mean is then Σ w·L / Σ w.
        symmetric: return the mean of this loss and of the loss from items to queries, as in CLIP (Radford et al., ICML
            2021). In the second direction, the negatives of a row's item are the other rows' queries, except those
            that are the row's own query, have the row's item as their positive, or know it. With `query_ids` and no
            `interactions`, the known pairs are those of the whole batch. Without `query_ids`, every row is a different
            query. Extra positives are used in the first direction only. The log-Q correction of the second direction
            uses the number of known positives of each query: it needs `query_ids`, and interactions of distinct pairs.
            Needs num_negatives=0, estimate_full=False, candidates=None, return_above=False and dense gradients.
            torch.compile breaks its graph here.
        process_group: use the negatives of all processes of this group, such as torch.distributed.group.WORLD. All of
            them must call the loss, and run backward, together, each with its own rows, of which it may have any
            number. None (as WORLD is before init_process_group()): this process only. The same number in the `item_ids`
            of two processes is the same item.
            Without `item_ids`, `items` must be the same table in all processes, and only ids are sent. With `item_ids`,
            `ring` or `symmetric`, the vectors of the positives are sent, for the second direction those of the queries
            too, and in backward their gradients come back. `item_counts`, `interactions` and all settings must be the
            same in all processes. Without `symmetric`, `interactions` may be limited to the known positives of the
            process's own queries, if `item_counts` are those of all data.
            With reduction="mean" a process returns R times its share, so that the mean over the R processes is the loss
            of the whole batch, and the mean of gradients that DistributedDataParallel takes is the gradient of that
            loss. With "sum" or "none" it returns the sum or the losses of its own rows. These add up to those of the
            whole batch, and so do their gradients. torch.compile breaks its graph here.
        gather_gradients: with `process_group` and `item_ids`. False sends no gradients back: the vectors that a process
            has sent get only the gradient of its own rows' loss. This is cheaper, but not the gradient of the whole
            batch.
        ring: with `process_group`, let the rows travel from process to process, and compute the loss with those of one
            process at a time, and again in backward. For large batches: the scores of all candidates never exist
            together, and memory does not grow with the number of processes. It has no double backward, and needs
            num_negatives=0, normalize_weights=False, score_curve=None and dense gradients.
        similarity: "half_cosine", "cosine" or "dot", as for :func:`cw_ext.cw_loss_from_embeddings`.
        sparse_grad: give `items` a coalesced sparse gradient instead of a dense one.
        **loss: see below.

    Returns:
        A scalar, or [B] with reduction="none". A row that has no negative left has the loss 0 and is left out of the
        mean.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as for :func:`cw_ext.sampled_cw_loss`. With `process_group`, an
            error in one process raises one of the same class in all, and the message of that process says what is
            wrong. ValueError also if the processes' calls differ in their switches, choices, given arguments or dtypes;
            numbers, such as the temperature, may differ.

    Example:
        Embeddings of users and items, with the known positives left out:

        >>> import torch
        >>> from cw_ext import Interactions, cw_loss_in_batch
        >>> _ = torch.manual_seed(0)
        >>> users = torch.nn.Embedding(3, 16)
        >>> items = torch.nn.Embedding(50, 16)
        >>> user_ids = torch.tensor([0, 0, 1, 2])
        >>> pos_ids = torch.tensor([10, 11, 11, 42])
        >>> known = Interactions(user_ids, pos_ids, num_queries=3, num_items=50)
        >>> loss = cw_loss_in_batch(
        ...     users(user_ids), items, pos_ids, query_ids=user_ids, interactions=known
        ... )
        >>> print(f"{loss.item():.2f}")
        -0.72

        Pairs from two encoders, in both directions, where the first two captions describe the same image:

        >>> captions, images = torch.randn(4, 16), torch.randn(4, 16)
        >>> image_ids = torch.tensor([7, 7, 8, 9])
        >>> loss = cw_loss_in_batch(
        ...     captions, images, torch.arange(4), item_ids=image_ids,
        ...     symmetric=True, log_q_correction=False, similarity="cosine",
        ... )
        >>> print(f"{loss.item():.2f}")
        0.12
    """
    if torch.compiler.is_compiling() and (item_ids is not None or symmetric or process_group is not None):
        # The whole call, since torch 2.11 cannot break a graph next to the tuples made here.
        return uncompiled(cw_loss_in_batch)(
            queries,
            items,
            pos_ids,
            item_ids=item_ids,
            query_ids=query_ids,
            interactions=interactions,
            item_counts=item_counts,
            log_q_correction=log_q_correction,
            estimate_full=estimate_full,
            num_negatives=num_negatives,
            seed=seed,
            candidates=candidates,
            extra_pos_ids=extra_pos_ids,
            row_weights=row_weights,
            symmetric=symmetric,
            process_group=process_group,
            gather_gradients=gather_gradients,
            ring=ring,
            similarity=similarity,
            sparse_grad=sparse_grad,
            **loss,
        )
    forms = {"ring": ring, "symmetric": symmetric, "gather_gradients": gather_gradients}

    def prepared() -> tuple[EmbeddingBatch, Interactions | None, LogWeights, LogWeights | None, int]:
        batch = embedding_batch(queries, items, pos_ids, extra_pos_ids, row_weights, similarity, loss)
        checks.flags(log_q_correction=log_q_correction, estimate_full=estimate_full, sparse_grad=sparse_grad, **forms)
        checks.num_negatives(num_negatives, 0)
        check_estimate_full(estimate_full, batch.options, log_q_correction, candidates)
        check_form(
            batch,
            item_ids=item_ids,
            num_negatives=num_negatives,
            candidates=candidates,
            estimate_full=estimate_full,
            process_group=process_group,
            sparse_grad=sparse_grad or batch.sparse_items,
            **forms,
        )
        with without_autocast(batch.device):
            check_seed(seed, batch.queries.device)
            known = known_positives(batch, query_ids, interactions, alone=symmetric)
            num_items = catalogue_size(batch, item_ids, interactions, item_counts, candidates)
            if item_counts is not None:
                checks.item_counts(item_counts, "queries", batch.queries, num_items)
            counts = counts_of(interactions, item_counts) if log_q_correction else None
            chosen = chosen_items(batch, num_items, interactions, candidates)
            # A process must refuse bad arguments here, before the others wait for it.
            checks.ids_in_range("pos_ids", pos_ids, batch.items.shape[0])
            checks.ids_in_range("extra_pos_ids", extra_pos_ids, batch.items.shape[0])
            of_items = LogWeights(counts, chosen, num_items if chosen is None else len(chosen), batch.dtype)
            of_queries = query_weights(batch, known, log_q_correction) if symmetric else None
        return batch._replace(process_group=process_group), known, of_items, of_queries, num_items

    if interactions is not None and query_ids is None and not torch.compiler.is_compiling():
        warnings.warn(
            "interactions without query_ids exclude no known positives from the negatives. Give query_ids too or, if "
            "you only want the item counts, item_counts=interactions.item_counts instead of interactions",
            stacklevel=2,
        )
    parts = None
    if process_group is None:
        batch, known, of_items, of_queries, num_items = prepared()
    else:
        given: dict[str, object] = {
            "item_ids given": item_ids is not None,
            "query_ids given": query_ids is not None,
            "log_q_correction": log_q_correction,
            "estimate_full": estimate_full,
            "num_negatives": num_negatives,
        }
        if isinstance(interactions, Interactions) and (symmetric or (log_q_correction and item_counts is None)):
            given["interactions"] = f"{len(interactions)} pairs of {interactions.num_events}"
        else:
            given["interactions"] = "those of its own rows"
        (batch, known, of_items, of_queries, num_items), parts = in_all_processes(
            prepared, process_group, queries, forms | given
        )
        if item_ids is None:
            check_same_table(batch, parts)
    sparse_grad = sparse_grad or batch.sparse_items
    if item_ids is not None or symmetric or ring:
        return loss_of_pairs(
            PairBatch(batch, item_ids, query_ids, known, of_items, of_queries, num_items, gather_gradients),
            parts,
            estimate_full=estimate_full,
            ring=ring,
            sparse_grad=sparse_grad,
        )
    history = None if known is None or query_ids is None else history_of(query_ids, known)
    uniform = (num_negatives, seed)
    return _loss_of_table(batch, parts, history, interactions, of_items, uniform, estimate_full, sparse_grad)


def _loss_of_table(
    batch: EmbeddingBatch,
    parts: Parts | None,
    history: History | None,
    interactions: Interactions | None,
    weights: LogWeights,
    uniform: tuple[int, int | Tensor | None],
    estimate_full: bool,
    sparse_grad: bool,
) -> Tensor:
    """The loss if ids mean the same rows of the same table in all processes.

    Args:
        uniform: how many uniform negatives, and their seed.
    """
    num_negatives, seed = uniform
    with without_autocast(batch.device):
        ids = batch.pos_ids.long().view(-1)  # a separate tensor for torch.compile, which takes none twice
        if parts is not None:
            ids = parts.gather(ids)
        if ids.numel() + num_negatives == 0:  # nothing to lose
            return loss_of_ids(batch, batch.pos_ids.new_full((1,), -1), None, sparse_grad=sparse_grad)
        num_items, of_batch, in_batch = batch.items.shape[0], ids.numel(), (ids >= 0).sum()
        if num_negatives > 0:
            chosen = weights.chosen
            drawn = uniform_draws(num_negatives, seed, batch.items.device, None if chosen is None else chosen.ids)
            ids = torch.cat([ids, draw(drawn, 1, num_items, batch.fused)[0].long()])
        log_q = weights.of(ids, in_batch, of_batch, num_negatives)
        log_q = None if log_q is None else log_q.expand(batch.rows, -1)
        if not estimate_full:
            return loss_of_ids(batch, ids, log_q, sparse_grad=sparse_grad, exclude=True, history=history)
        of_negatives = without_positive(batch)
        rows = rows_of_ids(of_negatives, ids, log_q, sparse_grad=sparse_grad, exclude=True, history=history)
        return loss_over_all_items(batch, rows, count_items_left(batch.pos_ids, num_items, history, interactions))

"""The known positives that a batch's rows leave out."""

from __future__ import annotations

from torch import Tensor

from cw_ext import checks
from cw_ext.embedding_batch import EmbeddingBatch
from cw_ext.interactions import Interactions
from cw_ext.negative_sampling import check_interactions, check_query_ids
from cw_ext.reference_sampling import History, history_of


def check_item_count(batch: EmbeddingBatch, interactions: Interactions, else_: str = "") -> None:
    """`items` is the catalogue of the interactions; `else_` tells what to do if it is meant to be something else."""
    if batch.items.shape[0] != interactions.num_items:
        raise ValueError(
            f"items must have one row per item of interactions, {interactions.num_items}, "
            f"got {batch.items.shape[0]}{else_}"
        )


def known_positives(
    batch: EmbeddingBatch, query_ids: Tensor | None, interactions: Interactions | None, *, alone: bool = False
) -> Interactions | None:
    """The interactions, checked, where both arguments are given; None: nothing is known.

    Args:
        alone: query_ids may come without interactions, and then only say which rows have the same query.
    """
    if interactions is None:
        if query_ids is not None and not alone:
            raise ValueError("interactions must be given with query_ids, which point into them, got None")
        if query_ids is not None:
            checks.has_dtype("query_ids", query_ids, checks.INTEGER)
            checks.matches("query_ids", query_ids, "queries", batch.queries, dtype=False)
            checks.has_shape("query_ids", query_ids, (batch.rows,), "one id per row of queries")
            checks.ids_in_range("query_ids", query_ids.long(), 2**62, padding=False, unless_padding=batch.pos_ids)
        return None
    check_interactions(interactions, "queries", batch.queries)
    if query_ids is None:
        return None
    check_query_ids(query_ids, interactions, batch.pos_ids)
    return interactions


def history_of_batch(
    batch: EmbeddingBatch, query_ids: Tensor | None, interactions: Interactions | None
) -> History | None:
    """The same for an op on the whole catalogue."""
    known = known_positives(batch, query_ids, interactions)
    if interactions is not None:
        check_item_count(batch, interactions)
    return None if known is None or query_ids is None else history_of(query_ids, known)

"""The known positives that the rows of a batch leave out."""

from __future__ import annotations

from torch import Tensor

from cw_ext import checks
from cw_ext.embedding_batch import EmbeddingBatch
from cw_ext.interactions import Interactions
from cw_ext.negative_sampling import check_interactions, check_query_ids
from cw_ext.reference_sampling import History, history_of


def check_item_count(batch: EmbeddingBatch, interactions: Interactions, else_: str = "") -> None:
    """Check that `items` is the catalogue of the interactions. `else_` has the advice for any other use of items."""
    if batch.items.shape[0] != interactions.num_items:
        raise ValueError(
            f"items must have one row per item of interactions, {interactions.num_items}, "
            f"got {batch.items.shape[0]}{else_}"
        )


def known_positives(
    batch: EmbeddingBatch, query_ids: Tensor | None, interactions: Interactions | None, *, alone: bool = False
) -> Interactions | None:
    """Check both arguments. Returns the interactions if both are given, else None.

    Args:
        alone: query_ids may be given without interactions. Then they only tell which rows have the same query.
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
    """The known positives for an op on the whole catalogue."""
    known = known_positives(batch, query_ids, interactions)
    if interactions is not None:
        check_item_count(batch, interactions)
    return None if known is None or query_ids is None else history_of(query_ids, known)

"""The K items with the highest inner products for each query, exactly, in blocks of queries and of items."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cw_ext import Interactions

# 512 × 32768 float32 scores are 64 MiB. Where rankings are long, a block has fewer queries: so many places in all.
_QUERIES_PER_BLOCK = 512
_ITEMS_PER_BLOCK = 32768
_FOUND_PER_BLOCK = 2**20


def top_k(
    queries: Tensor, items: Tensor, k: int, left_out: Interactions | None = None, rows: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rank the items for each query by inner product; of equal scores the item with the lower id comes first.

    Args:
        queries: [num_queries, D].
        items: [num_items, D], num_items at least 1.
        k: length of a ranking, at least 1; at most num_items are found.
        left_out: pairs (query, item) that are not ranked.
        rows: int64 ids of the queries to rank for, in any order; all if None.

    Yields:
        For each block of queries ``(rows, ids, scores)``: int64 [b], int64 [b, K] and float [b, K], with
        K = min(k, num_items). Where a query has fewer items to rank, its last scores are -inf and the ids there are
        arbitrary.
    """
    if rows is None:
        rows = torch.arange(len(queries))
    for block in rows.split(max(1, min(_QUERIES_PER_BLOCK, _FOUND_PER_BLOCK // k))):
        vectors = queries[block]
        masked_rows, masked_items = _pairs_by_item(block, left_out)
        ids, scores = torch.empty(len(block), 0, dtype=torch.int64), vectors.new_empty(len(block), 0)
        for begin in range(0, len(items), _ITEMS_PER_BLOCK):
            found = vectors @ items[begin : begin + _ITEMS_PER_BLOCK].T
            first, last = torch.searchsorted(masked_items, torch.tensor([begin, begin + found.shape[1]])).tolist()
            found[masked_rows[first:last], masked_items[first:last] - begin] = -torch.inf
            ids_here, scores_here = _top_k_of_block(found, k)
            # What was found before has lower ids, so that a stable sort keeps it first among equal scores.
            ids, scores = torch.cat([ids, ids_here + begin], dim=1), torch.cat([scores, scores_here], dim=1)
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            ids, scores = ids.gather(1, order)[:, :k], scores[:, :k]
        yield block, ids, scores


def _pairs_by_item(block: Tensor, pairs: Interactions | None) -> tuple[Tensor, Tensor]:
    """The pairs of the block's queries as (position in the block, item), sorted by item."""
    if pairs is None:
        return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    starts, lengths = pairs.starts[block], pairs.starts[block + 1] - pairs.starts[block]
    rows = torch.arange(len(block)).repeat_interleave(lengths)
    places = torch.arange(len(rows)) - (lengths.cumsum(0) - lengths)[rows] + starts[rows]
    items, order = pairs.items[places].long().sort()
    return rows[order], items


def _top_k_of_block(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(ids, scores) of the k largest of each row, by decreasing score, then by increasing id."""
    if scores.shape[1] <= k:
        scores, ids = scores.sort(dim=1, descending=True, stable=True)
        return ids, scores
    # torch.topk takes any of the items tied for the last place; one more value shows whether there is a tie.
    values, ids = scores.topk(k + 1)
    tied = (values[:, k - 1] == values[:, k]) & (values[:, k] > -torch.inf)
    ids, order = ids[:, :k].sort(dim=1)
    values, order = values[:, :k].gather(1, order).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    for row in tied.nonzero().flatten().tolist():
        last = values[row, -1]
        above = int((values[row] > last).sum())
        ids[row, above:] = (scores[row] == last).nonzero().flatten()[: k - above]
    return ids, values

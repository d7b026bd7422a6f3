"""The candidates that each row of a batch leaves out, if candidates are vectors of items and not rows of a catalogue.

The number of pairs depends on the data, which torch.compile cannot trace. So the callers are not compiled.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cw_ext.interactions import Interactions
from cw_ext.reference_sampling import History


class Side(NamedTuple):
    """Pairs of a query and its positive. −1 is padding."""

    items: Tensor  # int64 [n], the number of each pair's item
    queries: Tensor | None  # int64 [n], the number of its query; None if not known


class Pairs(NamedTuple):
    """Pairs of a row and a candidate, each once, in increasing order."""

    rows: Tensor  # int64 [P]
    candidates: Tensor  # int64 [P]

    def history(self, rows: int) -> History:
        """The pairs in the form of known positives of rows, which the ops leave out."""
        starts = torch.zeros(rows + 1, dtype=torch.int64, device=self.rows.device)
        torch.cumsum(torch.bincount(self.rows, minlength=rows), 0, out=starts[1:])
        return History(torch.arange(rows, device=self.rows.device), starts, self.candidates.int())


def left_out_items(rows: Side, candidates: Side, known: Interactions | None, places: Tensor, size: int) -> Pairs:
    """Candidates whose item is the row's positive, or a known positive of its query.

    Args:
        rows: [B]. candidates: [N].
        known: interactions whose queries and items are numbered as those of the pairs; None if nothing is known.
        places: int64 [N], the number of each candidate in the result. −1 is padding.
        size: an upper bound of `places`.
    """
    found = [_equal(rows.items, candidates.items)]
    if known is not None and rows.queries is not None:
        found.append(_known(rows.queries, candidates.items, known))
    return _distinct(found, places, size)


def left_out_queries(rows: Side, candidates: Side, known: Interactions | None, places: Tensor, size: int) -> Pairs:
    """Candidates whose query likes the row's item (its own positive, or a known one), or is the row's query."""
    found = [_equal(rows.items, candidates.items)]
    if rows.queries is not None and candidates.queries is not None:
        found.append(_equal(rows.queries, candidates.queries))
        if known is not None:
            likers, liked = _known(candidates.queries, rows.items, known)
            found.append((liked, likers))
    return _distinct(found, places, size)


def _distinct(found: list[tuple[Tensor, Tensor]], places: Tensor, size: int) -> Pairs:
    rows = torch.cat([pair[0] for pair in found])
    candidates = places[torch.cat([pair[1] for pair in found])]
    keys = torch.unique((rows * size + candidates)[candidates >= 0])
    return Pairs(keys // max(size, 1), keys % max(size, 1))


def _equal(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """All (i, j) with a[i] == b[j] ≥ 0."""
    ordered, order = b.sort(stable=True)
    first = torch.searchsorted(ordered, a)
    count = torch.searchsorted(ordered, a, right=True) - first
    count = torch.where(a >= 0, count, 0)
    i = torch.arange(len(a), device=a.device).repeat_interleave(count)
    return i, order[_ranges(first, count)]


def _known(queries: Tensor, items: Tensor, known: Interactions) -> tuple[Tensor, Tensor]:
    """All (i, j) where queries[i] knows items[j]."""
    valid = queries >= 0
    first = known.starts[queries.clamp(min=0)]
    count = torch.where(valid, known.starts[queries.clamp(min=0) + 1] - first, 0)
    owner = torch.arange(len(queries), device=queries.device).repeat_interleave(count)
    entry, j = _equal(known.items[_ranges(first, count)].long(), items)
    return owner[entry], j


def _ranges(first: Tensor, count: Tensor) -> Tensor:
    """first[0], …, first[0] + count[0] − 1, then the same from first[1], and so on."""
    before = count.cumsum(0) - count
    total = int(count.sum())
    return torch.arange(total, device=first.device) + (first - before).repeat_interleave(count)

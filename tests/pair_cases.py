"""Batches of pairs whose items are encoded: several rows of `items` may be the same item of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from cases import generator
from torch import Tensor

from cw_ext import Interactions, cw_loss_in_batch

QUERIES, ITEMS, DIM = 9, 12, 6


def known_pairs() -> Interactions:
    g = generator(40)
    pairs = (torch.randint(QUERIES, (30,), generator=g), torch.randint(ITEMS, (30,), generator=g))
    whole = torch.unique(pairs[0] * ITEMS + pairs[1])
    return Interactions(whole // ITEMS, whole % ITEMS, num_queries=QUERIES, num_items=ITEMS)


KNOWN = known_pairs()


@dataclass(frozen=True)
class PairCase:
    """Rows of a batch; `pos_ids` point into `items`, of which row i is the item item_ids[i]."""

    queries: Tensor
    items: Tensor
    pos_ids: Tensor
    item_ids: Tensor
    query_ids: Tensor
    extra_ids: Tensor
    row_weights: Tensor
    prior: Tensor

    def leaves(self) -> PairCase:
        return replace(
            self,
            queries=self.queries.clone().requires_grad_(),
            items=self.items.clone().requires_grad_(),
            row_weights=self.row_weights.clone().requires_grad_(),
        )

    def loss(self, *, extra: bool = True, weights: bool = True, **arguments: Any) -> Tensor:
        return cw_loss_in_batch(
            self.queries,
            self.items,
            self.pos_ids,
            item_ids=self.item_ids,
            extra_pos_ids=self.extra_ids if extra else None,
            row_weights=self.row_weights if weights else None,
            prior=self.prior,
            **arguments,
        )

    def part(self, rows: slice, items: slice) -> PairCase:
        """What a process has; the rows' ids must lie in its items."""

        def own(ids: Tensor) -> Tensor:
            return torch.where(ids[rows] >= 0, ids[rows] - items.start, -1)

        return PairCase(
            self.queries[rows],
            self.items[items],
            own(self.pos_ids),
            self.item_ids[items],
            self.query_ids[rows],
            own(self.extra_ids),
            self.row_weights[rows],
            self.prior[rows],
        )


def pair_case(sizes: tuple[tuple[int, int], ...], seed: int = 0) -> PairCase:
    """A batch of parts with (rows, items) each, in which ids of a part's rows lie in its items."""
    g = generator(seed)
    rows, count = (sum(size[i] for size in sizes) for i in range(2))
    pos_ids, extra_ids = torch.empty(rows, dtype=torch.int64), torch.empty(rows, 2, dtype=torch.int64)
    row = item = 0
    for part_rows, part_items in sizes:
        part = slice(row, row + part_rows)
        if part_rows:
            pos_ids[part] = torch.randint(item, item + part_items, (part_rows,), generator=g)
            extra_ids[part] = torch.randint(item, item + part_items, (part_rows, 2), generator=g)
        row, item = row + part_rows, item + part_items
    extra_ids[::3, 1] = -1
    if rows > 3:
        pos_ids[2] = -1  # padding
    return PairCase(
        torch.randn(rows, DIM, generator=g, dtype=torch.float64),
        torch.randn(count, DIM, generator=g, dtype=torch.float64),
        pos_ids,
        torch.randint(ITEMS, (count,), generator=g),
        torch.randint(QUERIES, (rows,), generator=g),
        extra_ids,
        torch.rand(rows, generator=g, dtype=torch.float64) + 0.1,
        torch.rand(rows, generator=g, dtype=torch.float64) / 10,
    )

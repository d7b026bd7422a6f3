"""Interactions and losses with drawn, shared and all items as negatives, for the tests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from cases import Embeddings, _Tensors, _with_tensors, generator, make_embeddings
from torch import Tensor

from cw_ext import Interactions, cw_loss_full, cw_loss_in_batch, sampled_cw_loss


def make_interactions(
    num_queries: int = 20, num_items: int = 50, pairs: int = 200, *, seed: int = 0, full: bool = False
) -> Interactions:
    """Random pairs in which low item ids are popular. Query 0 has no history, query 1 all items but two (or all)."""
    g = generator(seed)
    queries = torch.randint(2, num_queries, (pairs,), generator=g)
    items = (num_items * torch.rand(pairs, generator=g) ** 2).long()
    long = torch.arange(num_items if full else num_items - 2)
    queries, items = torch.cat([queries, torch.ones_like(long)]), torch.cat([items, long])
    queries, items = torch.stack([queries, items]).unique(dim=1)  # each pair once, as the batches of these tests follow
    return Interactions(queries, items, num_queries=num_queries, num_items=num_items)


def histories(interactions: Interactions) -> list[set[int]]:
    """Every query's known positives."""
    bounds, items = interactions.starts.tolist(), interactions.items.tolist()
    return [set(items[a:b]) for a, b in zip(bounds, bounds[1:])]


def assert_distributed(counts: Tensor, expected: Tensor) -> None:
    """Pearson's chi-square test at five standard deviations (Wilson & Hilferty, 1931): one in 3.5 million."""
    counts, expected = counts.double(), expected.double()
    assert (counts[expected == 0] == 0).all(), "drawn, but impossible"
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = expected.numel() - 1
    if freedom == 0:
        return
    assert expected.min() >= 5, "too few draws for the test"
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    assert abs(z) < 5, f"chi-square {statistic:.1f} with {freedom} degrees of freedom, z = {z:.1f}"


@dataclass(frozen=True)
class Drawn(_Tensors):
    """A batch for the functions that find negatives themselves; `kind` is "sampled", "in_batch" or "full"."""

    queries: Tensor
    items: Tensor
    query_ids: Tensor
    pos_ids: Tensor
    interactions: Interactions
    kind: str
    settings: dict[str, Any]
    extra_ids: Tensor | None = None
    prior: Tensor | None = None
    threshold: Tensor | None = None
    row_weights: Tensor | None = None
    temperature: Tensor | None = None
    knots: Tensor | None = None

    def loss(self, **arguments: Any) -> Tensor:
        arguments = _with_tensors(self.settings | arguments, self)
        arguments |= {"extra_pos_ids": self.extra_ids, "row_weights": self.row_weights}
        interactions = self.interactions.to(self.queries.device)
        if self.kind == "sampled":
            n = arguments.pop("num_negatives")
            return sampled_cw_loss(self.queries, self.items, self.query_ids, self.pos_ids, interactions, n, **arguments)
        function = {"in_batch": cw_loss_in_batch, "full": cw_loss_full}[self.kind]
        arguments |= {"query_ids": self.query_ids, "interactions": interactions}
        return function(self.queries, self.items, self.pos_ids, **arguments)


def make_drawn(
    kind: str,
    rows: int = 7,
    dim: int = 8,
    m: int = 0,
    *,
    seed: int = 0,
    interactions: Interactions | None = None,
    padding: bool = False,
    row_weights: bool = False,
    scale: float = 1.0,
    **settings: Any,
) -> Drawn:
    """Random tables and a batch in which queries and positives occur several times."""
    interactions = make_interactions() if interactions is None else interactions
    case: Embeddings = make_embeddings(
        rows, 1, dim, interactions.num_items, m, seed=seed, padding=padding, row_weights=row_weights, scale=scale
    )
    pos_ids = case.pos_ids.clone()
    pos_ids[: rows // 2] = torch.arange(rows // 2) // 2 % interactions.num_items  # each twice
    query_ids = torch.randint(interactions.num_queries, (rows,), generator=generator(seed + 1))
    query_ids[:2] = torch.arange(2)[:rows]  # no history, and almost everything
    return Drawn(
        case.queries,
        case.items,
        query_ids,
        pos_ids,
        interactions,
        kind,
        settings,
        case.extra_ids,
        row_weights=case.row_weights,
    )

"""Batches and expected distributions for the tests of cw_ext.samplers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from cases import generator
from torch import Tensor

from cw_ext import Interactions

SCALE = {"half_cosine": 0.5, "cosine": 1.0, "dot": 1.0}


class Tables(NamedTuple):
    """Queries and items, and who knows what: item k mod 7 == 0 and item q are known by query q."""

    queries: Tensor  # [Q, D]
    items: Tensor  # [I, D]
    interactions: Interactions

    def batch(self, query_ids: Tensor, pos_ids: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What draw and update take. Positives are item 0 unless they are given."""
        query_ids = query_ids.to(self.items.device)
        pos_ids = torch.zeros_like(query_ids) if pos_ids is None else pos_ids.to(self.items.device)
        return self.queries[query_ids.clamp(min=0).long()], self.items, query_ids, pos_ids

    def repeated(self, query: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch of one query."""
        return self.batch(torch.full((rows,), query))

    def scores(self, similarity: str = "half_cosine") -> np.ndarray:
        """[Q, I] in fp64."""
        q, x = (t.double().cpu().numpy() for t in (self.queries, self.items))
        if similarity != "dot":
            q, x = (t / np.linalg.norm(t, axis=1, keepdims=True) for t in (q, x))
        return SCALE[similarity] * q @ x.T

    def unknown(self, query: int) -> list[int]:
        known = set(
            self.interactions.items[self.interactions.starts[query] : self.interactions.starts[query + 1]].tolist()
        )
        return [item for item in range(self.interactions.num_items) if item not in known]


def make_tables(
    num_queries: int = 5, num_items: int = 50, dim: int = 4, *, seed: int = 0, device: Any = "cpu", dtype: Any = None
) -> Tables:
    g = generator(seed)
    query_ids = torch.arange(num_queries).repeat_interleave(num_items)
    item_ids = torch.arange(num_items).repeat(num_queries)
    known = (item_ids % 7 == 0) | (item_ids == query_ids)
    tables = (torch.randn(n, dim, generator=g).to(device, dtype or torch.float32) for n in (num_queries, num_items))
    pairs = (query_ids[known], item_ids[known])
    return Tables(*tables, Interactions(*pairs, num_queries=num_queries, num_items=num_items).to(device))


def leaving(count: int, num_queries: int, *, dim: int = 4, seed: int = 0, device: Any = "cpu") -> Tables:
    """Queries that are all alike, and know all items but the first `count` of count + 2."""
    g = generator(seed)
    queries = torch.arange(num_queries).repeat(2)
    items = torch.tensor([count, count + 1]).repeat_interleave(num_queries)
    tables = (torch.randn(n, dim, generator=g).to(device) for n in (1, count + 2))
    query, item_table = tables
    known = Interactions(queries, items, num_queries=num_queries, num_items=count + 2)
    return Tables(query.expand(num_queries, dim).contiguous(), item_table, known.to(device))


def counts_of(ids: Tensor, num_items: int) -> Tensor:
    return torch.bincount(ids.flatten().cpu(), minlength=num_items)


def softmax_over(scores: np.ndarray, items: list[int], temperature: float) -> Tensor:
    """[I], 0 for what is not among the items."""
    p = np.zeros(len(scores))
    z = scores[items] / temperature
    p[items] = np.exp(z - z.max())
    return torch.from_numpy(p / p.sum())


def successive(weights: np.ndarray) -> Tensor:
    """[K, K], the probability of each ordered pair that is drawn one by one without replacement, ∝ weight."""
    p = weights / weights.sum()
    pairs = p[:, None] * p[None, :] / (1 - p[:, None])
    np.fill_diagonal(pairs, 0)
    return torch.from_numpy(pairs)

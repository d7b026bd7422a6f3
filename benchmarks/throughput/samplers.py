"""Ways to draw negatives outside the op, as training code does, to compare with drawing inside.

All draw with replacement from the items that are not known positives of the row's query, uniformly or in proportion to
weights. A known positive is drawn again until it is none. Each sampler keeps its own random state.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cw_ext import Interactions

# Called with query ids int64 [B] and N, a sampler returns ids [B, N] on their device.
Sampler = Callable[[Tensor, int], Tensor]
_CACHE_LINE_BYTES = 64


class TorchSearch:
    """torch.randint (torch.multinomial), and a binary search for every draw among the sorted pairs of the history."""

    def __init__(self, interactions: Interactions, weights: Tensor | None, seed: int) -> None:
        """`weights`: [I] ≥ 0, or None for uniform draws."""
        self._num_items, self._keys = interactions.num_items, _keys(interactions)
        self._weights = None if weights is None else weights.to(interactions.device)
        self._generator = torch.Generator(interactions.device).manual_seed(seed)

    def __call__(self, query_ids: Tensor, num_negatives: int) -> Tensor:
        rows = (query_ids * self._num_items).repeat_interleave(num_negatives)
        drawn = self._draw(len(rows))
        places = self._known(rows + drawn).nonzero().squeeze(1)
        while len(places):
            drawn[places] = again = self._draw(len(places))
            places = places[self._known(rows[places] + again)]
        return drawn.view(-1, num_negatives)

    def _draw(self, count: int) -> Tensor:
        if self._weights is not None:
            return torch.multinomial(self._weights, count, replacement=True, generator=self._generator)
        return torch.randint(self._num_items, (count,), generator=self._generator, device=self._keys.device)

    def _known(self, pairs: Tensor) -> Tensor:
        places = torch.searchsorted(self._keys, pairs)
        return self._keys[places.clamp_(max=len(self._keys) - 1)] == pairs


class TorchIsin(TorchSearch):
    """The same with torch.isin, which sorts draws and history together."""

    def _known(self, pairs: Tensor) -> Tensor:
        return torch.isin(pairs, self._keys)


class NumpySets:
    """numpy's generator, and a Python set per query that every draw is looked up in: what RecBole's sampler does."""

    def __init__(self, interactions: Interactions, weights: Tensor | None, seed: int) -> None:
        """`weights`: [I] ≥ 0, or None for uniform draws."""
        self._num_items = interactions.num_items
        starts, items = interactions.starts.tolist(), interactions.items.tolist()
        self._sets = np.empty(interactions.num_queries, dtype=object)
        self._sets[:] = [set(items[begin:end]) for begin, end in zip(starts, starts[1:])]
        self._probabilities = None if weights is None else (weights / weights.sum()).cpu().numpy()
        self._generator = np.random.default_rng(seed)

    def __call__(self, query_ids: Tensor, num_negatives: int) -> Tensor:
        sets = np.repeat(self._sets[query_ids.cpu().numpy()], num_negatives)
        drawn = np.empty(len(sets), dtype=np.int64)
        places = np.arange(len(sets))
        while len(places):
            drawn[places] = again = self._draw(len(places))
            places = places[[item in known for item, known in zip(again.tolist(), sets[places])]]
        return torch.from_numpy(drawn.reshape(-1, num_negatives)).to(query_ids.device)

    def _draw(self, count: int) -> np.ndarray:
        if self._probabilities is not None:
            return self._generator.choice(self._num_items, count, p=self._probabilities)
        return self._generator.integers(self._num_items, size=count)


class NumpyChoice:
    """numpy's choice from the remaining items, row by row: the simplest way, which rejects nothing."""

    def __init__(self, interactions: Interactions, weights: Tensor | None, seed: int) -> None:
        """`weights`: [I] ≥ 0, or None for uniform draws."""
        self._all_items = np.arange(interactions.num_items)
        self._starts, self._items = interactions.starts.numpy(force=True), interactions.items.numpy(force=True)
        self._weights = None if weights is None else weights.numpy(force=True)
        self._generator = np.random.default_rng(seed)

    def __call__(self, query_ids: Tensor, num_negatives: int) -> Tensor:
        drawn = np.empty((len(query_ids), num_negatives), dtype=np.int64)
        for row, query in zip(drawn, query_ids.tolist(), strict=True):
            known = self._items[self._starts[query] : self._starts[query + 1]]
            left = np.setdiff1d(self._all_items, known, assume_unique=True)
            p = None if self._weights is None else self._weights[left] / self._weights[left].sum()
            row[:] = self._generator.choice(left, num_negatives, p=p)
        return torch.from_numpy(drawn).to(query_ids.device)


class BitTable:
    """torch.randint in int32, and a bit per query and item that every draw is looked up in; uniform, on the CPU.

    The fastest way we know outside the op. Rejected draws are replaced by rank among the free items. It keeps its
    working memory from call to call, so only one thread can use it at a time.
    """

    def __init__(self, interactions: Interactions, weights: Tensor | None, seed: int) -> None:
        if weights is not None:
            raise ValueError("weights must be None, since only uniform draws are replaced by their rank")
        queries, self._num_items = _queries(interactions), interactions.num_items
        self._starts, self._counts = interactions.starts, interactions.starts.diff()
        # The r-th item that a query does not know is r + (how many it knows of those with id − rank ≤ r).
        places = torch.arange(len(queries))
        self._shifted_keys = _keys(interactions) - (places - self._starts[queries])
        # Bits and not bytes: a query's row then stays in cache while a batch's draws are looked up in it.
        bitmap = np.zeros((interactions.num_queries, -(-self._num_items // 8)), dtype=np.uint8)
        bits = (1 << (interactions.items & 7)).to(torch.uint8)
        np.bitwise_or.at(bitmap, (queries.numpy(), (interactions.items >> 3).numpy()), bits.numpy())
        self._bitmap = torch.from_numpy(bitmap)
        self._working_memory: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, query_ids: Tensor, num_negatives: int) -> Tensor:
        shape = (len(query_ids), num_negatives)
        drawn = torch.randint(self._num_items, shape, generator=self._generator, dtype=torch.int32)
        rejected = self._find_known(query_ids, drawn)
        drawn.view(-1)[rejected] = self._draw_by_rank(query_ids[rejected // num_negatives]).int()
        return drawn

    def _find_known(self, query_ids: Tensor, drawn: Tensor) -> Tensor:
        """The indices into the flattened draws [B, N] of those that are known to the queries [B]."""
        width = self._bitmap.shape[1]
        byte_ids = torch.bitwise_right_shift(drawn, 3, out=self._reuse("byte_ids", drawn.shape, torch.int64))
        looked_up = self._reuse("looked_up", drawn.shape, torch.uint8)
        if width <= drawn.shape[1] * _CACHE_LINE_BYTES:
            # The look-ups would read most of each row anyway, and it is faster to read it in order first.
            rows = self._reuse("rows", (len(query_ids), width), torch.uint8)
            torch.gather(torch.index_select(self._bitmap, 0, query_ids, out=rows), 1, byte_ids, out=looked_up)
        else:
            torch.take(self._bitmap, byte_ids.add_((query_ids * width).unsqueeze(1)), out=looked_up)
        bit_ids = torch.bitwise_and(drawn, 7, out=self._reuse("bit_ids", drawn.shape, torch.uint8))
        known = looked_up.bitwise_right_shift_(bit_ids).bitwise_and_(1).view(torch.bool)
        return torch.from_numpy(np.flatnonzero(known.numpy()))  # several times as fast as torch's nonzero

    def _reuse(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory that the next call with the name gets again: fresh pages cost more than draws."""
        size = math.prod(shape)
        kept = self._working_memory.get(name)
        if kept is None or len(kept) < size:
            kept = self._working_memory[name] = torch.empty(size, dtype=dtype)
        return kept[:size].view(shape)

    def _draw_by_rank(self, query_ids: Tensor) -> Tensor:
        """One item per entry of query_ids [n], by its rank among those that the query does not know."""
        draws = torch.randint(2**63 - 1, query_ids.shape, generator=self._generator)
        rank = draws % (self._num_items - self._counts[query_ids])
        known_before = torch.searchsorted(self._shifted_keys, query_ids * self._num_items + rank, right=True)
        return rank + known_before - self._starts[query_ids]


SAMPLERS: dict[str, Callable[[Interactions, Tensor | None, int], Sampler]] = {
    "torch-search": TorchSearch,
    "torch-isin": TorchIsin,
    "numpy-sets": NumpySets,
    "numpy-choice": NumpyChoice,
    "bit-table": BitTable,
}


def count_known(query_ids: Tensor, neg_ids: Tensor, interactions: Interactions) -> int:
    """How many of the ids [B, N] are known positives of their row's query [B]."""
    pairs = query_ids.unsqueeze(1) * interactions.num_items + neg_ids
    return int(torch.isin(pairs, _keys(interactions)).sum())


def _queries(interactions: Interactions) -> Tensor:
    """The query of each pair."""
    queries = torch.arange(interactions.num_queries, device=interactions.device)
    return queries.repeat_interleave(interactions.starts.diff())


def _keys(interactions: Interactions) -> Tensor:
    """The pairs, numbered query by query, in order."""
    return _queries(interactions) * interactions.num_items + interactions.items

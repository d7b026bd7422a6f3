"""The state that a sampler keeps for each query: which rows of a batch write to it, and the items it starts with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cw_ext.interactions import Interactions
from cw_ext.negative_sampling import check_seed, draw, seed_tensor, uniform_draws
from cw_ext.reference_sampling import is_among, pair_keys
from cw_ext.samplers.base import fused, random_numbers
from cw_ext.samplers.catalogue import BLOCK, unknown_items


def state_rows(query_ids: Tensor, num_queries: int) -> Tensor:
    """int64 [B], the rows of a state [num_queries + 1, …]. Padding has the last row, which is never read."""
    return torch.where(query_ids < 0, num_queries, query_ids).long()


def first_of_each(rows: Tensor) -> Tensor:
    """int64 [B]: the first place in the batch that has the same row of the state.

    If all places write the values of that place, the result does not depend on the order of the writes.
    """
    ids, order = rows.sort(stable=True)
    is_first = torch.ones_like(ids, dtype=torch.bool)
    is_first[1:] = ids[1:] != ids[:-1]
    first = torch.where(is_first, torch.arange(len(ids), device=ids.device), 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, order, order[first])


def uniform_items(interactions: Interactions, count: int, seed: int | Tensor | None) -> Tensor:
    """int32 [num_queries + 1, count]: unknown items of each query, drawn with replacement.

    They are −1 if all items are known positives, and in the last row.
    """
    check_seed(seed, interactions.device)
    return _uniform(_every_query(interactions), interactions, count, seed_tensor(seed, interactions.device), 0)


def known_positives(ids: Tensor, interactions: Interactions) -> Tensor:
    """bool [num_queries + 1, count]: which items of a state are known positives of their row's query."""
    keys = pair_keys(interactions.starts, interactions.items, interactions.num_items)
    queries, rows = _every_query(interactions).unsqueeze(1), max(1, BLOCK // ids.shape[1])
    parts = zip(queries.split(rows), ids.split(rows), strict=True)
    return torch.cat([is_among(keys, query, part, interactions.num_items) & (part >= 0) for query, part in parts])


def check_loaded(state: Mapping[str, Any], name: str, limit: int, of: str) -> None:
    """Refuse a saved state of another catalogue, whose numbers would be read beyond the end.

    Raises:
        ValueError: `name` exists and has a number outside [−1, limit).
    """
    values = state.get(name)
    if isinstance(values, Tensor) and values.numel() and not (-1 <= int(values.min()) and int(values.max()) < limit):
        got = f"{int(values.min())} to {int(values.max())}"
        raise ValueError(f"{name} of the loaded state must be in [-1, {limit}), {of}, got {got}")


def distinct_items(interactions: Interactions, count: int, seed: int | Tensor | None) -> Tensor:
    """int32 [num_queries + 1, count]: distinct unknown items of each query in random order, then −1."""
    check_seed(seed, interactions.device)
    seed, block = seed_tensor(seed, interactions.device), max(1, BLOCK // (2 * count))
    parts = []
    for first, queries in enumerate(_every_query(interactions).split(block)):
        parts.append(_distinct(queries, interactions, count, seed, first * block))
    return torch.cat(parts)


def _distinct(queries: Tensor, interactions: Interactions, count: int, seed: Tensor, first_row: int) -> Tensor:
    drawn = _uniform(queries, interactions, 2 * count, seed, first_row)
    ids, order = drawn.sort(dim=1, stable=True)
    repeated = torch.zeros_like(ids, dtype=torch.bool)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    repeated = torch.empty_like(repeated).scatter_(1, order, repeated | (ids < 0))
    firsts, places = repeated.to(torch.uint8).sort(dim=1, stable=True)
    found = drawn.gather(1, places).masked_fill_(firsts > 0, -1)[:, :count].contiguous()
    # If few items are unknown, draws repeat them. Then all unknown items are shuffled instead.
    short = ((found < 0).any(1) & (queries >= 0)).nonzero()[:, 0]
    kept = min(count, interactions.num_items)
    for rows in short.split(max(1, BLOCK // interactions.num_items)):
        if not len(rows):
            break
        unknown = unknown_items(queries[rows], interactions)
        noise = random_numbers(seed, len(rows), interactions.num_items, first_row + int(rows[0]))
        order = noise.masked_fill_(unknown < 0, -1).topk(kept, dim=1).indices
        found[rows, :kept] = unknown.gather(1, order)
    return found


def _uniform(queries: Tensor, interactions: Interactions, count: int, seed: Tensor, first_row: int) -> Tensor:
    # Whether there is something to draw is checked for each batch: a query without unknown items may never be used.
    draws = uniform_draws(count, seed, interactions.device, None)
    known = {"query_ids": queries, "starts": interactions.starts, "known": interactions.items}
    draws = draws._replace(first_row=first_row, **known)  # type: ignore[arg-type]
    return draw(draws, len(queries), interactions.num_items, fused(interactions.starts))


def _every_query(interactions: Interactions) -> Tensor:
    ids = torch.arange(interactions.num_queries + 1, device=interactions.device)
    return torch.where(ids < interactions.num_queries, ids, -1)

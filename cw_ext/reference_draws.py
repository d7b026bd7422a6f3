"""Which negatives a batch draws, in plain PyTorch: twin of csrc/draw.h.

A draw is a function of the seed, the row and its place in the row alone, by Philox 4x32-10 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011), so that every backend, device and number of threads draws the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cw_ext.interactions import Interactions

_LOW = 0xFFFFFFFF
_MAX_ATTEMPTS = 64  # as kMaxAttempts


class History(NamedTuple):
    """The known positives of a batch's queries: those of row b are known[starts[q]:starts[q + 1]], q = query_ids[b]."""

    query_ids: Tensor  # [B]
    starts: Tensor  # int64 [Q + 1]
    known: Tensor  # int32 [P]


class Draws(NamedTuple):
    """What the ops need to draw a batch's negatives, in the order in which they take it."""

    query_ids: Tensor | None  # these three as in History; None: nothing is rejected
    starts: Tensor | None
    known: Tensor | None
    seed: Tensor  # int64 []
    num_negatives: int
    thresholds: Tensor | None  # these three as in Popularity; None: uniform
    aliases: Tensor | None
    masses: Tensor | None
    log_weights: Tensor | None  # [I]: what an item's log q is wherever it is drawn

    def history(self) -> History | None:
        if self.query_ids is None or self.starts is None or self.known is None:
            return None
        return History(self.query_ids, self.starts, self.known)


def history_of(query_ids: Tensor, interactions: Interactions) -> History:
    return History(query_ids, interactions.starts, interactions.items)


def philox(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10: four words of 32 bits from a counter of four, in int64 tensors. The seed's halves are the key."""
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        # Products of 64 bits wrap around into the sign, which the mask takes off again.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) & _LOW ^ c1 ^ k0, p1 & _LOW, (p0 >> 32) & _LOW ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def draw(draws: Draws, rows: int, num_items: int) -> Tensor:
    """int64 [rows, N]; −1 where a query has no item left."""
    device, n = draws.seed.device, draws.num_negatives
    row = torch.arange(rows, device=device).repeat_interleave(n)
    place = torch.arange(n, device=device).repeat(rows)
    found = torch.full((rows * n,), -1, dtype=torch.int64, device=device)
    open_places = torch.arange(rows * n, device=device)
    known = is_known(draws.history(), num_items)
    for attempt in range(_MAX_ATTEMPTS):
        b, j = row[open_places], place[open_places]
        items = _attempt(draws, b, j, attempt, num_items)
        accepted = (items >= 0) & ~known(b, items.clamp(min=0))
        found[open_places[accepted]] = items[accepted]
        open_places = open_places[~accepted]
        if open_places.numel() == 0:
            break
    for k in open_places.tolist():
        found[k] = _last_resort(draws, row[k], place[k], num_items)
    return found.view(rows, n)


def _attempt(draws: Draws, b: Tensor, j: Tensor, attempt: int, num_items: int) -> Tensor:
    """The items that an attempt names, [n]; −1 where its word would favour an item by rounding."""
    per_counter = 4 if draws.thresholds is None else 2
    counter = (j // per_counter, torch.full_like(j, attempt), b & _LOW, b >> 32)
    words = torch.stack(philox(*counter, draws.seed))  # [4, n]
    product = words.gather(0, (j % per_counter * (4 // per_counter)).unsqueeze(0))[0] * num_items
    items = torch.where((product & _LOW) < (2**32 - num_items) % num_items, -1, product >> 32)
    if draws.thresholds is None or draws.aliases is None:
        return items
    slot, coin = items.clamp(min=0), words.gather(0, (j % 2 * 2 + 1).unsqueeze(0))[0]
    popular = torch.where(coin < draws.thresholds.long()[slot], slot, draws.aliases[slot].long())
    return torch.where(items < 0, -1, popular)


def _last_resort(draws: Draws, row: Tensor, place: Tensor, num_items: int) -> int:
    """A draw from what a query leaves, without rejection; −1 where it leaves nothing."""
    c0, c1, *_ = philox(place, torch.full_like(place, _MAX_ATTEMPTS), row & _LOW, row >> 32, draws.seed)
    uniform = int(c1) << 32 | int(c0)
    free = torch.ones(num_items, dtype=torch.bool)
    if (history := draws.history()) is not None:
        query = history.query_ids[row]
        free[history.known[history.starts[query] : history.starts[query + 1]].long().cpu()] = False
    left = free.nonzero().squeeze(1)
    if draws.masses is None:
        return int(left[uniform * len(left) >> 64]) if len(left) else -1
    masses = draws.masses.cpu()[left]
    left, masses = left[masses > 0], masses[masses > 0]
    if not len(left):
        return -1
    sums = []
    total = 0.0
    for mass in masses.tolist():  # in this order, so that the sums have the digits that the kernels' have
        total += mass
        sums.append(total)
    target = math.ldexp(uniform >> 11, -53) * total
    return next((int(item) for item, s in zip(left.tolist(), sums) if s > target), int(left[-1]))


def is_known(history: History | None, num_items: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of rows and items, int64 of one shape, that says which are known positives."""
    if history is None or history.known.numel() == 0:
        return lambda b, items: torch.zeros_like(items, dtype=torch.bool)
    query_ids, starts, known = history
    counts = starts.diff()
    # Sorted, since the pairs stand by query and, within a query, by item.
    keys = torch.repeat_interleave(torch.arange(len(counts), device=known.device), counts) * num_items + known

    def look_up(b: Tensor, items: Tensor) -> Tensor:
        wanted = query_ids[b].long() * num_items + items
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        return keys[place] == wanted

    return look_up

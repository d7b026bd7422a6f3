"""Which negatives a batch draws, in plain PyTorch: the counterpart of csrc/negative_sampling.h.

A draw depends only on the seed, the row and its place in the row. It uses Philox 4x32-10 (Salmon et al., "Parallel
random numbers: as easy as 1, 2, 3", SC 2011), so that every backend, device and number of threads draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cw_ext.interactions import Interactions

_LOW = 0xFFFFFFFF
_MAX_ATTEMPTS = 64  # the same as kMaxAttempts


class History(NamedTuple):
    """The known positives of a batch's queries: those of row b are known[starts[q]:starts[q + 1]], q = query_ids[b]."""

    query_ids: Tensor  # [B]
    starts: Tensor  # int64 [Q + 1]
    known: Tensor  # int32 [P]


class Draws(NamedTuple):
    """What the ops need to draw a batch's negatives, in the order in which they take it."""

    query_ids: Tensor | None  # the first three as in History; None: nothing is rejected
    starts: Tensor | None
    known: Tensor | None
    seed: Tensor  # int64 []
    first_row: int  # row b draws as row first_row + b
    num_negatives: int
    thresholds: Tensor | None  # these four are as in Popularity; None: uniform
    aliases: Tensor | None
    cumulative: Tensor | None
    known_shares: Tensor | None
    log_weights: Tensor | None  # [I]: log q of each item when it is drawn
    candidates: Tensor | None  # [C]; known positives and tables are then by position in these. None: by item

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
        # Products of 64 bits wrap around into the sign, which the mask removes.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) & _LOW ^ c1 ^ k0, p1 & _LOW, (p0 >> 32) & _LOW ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def draw(draws: Draws, rows: int, num_items: int) -> Tensor:
    """int64 [rows, N]; −1 where a query has no item left, and in rows of padding, whose query id is −1."""
    device, n = draws.seed.device, draws.num_negatives
    num_items = num_items if draws.candidates is None else len(draws.candidates)
    row = torch.arange(rows, device=device).repeat_interleave(n)
    place = torch.arange(n, device=device).repeat(rows)
    found = torch.full((rows * n,), -1, dtype=torch.int64, device=device)
    open_places = torch.arange(rows * n, device=device)
    if draws.query_ids is not None:
        open_places = open_places[draws.query_ids[row] >= 0]
    known = is_known(draws.history(), num_items)
    for attempt in range(_MAX_ATTEMPTS):
        if open_places.numel() == 0:
            break
        b, j = row[open_places], place[open_places]
        items = _attempt(draws, draws.first_row + b, j, attempt, num_items)
        accepted = (items >= 0) & ~known(b, items.clamp(min=0))
        found[open_places[accepted]] = items[accepted]
        open_places = open_places[~accepted]
    if open_places.numel():
        found[open_places] = _last_resort(draws, row[open_places], place[open_places], num_items)
    if draws.candidates is not None:
        found = torch.where(found < 0, -1, draws.candidates[found.clamp(min=0)].long())
    return found.view(rows, n)


def _attempt(draws: Draws, b: Tensor, j: Tensor, attempt: int, num_items: int) -> Tensor:
    """The items of an attempt, [n]; −1 where its word would make some items more likely because of rounding."""
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


def _last_resort(draws: Draws, b: Tensor, j: Tensor, num_items: int) -> Tensor:
    """Draws, without rejection, from the items that a query does not know, [n]; −1 where there are none."""
    row = draws.first_row + b
    words = philox(j, torch.full_like(j, _MAX_ATTEMPTS), row & _LOW, row >> 32, draws.seed)
    # The known positives of the rows: first to first + count.
    first = count = torch.zeros_like(b)
    known = first[:1]
    if (history := draws.history()) is not None and history.known.numel():
        query = history.query_ids[b].long()
        known, first = history.known.long(), history.starts[query]
        count = history.starts[query + 1] - first
    last = len(known) - 1
    if draws.cumulative is None:
        left = num_items - count
        rank = _high_product(words[1], words[0], left)
        items = rank + _places(count, lambda k: known[(first + k).clamp(max=last)] - k <= rank)
        return torch.where(left > 0, items, -1)
    cumulative = draws.cumulative
    below = torch.cat([cumulative.new_zeros(1), cumulative])
    sums = torch.cat([below[:1], (below[known + 1] - below[known]).cumsum(0)])  # modulo 2⁶⁴
    left = cumulative[-1] - (sums[first + count] - sums[first])
    target = _high_product(words[1], words[0], left)

    def passed(k: Tensor) -> Tensor:
        return below[known[(first + k).clamp(max=last)]] - (sums[first + k] - sums[first]) <= target

    together = target + sums[first + _places(count, passed)] - sums[first]
    return torch.where(left > 0, torch.searchsorted(cumulative, together, right=True), -1)


def _places(count: Tensor, before: Callable[[Tensor], Tensor]) -> Tensor:
    """The number of k in [0, count) with before(k), which must hold up to some k and not from there on."""
    low, high = torch.zeros_like(count), count
    for _ in range(32):  # a history has fewer than 2³¹ items
        middle = (low + high) // 2
        go_on = (low < high) & before(middle.clamp(max=(count - 1).clamp(min=0)))
        low, high = torch.where(go_on, middle + 1, low), torch.where(go_on | (low >= high), high, middle)
    return low


def _high_product(a_high: Tensor, a_low: Tensor, b: Tensor) -> Tensor:
    """The upper 64 bits of a·b, where a has halves of 32 bits and 0 ≤ b < 2⁶³."""
    b_high, b_low = b >> 32, b & _LOW
    low = a_low * b_low
    middle = a_high * b_low + (low >> 32 & _LOW)
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> 32 & _LOW) + (other >> 32 & _LOW)


def is_known(history: History | None, num_items: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of rows and items, int64 of the same shape, that tells which are known positives."""
    if history is None:
        return lambda b, items: torch.zeros_like(items, dtype=torch.bool)
    query_ids, starts, known = history
    keys = pair_keys(starts, known, num_items)
    return lambda b, items: is_among(keys, query_ids[b], items, num_items)


def pair_keys(starts: Tensor, known: Tensor, num_items: int) -> Tensor:
    """int64 [P], a number for each pair of a query and an item that it knows, increasing."""
    # Increasing, since the pairs are in the order of the queries and, within a query, of the items.
    counts = starts.diff()
    return torch.repeat_interleave(torch.arange(len(counts), device=known.device), counts) * num_items + known


def is_among(keys: Tensor, query_ids: Tensor, items: Tensor, num_items: int) -> Tensor:
    """Whether the pairs of query_ids and items, of shapes that broadcast, are among these numbers."""
    wanted = query_ids.long() * num_items + items
    if keys.numel() == 0:
        return torch.zeros_like(wanted, dtype=torch.bool)
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return keys[place] == wanted

"""Training interactions by index, and extra positives of their users."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import torch

from benchmarks.common.data import InteractionData
from cw_ext import Interactions, LikelyPositives

# How likely positives are found.
Likely = Literal["auto", "regression", "walks"]
LIKELY = get_args(Likely)
# "auto" is "regression" up to so many items, whose three tables take 1.2 GB, and "walks" above.
MOST_REGRESSED = 10_000


class _SamePairs:
    """Interactions that equal others with the same pairs."""

    def __init__(self, interactions: Interactions) -> None:
        self.interactions = interactions
        self._content = tuple(x.cpu().numpy().tobytes() for x in (interactions.starts, interactions.items))

    def __eq__(self, other: object) -> bool:
        same_place = isinstance(other, _SamePairs) and self.interactions.device == other.interactions.device
        return same_place and (self.interactions.num_items, self._content) == (
            other.interactions.num_items,
            other._content,
        )

    def __hash__(self) -> int:
        return hash(self._content)


def likely_positives(kind: Likely, interactions: Interactions) -> LikelyPositives:
    """Items that the user probably likes but hasn't interacted with, to draw extra positives from.

    The last ones are kept: a search trains on the same pairs again and again.
    """
    regressed = kind == "regression" or (kind == "auto" and interactions.num_items <= MOST_REGRESSED)
    return _likely_positives(regressed, _SamePairs(interactions))


@functools.lru_cache(maxsize=2)
def _likely_positives(regressed: bool, known: _SamePairs) -> LikelyPositives:
    find = LikelyPositives.by_regression if regressed else LikelyPositives.by_walks
    return find(known.interactions)


class InteractionSampler:
    """Samples items for the rows of a batch from the training interactions.

    Attributes:
        users, items: int64 interactions sorted by user, each [num_interactions]. A batch is a set of indices
            into them, so that each row identifies one of its user's positives.

    It works on the device of its interactions; ids and generators must be there too.
    """

    def __init__(self, interactions: Interactions) -> None:
        self._starts = interactions.starts[:-1]
        self._counts = interactions.starts.diff()
        queries = torch.arange(interactions.num_queries, device=interactions.device)
        self.users, self.items = queries.repeat_interleave(self._counts), interactions.items.long()

    def extra_positives(
        self, interactions: torch.Tensor, num_positives: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Draw extra positives uniformly, with replacement, from the user's other training items.

        Args:
            interactions: int64 indices [B] into ``users`` and ``items``.
            num_positives: M, the number of draws per row.
            generator: source of the draws.

        Returns:
            int64 item ids [B, M]; a row whose user has no other item is all -1.
        """
        users = self.users[interactions]
        starts, others = self._starts[users].unsqueeze(1), (self._counts[users] - 1).unsqueeze(1)
        draws = torch.randint(2**63 - 1, (len(users), num_positives), generator=generator, device=users.device)
        draws %= others.clamp(min=1)
        draws += draws >= interactions.unsqueeze(1) - starts
        # Without the clamp a lone positive at the very end would be read past the end.
        items = self.items[(starts + draws).clamp(max=len(self.items) - 1)]
        return items.masked_fill(others == 0, -1)


class Folds:
    """Ten folds of the training interactions, of which each epoch leaves one out of its rows.

    Each has a tenth of every user's, rounded up or down, and of all of them.

    Args:
        users: int64 [P], sorted.
        seed: of the draw, which is the same on every device.

    Raises:
        ValueError: there are fewer interactions than folds.
    """

    NUMBER = 10

    def __init__(self, users: torch.Tensor, seed: int) -> None:
        if len(users) < self.NUMBER:
            raise ValueError(f"cross_fitted: expected at least {self.NUMBER} training interactions, got {len(users)}")
        shuffled = torch.randperm(len(users), generator=torch.Generator().manual_seed(seed)).to(users.device)
        order = shuffled[users[shuffled].argsort(stable=True)]  # by user, and at random within one
        fold = torch.empty_like(order)
        fold[order] = torch.arange(len(order), device=order.device) % self.NUMBER
        self._fold = fold

    def rows(self, epoch: int) -> torch.Tensor:
        """Indices of the interactions that an epoch, counted from 0, trains on."""
        return (self._fold != epoch % self.NUMBER).nonzero()[:, 0]

    def left_out(self, epoch: int) -> torch.Tensor:
        """Indices of the others."""
        return (self._fold == epoch % self.NUMBER).nonzero()[:, 0]


class HeldOutPositives:
    """Samples extra positives of users from items that are in no row of a batch.

    Args:
        data: its training pairs are the held-out ones, sorted by user.
    """

    def __init__(self, data: InteractionData) -> None:
        self.users, self.items = data.train_users, data.train_items
        self._counts = torch.bincount(self.users, minlength=data.num_users)
        self._starts = self._counts.cumsum(0) - self._counts

    def draw(self, users: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
        """Draw uniformly, with replacement.

        Returns:
            int64 item ids [B, number] of the users [B]; a row whose user has none is all -1.
        """
        counts, starts = self._counts[users].unsqueeze(1), self._starts[users].unsqueeze(1)
        shape, on_device = (len(users), number), {"generator": generator, "device": users.device}
        # In place, since a fresh tensor of this size takes longer than what is computed in it.
        places = torch.rand(shape, dtype=torch.float64, **on_device).mul_(counts).long().add_(starts)
        # Without the clamp a user without any at the very end would be read past the end.
        return self.items[places.clamp_(max=len(self.items) - 1)].masked_fill_(counts == 0, -1)

"""Draw uniform negatives and further positives for training interactions."""

from __future__ import annotations

import torch

# Largest user-item bitmap (one byte per pair) that is kept to look positives up.
_MAX_BITMAP_BYTES = 2_000_000_000


class InteractionSampler:
    """Samples items for the rows of a batch from the training interactions.

    Attributes:
        users, items: int64 interactions sorted by user, each [num_interactions]. A batch is a set of indices
            into them, so that each row knows which of the user's positives it is.
    """

    def __init__(self, users: torch.Tensor, items: torch.Tensor, num_users: int, num_items: int) -> None:
        """Index the interactions.

        Args:
            users, items: int64 pairs in any order, each [num_interactions], no pair twice.
            num_users, num_items: the ranges of the ids.

        Raises:
            ValueError: a user has every item as a positive, so that no negative exists.
        """
        keys = (users * num_items + items).sort().values
        self.users, self.items = keys // num_items, keys % num_items
        self.num_items = num_items
        self._counts = torch.bincount(self.users, minlength=num_users)
        self._starts = self._counts.cumsum(0) - self._counts
        full = (self._counts >= num_items).nonzero()
        if len(full):
            raise ValueError(
                f"user {full[0].item()}: expected an item that is no positive of theirs, got all {num_items}"
            )

        # The r-th non-positive item of a user is r + (number of the user's positives with id - rank <= r).
        self._shifted_keys = keys - (torch.arange(len(keys)) - self._starts[self.users])
        self._is_positive: torch.Tensor | None = None
        if num_users * num_items <= _MAX_BITMAP_BYTES:
            self._is_positive = torch.zeros(num_users * num_items, dtype=torch.bool)
            self._is_positive[keys] = True

    def negatives(self, users: torch.Tensor, num_negatives: int, generator: torch.Generator) -> torch.Tensor:
        """Draw items uniformly, with replacement, from those that are no training positive of the user.

        Args:
            users: int64 [B].
            num_negatives: N, the number of draws per row.
            generator: source of the draws.

        Returns:
            int64 item ids [B, N].
        """
        if self._is_positive is None:
            return self._negatives_by_rank(users.repeat_interleave(num_negatives), generator).view(-1, num_negatives)
        # Few items are positives of any one user, so a free draw with a look-up is several times faster than
        # a search per draw. Only rejected draws are searched for, and both kinds are uniform.
        draws = torch.randint(self.num_items, (len(users), num_negatives), generator=generator)
        first_key = (users * self.num_items).unsqueeze(1)
        keys = draws.add_(first_key)  # in place, since touching fresh memory would take longer than all the rest
        rejected = self._is_positive.index_select(0, keys.view(-1)).nonzero().squeeze(1)
        draws = keys.sub_(first_key)
        draws.view(-1)[rejected] = self._negatives_by_rank(users[rejected // num_negatives], generator)
        return draws

    def _negatives_by_rank(self, users: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw one non-positive item per entry of users [n] by its rank among the user's non-positives."""
        rank = torch.randint(2**63 - 1, users.shape, generator=generator) % (self.num_items - self._counts[users])
        positives_before = torch.searchsorted(self._shifted_keys, users * self.num_items + rank, right=True)
        return rank + positives_before - self._starts[users]

    def further_positives(
        self, interactions: torch.Tensor, num_positives: int, generator: torch.Generator
    ) -> torch.Tensor:
        """Draw further positives uniformly, with replacement, from the user's other training items.

        Args:
            interactions: int64 indices [B] into ``users`` and ``items``.
            num_positives: M, the number of draws per row.
            generator: source of the draws.

        Returns:
            int64 item ids [B, M]; a row whose user has no other item is all -1.
        """
        users = self.users[interactions]
        starts, others = self._starts[users].unsqueeze(1), (self._counts[users] - 1).unsqueeze(1)
        draws = torch.randint(2**63 - 1, (len(users), num_positives), generator=generator) % others.clamp(min=1)
        draws += draws >= interactions.unsqueeze(1) - starts
        # A lone positive at the very end would be read past the end, hence the clamp.
        items = self.items[(starts + draws).clamp(max=len(self.items) - 1)]
        return items.masked_fill(others == 0, -1)

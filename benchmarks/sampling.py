"""Draw uniform negatives and further positives for training interactions."""

from __future__ import annotations

import math

import numpy as np
import torch

# Largest user-item bitmap (one bit per pair) that is kept to look positives up.
_MAX_BITMAP_BYTES = 2_000_000_000
_CACHE_LINE_BYTES = 64


class InteractionSampler:
    """Samples items for the rows of a batch from the training interactions.

    Attributes:
        users, items: int64 interactions sorted by user, each [num_interactions]. A batch is a set of indices
            into them, so that each row knows which of the user's positives it is.

    It works on the device of its interactions, and takes ids and generators from there.
    A sampler keeps its working memory from call to call, and so serves one thread at a time.
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
        self._shifted_keys = keys - (torch.arange(len(keys), device=keys.device) - self._starts[self.users])
        # Bits and not bytes: a user's row then stays in cache while a batch's draws are looked up in it. A GPU searches
        # for every draw at once, where picking out the rejected ones would make it wait for the CPU.
        self._bitmap: torch.Tensor | None = None
        row_bytes = -(-num_items // 8)
        if keys.device.type == "cpu" and num_users * row_bytes <= _MAX_BITMAP_BYTES:
            bitmap = np.zeros((num_users, row_bytes), dtype=np.uint8)
            bits = (1 << (self.items & 7)).to(torch.uint8)
            np.bitwise_or.at(bitmap, (self.users.numpy(), (self.items >> 3).numpy()), bits.numpy())
            self._bitmap = torch.from_numpy(bitmap)
        self._working_memory: dict[str, torch.Tensor] = {}

    def negatives(self, users: torch.Tensor, num_negatives: int, generator: torch.Generator) -> torch.Tensor:
        """Draw items uniformly, with replacement, from those that are no training positive of the user.

        Args:
            users: int64 [B].
            num_negatives: N, the number of draws per row.
            generator: source of the draws.

        Returns:
            int32 item ids [B, N], in memory of their own.
        """
        if self._bitmap is None:
            repeated = users.repeat_interleave(num_negatives)
            return self._negatives_by_rank(repeated, generator).int().view(-1, num_negatives)
        # Few items are positives of any one user, so a free draw with a look-up is several times faster than
        # a search per draw. Only rejected draws are searched for, and both kinds are uniform.
        draws = torch.randint(self.num_items, (len(users), num_negatives), generator=generator, dtype=torch.int32)
        rejected = self._find_positives(users, draws)
        replacements = self._negatives_by_rank(users[rejected // num_negatives], generator)
        draws.view(-1)[rejected] = replacements.int()
        return draws

    def _find_positives(self, users: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Return the indices into the flattened draws [B, N] of those that are positives of users [B]."""
        width = self._bitmap.shape[1]
        byte_ids = torch.bitwise_right_shift(draws, 3, out=self._reuse("byte_ids", draws.shape, torch.int64))
        looked_up = self._reuse("looked_up", draws.shape, torch.uint8)
        if width <= draws.shape[1] * _CACHE_LINE_BYTES:
            # The look-ups would read most of each row anyway, and it is faster to read it in order first.
            rows = self._reuse("rows", (len(users), width), torch.uint8)
            torch.gather(torch.index_select(self._bitmap, 0, users, out=rows), 1, byte_ids, out=looked_up)
        else:
            torch.take(self._bitmap, byte_ids.add_((users * width).unsqueeze(1)), out=looked_up)
        bit_ids = torch.bitwise_and(draws, 7, out=self._reuse("bit_ids", draws.shape, torch.uint8))
        is_positive = looked_up.bitwise_right_shift_(bit_ids).bitwise_and_(1).view(torch.bool)
        return torch.from_numpy(np.flatnonzero(is_positive.numpy()))  # several times as fast as torch's nonzero

    def _reuse(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return uninitialised memory that the next call with the name gets again: fresh pages cost more than draws."""
        size = math.prod(shape)
        kept = self._working_memory.get(name)
        if kept is None or len(kept) < size:
            kept = self._working_memory[name] = torch.empty(size, dtype=dtype)
        return kept[:size].view(shape)

    def _negatives_by_rank(self, users: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw one non-positive item per entry of users [n] by its rank among the user's non-positives."""
        draws = torch.randint(2**63 - 1, users.shape, generator=generator, device=users.device)
        rank = draws % (self.num_items - self._counts[users])
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
        draws = torch.randint(2**63 - 1, (len(users), num_positives), generator=generator, device=users.device)
        draws %= others.clamp(min=1)
        draws += draws >= interactions.unsqueeze(1) - starts
        # A lone positive at the very end would be read past the end, hence the clamp.
        items = self.items[(starts + draws).clamp(max=len(self.items) - 1)]
        return items.masked_fill(others == 0, -1)

"""Known false negatives: positives held out from training and put among the negatives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.common.data import DataError, InteractionData, split_validation

HELD_OUT = 0.1
# So that the held-out items are drawn independently of the validation items, which come from the run's seed.
_SEED_OFFSET = 1_000_003


class FalseNegatives:
    """Replaces negatives by positives of their users (the noise protocol of PSL; Yang et al., NeurIPS 2024,
    arXiv 2411.00163).

    Args:
        data: its training pairs are the held-out ones, sorted by user.
        share: probability that a negative becomes one of its user's held-out items, in [0, 1].
    """

    def __init__(self, data: InteractionData, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"false_negatives must be in [0, 1], got {share}")
        self.share, self._items = share, data.train_items
        self._counts = torch.bincount(data.train_users, minlength=data.num_users)
        self._starts = self._counts.cumsum(0) - self._counts

    @classmethod
    def hold_out(cls, data: InteractionData, share: float, seed: int) -> tuple[FalseNegatives, InteractionData]:
        """Hold out a tenth of each user's training items, at least one and never the only one.

        Returns:
            ``(false_negatives, fit)``: the held-out items as false negatives, and the data without them.

        Raises:
            DataError: no user has an item to hold out.
        """
        device = data.train_users.device
        fit, users, items = split_validation(data.to("cpu"), HELD_OUT, seed + _SEED_OFFSET)
        if len(users) == 0:
            raise DataError(f"{data.name}: expected a user with at least 2 items to train on, to hold one out")
        held_out = replace(fit, train_users=users, train_items=items).to(str(device))
        return cls(held_out, share), fit.to(str(device))

    def put_among(self, neg_ids: Tensor, users: Tensor, generator: torch.Generator) -> Tensor:
        """Return the negatives [B, N] with held-out items of the users [B] in the place of some."""
        counts, starts = self._counts[users].unsqueeze(1), self._starts[users].unsqueeze(1)
        uniform = {"generator": generator, "device": neg_ids.device}
        is_false = (torch.rand(neg_ids.shape, **uniform) < self.share) & (counts > 0)
        which = (torch.rand(neg_ids.shape, dtype=torch.float64, **uniform) * counts).long()  # below counts
        # Without the clamp a user without any at the very end would be read past the end.
        items = self._items[(starts + which).clamp(max=len(self._items) - 1)]
        return torch.where(is_false, items, neg_ids)

"""Known false negatives: positives held out from training and put among the negatives."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.common.data import DataError, InteractionData, split_validation
from benchmarks.training.positives import HeldOutPositives

HELD_OUT = 0.1
# So that what is held out is drawn independently of the validation items, which come from the run's seed.
_SEED_OFFSET = 1_000_003


def hold_out(data: InteractionData, seed: int) -> tuple[InteractionData, InteractionData]:
    """Hold out a tenth of each user's training items, at least one and never the only one.

    Returns:
        ``(held_out, fit)``: the data with the held-out pairs to train on, and with the others.

    Raises:
        DataError: no user has an item to hold out.
    """
    device = str(data.train_users.device)
    fit, users, items = split_validation(data.to("cpu"), HELD_OUT, seed + _SEED_OFFSET)
    if len(users) == 0:
        raise DataError(f"{data.name}: expected a user with at least 2 items to train on, to hold one out")
    return replace(fit, train_users=users, train_items=items).to(device), fit.to(device)


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
        self.share, self._held_out = share, HeldOutPositives(data)

    @classmethod
    def hold_out(cls, data: InteractionData, share: float, seed: int) -> tuple[FalseNegatives, InteractionData]:
        """Hold out a tenth of each user's training items, as :func:`hold_out`.

        Returns:
            ``(false_negatives, fit)``: the held-out items as false negatives, and the data without them.
        """
        held_out, fit = hold_out(data, seed)
        return cls(held_out, share), fit

    def put_among(self, neg_ids: Tensor, users: Tensor, generator: torch.Generator) -> Tensor:
        """Return the negatives [B, N] with held-out items of the users [B] in the place of some."""
        chance = torch.rand(neg_ids.shape, generator=generator, device=neg_ids.device)
        items = self._held_out.draw(users, neg_ids.shape[1], generator)
        is_false = (chance < self.share) & (items >= 0)
        # In place of torch.where, which takes several times as long where its condition is random.
        return items.sub_(neg_ids).mul_(is_false).add_(neg_ids)

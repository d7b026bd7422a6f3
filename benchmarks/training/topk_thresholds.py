"""The score that an item needs to be in a user's top K, which is SL@K's quantile: estimated in a pass, or learned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.training.negatives import Batch
from cw_ext import Interactions, TopKThreshold, draw_negatives

# Scores of one block of users: 2**22 floats are 16 MiB.
_SCORES_PER_BLOCK = 2**22


@torch.no_grad()
def top_k_thresholds(
    user_table: Tensor, item_table: Tensor, interactions: Interactions, k: int, num_negatives: int, seed: Tensor
) -> Tensor:
    """Estimate for each user the K-th highest score, over the known positives and a sample of the others.

    This is the quantile β_u of SL@K (Yang et al., KDD 2025, arXiv 2508.05673).

    Args:
        user_table: embeddings [num_users, D]; for cosines, with rows of length 1.
        item_table: embeddings [num_items, D], likewise.
        interactions: known positives of all users.
        k: K, at least 1.
        num_negatives: how many items are drawn for each user, uniformly, with replacement, at least 1.
        seed: int64 [], of these draws.

    Returns:
        [num_users]; of a user with fewer than K scores the lowest one.
    """
    num_users, num_items = interactions.num_queries, interactions.num_items
    starts, items = interactions.starts, interactions.items.long()
    thresholds = []
    for block in torch.arange(num_users, device=item_table.device).split(max(1, _SCORES_PER_BLOCK // num_items)):
        scores = user_table[block] @ item_table.T  # [block, num_items]
        begin, end = starts[block[0]], starts[block[-1] + 1]
        rows = torch.repeat_interleave(block - block[0], starts[block + 1] - starts[block])
        is_known = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        is_known[rows, items[begin:end]] = True
        drawn = scores.gather(1, draw_negatives(block, interactions, num_negatives, seed=seed ^ block[0]))
        known = scores.masked_fill(~is_known, -torch.inf).topk(min(k, num_items)).values
        top = torch.cat([known, drawn], dim=1).topk(min(k, known.shape[1] + num_negatives)).values
        lowest = torch.where(top == -torch.inf, torch.inf, top).amin(1)
        thresholds.append(lowest)
    return torch.cat(thresholds)


class LearnedThresholds(nn.Module):
    """A loss whose confidence is measured from scores that it learns from its own negatives.

    Args:
        loss: called with a batch, confidence_threshold [B] and return_above=True; returns the loss and counts [B].
        k: K, at least 1; one less than the items where there are no more.
        num_users, num_items: sizes of the data.
        num_negatives: how many a row has; None for all items.
    """

    def __init__(
        self,
        loss: Callable[..., tuple[Tensor, Tensor]],
        k: int,
        num_users: int,
        num_items: int,
        num_negatives: int | None,
    ) -> None:
        super().__init__()
        self.loss, self.num_negatives = loss, num_negatives or num_items
        self.top_k = TopKThreshold(num_users, min(k, num_items - 1), num_items)

    def forward(self, batch: Batch) -> Tensor:
        threshold = self.top_k.threshold(batch.query_ids)
        loss, above = self.loss(batch, confidence_threshold=threshold, return_above=True)
        self.top_k.update(batch.query_ids, above, self.num_negatives)
        return loss

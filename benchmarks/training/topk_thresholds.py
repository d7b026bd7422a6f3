"""The score that an item needs to rank among a user's first K: SL@K's quantile."""

from __future__ import annotations

import torch
from torch import Tensor

from cw_ext import Interactions, draw_negatives

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

"""All items that are not known positives, for samplers that draw from the whole catalogue."""

from __future__ import annotations

import torch
from torch import Tensor

from cw_ext.interactions import Interactions

# Elements of [rows, I] at a time.
BLOCK = 2**22


def unknown_items(query_ids: Tensor, interactions: Interactions) -> Tensor:
    """int32 [B, I]: every item, with −1 for the known positives of the row's query. All −1 for a query of −1."""
    count = interactions.num_items
    items = torch.arange(count + 1, dtype=torch.int32, device=query_ids.device).repeat(query_ids.shape[0], 1)
    query = query_ids.clamp(min=0).long()
    if interactions.most_per_query:
        # As wide as the longest history. This number is known without waiting for the device.
        place = interactions.starts[query].unsqueeze(1) + torch.arange(
            interactions.most_per_query, device=query_ids.device
        )
        inside = place < interactions.starts[query + 1].unsqueeze(1)
        known = interactions.items[place.clamp(max=len(interactions) - 1)]
        items.scatter_(1, torch.where(inside, known, count).long(), -1)
    return items[:, :count].masked_fill(query_ids.unsqueeze(1) < 0, -1)

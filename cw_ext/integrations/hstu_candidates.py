"""What the adapters to HSTU's code bases have in common: negatives as places in a table, and positives beside it."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from cw_ext.functional import cw_loss_from_embeddings
from cw_ext.parameters import LossArguments


def draw(pos_ids: Tensor, candidates: int, num_negatives: int) -> Tensor:
    """Places among the candidates, [T, R], drawn uniformly with replacement.

    After the same torch.manual_seed() they are what both code bases' samplers draw.
    """
    shape = (pos_ids.shape[0], num_negatives)
    return torch.randint(candidates, shape, dtype=pos_ids.dtype, device=pos_ids.device)


def draw_from_batch(pos_ids: Tensor, candidate_ids: Tensor, num_negatives: int) -> Tensor:
    """The same, with −1 where the candidate is the row's own positive, or where there is none to draw."""
    if candidate_ids.numel() == 0:
        return pos_ids.new_full((pos_ids.shape[0], 1), -1)
    places = draw(pos_ids, candidate_ids.shape[0], num_negatives)
    return places.masked_fill_(candidate_ids[places] == pos_ids.unsqueeze(1), -1)


def loss_of_places(
    queries: Tensor,
    positives: Tensor,
    table: Tensor,
    places: Tensor,
    row_weights: Tensor | None = None,
    **loss: Unpack[LossArguments],
) -> Tensor:
    """The loss of each query with a positive of its own and negatives from a table, by dot products.

    Args:
        queries, positives: [T, D].
        table: [C, D].
        places: [T, R], of the negatives in `table`; −1 is none.
        row_weights: [T].
        **loss: as of :func:`cw_ext.cw_loss_from_embeddings`.
    """
    first = table.shape[0]
    return cw_loss_from_embeddings(
        queries,
        torch.cat([table, positives]),
        torch.arange(first, first + positives.shape[0], device=places.device),
        places,
        row_weights=row_weights,
        similarity="dot",
        **loss,
    )

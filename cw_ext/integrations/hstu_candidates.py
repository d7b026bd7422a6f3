"""Shared by the adapters to HSTU's code bases: negatives as places in a table, with separate positives."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from cw_ext.functional import cw_loss_from_embeddings
from cw_ext.parameters import LossArguments


def draw(pos_ids: Tensor, candidates: int, num_negatives: int) -> Tensor:
    """Places among the candidates, [T, R], drawn uniformly with replacement.

    After the same torch.manual_seed(), the samplers of both code bases draw the same.
    """
    shape = (pos_ids.shape[0], num_negatives)
    return torch.randint(candidates, shape, dtype=pos_ids.dtype, device=pos_ids.device)


def draw_from_batch(pos_ids: Tensor, candidate_ids: Tensor, num_negatives: int) -> Tensor:
    """The same, with −1 if the candidate is the row's own positive, or if there are no candidates."""
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
    """The loss of each query with its own positive and with negatives from a table, by dot products.

    Args:
        queries, positives: [T, D].
        table: [C, D].
        places: [T, R], the negatives' rows in `table`; −1 is none.
        row_weights: [T].
        **loss: as for :func:`cw_ext.cw_loss_from_embeddings`.
    """
    first = table.shape[0]
    return cw_loss_from_embeddings(
        queries,
        torch.cat([table, positives]),
        torch.arange(first, first + positives.shape[0], dtype=places.dtype, device=places.device),
        places,
        row_weights=row_weights,
        similarity="dot",
        **loss,
    )

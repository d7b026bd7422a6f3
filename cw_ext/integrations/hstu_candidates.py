"""What the adapters to HSTU's code bases have in common: candidates with their embeddings, and draws among them."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from cw_ext.functional import cw_loss_from_embeddings
from cw_ext.parameters import LossArguments


def loss_of_draws(
    queries: Tensor,
    pos_ids: Tensor,
    positives: Tensor,
    candidate_ids: Tensor,
    candidates: Tensor,
    num_negatives: int,
    row_weights: Tensor | None = None,
    **loss: Unpack[LossArguments],
) -> Tensor:
    """The loss of each query with negatives drawn uniformly among the candidates, with replacement.

    The draws are those of both code bases' samplers: after the same torch.manual_seed() the negatives are the same. As
    there, one that is the row's own positive is left out. Only their ids exist, [T, R].

    Args:
        queries: [T, D].
        pos_ids: [T], the ids of the positives.
        positives: [T, D], the embeddings of the positives.
        candidate_ids: [C].
        candidates: [C, D], the embeddings of the candidates.
        num_negatives: R.
        row_weights: [T].
        **loss: as of :func:`cw_ext.cw_loss_from_embeddings`; the score is the dot product.
    """
    rows, number = pos_ids.shape[0], candidate_ids.shape[0]
    if number == 0:
        places = pos_ids.new_full((rows, 1), -1)
    else:  # of the negatives among the candidates
        places = torch.randint(number, (rows, num_negatives), dtype=pos_ids.dtype, device=pos_ids.device)
        places.masked_fill_(candidate_ids[places] == pos_ids.unsqueeze(1), -1)
    return cw_loss_from_embeddings(
        queries,
        torch.cat([candidates, positives]),
        torch.arange(number, number + rows, device=pos_ids.device),
        places,
        row_weights=row_weights,
        similarity="dot",
        **loss,
    )

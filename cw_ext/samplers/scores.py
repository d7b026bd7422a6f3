"""Scores of candidates by id."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cw_ext.autocast import without_autocast
from cw_ext.reference import SCORE_SCALE, compute_dtype, unit_rows

# Elements [rows, K, D] that are gathered at a time.
_GATHERED = 2**22


def candidate_scores(queries: Tensor, items: Tensor, ids: Tensor, *, similarity: str) -> Tensor:
    """[B, K] in the compute dtype; −inf where an id is −1."""
    with without_autocast(queries.device.type):
        return _scores(queries, items, ids, similarity)


def _scores(queries: Tensor, items: Tensor, ids: Tensor, similarity: str) -> Tensor:
    dtype = compute_dtype(queries.dtype)
    queries, table = unit_rows(queries.to(dtype), similarity), unit_rows(items.to(dtype), similarity)
    if ids.numel() == 0:
        return queries.new_empty(ids.shape)
    rows = max(1, _GATHERED // (ids.shape[1] * queries.shape[1]))
    parts = zip(queries.split(rows), ids.split(rows), strict=True)
    scores = torch.cat(
        [SCORE_SCALE[similarity] * (F.embedding(i.clamp(min=0), table) @ q.unsqueeze(-1))[..., 0] for q, i in parts]
    )
    return torch.where(ids < 0, -torch.inf, scores)

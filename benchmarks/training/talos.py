"""Talos: a softmax over how far scores are above the user's K-th best, which counts the items in the top K."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.training.negatives import Batch, Negatives
from cw_ext import Interactions, cw_loss, draw_negatives, presets

# Those that a user's threshold can be learned from.
KINDS = ("uniform", "shared", "full")


class Talos:
    """The mean over the rows of log Σ_j σ(s_j − β)^{1/τ} − log σ(s⁺ − β)/τ (Zhang et al., WWW 2026, arXiv 2601.19276).

    There s and β are on the cosine. Here the temperature is half of theirs, as for all losses of this program, and so
    is the threshold.

    Args:
        temperature: τ on the half cosine, > 0.
        negatives: of one of :data:`KINDS`; uniform ones must be in the batch.
        backend: of :func:`cw_ext.cw_loss`.
    """

    def __init__(self, temperature: float, negatives: Negatives, backend: str) -> None:
        self._arguments: Any = {**presets.sl(temperature), "backend": backend}
        self._negatives = negatives

    def __call__(
        self, batch: Batch, confidence_threshold: Tensor, return_above: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of a batch.

        Args:
            batch: of one training step.
            confidence_threshold: β [B] on the half cosine, a constant in the gradient.
            return_above: whether to return too, as int64 [B], how many of each row's negatives score above β.
        """
        beta = confidence_threshold.to(batch.queries.dtype).unsqueeze(1)
        scores, is_known = self._scores(batch)
        pos = _softened(batch.positive_scores - beta.squeeze(1))
        neg = _softened(scores - beta)
        above = scores > beta
        if is_known is not None:
            # A negative without mass, whether the loss counts it or not: the sum is what it is without it.
            neg, above = neg.masked_fill(is_known, -torch.inf), above & ~is_known
        loss = cw_loss(pos, neg, **self._arguments)
        return (loss, above.sum(1)) if return_above else loss

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The negatives' scores [B, N], and which of them the user is known to like; None where none is."""
        queries, items = F.normalize(batch.queries, dim=1), F.normalize(batch.items, dim=1) / 2
        if batch.neg_ids is not None:  # faster by way of all items than by a gather of [B, N, D]
            return (queries @ items.T).gather(1, batch.neg_ids), None
        is_known = known_items(batch.interactions, batch.query_ids)
        if self._negatives.kind == "full":
            return queries @ items.T, is_known
        ids = draw_negatives(None, batch.interactions, self._negatives.number, seed=batch.seed)
        return queries @ F.embedding(ids, items).T, is_known[:, ids]


def _softened(differences: Tensor) -> Tensor:
    """½·log σ on the cosine, so that a division by the half cosine's τ is one by the cosine's."""
    return F.logsigmoid(2 * differences) / 2


def known_items(interactions: Interactions, query_ids: Tensor) -> Tensor:
    """Which items each of the queries [B] is known to like, as bool [B, num_items]."""
    starts, counts = interactions.starts[query_ids], interactions.starts.diff()[query_ids]
    rows = torch.arange(len(query_ids), device=query_ids.device).repeat_interleave(counts)
    before = (counts.cumsum(0) - counts)[rows]
    places = starts[rows] + torch.arange(len(rows), device=query_ids.device) - before
    is_known = torch.zeros(len(query_ids), interactions.num_items, dtype=torch.bool, device=query_ids.device)
    is_known[rows, interactions.items[places].long()] = True
    return is_known

"""The log-Q correction of in-batch negatives, and which items can be negatives at all."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cw_ext import checks
from cw_ext.candidates import CandidateItems
from cw_ext.embedding_batch import EmbeddingBatch
from cw_ext.interactions import Candidates, Interactions, count_bounds


class LogWeights(NamedTuple):
    """Computes the log weights of negatives.

    Attributes:
        counts: [I], how often each item is a positive in the batches, and their count_bounds(); None: no correction.
        chosen: the items that can be negatives; None: all.
        drawable: how many items that is; not used without counts.
        dtype: the dtype of the log weights.
    """

    counts: tuple[Tensor, Tensor] | None
    chosen: Candidates | CandidateItems | None
    drawable: int
    dtype: torch.dtype

    def of(self, numbers: Tensor, in_batch: Tensor, of_batch: int, uniform: int = 0) -> Tensor | None:
        """log q of each negative, [N].

        Args:
            numbers: int64 [N], the negatives' items. −1 is padding.
            in_batch: [], how many positives the whole batch has.
            of_batch: how many of the negatives, from the first on, are such positives.
            uniform: K, how many uniform negatives each row has in addition.
        """
        log_q = None if self.counts is None else self._corrected(numbers, in_batch, of_batch, uniform)
        if self.chosen is None:
            return log_q
        # Positives of the batch need not be candidates.
        log_q = torch.zeros_like(numbers, dtype=self.dtype) if log_q is None else log_q
        return torch.where(self.chosen.is_candidate[numbers.clamp(min=0)], log_q, -math.inf)

    def _corrected(self, numbers: Tensor, in_batch: Tensor, of_batch: int, uniform: int) -> Tensor:
        """The log of the uniform over the actual probability, for in-batch and K uniform negatives of `drawable`
        items."""
        assert self.counts is not None
        item_counts, bounds = self.counts
        total, least = bounds.unbind()
        found = item_counts[numbers.clamp(min=0)].double()
        # A positive in the batch occurs at least once, even if its count is 0; a drawn item may not occur at all.
        found[:of_batch] = found[:of_batch].maximum(least)
        popular = found / torch.where(total > 0, total, 1.0) * self.drawable
        mixture = (in_batch * popular + uniform) / (in_batch + uniform).clamp(min=1)
        return torch.where(mixture > 0, -mixture.log(), 0.0).to(self.dtype)


def counts_of(interactions: Interactions | None, item_counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The counts, and their count_bounds()."""
    if item_counts is not None:
        return item_counts, count_bounds(item_counts)
    if interactions is None:
        raise ValueError(
            "log_q_correction=True needs to know how popular the items are: give interactions or item_counts, or "
            "switch the correction off with log_q_correction=False"
        )
    if interactions.num_events != len(interactions) and not interactions.keep_counts:
        raise ValueError(
            "interactions must tell how often items occur in the batches for the log-Q correction, got "
            f"{interactions.num_events} pairs of which {len(interactions)} are distinct. If the batches repeat pairs "
            "as the data does, make the interactions with keep_counts=True. If they contain each pair once, pass "
            "item_counts=interactions.item_counts"
        )
    return interactions.item_counts, interactions.count_bounds


def chosen_items(
    batch: EmbeddingBatch, num_items: int, interactions: Interactions | None, candidates: Tensor | Candidates | None
) -> Candidates | CandidateItems | None:
    """The items that can be in-batch negatives; None: all."""
    if candidates is None:
        return None
    if interactions is not None:
        return interactions.candidates(candidates)
    if not isinstance(candidates, Candidates):
        return CandidateItems(candidates, num_items, "items", batch.items)
    checks.matches("candidates", candidates.ids, "items", batch.items, dtype=False)
    if candidates.is_candidate.shape != (num_items,):
        got = candidates.is_candidate.numel()
        raise ValueError(f"candidates must be chosen from as many items as there are rows, {num_items}, got {got}")
    return candidates

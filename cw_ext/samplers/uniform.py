"""Negatives that do not depend on scores, with the interface of the other samplers."""

from __future__ import annotations

import torch

from cw_ext.interactions import Interactions
from cw_ext.negative_sampling import Distribution, check_draws, draw_negatives
from cw_ext.reference import compute_dtype
from cw_ext.samplers.base import Batch, SamplerBase
from cw_ext.samplers.protocol import Negatives


class Uniform(SamplerBase):
    """Draws exactly the negatives of :func:`cw_ext.draw_negatives`. The values of queries and items do not matter.

    >>> import torch
    >>> from cw_ext import Interactions, cw_loss_from_embeddings, samplers
    >>> known = Interactions([0, 0, 1], [5, 2, 7], num_queries=2, num_items=300)
    >>> users, items = torch.nn.Embedding(2, 16), torch.nn.Embedding(300, 16)
    >>> query_ids, pos_ids = torch.tensor([0, 1]), torch.tensor([5, 7])
    >>> sampler = samplers.Uniform(known, 100)
    >>> queries = users(query_ids)
    >>> ids, log_weights = sampler.draw(queries, items, query_ids, pos_ids, seed=0)
    >>> loss = cw_loss_from_embeddings(queries, items, pos_ids, ids, neg_log_weights=log_weights)

    Args:
        interactions: the known positives.
        num_negatives: N ≥ 1.
        distribution, popularity_exponent, popularity_smoothing: as for `draw_negatives`. Negatives drawn by popularity
            come with the same log weights as in `sampled_cw_loss`, which correct for their popularity.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
    """

    def __init__(
        self,
        interactions: Interactions,
        num_negatives: int,
        *,
        distribution: Distribution = "uniform",
        popularity_exponent: float = 0.75,
        popularity_smoothing: float = 0.0,
    ) -> None:
        """Checks and stores the arguments. The class describes them."""
        super().__init__(interactions, num_negatives)
        check_draws(num_negatives, distribution, popularity_exponent, popularity_smoothing)
        self.distribution = distribution
        self.popularity_exponent, self.popularity_smoothing = popularity_exponent, popularity_smoothing

    def _draw(self, batch: Batch) -> Negatives:
        ids = draw_negatives(
            batch.query_ids,
            self.interactions,
            self.num_negatives,
            seed=batch.seed,
            distribution=self.distribution,
            popularity_exponent=self.popularity_exponent,
            popularity_smoothing=self.popularity_smoothing,
        )
        if self.distribution == "uniform":
            return Negatives(ids, None)
        table = self.interactions.popularity(self.popularity_exponent, self.popularity_smoothing)
        log_weights = table.log_weights[ids.clamp(min=0)].to(compute_dtype(batch.queries.dtype))
        return Negatives(ids, torch.where(ids < 0, -torch.inf, log_weights))

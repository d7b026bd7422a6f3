"""Negatives whatever their scores, behind the same protocol."""

from __future__ import annotations

import torch

from cw_ext.interactions import Interactions
from cw_ext.negative_sampling import Distribution, check_draws, draw_negatives
from cw_ext.reference import compute_dtype
from cw_ext.samplers.base import Batch, SamplerBase
from cw_ext.samplers.protocol import Negatives


class Uniform(SamplerBase):
    """The negatives of :func:`cw_ext.draw_negatives`, bit for bit. The numbers in queries and items do not matter.

    Args:
        interactions: the known positives.
        num_negatives: N ≥ 1.
        distribution, popularity_exponent, popularity_smoothing: as for `draw_negatives`. Popular negatives
            come with the log weights that `sampled_cw_loss` gives them, which make up for their popularity.

    Raises:
        TypeError, ValueError: the message contains the argument, what was expected and what came.

    >>> sampler = Uniform(interactions, 100)
    >>> ids, log_weights = sampler.draw(queries, items, query_ids, pos_ids, seed=step)
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

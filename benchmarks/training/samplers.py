"""Negatives that are chosen by their scores: the sampler of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.training.negatives import Negatives
from cw_ext import Interactions
from cw_ext.samplers import Chain, Memory, Sampler, Scored, softmax


@dataclass(frozen=True)
class SamplerOptions:
    """How negatives are chosen, for kinds of :data:`benchmarks.training.negatives.BY_SCORE`.

    Attributes:
        negatives: the kind and the numbers.
        similarity: of the loss, "half_cosine" or "dot".
        temperature: τ of the softmax that scored ones and chains follow.
        pool: items in a user's pool, of a memory.
        corrected: whether scored ones are weighed by one over the weight that they were drawn by.
    """

    negatives: Negatives
    similarity: Literal["half_cosine", "dot"]
    temperature: float
    pool: int
    corrected: bool

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"sampler_temperature must be finite and > 0, got {self.temperature}")
        self.build(Interactions([0], [0], num_queries=1, num_items=2), 0)  # which checks the rest

    def build(self, interactions: Interactions, seed: int) -> Sampler:
        """The sampler for the known positives, with a state that is drawn by the seed."""
        number = self.negatives.number
        match self.negatives.kind:
            case "scored":
                return Scored(
                    interactions,
                    number,
                    log_weight=softmax(self.temperature),
                    num_candidates=self.negatives.candidates,
                    log_q_correction=self.corrected,
                    similarity=self.similarity,
                )
            case "memory":
                return Memory(interactions, number, pool=self.pool, similarity=self.similarity, seed=seed)
            case _:
                return Chain(interactions, number, temperature=self.temperature, similarity=self.similarity, seed=seed)

    @property
    def settings(self) -> dict[str, Any]:
        """What tells such a run from others, besides its negatives."""
        match self.negatives.kind:
            case "memory":
                return {"memory_pool": self.pool}
            case "scored":
                return {"sampler_temperature": self.temperature, "scored_corrected": self.corrected}
            case _:
                return {"sampler_temperature": self.temperature}

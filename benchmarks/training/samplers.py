"""Negatives that are chosen by their scores: the sampler of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.training.negatives import Negatives
from cw_ext import Interactions
from cw_ext.samplers import Chain, Memory, Sampler, Scored, softmax

# Of a memory on inner products, as in SRNS (arXiv 2009.03376).
SRNS_TEMPERATURE = 10.0
# Items of a memory, and others of the pool that it is extended by: SRNS' too.
_MEMORY, _EXTENSION = 8, 64
# A chain's target is p^α with p the softmax at its own temperature; α is MCNS' (arXiv 2005.09863).
_CHAIN_EXPONENT = 0.25


@dataclass(frozen=True)
class SamplerOptions:
    """How negatives are chosen, for kinds of :data:`benchmarks.training.negatives.BY_SCORE`.

    Attributes:
        negatives: the kind and the numbers.
        similarity: of the loss, "half_cosine" or "dot".
        temperature: τ_s. Scored ones are drawn by softmax(s/τ_s) among a row's candidates, chains come to it among all
            items, and a memory is drawn by it among those of the pool that it may keep.
        pool: items in a user's pool, of a memory; where there are fewer items, as many as these.
        corrected: whether scored ones are weighed by one over the weight that they were drawn by.
    """

    negatives: Negatives
    similarity: Literal["half_cosine", "dot"]
    temperature: float
    pool: int
    corrected: bool

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"sampler_temperature (--sampler-tau) must be finite and > 0, got {self.temperature}")
        if self.negatives.kind == "memory" and self.pool < _MEMORY + _EXTENSION:
            raise ValueError(f"memory_pool (--memory-pool) must be at least {_MEMORY + _EXTENSION}, got {self.pool}")
        try:
            self.build(Interactions([0], [0], num_queries=1, num_items=2), 0)
        except ValueError as error:  # a number of the negatives
            raise ValueError(f"--negatives {self.negatives}: {error}") from None

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
                return Memory(
                    interactions,
                    number,
                    size=_MEMORY,
                    extension=_EXTENSION,
                    temperature=self.temperature,
                    pool=max(min(self.pool, interactions.num_items), _MEMORY + _EXTENSION),
                    similarity=self.similarity,
                    seed=seed,
                )
            case _:
                return Chain(
                    interactions,
                    number,
                    temperature=_CHAIN_EXPONENT * self.temperature,
                    exponent=_CHAIN_EXPONENT,
                    similarity=self.similarity,
                    seed=seed,
                )

    @property
    def settings(self) -> dict[str, Any]:
        """What tells such a run from others, besides its negatives."""
        match self.negatives.kind:
            case "memory":
                return {"memory_pool": self.pool, "sampler_temperature": self.temperature}
            case "scored":
                return {"sampler_temperature": self.temperature, "scored_corrected": self.corrected}
            case _:
                # Results under "sampler_temperature" are of chains whose p had this temperature, not their target.
                return {"chain_temperature": self.temperature}

"""Sizes and made-up inputs of the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[], None]


@dataclass(frozen=True)
class Sizes:
    """Sizes of all steps.

    Attributes:
        batch_size: rows B; from scores, those of the larger step.
        dim: length of an embedding, D.
        few_items, many_items: rows I of the two item tables.
        few_negatives, many_negatives: the two N of steps from embeddings; sampled steps have many.
        few_scores: rows and negatives of the smaller step from scores.
    """

    batch_size: int = 1024
    dim: int = 64
    few_items: int = 1_200
    many_items: int = 41_000
    few_negatives: int = 100
    many_negatives: int = 1_000
    few_scores: int = 64

    def embedding_sizes(self) -> list[tuple[int, int]]:
        """The pairs (N, I) of the steps from embeddings."""
        return [(n, i) for n in (self.few_negatives, self.many_negatives) for i in (self.few_items, self.many_items)]


FULL = Sizes()
QUICK = Sizes(batch_size=8, dim=4, few_items=20, many_items=50, few_negatives=3, many_negatives=6, few_scores=4)


def make_generator() -> torch.Generator:
    """Return a generator with the same numbers in every call."""
    return torch.Generator().manual_seed(0)


def make_tables(sizes: Sizes, items: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return normal queries [B, D] and items [I, D], fp32 leaves."""
    queries, table = (torch.randn(rows, sizes.dim, generator=generator) for rows in (sizes.batch_size, items))
    return queries.requires_grad_(), table.requires_grad_()


def make_ids(sizes: Sizes, negatives: int, items: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return uniform pos_ids [B] and neg_ids [B, N]."""
    pos_ids = torch.randint(items, (sizes.batch_size,), generator=generator)
    return pos_ids, torch.randint(items, (sizes.batch_size, negatives), generator=generator)


def forward_and_backward(loss: Callable[[], Tensor | tuple[Tensor, Tensor]], leaves: Sequence[Tensor]) -> Step:
    """Return the step of a loss; where it returns a pair, the loss is the first."""

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        result = loss()
        (result[0] if isinstance(result, tuple) else result).backward()

    return step

"""Rerank each user's first items by an adapter's output."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.training.adapter import Adapter, rerank, teach
from benchmarks.training.metrics import ranking_metrics
from benchmarks.training.positives import HeldOutPositives

# How many of them.
_FIRST = 64
# The exponents of the adapter in the product, the best of which validation finds.
_EXPONENTS = (0.0, 0.125, 0.25, 0.5, 1.0)
_PASSES = 40

Pairs = tuple[Tensor, Tensor]


@torch.no_grad()
def reranked(
    tables: tuple[Tensor, Tensor],
    temperature: float,
    lesson: tuple[HeldOutPositives, Callable[[Tensor, int, torch.Generator], Tensor], torch.Generator],
    validation: Pairs,
    test: Pairs,
    seen: Pairs,
    *,
    k: int,
) -> dict[str, float]:
    """Test the ranking by the product of e^{s/τ} and an adapter's probability to some power.

    Args:
        tables: of a model that no longer learns; their inner products are s. A new adapter learns from them.
        temperature: τ.
        lesson: what the adapter learns, how negatives are drawn for it, and a generator, as
            :func:`~benchmarks.training.adapter.teach` has them.
        validation, test: pairs to be found.
        seen: pairs that are left out of all rankings.
        k: length of the ranking.

    Returns:
        Recall@K and NDCG@K of the test, and the ``"exponent"``, that of the best validation NDCG@K.
    """
    adapter = Adapter(tables[0].shape[1], lesson[-1])
    for _ in range(_PASSES):
        teach(adapter, tables, *lesson)

    def measured(exponent: float, targets: Pairs) -> dict[str, float]:
        def scores(users: Tensor, base: Tensor, ids: Tensor) -> Tensor:
            return rerank(base / temperature, adapter(tables[0][users], tables[1], ids).sigmoid(), exponent)

        return ranking_metrics(*tables, *targets, *seen, k=k, rerank=(_FIRST, scores))

    best = max(_EXPONENTS, key=lambda exponent: measured(exponent, validation)["ndcg"])
    return {**measured(best, test), "exponent": best}

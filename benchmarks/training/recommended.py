"""What a ranking recommends, apart from how accurate it is: popular items, or the whole catalogue."""

from __future__ import annotations

import torch


class Recommended:
    """Adds up the first K items of blocks of users; :func:`benchmarks.training.metrics.ranking_metrics` defines what
    comes out.

    Args:
        popularity: int64 [num_items], interactions of each item.
        target_users, target_items: int64 pairs to be found, each [num_targets], sorted by user.
        discounts: float64 [K], of each place in the ranking.
    """

    def __init__(
        self,
        popularity: torch.Tensor,
        target_users: torch.Tensor,
        target_items: torch.Tensor,
        discounts: torch.Tensor,
    ) -> None:
        num_items = len(popularity)
        self._popularity = popularity.double()
        self._discounts = discounts
        self._gains = torch.bincount(target_items, minlength=num_items).clamp(min=1).double().reciprocal()
        self._ideal = _ideal_gain(target_users, self._gains[target_items], discounts)
        self._gain = torch.zeros((), dtype=torch.float64, device=popularity.device)
        self._popularity_sum = torch.zeros_like(self._gain)
        self._num_users = torch.zeros_like(self._gain)
        self._counts = torch.zeros(num_items, dtype=torch.int64, device=popularity.device)

    def add(self, top_items: torch.Tensor, unmasked: torch.Tensor, hits: torch.Tensor) -> None:
        """Count the first items [B, K] of a block of users; which of them are recommended at all, and which right."""
        self._gain += (hits * self._gains[top_items] * self._discounts).sum()
        lengths = unmasked.sum(1)
        # A user whose items are all masked is recommended nothing, and has no mean.
        self._popularity_sum += ((unmasked * self._popularity[top_items]).sum(1) / lengths.clamp(min=1)).sum()
        self._num_users += (lengths > 0).sum()
        self._counts += torch.bincount(top_items[unmasked], minlength=len(self._counts))

    def metrics(self) -> dict[str, float]:
        """Return what was added up, as numbers."""
        return {
            "balanced_ndcg": (self._gain / self._ideal).item(),
            "mean_popularity": (self._popularity_sum / self._num_users.clamp(min=1)).item(),
            "coverage": (self._counts > 0).double().mean().item(),
            "gini": gini(self._counts),
        }


def gini(counts: torch.Tensor) -> float:
    """Gini coefficient of counts [n] ≥ 0: 0 where all are equal (also all 0), 1 − 1/n where only one is not 0.

    It is half the mean absolute difference of two counts, divided by their mean.
    """
    counts = counts.double().sort().values
    n = len(counts)
    weights = 2 * torch.arange(1, n + 1, dtype=torch.float64, device=counts.device) - n - 1
    return ((weights * counts).sum() / (n * counts.sum()).clamp(min=1)).item()


def _ideal_gain(users: torch.Tensor, gains: torch.Tensor, discounts: torch.Tensor) -> torch.Tensor:
    """Sum over users of the discounted gain of the best list: the user's targets by falling gain, cut at K.

    Args:
        users: int64 [num_targets], sorted.
        gains: float64 [num_targets].
        discounts: float64 [K].
    """
    order = gains.argsort(descending=True)
    order = order[users[order].argsort(stable=True)]
    places = torch.arange(len(users), device=users.device) - torch.searchsorted(users, users)
    listed = places < len(discounts)
    return (gains[order][listed] * discounts[places[listed]]).sum()

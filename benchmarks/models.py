"""Collaborative-filtering models: what maps a user and an item id to an embedding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.data import InteractionData


class MatrixFactorization(nn.Module):
    """One free embedding per user and per item, drawn from N(0, 1).

    Attributes:
        user_embeddings: [num_users, dim].
        item_embeddings: [num_items, dim].
    """

    def __init__(self, data: InteractionData, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.user_embeddings = nn.Parameter(torch.randn(data.num_users, dim, generator=generator))
        self.item_embeddings = nn.Parameter(torch.randn(data.num_items, dim, generator=generator))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the table of all users [num_users, dim] and of all items [num_items, dim]."""
        return self.user_embeddings, self.item_embeddings


# A model is built from (training data, dim, generator); called, it returns its user and its item table.
MODELS: dict[str, Callable[[InteractionData, int, torch.Generator], nn.Module]] = {"mf": MatrixFactorization}

"""Matrix factorization, which the graph models build on, and the models' hyper-parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.common.data import InteractionData


@dataclass(frozen=True)
class ModelOptions:
    """Hyper-parameters of the models; each model ignores those it does not have.

    Attributes:
        num_layers: graph convolutions L, at least 1 (lightgcn) or 2 (xsimgcl); None for the model's own, 2 and 3.
        contrastive_weight: factor of the contrastive loss, finite and at least 0 (xsimgcl).
    """

    num_layers: int | None = None
    contrastive_weight: float = 0.1

    def __post_init__(self) -> None:
        if self.num_layers is not None and self.num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {self.num_layers}")
        if not 0 <= self.contrastive_weight < math.inf:
            raise ValueError(f"contrastive_weight must be finite and at least 0, got {self.contrastive_weight}")


class MatrixFactorization(nn.Module):
    """One free embedding per user and per item, drawn from N(0, 1).

    Attributes:
        user_embeddings: [num_users, dim].
        item_embeddings: [num_items, dim].
    """

    def __init__(
        self,
        data: InteractionData,
        dim: int,
        generator: torch.Generator,
        options: ModelOptions = ModelOptions(),
    ) -> None:
        super().__init__()
        self.user_embeddings = nn.Parameter(torch.randn(data.num_users, dim, generator=generator))
        self.item_embeddings = nn.Parameter(torch.randn(data.num_items, dim, generator=generator))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the table of all users [num_users, dim] and of all items [num_items, dim]."""
        return self.user_embeddings, self.item_embeddings

    def auxiliary_loss(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor | None:
        """Return what the model adds to the ranking loss of a batch, a scalar, or None where it adds nothing.

        Args:
            users, items: int64 ids of the batch's users and of their positives, each [B].
        """
        return None

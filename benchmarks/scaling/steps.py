"""The training steps that are compared: matrix factorisation in one process, and the same over several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cw_ext import Interactions, cw_loss_in_batch, sampled_cw_loss
from cw_ext.distributed import RowShardedTable
from cw_ext.distributed import sampled_cw_loss as spread_cw_loss

# The loss that benchmarks.epoch measures, without its extra positives.
LOSS: dict[str, Any] = {"temperature": 0.1, "confidence_temperature": 1.25}
LR = 0.1
# What a process holds and where its negatives come from. Each is one loss and optimizer in one process as over several.
WAYS = {
    "copies": "both tables in each process, whose dense gradients DistributedDataParallel averages; Adam",
    "in-batch": "the same, with the positives of all processes' rows as negatives",
    "spread": "the tables' rows spread over the processes; SparseAdam",
    "shared": "the same, with one set of negatives for all rows of a process",
}


@dataclass(frozen=True)
class Sizes:
    """What a step is made of.

    Attributes:
        dim: D of both tables.
        negatives: N, drawn, where they are.
    """

    dim: int = 64
    negatives: int = 1000


def make(way: str, known: Interactions, sizes: Sizes) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Make a training step.

    Args:
        way: one of :data:`WAYS`, in this process alone or, where torch.distributed is initialised, over all.
        known: training interactions.
        sizes: of the model.

    Returns:
        The step. It takes users and their items, this process's rows of a batch, each int64 [B], and the seed of the
        draws; it returns a loss whose mean over the processes is that of the whole batch.
    """
    several = dist.is_initialized()
    torch.manual_seed(0)
    copies = way in ("copies", "in-batch")
    model: nn.Module = _Copies(way, known, sizes) if copies or not several else _Spread(way, known, sizes)
    optimizer: torch.optim.Optimizer
    if copies:
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    else:
        optimizer = torch.optim.SparseAdam(model.parameters(), lr=LR)
    loss_of = nn.parallel.DistributedDataParallel(model) if copies and several else model

    def train(users: Tensor, items: Tensor, seed: int) -> Tensor:
        loss: Tensor = loss_of(users, items, seed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train


class _Copies(nn.Module):
    """Both tables in this process, with dense gradients for Adam or sparse ones for SparseAdam."""

    def __init__(self, way: str, known: Interactions, sizes: Sizes) -> None:
        super().__init__()
        self.way, self.known, self.sizes = way, known, sizes
        self.sparse = way in ("spread", "shared")
        self.users = nn.Embedding(known.num_queries, sizes.dim, sparse=self.sparse)
        self.items = nn.Embedding(known.num_items, sizes.dim, sparse=self.sparse)

    def forward(self, users: Tensor, items: Tensor, seed: int) -> Tensor:
        queries = self.users(users)
        if self.way == "in-batch":
            group = dist.group.WORLD if dist.is_initialized() else None
            given = {"query_ids": users, "interactions": self.known, "process_group": group}
            return cw_loss_in_batch(queries, self.items, items, **given, **LOSS)
        # All processes have equally many rows, so that the mean of their means is that of the batch.
        first = len(users) * dist.get_rank() if dist.is_initialized() else 0
        draws = {"seed": seed, "first_row": 0 if self.way == "shared" else first, "shared": self.way == "shared"}
        return sampled_cw_loss(
            queries,
            self.items,
            users,
            items,
            self.known,
            self.sizes.negatives,
            **draws,
            sparse_grad=self.sparse,
            **LOSS,
        )


class _Spread(nn.Module):
    """Both tables with their rows spread over the processes, filled as in one."""

    def __init__(self, way: str, known: Interactions, sizes: Sizes) -> None:
        super().__init__()
        self.way, self.known, self.sizes = way, known, sizes
        whole = [nn.Embedding(n, sizes.dim) for n in (known.num_queries, known.num_items)]
        self.users, self.items = map(_spread, whole)

    def forward(self, users: Tensor, items: Tensor, seed: int) -> Tensor:
        rows, (places,) = self.users(users)
        draws = {"seed": seed, "shared": self.way == "shared"}
        return spread_cw_loss(rows[places], self.items, users, items, self.known, self.sizes.negatives, **draws, **LOSS)


@torch.no_grad()
def _spread(whole: nn.Embedding) -> RowShardedTable:
    table = RowShardedTable(whole.num_embeddings, whole.embedding_dim)
    table.weight.copy_(whole.weight[table.first : table.first + len(table.weight)])
    return table

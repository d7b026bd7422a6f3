"""The table of row_sharded.py as a TorchRec table, for users of TorchRec: fp32, updated during backward.

cw_ext.distributed.sampled_cw_loss accepts it just like a RowShardedTable. On the CPU with torch 2.13, use torchrec
1.8.0 with fbgemm-gpu-cpu 1.8.0. There, the dimension must be a multiple of 4, the optimizer must be SGD or Adagrad, and
every process must hold rows and ask for some. So a batch must have rows on all processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.shard import shard
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from cw_ext.distributed import distinct_ids


class TorchRecTable(nn.Module):
    """An embedding table [I, D], used like RowShardedTable. Its gradients are means over the processes, too."""

    def __init__(self, num_rows: int, dim: int, *, optimizer: type[torch.optim.Optimizer], **settings: Any) -> None:
        """Create the table, with the optimizer and its settings (`lr=…`), which backward runs."""
        super().__init__()
        self.num_rows, self.dim, self.process_group = num_rows, dim, dist.group.WORLD
        config = EmbeddingConfig(name="table", embedding_dim=dim, num_embeddings=num_rows, feature_names=["id"])
        whole = EmbeddingCollection(tables=[config], device=torch.device("meta"))
        apply_optimizer_in_backward(optimizer, whole.parameters(), settings)
        sharder, world = EmbeddingCollectionSharder(), dist.get_world_size()
        plan = construct_module_sharding_plan(
            whole,
            {"table": row_wise()},
            sharder=sharder,
            local_size=world,  # all of them on one machine
            world_size=world,
            device_type="cpu",
        )
        self.table = shard(whole, plan, device=torch.device("cpu"), sharder=sharder)

    @property
    def weight(self) -> Tensor:
        """This process's own rows: ⌈I/R⌉, or what is left, as in RowShardedTable."""
        (own,) = self.table.parameters()
        return own.detach().as_subclass(Tensor)

    def forward(self, *ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Fetch the distinct rows [U, D] of some ids, and return the ids' positions among them (−1 stays −1)."""
        distinct, places = distinct_ids(*ids)
        wanted = KeyedJaggedTensor(keys=["id"], values=distinct, lengths=torch.ones_like(distinct))
        return self.table(wanted)["id"].values(), places

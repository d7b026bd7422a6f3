"""Training with an item table that is too large for one machine: its rows are spread over the processes.

    torchrun --nproc-per-node 2 -m examples.row_sharded

Each process has its own rows of the batch, draws their negatives, and fetches every table row that it needs once: the
ids go to the processes that hold the rows, the rows come back, and in backward their gradients go where the ids went,
by torch.distributed's all-to-all. The loss runs on the fetched rows, as on any small table.

Prints the loss of a run on made-up data. What a step sends and how long it takes: benchmarks.distributed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.nn import functional as F

from cw_ext import Interactions, cw_loss_from_embeddings, draw_negatives


def distinct_ids(*ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Number the distinct ids of some tensors.

    Args:
        ids: integer tensors of any shapes; −1 is padding.

    Returns:
        The distinct ids [U] in increasing order, without −1, and each tensor with the places of its ids among them
        (−1 stays −1), int64.
    """
    # By sorting: flags per table row, as for a table on one machine, would be as long as the whole table.
    distinct, places = torch.unique(torch.cat([t.reshape(-1) for t in ids]), return_inverse=True)
    padding = int((distinct == -1).sum())
    parts = (places - padding).split([t.numel() for t in ids])
    return distinct[padding:], tuple(part.view(t.shape) for part, t in zip(parts, ids))


class RowShardedTable(nn.Module):
    """An embedding table [I, D] of which each of R processes holds ⌈I/R⌉ rows, in the order of the ranks.

    That is the layout of DTensor's Shard(0), so torch.distributed.checkpoint can save the table, for another number of
    processes too, as `DTensor.from_local(table.weight, mesh, [Shard(0)], shape=(I, D), stride=(D, 1))`.

    Gradients are means over the processes, as with DistributedDataParallel, which can be used beside the table.
    The optimizer works on `weight`, the process's own rows: SparseAdam, or with sparse=False any.
    """

    def __init__(self, num_rows: int, dim: int, *, sparse: bool = True, dtype: torch.dtype | None = None) -> None:
        """Fill the process's own rows from its own random stream, so seed each process differently.

        Args:
            num_rows: I ≥ 1.
            dim: D.
            sparse: give `weight` a sparse gradient, so that a step costs nothing for rows that are not in the batch.
            dtype: of the table; torch's default if None.
        """
        super().__init__()
        self.num_rows, self.sparse, self.share = num_rows, sparse, -(-num_rows // dist.get_world_size())
        self.first = self.share * dist.get_rank()
        own = min(max(num_rows - self.first, 0), self.share)
        self.weight = nn.Parameter(torch.randn(own, dim, dtype=dtype))

    def forward(self, *ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Fetch the rows of these ids. All processes must call this, and backward, together.

        Args:
            ids: integer tensors of any shapes on the table's device, in [0, I) or −1 for padding.

        Returns:
            (rows [U, D], places): the distinct rows, and where in them each id's row is (−1 stays −1).

        Raises:
            IndexError: an id out of range.
        """
        world, group = dist.get_world_size(), dist.group.WORLD
        distinct, places = distinct_ids(*ids)
        for id_ in distinct[[0, -1]].tolist() if len(distinct) else []:
            if not 0 <= id_ < self.num_rows:
                raise IndexError(f"ids must be -1 or in [0, {self.num_rows}), got {id_}")
        # Increasing ids are already in the order of the processes that hold them.
        counts = torch.bincount(distinct // self.share, minlength=world)
        others = collectives.all_to_all_single(counts, None, None, group).tolist()  # how many each process asks for
        mine = counts.tolist()
        wanted = collectives.all_to_all_single(distinct, others, mine, group)
        rows = F.embedding(wanted - self.first, self.weight, sparse=self.sparse)
        rows = collectives.all_to_all_single_autograd(rows, mine, others, group)
        if rows.requires_grad:
            rows.register_hook(lambda gradient: gradient / world)
        return rows, places


def train(num_users: int = 1000, num_items: int = 3000, steps: int = 150) -> list[float]:
    """Train on made-up data, in which users like the items of their own group, one of 10.

    Returns:
        The loss of every step, the mean over the processes.
    """
    world = dist.get_world_size()
    shared = torch.Generator().manual_seed(0)  # the same data in all processes; all else differs
    torch.manual_seed(dist.get_rank())
    user_ids = torch.randint(num_users, (20 * num_users,), generator=shared)
    item_ids = torch.randint(num_items // 10, user_ids.shape, generator=shared) * 10 + user_ids % 10
    known = Interactions(user_ids, item_ids, num_queries=num_users, num_items=num_items)

    users, items = RowShardedTable(num_users, 32), RowShardedTable(num_items, 32)
    optimizer = torch.optim.SparseAdam([users.weight, items.weight], lr=0.05)
    losses = []
    for _ in range(steps):
        batch = torch.randint(len(user_ids), (512 // world,))
        u, pos_ids = user_ids[batch], item_ids[batch]
        neg_ids = draw_negatives(u, known, 50)
        query_rows, (query,) = users(u)
        item_rows, (pos, neg) = items(pos_ids, neg_ids)
        loss = cw_loss_from_embeddings(query_rows[query], item_rows, pos, neg, temperature=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(collectives.all_reduce(loss.detach(), "sum", dist.group.WORLD).item() / world)
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line in each process and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node R -m examples.row_sharded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    if not dist.is_torchelastic_launched():
        parser.error("start it with torchrun (see --help)")
    dist.init_process_group("gloo")
    losses = train()
    if dist.get_rank() == 0:
        print(f"loss: {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())

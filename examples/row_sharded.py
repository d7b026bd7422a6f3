"""Train with an item table that is too large for one machine: its rows are spread over the processes.

    torchrun --nproc-per-node 2 -m examples.row_sharded [--folder FOLDER]

Each process takes its own rows of the batch, draws their negatives, and fetches the table rows that it needs
(cw_ext.distributed). With --folder, a run leaves a checkpoint there. The next run goes on from it, even with another
number of processes.

The program prints the loss of a run on made-up data. benchmarks.distributed measures what a step sends, and how long it
takes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from cw_ext import Interactions
from cw_ext.distributed import RowShardedTable, load_checkpoint, sampled_cw_loss, save_checkpoint


def train(folder: Path | None = None, num_users: int = 1000, num_items: int = 3000, steps: int = 150) -> list[float]:
    """Train on made-up data, in which users like the items of their own group, out of 10 groups.

    Args:
        folder: of checkpoints, one for each step at which a run has ended. None: start from scratch, and save none.

    Returns:
        The loss of every step, as the mean over the processes.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    data = torch.Generator().manual_seed(0)  # the same in all processes
    user_ids = torch.randint(num_users, (20 * num_users,), generator=data)
    item_ids = torch.randint(num_items // 10, user_ids.shape, generator=data) * 10 + user_ids % 10
    known = Interactions(user_ids, item_ids, num_queries=num_users, num_items=num_items)

    torch.manual_seed(0)
    users, items = RowShardedTable(num_users, 32), RowShardedTable(num_items, 32)
    tables = nn.ModuleList([users, items])
    optimizer = torch.optim.SparseAdam(tables.parameters(), lr=0.05)
    first = 0
    if folder is not None and (done := [int(path.name) for path in folder.iterdir() if path.name.isdigit()]):
        first = load_checkpoint(folder / str(max(done)), tables, optimizer)["step"]

    losses = []
    for step in range(first, first + steps):
        batch = torch.randint(len(user_ids), (512,), generator=torch.Generator().manual_seed(step))
        own = batch.tensor_split(world)[rank]
        u = user_ids[own]
        query_rows, (query,) = users(u)
        loss = sampled_cw_loss(query_rows[query], items, u, item_ids[own], known, 50, seed=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach() / world
        dist.all_reduce(mean)
        losses.append(mean.item())
    if folder is not None:
        save_checkpoint(folder / str(first + steps), tables, optimizer, extra={"step": first + steps})
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line in each process and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node R -m examples.row_sharded",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help="existing folder for checkpoints")
    arguments = parser.parse_args(argv)
    if not dist.is_torchelastic_launched():
        parser.error("start this program with torchrun (see --help)")
    dist.init_process_group("gloo")
    losses = train(arguments.folder)
    if dist.get_rank() == 0:
        print(f"loss: {losses[0]:.3f} at the first step, {losses[-1]:.3f} after {len(losses)} steps")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A process of a contestant: it trains for some steps of an epoch. The first one writes how long they took."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.scaling.steps import Sizes, make
from cw_ext import Interactions

WARM_UP_STEPS = 3


def main() -> int:
    """Run the command line, which :mod:`benchmarks.scaling` makes, and return its exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", type=Path)
    parser.add_argument("way")
    for name in ("batch_size", "steps", "dim", "negatives"):
        parser.add_argument(name, type=int)
    arguments = parser.parse_args()
    rank, world = 0, 1
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
        rank, world = dist.get_rank(), dist.get_world_size()
    users, items = torch.load(arguments.pairs, weights_only=True)
    tables = {"num_queries": int(users.max()) + 1, "num_items": int(items.max()) + 1}
    known = Interactions(users, items, **tables, keep_counts=True)
    train = make(arguments.way, known, Sizes(arguments.dim, arguments.negatives))
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(0))
    batches = order.split(arguments.batch_size)[: WARM_UP_STEPS + arguments.steps]
    seconds, losses = [], []
    for seed, batch in enumerate(batches):
        own = batch.tensor_split(world)[rank]
        start = time.perf_counter()
        losses.append(train(users[own], items[own], seed))
        if world > 1:
            dist.barrier()
        seconds.append(time.perf_counter() - start)
    loss = torch.stack(losses)
    if world > 1:
        dist.all_reduce(loss)
    if rank == 0:
        report = {"seconds": seconds[WARM_UP_STEPS:], "losses": (loss / world).tolist()}
        arguments.pairs.with_name("report.json").write_text(json.dumps(report), encoding="utf-8")
    if world > 1:
        del train  # before the group: DistributedDataParallel could wait for gloo, which waits for Python
        dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())

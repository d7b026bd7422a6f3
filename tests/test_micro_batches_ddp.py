"""encode_in_micro_batches under DistributedDataParallel, against one process with the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import assert_near
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrun import process_of_group, torchrun

from cw_ext import cw_loss_in_batch, encode_in_micro_batches

ROWS = 13


def encoder(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def inputs(seed: int) -> Tensor:
    return torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class _Towers(nn.Module):
    """Two encoders whose embeddings are made inside the wrapped module."""

    def __init__(self, queries: nn.Module, items: nn.Module, size: int) -> None:
        super().__init__()
        self.queries, self.items, self.size = queries, items, size

    def forward(self, of_query: Tensor, of_item: Tensor) -> tuple[Tensor, Tensor]:
        queries = encode_in_micro_batches(self.queries, of_query, self.size)
        return queries, encode_in_micro_batches(self.items, of_item, self.size)


def _part(rank: int, processes: int) -> slice:
    """Uneven ones, and an empty one where there are three."""
    bounds = [0, 9, ROWS] if processes == 2 else [0, 4, 4, ROWS]
    return slice(bounds[rank], bounds[rank + 1])


def _sum_of_squares(queries: Tensor, items: Tensor, count: int) -> Tensor:
    """Rows for themselves, so that the mean over processes is easily told."""
    return count * (queries * items).sum(1).square().sum() / ROWS


def _gradients(*towers: nn.Module) -> dict[str, Tensor]:
    return {f"{n}.{name}": p.grad for n, tower in enumerate(towers) for name, p in tower.named_parameters()}


def _in_batch(queries: Tensor, items: Tensor, rows: slice, group: Any = None, **form: Any) -> Tensor:
    """In both directions; of 13 rows some are the same item."""
    item_ids = torch.arange(ROWS)[rows] % 8
    loss = {"temperature": 0.3, "prior": 0.1, "log_q_correction": False, "symmetric": True}
    ids = torch.arange(len(queries))
    return cw_loss_in_batch(queries, items, ids, item_ids=item_ids, process_group=group, **loss, **form)


@pytest.mark.parametrize("processes", [2, 3])
def test_distributed_data_parallel(processes: int, tmp_path: Path) -> None:
    """Around the module that encodes, or around each encoder; with other numbers of parts on each process.

    And with the in-batch loss over all processes, whose candidates pass gradients on to the encoders of others.
    """
    torchrun(__file__, tmp_path, processes=processes)
    found = torch.load(tmp_path / "gradients.pt")
    towers = encoder(seed=1), encoder(seed=2)
    for loss, forms in {
        _sum_of_squares(towers[0](inputs(1)), towers[1](inputs(2)), 1): ("around both", "around each"),
        _in_batch(towers[0](inputs(1)), towers[1](inputs(2)), slice(ROWS)): ("in batch", "ring"),
    }.items():
        for tower in towers:
            tower.zero_grad()
        loss.backward()
        for form in forms:
            for name, gradient in _gradients(*towers).items():
                assert_near(found[form][name], gradient, torch.float64, f"{form}, {name}")


def _train(rank: int, folder: Path) -> None:
    processes = dist.get_world_size()
    part = _part(rank, processes)
    own = inputs(1)[part], inputs(2)[part]
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "around both": lambda queries, items: _sum_of_squares(queries, items, processes),
        "around each": lambda queries, items: _sum_of_squares(queries, items, processes),
        "in batch": lambda queries, items: _in_batch(queries, items, part, dist.group.WORLD),
        "ring": lambda queries, items: _in_batch(queries, items, part, dist.group.WORLD, ring=True),
    }
    found = {}
    for name, loss in losses.items():
        towers = encoder(seed=1), encoder(seed=2)
        if name == "around each":
            encode: Callable[..., Any] = _Towers(*map(DistributedDataParallel, towers), 2)
        else:
            encode = DistributedDataParallel(_Towers(*towers, 2))
        for _ in range(2):  # the second step goes through the buckets that the first one arranged
            for tower in towers:
                tower.zero_grad()
            loss(*encode(*own)).backward()
        found[name] = _gradients(*towers)
    with pytest.raises(ValueError, match="make it with forward_sync_buffers=False"):
        encode_in_micro_batches(DistributedDataParallel(nn.BatchNorm1d(3)), torch.ones(2, 3), 1)
    if rank == 0:
        torch.save(found, folder / "gradients.pt")


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        _train(rank, folder)

"""A table that TorchRec spreads over two processes learns what a table in one place learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import assert_near, make_embeddings
from torch.distributed.tensor import DTensor, Shard, init_device_mesh
from torchrun import process_of_group, torchrun

from cw_ext import cw_loss_from_embeddings

pytest.importorskip("torchrec", reason="TorchRec is not installed")

from examples.row_sharded_torchrec import TorchRecTable  # noqa: E402

pytestmark = pytest.mark.cpu_kernels
BATCH = make_embeddings(8, 9, 8, 21, seed=6, padding=True).to(torch.float32)
LR, STEPS, PRIOR = 10.0, 3, 0.05


def test_it_learns_what_a_table_in_one_place_does(tmp_path: Path) -> None:
    torchrun(__file__, tmp_path)
    table = BATCH.items.double().requires_grad_()
    for _ in range(STEPS):
        halves = [
            cw_loss_from_embeddings(
                BATCH.queries[rows].double(), table, BATCH.pos_ids[rows], BATCH.neg_ids[rows], prior=PRIOR
            )
            for rows in (slice(0, 4), slice(4, 8))
        ]
        (gradient,) = torch.autograd.grad(torch.stack(halves).mean(), table)
        table = (table.detach() - LR * gradient).requires_grad_()
    assert_near(torch.load(tmp_path / "table.pt"), table, torch.float32, "table")
    assert not torch.allclose(table.float(), BATCH.items, atol=0.1), "nothing was learned"


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        table = TorchRecTable(21, 8, optimizer=torch.optim.SGD, lr=LR)
        (weight,) = table.parameters()
        with torch.no_grad():
            weight.copy_(BATCH.items.chunk(2)[rank])
        half = slice(4 * rank, 4 * rank + 4)
        for _ in range(STEPS):
            rows, (pos, neg) = table(BATCH.pos_ids[half], BATCH.neg_ids[half])
            cw_loss_from_embeddings(BATCH.queries[half], rows, pos, neg, prior=PRIOR).backward()
        mesh = init_device_mesh("cpu", (2,))
        own = weight.detach().as_subclass(torch.Tensor)
        whole = DTensor.from_local(own, mesh, [Shard(0)], shape=(21, 8), stride=(8, 1)).full_tensor()
        if rank == 0:
            torch.save(whole, folder / "table.pt")

"""A table that TorchRec spreads over processes, through the loss, learns what a table in one place learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import assert_near
from drawing import make_drawn, make_interactions
from torch import Tensor
from torchrun import process_of_group, torchrun

from cw_ext.distributed import sampled_cw_loss

pytest.importorskip("torchrec", reason="TorchRec is not installed")

from examples.row_sharded_torchrec import TorchRecTable  # noqa: E402

pytestmark = pytest.mark.cpu_kernels
# 23 items: no number of processes here holds them evenly, or has the parts of the batch equal.
BATCH = make_drawn("sampled", 11, seed=6, padding=True, interactions=make_interactions(num_items=23, pairs=60)).to(
    torch.float32
)
OPTIMIZERS = {"sgd": (torch.optim.SGD, {"lr": 10.0}), "adagrad": (torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-8})}
FORMS: dict[str, dict[str, Any]] = {
    "per row": {},
    "shared": {"shared": True},
    "popular": {"distribution": "popularity"},
}
STEPS, NEGATIVES = 3, 9


def _part(rank: int, processes: int) -> slice:
    bounds = {2: [0, 4, 11], 3: [0, 1, 5, 11]}[processes]
    return slice(bounds[rank], bounds[rank + 1])


def _in_one_place(optimizer: str, form: str) -> tuple[Tensor, Tensor]:
    """The losses, and the table at the end, in fp64."""
    kind, settings = OPTIMIZERS[optimizer]
    batch, losses = BATCH.to(torch.float64).leaves(["items"]), []
    update = kind([batch.items], **settings)
    for step in range(STEPS):
        update.zero_grad()
        loss = batch.loss(num_negatives=NEGATIVES, seed=step, prior=0.05, backend="reference", **FORMS[form])
        loss.backward()
        update.step()
        losses.append(loss.detach())
    return torch.stack(losses), batch.items.detach()


def _over_processes(optimizer: str, form: str, part: slice) -> tuple[Tensor, Tensor]:
    """This process's losses, and its rows at the end."""
    kind, settings = OPTIMIZERS[optimizer]
    table = TorchRecTable(23, 8, optimizer=kind, **settings)
    share = -(-23 // torch.distributed.get_world_size())
    with torch.no_grad():
        table.weight.copy_(BATCH.items[share * torch.distributed.get_rank() :][:share])
    losses = []
    for step in range(STEPS):
        ids = (BATCH.query_ids[part], BATCH.pos_ids[part], BATCH.interactions)
        loss = sampled_cw_loss(BATCH.queries[part], table, *ids, NEGATIVES, seed=step, prior=0.05, **FORMS[form])
        loss.backward()  # which updates the table
        losses.append(loss.detach())
    return torch.stack(losses), table.weight


@pytest.mark.parametrize("processes", [2, 3])
def test_it_learns_what_a_table_in_one_place_does(tmp_path: Path, processes: int) -> None:
    torchrun(__file__, tmp_path, processes=processes)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]
    for optimizer in OPTIMIZERS:
        for form in FORMS:
            losses, table = _in_one_place(optimizer, form)
            parts = [process[optimizer, form] for process in found]
            assert_near(sum(of_process for of_process, _ in parts) / processes, losses, torch.float32, "losses")
            assert_near(torch.cat([rows for _, rows in parts]), table, torch.float32, f"table, {optimizer}, {form}")
            assert not torch.allclose(table.float(), BATCH.items, atol=0.05), "nothing was learned"


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        part = _part(rank, torch.distributed.get_world_size())
        learned = {(o, f): _over_processes(o, f, part) for o in OPTIMIZERS for f in FORMS}
        torch.save(learned, folder / f"{rank}.pt")

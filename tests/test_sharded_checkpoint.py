"""Training that stops and goes on with another number of processes, from a checkpoint, learns what it would have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import assert_near
from drawing import make_drawn
from torch import Tensor, nn
from torchrun import process_of_group, torchrun

import cw_ext
from cw_ext.distributed import RowShardedTable, load_checkpoint, sampled_cw_loss, save_checkpoint

pytestmark = pytest.mark.cpu_kernels

# 50 items; 5 users, so that of four processes the last one has none.
BATCH = make_drawn("sampled", 12, seed=7)
USERS = 5
USER_IDS = torch.arange(12) % USERS
OPTIMIZERS = {
    "adam": (torch.optim.Adam, {"lr": 0.05, "amsgrad": True}),
    "sparse adam": (torch.optim.SparseAdam, {"lr": 0.05}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.05}),
    "momentum": (torch.optim.SGD, {"lr": 0.5, "momentum": 0.9}),
}
STAGES = (3, 2, 4)  # processes
STEPS = 2  # of each stage


class Model(nn.Module):
    """Two tables and a map between them; on one process plain embeddings."""

    def __init__(self, users: nn.Module, items: nn.Module) -> None:
        super().__init__()
        self.users, self.items = users, items
        self.map = nn.Linear(8, 8, dtype=torch.float64)


def _start() -> dict[str, Tensor]:
    torch.manual_seed(1)
    weights = {"users": torch.randn(USERS, 8, dtype=torch.float64), "items": BATCH.items.clone()}
    return weights | nn.Linear(8, 8, dtype=torch.float64).state_dict(prefix="map.")


def _optimizers(name: str, model: Model) -> list[torch.optim.Optimizer]:
    kind, settings = OPTIMIZERS[name]
    of_map = torch.optim.Adam(model.map.parameters(), lr=0.01)
    return [kind([model.users.weight, model.items.weight], **settings), of_map]


def _step(loss: Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def _in_one_place(name: str) -> dict[str, Tensor]:
    """All steps, without a stop, by a process that has everything."""
    start = _start()
    sparse = name.startswith("sparse")
    model = Model(*(nn.Embedding.from_pretrained(start[x], freeze=False, sparse=sparse) for x in ("users", "items")))
    model.map.load_state_dict({"weight": start["map.weight"], "bias": start["map.bias"]})
    optimizers = _optimizers(name, model)
    for step in range(STEPS * len(STAGES)):
        queries = model.map(model.users(USER_IDS))
        ids = (BATCH.query_ids, BATCH.pos_ids, BATCH.interactions)
        _step(cw_ext.sampled_cw_loss(queries, model.items, *ids, 6, seed=step, backend="reference"), optimizers)
    return model.state_dict()


def _part(rank: int, processes: int) -> slice:
    """Uneven, and of four processes the second has nothing."""
    bounds = {2: [0, 5, 12], 3: [0, 1, 6, 12], 4: [0, 3, 3, 10, 12]}[processes]
    return slice(bounds[rank], bounds[rank + 1])


def _model(sparse: bool) -> Model:
    tables = [RowShardedTable(rows, 8, dtype=torch.float64, sparse=sparse) for rows in (USERS, 50)]
    return Model(*tables)


def _stage(name: str, folder: Path) -> dict[str, Tensor]:
    """Train for some steps from the last stage's checkpoint, and leave one."""
    processes = dist.get_world_size()
    stage = STAGES.index(processes)
    model = _model(sparse=name.startswith("sparse"))
    optimizers = _optimizers(name, model)
    if stage == 0:
        start = _start()
        model.map.load_state_dict({"weight": start["map.weight"], "bias": start["map.bias"]})
        with torch.no_grad():
            for key in ("users", "items"):
                table = getattr(model, key)
                table.weight.copy_(start[key][table.first : table.first + len(table.weight)])
    else:
        assert load_checkpoint(folder / f"{name} {stage - 1}", model, optimizers) == {"step": stage * STEPS}
    encoder = nn.parallel.DistributedDataParallel(model.map)
    part = _part(dist.get_rank(), processes)
    for step in range(stage * STEPS, (stage + 1) * STEPS):
        rows, (places,) = model.users(USER_IDS[part])
        ids = (BATCH.query_ids[part], BATCH.pos_ids[part], BATCH.interactions)
        _step(sampled_cw_loss(encoder(rows[places]), model.items, *ids, 6, seed=step), optimizers)
    save_checkpoint(folder / f"{name} {stage}", model, optimizers, extra={"step": (stage + 1) * STEPS})
    whole = {key: getattr(model, key).whole().full_tensor() for key in ("users", "items")}
    return whole | {"map": model.map.weight.detach()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the checkpoints, and what each process of the last stage has."""
    folder = tmp_path_factory.mktemp("stages")
    for processes in STAGES:
        torchrun(__file__, folder, "train", processes=processes)
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(STAGES[-1])]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_with_another_number_of_processes(trained: Any, name: str) -> None:
    expected = _in_one_place(name)
    for process in trained[1]:
        assert_near(process[name]["users"], expected["users.weight"], torch.float64, "users")
        assert_near(process[name]["items"], expected["items.weight"], torch.float64, "items")
        assert_near(process[name]["map"], expected["map.weight"], torch.float64, "map")
    assert not torch.allclose(expected["items.weight"], BATCH.items, atol=0.01), "nothing was learned"


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        if "train" in sys.argv:
            torch.save({name: _stage(name, folder) for name in OPTIMIZERS}, folder / f"{rank}.pt")

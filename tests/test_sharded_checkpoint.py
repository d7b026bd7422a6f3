"""Training that stops and goes on with another number of processes, from a checkpoint, learns what it would have."""

from __future__ import annotations

import sys
from collections.abc import Callable
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

# In one worker: the processes of all tests are started once.
pytestmark = [pytest.mark.cpu_kernels, pytest.mark.xdist_group("sharded_checkpoint")]

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


def _saved(folder: Path) -> tuple[Model, list[torch.optim.Optimizer]]:
    """A trained model, and its checkpoint in folder / "saved"."""
    model = _model(sparse=False)
    optimizers = _optimizers("adam", model)
    rows, (places,) = model.users(USER_IDS)
    ids = (BATCH.query_ids, BATCH.pos_ids, BATCH.interactions)
    _step(sampled_cw_loss(model.map(rows[places]), model.items, *ids, 6, seed=1), optimizers)
    save_checkpoint(folder / "saved", model, optimizers, extra=["a", torch.ones(2)])
    return model, optimizers


def _other_shape() -> Model:
    model = _model(sparse=False)
    model.map = nn.Linear(7, 8)
    return model


def _without_map() -> Model:
    model = _model(sparse=False)
    del model.map
    return model


def _of(model: nn.Module, *kinds: type[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    return [kind([model.users.weight, model.items.weight], lr=0.1) for kind in kinds]


# What the second process loads wrongly: a model that gets it, and its optimizers; and the error.
NOT_LOADED: dict[str, tuple[Callable[[], tuple[Model, Any]], str, str]] = {
    "shape": (
        lambda: (_other_shape(), ()),
        "ValueError",
        "module must have map.weight of shape (8, 8), as saved, got (8, 7)",
    ),
    "missing": (
        lambda: (_without_map(), ()),
        "ValueError",
        "module must have the entries that were saved, got one without map",
    ),
    "class": (
        lambda: ((m := _model(False)), [*_of(m, torch.optim.Adagrad), torch.optim.Adam(m.map.parameters())]),
        "ValueError",
        "optimizers must have the classes and the parameters that were saved, Adam of",
    ),
    "too few": (
        lambda: ((m := _model(False)), _of(m, torch.optim.Adam)),
        "ValueError",
        "optimizers must be as many as were saved, got only 1 of them",
    ),
    "too many": (
        lambda: ((m := _model(False)), _of(m, *[torch.optim.Adam] * 3)),
        "ValueError",
        "optimizers must be as many as were saved, 2, got more",
    ),
    "no optimizer": (
        lambda: (_model(False), ["adam"]),
        "TypeError",
        "optimizers must be a torch.optim.Optimizer or a sequence of them, got",
    ),
}
# What it saves wrongly: optimizers and something else; and the error.
NOT_SAVED: dict[str, tuple[Callable[[Model], Any], Any, str, str]] = {
    "extra": (lambda m: (), print, "TypeError", "extra must hold numbers, strings, tensors and containers of them"),
    "foreign": (
        lambda m: torch.optim.SGD(nn.Linear(1, 1).parameters()),
        None,
        "ValueError",
        "optimizers must have only parameters of the module",
    ),
    "columns": (
        lambda m: _stepped(torch.optim.Adafactor([m.items.weight])),
        None,
        "ValueError",
        "optimizers must have one number per element of a table, or one for all of it, got",
    ),
}


def _stepped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def _error(work: Callable[[], Any]) -> tuple[str, str]:
    try:
        work()
    except BaseException as error:  # as CheckpointException is
        return type(error).__name__, str(error)
    return "none", ""


def _whole(model: Model) -> list[Tensor]:
    return [model.users.whole().full_tensor(), model.items.whole().full_tensor()]


def _refused(rank: int, folder: Path) -> dict[str, Any]:
    model, optimizers = _saved(folder)
    errors = {"exists": _error(lambda: save_checkpoint(folder / "saved", model, optimizers))}
    errors["absent"] = _error(lambda: load_checkpoint(folder / "absent", model))
    other = _model(False)
    kept = load_checkpoint(folder / "saved", other)
    alone = all(torch.equal(a, b) for a, b in zip(_whole(model), _whole(other)))
    changed = []
    for name, (make, _, _) in NOT_LOADED.items():
        other, of_other = make() if rank == 1 else ((m := _model(False)), _optimizers("adam", m))
        before = [parameter.detach().clone() for parameter in other.parameters()]
        errors[name] = _error(lambda: load_checkpoint(folder / "saved", other, of_other))
        changed += [name for a, b in zip(before, other.parameters()) if not torch.equal(a, b)]
    for name, (make, extra, _, _) in NOT_SAVED.items():
        given = make(model) if rank == 1 else optimizers
        wrong = extra if rank == 1 else None
        errors[name] = _error(lambda: save_checkpoint(folder / name, model, given, extra=wrong))

    dist.barrier()
    if rank == 0:
        (folder / "again.incomplete").mkdir()
        (folder / "again.incomplete" / "left.txt").write_text("of a save that failed")
        file = max((folder / "saved").glob("*.distcp"), key=lambda path: path.stat().st_size)
        file.write_bytes(file.read_bytes()[:100])
    dist.barrier()
    save_checkpoint(folder / "again", model)
    errors["another"] = _error(lambda: load_checkpoint(folder / ["saved", "again"][rank], other))
    errors["elsewhere"] = _error(lambda: save_checkpoint(folder / f"of {rank}", model))
    errors["damaged"] = _error(lambda: load_checkpoint(folder / "saved", other))
    return {"errors": errors, "changed": changed, "extra": kept, "alone": alone}


def test_what_does_not_fit_is_refused_by_all_and_changes_nothing(tmp_path: Path) -> None:
    torchrun(__file__, tmp_path, "refused")
    expected = {}
    expected["exists"] = ("FileExistsError", f"folder must not exist yet, got {tmp_path / 'saved'}")
    expected["absent"] = ("FileNotFoundError", "folder must hold a checkpoint of save_checkpoint, got")
    expected["another"] = ("ValueError", "folder must be the same in all processes, got saved, again")
    expected["elsewhere"] = ("ValueError", "folder must be the same in all processes, got of 0, of 1")
    expected["damaged"] = ("CheckpointException", "")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, (*_, kind, message) in (NOT_LOADED | NOT_SAVED).items():
            expected[name] = (kind, message if rank == 1 else f"process 1 of the group raised {kind}")
        for name, (kind, message) in expected.items():
            got, text = found["errors"][name]
            assert got == kind and message in text, f"{name}: {got}: {text}"
        assert not found["changed"]
        assert found["extra"][0] == "a" and torch.equal(found["extra"][1], torch.ones(2))
        assert found["alone"], "the module alone"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"saved", "again", "0.pt", "1.pt"}, "what could not be saved has left something"
    assert not (tmp_path / "again" / "left.txt").exists()


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        if "train" in sys.argv:
            results = {name: _stage(name, folder) for name in OPTIMIZERS}
        else:
            results = _refused(rank, folder)
        torch.save(results, folder / f"{rank}.pt")

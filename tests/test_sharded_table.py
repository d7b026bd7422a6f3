"""A table spread over processes learns what a table in one place learns."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import Embeddings, assert_near, child_environment, make_embeddings
from drawing import make_drawn
from torch import Tensor, nn
from torchrun import process_of_group, torchrun

from cw_ext import cw_loss_from_embeddings
from cw_ext.distributed import RowShardedTable, distinct_ids, sampled_cw_loss

# In one worker: the processes of all tests are started once.
pytestmark = [pytest.mark.cpu_kernels, pytest.mark.xdist_group("sharded_table")]

OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "sparse adam": torch.optim.SparseAdam,
    "adagrad": torch.optim.Adagrad,
}
LOSS = {"prior": 0.05, "confidence_temperature": 2.5}
STEPS = 3
# 8 rows; items that processes hold evenly, not evenly, and that all lie in the first one.
BATCHES = {
    "padded": make_embeddings(8, 9, 8, 20, m=3, seed=1, padding=True),
    "uneven": make_embeddings(8, 9, 8, 21, m=3, seed=2),
    "shared": make_embeddings(8, 9, 8, 7, m=3, seed=3, shared=True),
    "one item": make_embeddings(8, 9, 8, 1, m=3, seed=4),
}
DRAWN = make_drawn("sampled", 6, seed=5)
PROCESSES = (pytest.param(2, marks=pytest.mark.thorough), 3, pytest.param(4, marks=pytest.mark.thorough))
# Of four processes one has no rows; the others' parts are not equal.
BOUNDS = {2: [0, 4, 8], 3: [0, 3, 6, 8], 4: [0, 3, 3, 4, 8]}
# What the second process asks for beside an id in range, and what that is.
REFUSED: dict[str, tuple[type[Exception], str, Tensor]] = {
    "too large": (IndexError, "ids must be in [0, 21), or −1 for padding, got 21", torch.tensor([0, 21])),
    "negative": (IndexError, "ids must be in [0, 21), or −1 for padding, got -2", torch.tensor([0, -2])),
    "no integers": (TypeError, "ids must have dtype int32, int64, got float32", torch.tensor([0.0])),
}
# What the second process makes in place of a table of 21 rows.
NO_TABLE: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rows": ({"num_rows": 0}, ValueError, "num_rows must be an integer ≥ 1, got 0"),
    "columns": ({"dim": 2.5}, TypeError, "dim must be an integer ≥ 1, got float"),
    "flag": ({"sparse": 1}, TypeError, "sparse must be True or False, got 1"),
}


def _part(batch: Embeddings, part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A process's queries and ids; negatives that all rows share are those of all processes."""
    neg_ids = batch.neg_ids if batch.neg_ids.dim() == 1 else batch.neg_ids[part]
    return batch.queries[part], batch.pos_ids[part], neg_ids, batch.extra_ids[part]


def _parts(processes: int) -> list[slice]:
    return [slice(a, b) for a, b in zip(BOUNDS[processes], BOUNDS[processes][1:])]


def _encoder() -> nn.Module:
    torch.manual_seed(5)
    return nn.Linear(8, 8, dtype=torch.float64)


def _optimizers(name: str, encoder: nn.Module, table: Tensor) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(encoder.parameters(), lr=0.01), OPTIMIZERS[name]([table], lr=0.01)]


def _step(loss: Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def _train_in_one_place(batch: Embeddings, optimizer: str, processes: int) -> dict[str, Tensor]:
    encoder, table = _encoder(), batch.items.clone().requires_grad_()
    optimizers = _optimizers(optimizer, encoder, table)
    losses = []
    for _ in range(STEPS):
        of_parts = []
        for queries, pos, neg, extra in (_part(batch, part) for part in _parts(processes)):
            arguments: dict[str, Any] = {"extra_pos_ids": extra, "sparse_grad": optimizer.startswith("sparse"), **LOSS}
            of_parts.append(
                cw_loss_from_embeddings(encoder(queries), table, pos, neg, backend="reference", **arguments)
            )
        losses.append(torch.stack(of_parts))
        _step(losses[-1].mean(), optimizers)
    return {"losses": torch.stack(losses), "table": table, "encoder": encoder.weight}


def _filled(items: Tensor, **settings: Any) -> RowShardedTable:
    table = RowShardedTable(*items.shape, dtype=items.dtype, **settings)
    with torch.no_grad():
        table.weight.copy_(items[table.first : table.first + len(table.weight)])
    return table


def _train_over_processes(batch: Embeddings, optimizer: str, rank: int) -> dict[str, Tensor]:
    """The encoder under DistributedDataParallel, beside the table. Processes arrive at different times."""
    encoder = nn.parallel.DistributedDataParallel(_encoder())
    table = _filled(batch.items, sparse=optimizer.startswith("sparse"))
    optimizers = _optimizers(optimizer, encoder, table.weight)
    losses = []
    for _ in range(STEPS):
        queries, *ids = _part(batch, _parts(dist.get_world_size())[rank])
        time.sleep(random.random() / 50)
        rows, (pos, neg, extra) = table(*ids)
        loss = cw_loss_from_embeddings(encoder(queries), rows, pos, neg, extra_pos_ids=extra, **LOSS)
        time.sleep(random.random() / 50)
        _step(loss, optimizers)
        losses.append(loss.detach())
    whole = table.whole().full_tensor()
    return {"losses": torch.stack(losses), "table": whole, "encoder": encoder.module.weight.detach()}


def _error(work: Callable[[], Any]) -> tuple[str, str]:
    try:
        work()
    except Exception as error:
        return type(error).__name__, str(error)
    return "none", ""


def _made(rank: int) -> dict[str, Any]:
    """Tables of fresh numbers, of a part of the processes, and a copy."""
    torch.manual_seed(3)
    fresh = RowShardedTable(21, 8)
    torch.manual_seed(3)
    again = RowShardedTable(21, 8)
    copied = copy.deepcopy(fresh)
    found = {
        "whole": fresh.whole().full_tensor(),
        "again": torch.equal(fresh.weight, again.weight),
        "copied": torch.equal(copied(torch.arange(21))[0], fresh.whole().full_tensor()),
        "not shared": copied.weight.data_ptr() != fresh.weight.data_ptr(),
    }
    ranks = [0, dist.get_world_size() - 1]
    group = dist.new_group(ranks)
    if rank in ranks:
        items = torch.arange(42.0).view(21, 2)
        part = _filled(items, process_group=group)
        rows, (places,) = part(torch.tensor([[20, -1], [rank, 20]], dtype=torch.int32))
        (gradient,) = torch.autograd.grad(rows.sum(), part.weight)
        found["rows"], found["places"], found["gradient"] = rows.detach(), places, gradient.to_dense()
    return found


class _Tower(nn.Module):
    """A table and a map."""

    def __init__(self) -> None:
        super().__init__()
        self.items = RowShardedTable(7 * dist.get_world_size(), 8)  # equal parts: with others DDP itself would object
        self.map = nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.map(self.items(ids)[0])


def _inside_parallel() -> tuple[str, str]:
    tower = nn.parallel.DistributedDataParallel(_Tower())
    return _error(lambda: tower(torch.arange(5)))


def _compiled_steps() -> dict[str, list[Tensor]]:
    """[loss, gradient of the table, gradient of the encoder], with and without torch.compile."""
    encoder, table = _encoder(), _filled(DRAWN.items, sparse=False)

    def drawn() -> Tensor:
        ids = (DRAWN.query_ids, DRAWN.pos_ids, DRAWN.interactions)
        return sampled_cw_loss(encoder(DRAWN.queries) * 2, table, *ids, 7, seed=1) + 1

    def fetched() -> Tensor:
        rows, (pos, neg) = table(DRAWN.pos_ids, DRAWN.query_ids.view(-1, 1))
        return cw_loss_from_embeddings(encoder(DRAWN.queries), rows * 2, pos, neg)

    found = {}
    for name, function in {"drawn": drawn, "fetched": fetched}.items():
        for way, run in {"plain": function, "compiled": torch.compile(function, backend="aot_eager")}.items():
            loss = run()
            found[f"{name}, {way}"] = [loss.detach(), *torch.autograd.grad(loss, [table.weight, encoder.weight])]
    return found


@pytest.fixture(scope="module", params=PROCESSES)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    torchrun(__file__, folder, processes=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch", BATCHES)
def test_a_table_over_processes_learns_what_a_table_in_one_place_does(found: list, batch: str, optimizer: str) -> None:
    expected = _train_in_one_place(BATCHES[batch], optimizer, len(found))
    for rank, process in enumerate(found):
        trained = process["trained"][batch, optimizer]
        assert_near(trained["losses"], expected["losses"][:, rank], torch.float64, "losses")
        assert_near(trained["table"], expected["table"], torch.float64, "table")
        assert_near(trained["encoder"], expected["encoder"], torch.float64, "encoder")
    assert not torch.allclose(expected["table"], BATCHES[batch].items), "nothing was learned"


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_process_asks_wrongly_all_refuse(found: list, name: str) -> None:
    kind, message, _ = REFUSED[name]
    for rank, process in enumerate(found):
        error, text = process["refusals"][name]
        other = f"process 1 of the group raised {kind.__name__}; see the error message of that process"
        assert (error, text) == (kind.__name__, message if rank == 1 else other)


def test_fresh_rows_differ_by_process_and_follow_the_seed(found: list) -> None:
    whole = found[0]["made"]["whole"]
    assert len(whole.unique(dim=0)) == 21
    assert abs(whole.mean()) < 0.5 and 0.5 < whole.std() < 1.5
    for process in found:
        assert torch.equal(process["made"]["whole"], whole)
        assert process["made"]["again"]


def test_a_copy_is_a_table_of_its_own(found: list) -> None:
    assert all(process["made"]["copied"] and process["made"]["not shared"] for process in found)


def test_a_table_of_a_part_of_the_processes(found: list) -> None:
    """Of two, whatever the number of all: the ids 0 and 20, and 20 with the last rank."""
    last = len(found) - 1
    for rank in (0, last):
        made, ids = found[rank]["made"], [rank, 20]
        assert made["rows"].tolist() == [[2 * i, 2 * i + 1] for i in ids]
        assert made["places"].tolist() == [[1, -1], [0, 1]]
    whole = torch.zeros(21, 2)
    whole[[0, last]] = 0.5  # means over the two processes
    whole[20] = 1
    assert torch.equal(torch.cat([found[rank]["made"]["gradient"] for rank in (0, last)]), whole)


def test_a_table_inside_a_parallel_module_is_refused(found: list) -> None:
    for process in found:
        error, text = process["inside"]
        assert error == "RuntimeError" and "must be outside of the module that DistributedDataParallel wraps" in text


@pytest.mark.parametrize("name", ["drawn", "fetched"])
def test_torch_compile_changes_nothing(found: list, name: str) -> None:
    for process in found:
        steps = process["steps"]
        for plain, compiled in zip(steps[f"{name}, plain"], steps[f"{name}, compiled"]):
            assert_near(compiled, plain, torch.float64, name)
    for place in range(3):  # some process has gradients of its own
        assert sum(process["steps"][f"{name}, plain"][place].abs().sum() for process in found) > 0


def test_distinct_ids() -> None:
    ids = (torch.tensor([7, -1, 2]), torch.tensor([[9, 2], [7, 7]], dtype=torch.int32))
    distinct, places = distinct_ids(*ids)
    assert distinct.tolist() == [2, 7, 9]
    assert [p.tolist() for p in places] == [[1, -1, 0], [[2, 0], [1, 1]]]
    distinct, places = distinct_ids(torch.tensor([-1, -1]))
    assert distinct.tolist() == [] and places[0].tolist() == [-1, -1]


@pytest.mark.parametrize("name", NO_TABLE)
def test_what_one_process_makes_wrongly_all_refuse(found: list, name: str) -> None:
    _, kind, message = NO_TABLE[name]
    for rank, process in enumerate(found):
        error, text = process["no table"][name]
        assert error == kind.__name__
        assert (message if rank == 1 else f"process 1 of the group raised {kind.__name__}") in text


def test_sizes_of_its_own_are_refused(found: list) -> None:
    message = "num_rows, dim, dtype and sparse must be the same in all processes, got "
    for rank, process in enumerate(found):
        for form, own in {"sizes": "[21, 8] with", "dtype": "[20, 8] with dtype=torch.float64"}.items():
            kind, text = process[form]
            assert kind == "ValueError" and text.startswith(message)
            assert (own in text) == (rank == 1)


def test_a_table_needs_a_group() -> None:
    with pytest.raises(ValueError, match="init_process_group"):
        RowShardedTable(9, 8)
    with pytest.raises(TypeError, match="process_group must be"):
        RowShardedTable(9, 8, process_group=3)


_WITHOUT_DISTRIBUTED = """
import sys
import torch
import cw_ext
assert "torch.distributed.tensor" not in sys.modules and "cw_ext.distributed" not in sys.modules
torch.distributed.is_available = lambda: False
try:
    import cw_ext.distributed
except ImportError as error:
    print(error)
"""


def test_what_needs_torch_distributed_is_imported_by_name_only() -> None:
    environment = child_environment()
    found = subprocess.run(
        [sys.executable, "-c", _WITHOUT_DISTRIBUTED], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("cw_ext.distributed needs a torch with torch.distributed")


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        random.seed(rank)
        trained = {
            (name, optimizer): _train_over_processes(batch, optimizer, rank)
            for name, batch in BATCHES.items()
            for optimizer in OPTIMIZERS
        }
        of_21 = RowShardedTable(21, 8)
        results = {
            "trained": trained,
            "refusals": {
                name: _error(lambda: of_21(ids if rank == 1 else torch.tensor([0])))
                for name, (_, _, ids) in REFUSED.items()
            },
            "no table": {
                name: _error(lambda: RowShardedTable(**{"num_rows": 21, "dim": 8} | (wrong if rank == 1 else {})))
                for name, (wrong, _, _) in NO_TABLE.items()
            },
            "sizes": _error(lambda: RowShardedTable(20 + (rank == 1), 8)),
            "dtype": _error(lambda: RowShardedTable(20, 8, dtype=torch.float64 if rank == 1 else torch.float32)),
            "inside": _inside_parallel(),
            "made": _made(rank),
            "steps": _compiled_steps(),
        }
        torch.save(results, folder / f"{rank}.pt")

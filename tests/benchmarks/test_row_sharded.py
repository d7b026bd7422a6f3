"""A table spread over two processes learns what a table in one place learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Embeddings, assert_near, make_embeddings
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
from torchrun import process_of_group, torchrun

from cw_ext import cw_loss_from_embeddings
from examples import row_sharded
from examples.row_sharded import RowShardedTable, distinct_ids

pytestmark = pytest.mark.cpu_kernels

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "sparse adam": torch.optim.SparseAdam}
LOSS = {"prior": 0.05, "confidence_temperature": 2.5}
STEPS = 3
# 8 rows; items that two processes hold evenly, not evenly, and that all lie in the first one.
BATCHES = {
    "padded": make_embeddings(8, 9, 8, 20, m=3, seed=1, padding=True),
    "uneven": make_embeddings(8, 9, 8, 21, m=3, seed=2),
    "shared": make_embeddings(8, 9, 8, 7, m=3, seed=3, shared=True),
    "one item": make_embeddings(8, 9, 8, 1, m=3, seed=4),
}


def _half(batch: Embeddings, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A process's queries and ids; negatives that all rows share are those of both."""
    rows = slice(4 * rank, 4 * rank + 4)
    neg_ids = batch.neg_ids if batch.neg_ids.dim() == 1 else batch.neg_ids[rows]
    return batch.queries[rows], batch.pos_ids[rows], neg_ids, batch.extra_ids[rows]


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


def _train_in_one_place(batch: Embeddings, optimizer: str) -> dict[str, Tensor]:
    encoder, table = _encoder(), batch.items.clone().requires_grad_()
    optimizers = _optimizers(optimizer, encoder, table)
    losses = []
    for _ in range(STEPS):
        halves = []
        for queries, pos, neg, extra in (_half(batch, rank) for rank in range(2)):
            arguments: dict[str, Any] = {"extra_pos_ids": extra, "sparse_grad": optimizer.startswith("sparse"), **LOSS}
            halves.append(cw_loss_from_embeddings(encoder(queries), table, pos, neg, backend="reference", **arguments))
        losses.append(torch.stack(halves))
        _step(losses[-1].mean(), optimizers)
    return {"losses": torch.stack(losses), "table": table, "encoder": encoder.weight}


def _train_over_processes(batch: Embeddings, optimizer: str, rank: int) -> dict[str, Tensor]:
    """The encoder under DistributedDataParallel, beside the table; DTensor deals its rows out and collects them."""
    mesh, shape = init_device_mesh("cpu", (2,)), batch.items.shape
    encoder = nn.parallel.DistributedDataParallel(_encoder())
    table = RowShardedTable(*shape, sparse=optimizer.startswith("sparse"), dtype=torch.float64)
    with torch.no_grad():
        table.weight.copy_(distribute_tensor(batch.items, mesh, [Shard(0)]).to_local())
    optimizers = _optimizers(optimizer, encoder, table.weight)
    losses = []
    for _ in range(STEPS):
        queries, *ids = _half(batch, rank)
        rows, (pos, neg, extra) = table(*ids)
        loss = cw_loss_from_embeddings(encoder(queries), rows, pos, neg, extra_pos_ids=extra, **LOSS)
        _step(loss, optimizers)
        losses.append(loss.detach())
    whole = DTensor.from_local(table.weight.detach(), mesh, [Shard(0)], shape=shape, stride=(shape[1], 1))
    return {"losses": torch.stack(losses), "table": whole.full_tensor(), "encoder": encoder.module.weight}


def _refusal(table: RowShardedTable, id_: int) -> str:
    try:
        table(torch.tensor([0, id_]))
    except IndexError as error:
        return str(error)
    return "none"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("processes")
    torchrun(__file__, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch", BATCHES)
def test_a_table_over_processes_learns_what_a_table_in_one_place_does(found: list, batch: str, optimizer: str) -> None:
    expected = _train_in_one_place(BATCHES[batch], optimizer)
    for rank in range(2):
        process = found[rank]["trained"][batch, optimizer]
        assert_near(process["losses"], expected["losses"][:, rank], torch.float64, "losses")
        assert_near(process["table"], expected["table"], torch.float64, "table")
        assert_near(process["encoder"], expected["encoder"], torch.float64, "encoder")
    assert not torch.allclose(expected["table"], BATCHES[batch].items), "nothing was learned"


def test_ids_out_of_range_are_named(found: list) -> None:
    for process in found:
        assert process["refusals"] == [f"ids must be -1 or in [0, 21), got {id_}" for id_ in (21, -2)]


def test_the_example_learns(found: list) -> None:
    losses = found[0]["example"]
    assert losses == found[1]["example"]
    assert losses[-1] < losses[0] - 0.1


def test_distinct_ids() -> None:
    ids = (torch.tensor([7, -1, 2]), torch.tensor([[9, 2], [7, 7]], dtype=torch.int32))
    distinct, places = distinct_ids(*ids)
    assert distinct.tolist() == [2, 7, 9]
    assert [p.tolist() for p in places] == [[1, -1, 0], [[2, 0], [1, 1]]]
    distinct, places = distinct_ids(torch.tensor([-1, -1]))
    assert distinct.tolist() == [] and places[0].tolist() == [-1, -1]


def test_without_torchrun_it_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        row_sharded.main([])
    assert error.value.code == 2 and "start it with torchrun" in capsys.readouterr().err


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        trained = {
            (name, optimizer): _train_over_processes(batch, optimizer, rank)
            for name, batch in BATCHES.items()
            for optimizer in OPTIMIZERS
        }
        of_21 = RowShardedTable(21, 8)
        results = {
            "trained": trained,
            "refusals": [_refusal(of_21, id_) for id_ in (21, -2)],
            "example": row_sharded.train(num_users=50, num_items=100, steps=20),
        }
        torch.save(results, folder / f"{rank}.pt")

"""The scaling benchmark: its contestants train alike, and the command writes what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cases import assert_near, generator
from torch import Tensor
from torchrun import process_of_group, torchrun

from benchmarks.scaling import __main__ as scaling
from benchmarks.scaling.measure import ARRANGEMENTS
from benchmarks.scaling.steps import WAYS, Sizes, make
from cw_ext import Interactions

pytestmark = pytest.mark.cpu_kernels

BATCH, STEPS = 12, 4
TWICE = ", twice the batch"
USERS = torch.arange(20).repeat(9)
ITEMS = torch.randint(30, USERS.shape, generator=generator(7))


def _losses(way: str, rank: int = 0, processes: int = 1) -> Tensor:
    """The losses of this process in the first steps."""
    known = Interactions(USERS, ITEMS, num_queries=20, num_items=30, keep_counts=True)
    train = make(way, known, Sizes(dim=8, negatives=7))
    order = torch.randperm(len(USERS), generator=generator(8))
    parts = [batch.tensor_split(processes)[rank] for batch in order.split(BATCH)[:STEPS]]
    return torch.stack([train(USERS[part], ITEMS[part], seed) for seed, part in enumerate(parts)])


def test_several_processes_train_as_one_does(tmp_path: Path) -> None:
    torchrun(__file__, tmp_path)
    processes = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for way in WAYS:
        losses = torch.stack([losses[way] for losses in processes]).mean(0)
        assert_near(losses, _losses(way), torch.float32, way)
        assert losses.unique().numel() == STEPS


def test_the_command_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "made-up", tmp_path / "new" / "out"
    data.mkdir()
    pairs = {"train": zip(USERS.tolist(), ITEMS.tolist()), "test": [(0, int(ITEMS[1])), (1, int(ITEMS[0]))]}
    for name, rows in pairs.items():
        lines = [f"{user}\t{item}" for user, item in rows]
        (data / f"{name}.tsv").write_text("\n".join(["user_id\titem_id", *lines, ""]), encoding="utf-8")
    flags = ["--ways", "in-batch", "--steps", "2", "--rounds", "1", "--batch-size", "12", "--dim", "8"]
    assert scaling.main(["--data", str(data), "--out", str(out), *flags]) == 0
    printed = capsys.readouterr().out
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "results.json").read_text(encoding="utf-8"))
    found = report["ways"]["in-batch"]
    assert [*found] == [*ARRANGEMENTS] and all(name in printed for name in found)
    for result in found.values():
        assert result["epoch_steps"] == report["data"]["train"] // (12 * result["batches"])
        assert result["epoch_seconds"] == pytest.approx(result["epoch_steps"] * result["step_seconds"]["median"])
        assert result["step_seconds"]["median"] > 0
    for one, two in (("1 process, 1 thread", "2 processes"), (f"1 process, 2 threads{TWICE}", f"2 processes{TWICE}")):
        assert found[one]["losses"] == pytest.approx(found[two]["losses"], rel=1e-5)


def test_an_odd_batch_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        scaling.main(["--batch-size", "7"])
    assert error.value.code == 2 and "--batch-size: expected an even number" in capsys.readouterr().err


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        torch.save({way: _losses(way, rank, dist.get_world_size()) for way in WAYS}, folder / f"{rank}.pt")

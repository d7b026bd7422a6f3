"""A process that raises, dies or hangs ends the others with an error: within the group's timeout none waits in vain."""

from __future__ import annotations

import datetime
import os
import re
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from drawing import make_drawn

if not dist.is_available():
    pytest.skip("this torch has no distributed package", allow_module_level=True)

from cw_ext.distributed import RowShardedTable, load_checkpoint, sampled_cw_loss, save_checkpoint

pytestmark = pytest.mark.cpu_kernels

PROCESSES, FAILING = 3, 1
TIMEOUT = datetime.timedelta(seconds=8)  # of the group, which must end those that wait for one that hangs
PATIENCE = 120  # seconds until the test gives up on a process, on a busy machine
BATCH = make_drawn("sampled", 6, seed=9)
# Before what the process fails, and how.
QUICK = (("forward", "dies"), ("backward", "raises"), ("save", "hangs"))
FAILURES = [
    pytest.param(stage, way, marks=() if (stage, way) in QUICK else pytest.mark.thorough)
    for stage in ("forward", "backward", "save")
    for way in ("raises", "dies", "hangs")
]


def _fail(way: str) -> None:
    if way == "raises":
        raise ZeroDivisionError("a mistake in this process alone")
    if way == "dies":
        os._exit(7)
    time.sleep(10 * PATIENCE)


def _process(rank: int, folder: Path, stage: str, way: str) -> None:
    """A step and a checkpoint, in which one process fails; the others write down what they got."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES, timeout=TIMEOUT
    )
    table = RowShardedTable(50, 8, dtype=torch.float64, sparse=False)
    save_checkpoint(folder / "before", table)

    def reach(now: str) -> None:
        if (rank, now) == (FAILING, stage):
            _fail(way)

    try:
        reach("forward")
        loss = sampled_cw_loss(BATCH.queries, table, BATCH.query_ids, BATCH.pos_ids, BATCH.interactions, 4, seed=1)
        reach("backward")
        loss.backward()
        reach("save")
        save_checkpoint(folder / "after", table)
        (folder / f"{rank}.txt").write_text("went on")
    except Exception as error:
        (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        raise
    finally:
        os._exit(1)  # at once, as a program that an error ends: gloo's threads are not waited for


def _load(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/again", rank=rank, world_size=2)
    table = RowShardedTable(50, 8, dtype=torch.float64)
    load_checkpoint(folder / "before", table)
    whole = table.whole().full_tensor()
    try:
        load_checkpoint(folder / "after", table)
        error = "none"
    except FileNotFoundError as caught:
        error = str(caught)
    assert torch.equal(table.whole().full_tensor(), whole)
    (folder / f"loaded {rank}.txt").write_text(error)
    dist.barrier()
    os._exit(0)


@pytest.mark.parametrize(("stage", "way"), FAILURES)
def test_the_others_end_with_an_error(tmp_path: Path, stage: str, way: str) -> None:
    context = mp.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, tmp_path, stage, way)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    try:
        for rank, process in enumerate(processes):
            if (rank, way) != (FAILING, "hangs"):
                process.join(PATIENCE)
                assert process.exitcode == (7 if (rank, way) == (FAILING, "dies") else 1), f"process {rank} goes on"
    finally:
        for process in processes:
            process.kill()
    for rank in {*range(PROCESSES)} - {FAILING}:  # gloo says so
        assert re.search("(?i)connection|time", (tmp_path / f"{rank}.txt").read_text().split("\n")[0])
    assert (tmp_path / "before").is_dir() and not (tmp_path / "after").exists()


def test_what_was_saved_before_is_whole(tmp_path: Path) -> None:
    context = mp.get_context("spawn")
    for target, count, more in ((_process, PROCESSES, ("save", "dies")), (_load, 2, ())):
        processes = [context.Process(target=target, args=(rank, tmp_path, *more)) for rank in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
            process.kill()
    for rank in range(2):
        found = (tmp_path / f"loaded {rank}.txt").read_text()
        assert found == f"folder must hold a checkpoint of save_checkpoint, got {tmp_path / 'after'}"

"""DistributedDataParallel: two processes with half a batch each get the whole batch's gradient."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import assert_near, child_environment, make_embeddings

_RANK = """
import os, sys, torch
import torch.distributed as dist
from cases import make_embeddings
from cw_ext import CWEmbeddingLoss

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

class Model(torch.nn.Module):
    def __init__(self, case):
        super().__init__()
        self.items = torch.nn.Parameter(case.items.clone())
        self.map = torch.nn.Linear(8, 8, bias=False, dtype=torch.float64)
        torch.nn.init.eye_(self.map.weight)
        self.criterion = CWEmbeddingLoss(prior=0.05, backend="fused")

    def forward(self, queries, pos_ids, neg_ids):
        return self.criterion(self.map(queries), self.items, pos_ids, neg_ids)

case = make_embeddings(6, 9, 8, 20, seed=101)
model = torch.nn.parallel.DistributedDataParallel(Model(case))
half = slice(3 * rank, 3 * rank + 3)
for _ in range(2):  # the second step goes through the buckets that the first one arranged
    model.zero_grad()
    model(case.queries[half], case.pos_ids[half], case.neg_ids[half]).backward()
if rank == 0:
    torch.save({"items": model.module.items.grad, "map": model.module.map.weight.grad}, out)
sys.stderr.flush()
# Done and saved: gloo's threads, which at times end in std::terminate at shutdown, are not what is tested.
dist.barrier()
os._exit(0)
"""


@pytest.mark.cpu_kernels
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package")
def test_the_mean_over_processes_is_the_mean_over_rows(kernels: None, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), str(tmp_path / "store"), str(tmp_path / "gradients.pt")],
            env=child_environment(OMP_NUM_THREADS="1"),
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    found = torch.load(tmp_path / "gradients.pt")

    case = make_embeddings(6, 9, 8, 20, seed=101).leaves(["items"])
    weight = torch.eye(8, dtype=torch.float64, requires_grad=True)
    mapped = replace(case, queries=case.queries @ weight.T)
    mapped.loss(prior=0.05, backend="reference").backward()
    assert_near(found["items"], case.items.grad, torch.float64, "items")
    assert_near(found["map"], weight.grad, torch.float64, "map")

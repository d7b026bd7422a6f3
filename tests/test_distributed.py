"""Several processes: DistributedDataParallel's gradients are those of the whole batch, and so is what they draw."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import assert_near, make_embeddings
from drawing import Drawn, make_drawn, make_interactions
from torch import Tensor, nn
from torchrun import process_of_group, torchrun

from cw_ext import CWEmbeddingLoss, CWSampledLoss, draw_negatives

EMBEDDINGS = make_embeddings(6, 9, 8, 20, seed=101)
SAMPLED = make_drawn("sampled", 6, seed=102, interactions=make_interactions(num_queries=8, num_items=20, pairs=40))
N = 9
PRIOR = 0.05
# One batch for all processes, in parts that are not equal, drawn with one seed. Query 1 knows all items but two.
BATCH = make_drawn("sampled", 11, seed=103)
SEED = 12
DISTRIBUTIONS = ("uniform", "popularity")


def _part(rank: int, processes: int) -> slice:
    bounds = [0, 7, 11] if processes == 2 else [0, 2, 3, 11]
    return slice(bounds[rank], bounds[rank + 1])


def _half(rank: int) -> slice:
    return slice(3 * rank, 3 * rank + 3)


def _seed(rank: int) -> int:
    return 7 + rank


class _Model(nn.Module):
    """A map of the queries, a table, and a loss."""

    def __init__(self, items: Tensor, criterion: nn.Module) -> None:
        super().__init__()
        self.items = nn.Parameter(items.clone())
        self.map = nn.Linear(8, 8, bias=False, dtype=torch.float64)
        nn.init.eye_(self.map.weight)
        self.criterion = criterion

    def forward(self, queries: Tensor, *ids: Tensor, **arguments: Any) -> Tensor:
        return self.criterion(self.map(queries), self.items, *ids, **arguments)


def _gradients(model: _Model, queries: Tensor, *ids: Tensor, **arguments: Any) -> dict[str, Tensor]:
    parallel = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):  # the second step goes through the buckets that the first one arranged
        parallel.zero_grad()
        parallel(queries, *ids, **arguments).backward()
    return {"items": model.items.grad, "map": model.map.weight.grad}


def _expected(case: Any, *losses: Callable[[Any], Tensor]) -> dict[str, Tensor]:
    """The gradients of the mean of some losses of the case, whose queries go through a map."""
    leaf = case.leaves(["items"])
    weight = torch.eye(8, dtype=torch.float64, requires_grad=True)
    mapped = replace(leaf, queries=leaf.queries @ weight.T)
    torch.stack([loss(mapped) for loss in losses]).mean().backward()
    return {"items": leaf.items.grad, "map": weight.grad}


def _drawn_half(rank: int) -> Callable[[Drawn], Tensor]:
    """What a process computes of a drawn batch."""

    def loss(case: Drawn) -> Tensor:
        part = {name: getattr(case, name)[_half(rank)] for name in ("queries", "query_ids", "pos_ids")}
        return replace(case, **part).loss(num_negatives=N, seed=_seed(rank), prior=PRIOR, backend="reference")

    return loss


@pytest.mark.cpu_kernels
def test_the_mean_over_processes_is_the_mean_over_rows(kernels: None, tmp_path: Path) -> None:
    torchrun(__file__, tmp_path)
    found = torch.load(tmp_path / "gradients.pt")

    expected = {
        "embeddings": _expected(EMBEDDINGS, lambda case: case.loss(prior=PRIOR, backend="reference")),
        "drawn": _expected(SAMPLED, _drawn_half(0), _drawn_half(1)),
    }
    for level, gradients in expected.items():
        for name, gradient in gradients.items():
            assert_near(found[level][name], gradient, torch.float64, f"{level}, {name}")
    for rank in range(2):
        one = _expected(SAMPLED, _drawn_half(rank))
        assert not torch.allclose(one["items"], found["drawn"]["items"]), "one half alone would pass as well"


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.thorough)])
def test_processes_draw_what_one_draws_for_the_whole_batch(kernels: None, tmp_path: Path, processes: int) -> None:
    """With one seed and first_row. Without a seed they differ, though torch is seeded alike."""
    torchrun(__file__, tmp_path, "draws", processes=processes)
    found = [torch.load(tmp_path / f"drawn {rank}.pt") for rank in range(processes)]
    for distribution in DISTRIBUTIONS:
        ids = torch.cat([parts[distribution]["ids"] for parts in found])
        whole = draw_negatives(BATCH.query_ids, BATCH.interactions, N, seed=SEED, distribution=distribution)
        assert torch.equal(ids, whole)
        leaves = BATCH.leaves()
        settings = {"num_negatives": N, "seed": SEED, "distribution": distribution, "reduction": "sum"}
        loss = leaves.loss(backend="reference", **settings)
        loss.backward()
        assert_near(sum(parts[distribution]["loss"] for parts in found), loss, torch.float64, "loss")
        items = sum(parts[distribution]["items"] for parts in found)
        assert_near(items, leaves.items.grad, torch.float64, "items")
        queries = torch.cat([parts[distribution]["queries"] for parts in found])
        assert_near(queries, leaves.queries.grad, torch.float64, "queries")
    for name in ("of rows", "shared", "compiled"):
        unseeded = [tuple(parts[name].flatten().tolist()) for parts in found]
        assert len(set(unseeded)) == processes, name
    torch.manual_seed(0)
    alone = draw_negatives(BATCH.query_ids, BATCH.interactions, N)
    assert torch.equal(found[0]["of rows"], alone), "the first process draws as one that is alone"


def _drawn_part(part: slice, distribution: str) -> dict[str, Tensor]:
    """What a process draws of the batch and, summed over its rows, computes."""
    settings = {"num_negatives": N, "seed": SEED, "first_row": part.start, "distribution": distribution}
    own = {name: getattr(BATCH, name)[part] for name in ("queries", "query_ids", "pos_ids")}
    leaves = replace(BATCH, **own).leaves()
    loss = leaves.loss(backend="fused", reduction="sum", **settings)
    loss.backward()
    del settings["num_negatives"]
    ids = draw_negatives(own["query_ids"], BATCH.interactions, N, **settings)
    return {"ids": ids, "loss": loss.detach(), "items": leaves.items.grad, "queries": leaves.queries.grad}


def _draw_parts(rank: int, folder: Path) -> None:
    part = _part(rank, dist.get_world_size())
    found: dict[str, Any] = {distribution: _drawn_part(part, distribution) for distribution in DISTRIBUTIONS}
    who = (BATCH.query_ids, BATCH.interactions)
    drawing = torch.compile(lambda: draw_negatives(*who, N), fullgraph=True, backend="aot_eager")
    for name, draw in {
        "of rows": lambda: draw_negatives(*who, N),
        "shared": lambda: draw_negatives(None, BATCH.interactions, N),
        "compiled": drawing,
    }.items():
        torch.manual_seed(0)
        found[name] = draw()
    torch.save(found, folder / f"drawn {rank}.pt")


def _train(rank: int, folder: Path) -> None:
    half = _half(rank)
    embeddings = CWEmbeddingLoss(prior=PRIOR, backend="fused")
    drawing = CWSampledLoss(SAMPLED.interactions, N, prior=PRIOR, backend="fused")
    drawn_batch = (SAMPLED.queries[half], SAMPLED.query_ids[half], SAMPLED.pos_ids[half])
    batch = (EMBEDDINGS.queries[half], EMBEDDINGS.pos_ids[half], EMBEDDINGS.neg_ids[half])
    gradients = {
        "embeddings": _gradients(_Model(EMBEDDINGS.items, embeddings), *batch),
        "drawn": _gradients(_Model(SAMPLED.items, drawing), *drawn_batch, seed=_seed(rank)),
    }
    if rank == 0:
        torch.save(gradients, folder / "gradients.pt")


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        (_draw_parts if "draws" in sys.argv else _train)(rank, folder)

"""The loss with draws on a table over processes is that of one process with the whole batch, in value and gradients."""

from __future__ import annotations

import inspect
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import assert_near, exact
from drawing import Drawn, make_drawn, make_interactions
from torch import Tensor
from torchrun import process_of_group, torchrun

import cw_ext
from cw_ext.distributed import RowShardedTable, sampled_cw_loss

# In one worker: the processes of all tests are started once.
pytestmark = [pytest.mark.cpu_kernels, pytest.mark.xdist_group("sharded_loss")]

PLAIN = make_drawn("sampled", 11, seed=3)
FULL = make_drawn("sampled", 11, m=2, seed=4, padding=True, row_weights=True)  # its last row is padding
EMPTY = replace(PLAIN, pos_ids=torch.full_like(PLAIN.pos_ids, -1))
ITEMS = len(PLAIN.items)
SOME = torch.arange(ITEMS) % 3 > 0
CASES: dict[str, tuple[Drawn, dict[str, Any]]] = {
    "plain": (PLAIN, {}),
    "sum": (PLAIN, {"reduction": "sum"}),
    "rows": (FULL, {"reduction": "none"}),
    "everything": (FULL, {"prior": 0.05, "distribution": "popularity", "similarity": "dot"}),
    "popular candidates": (PLAIN, {"distribution": "popularity", "popularity_smoothing": 1.0, "candidates": SOME}),
    "uncorrected": (PLAIN, {"distribution": "popularity", "log_q_correction": False}),
    "shared": (PLAIN, {"shared": True}),
    "shared, everything": (FULL, {"shared": True, "prior": 0.05, "distribution": "popularity"}),
    "nothing": (EMPTY, {}),
    "reference": (PLAIN, {"backend": "reference"}),
}
PROCESSES = (*(pytest.param(few, marks=pytest.mark.thorough) for few in (2, 3)), 4)
# Uneven parts; of three processes one has no rows, of four two, and one that has nothing but padding.
BOUNDS = {2: [0, 4, 11], 3: [0, 7, 7, 11], 4: [0, 0, 10, 10, 11]}
NEGATIVES, SEED = 9, 5
# What the second process does wrong: the error, and what its message has.
WRONG: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "positive": (IndexError, "pos_ids must be in", {"pos_ids": torch.full_like(PLAIN.pos_ids, ITEMS)}),
    "query": (IndexError, "query_ids must be in", {"query_ids": torch.full_like(PLAIN.query_ids, 20)}),
    "negatives": (ValueError, "num_negatives must be", {"num_negatives": 0}),
    "dtype": (TypeError, "table must have the dtype of queries", {"queries": PLAIN.queries.float()}),
    "dimension": (ValueError, "table must have rows of queries' D = 7", {"queries": PLAIN.queries[:, :7]}),
    "catalogue": (
        ValueError,
        "table must have one row per item of interactions, 51, got 50",
        {"interactions": make_interactions(num_items=ITEMS + 1)},
    ),
    "argument": (TypeError, "unknown loss argument 'temprature'", {"temprature": 0.1}),
    "first row": (ValueError, "first_row must be", {"first_row": -1}),
    "seed": (TypeError, "seed must be", {"seed": 0.5}),
}


def _part(rank: int, processes: int) -> slice:
    return slice(BOUNDS[processes][rank], BOUNDS[processes][rank + 1])


def _table(items: Tensor) -> RowShardedTable:
    table = RowShardedTable(*items.shape, sparse=False, dtype=items.dtype)
    with torch.no_grad():
        table.weight.copy_(items[table.first : table.first + len(table.weight)])
    return table


def _arrive() -> None:
    """At any time: no process may rely on the others being there."""
    time.sleep(random.random() / 20)


def _own(name: str, part: slice) -> dict[str, Tensor]:
    """What a process finds of its part of the batch."""
    case, settings = CASES[name]
    queries, tau = case.queries[part].clone().requires_grad_(), exact(0.2).requires_grad_()
    table = _table(case.items)
    settings = settings | {
        "extra_pos_ids": None if case.extra_ids is None else case.extra_ids[part],
        "row_weights": None if case.row_weights is None else case.row_weights[part],
        "temperature": tau,
        "return_above": True,
    }
    _arrive()
    ids = (case.query_ids[part], case.pos_ids[part])
    loss, above = sampled_cw_loss(queries, table, *ids, case.interactions, NEGATIVES, seed=SEED, **settings)
    _arrive()
    loss.sum().backward()
    gradients = {"queries": queries.grad, "items": table.weight.grad, "temperature": tau.grad}
    return {"loss": loss.detach(), "above": above, **gradients}


def _unseeded() -> list[float]:
    """The same rows in each process, and torch's generator in the same state: what do they draw?"""
    torch.manual_seed(0)
    table, batch = _table(PLAIN.items), (PLAIN.query_ids, PLAIN.pos_ids, PLAIN.interactions)
    return [
        sampled_cw_loss(PLAIN.queries, table, *batch, NEGATIVES, shared=shared, reduction="sum").item()
        for shared in (False, True)
    ]


def _errors(rank: int) -> dict[str, tuple[str, str]]:
    found = {}
    for name, (_, _, change) in WRONG.items():
        given: dict[str, Any] = {
            "queries": PLAIN.queries,
            "query_ids": PLAIN.query_ids,
            "pos_ids": PLAIN.pos_ids,
            "interactions": PLAIN.interactions,
            "num_negatives": NEGATIVES,
        }
        if rank == 1:
            given |= change
        table = RowShardedTable(ITEMS, 8, dtype=torch.float64)
        try:
            sampled_cw_loss(given.pop("queries"), table, **given)
        except Exception as error:
            found[name] = (type(error).__name__, str(error))
    batch = (PLAIN.queries, _table(PLAIN.items), PLAIN.query_ids, PLAIN.pos_ids, PLAIN.interactions, NEGATIVES)
    for name, setting in {"reduction": "sum" if rank else "mean", "similarity": "dot" if rank else "cosine"}.items():
        try:
            sampled_cw_loss(*batch, **{name: setting})
        except ValueError as error:
            found[name] = (type(error).__name__, str(error))
    return found


@pytest.fixture(scope="module", params=PROCESSES)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder: Path = tmp_path_factory.mktemp("processes")
    torchrun(__file__, folder, processes=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_loss_of_one_process(found: list[dict[str, Any]], name: str) -> None:
    case, settings = CASES[name]
    leaves = replace(case, temperature=exact(0.2)).leaves()
    settings = settings | {"num_negatives": NEGATIVES, "seed": SEED, "return_above": True, "backend": "reference"}
    loss, above = leaves.loss(**settings)
    loss.sum().backward()
    own = [process["cases"][name] for process in found]
    # Gradients of a model under DistributedDataParallel, and the table's, are means over the processes.
    world, mean = len(found), settings.get("reduction", "mean") == "mean"
    losses = [part["loss"] for part in own]
    if settings.get("reduction") == "none":
        assert_near(torch.cat(losses), loss, torch.float64, "loss")
    else:
        assert_near(sum(losses) / (world if mean else 1), loss, torch.float64, "loss")
    assert torch.equal(torch.cat([part["above"] for part in own]), above)
    scale = 1 if mean else world
    assert_near(torch.cat([part["items"] for part in own]) * scale, leaves.items.grad, torch.float64, "items")
    assert_near(
        torch.cat([part["queries"] for part in own]) * scale / world, leaves.queries.grad, torch.float64, "queries"
    )
    tau = sum(part["temperature"] for part in own)
    assert_near(tau * scale / world, leaves.temperature.grad, torch.float64, "temperature")
    if name != "nothing":
        assert loss.abs().sum() > 0 and leaves.items.grad.abs().sum() > 0


def test_without_a_seed_processes_draw_differently(found: list[dict[str, Any]]) -> None:
    for of_kind in zip(*(process["unseeded"] for process in found)):
        assert len(set(of_kind)) == len(found)


@pytest.mark.parametrize("name", WRONG)
def test_what_one_process_does_wrong_all_raise(found: list[dict[str, Any]], name: str) -> None:
    kind, message, _ = WRONG[name]
    for rank, process in enumerate(found):
        got, text = process["errors"][name]
        assert got == kind.__name__
        assert (message if rank == 1 else f"process 1 of the group raised {kind.__name__}") in text


def test_settings_of_its_own_are_refused(found: list[dict[str, Any]]) -> None:
    given = ", ".join(["'mean'"] + ["'sum'"] * (len(found) - 1))
    expected = ("ValueError", f"reduction must be the same in all processes, got {given}")
    assert all(process["errors"]["reduction"] == expected for process in found)
    for rank, process in enumerate(found):
        kind, text = process["errors"]["similarity"]
        assert kind == "ValueError" and f"'similarity': '{'dot' if rank else 'cosine'}'" in text


def test_a_table_is_required() -> None:
    with pytest.raises(TypeError, match=r"table must be a cw_ext\.distributed\.RowShardedTable, got Tensor"):
        sampled_cw_loss(PLAIN.queries, PLAIN.items, PLAIN.query_ids, PLAIN.pos_ids, PLAIN.interactions, 3)


def test_its_arguments_are_those_of_the_loss_in_one_place() -> None:
    here, there = (set(inspect.signature(f).parameters) for f in (sampled_cw_loss, cw_ext.sampled_cw_loss))
    assert there - here == {"items", "sparse_grad", "recompute"} and here - there == {"table"}


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        random.seed(rank)
        part = _part(rank, dist.get_world_size())
        results = {
            "cases": {name: _own(name, part) for name in CASES},
            "unseeded": _unseeded(),
            "errors": _errors(rank),
        }
        torch.save(results, folder / f"{rank}.pt")

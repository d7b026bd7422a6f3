"""Measures what a step over several processes sends, and how long it takes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.common.timing import quantiles
from benchmarks.distributed.sent import SENT, SentBytes
from benchmarks.distributed.traffic import DIM, DRAWN, PREDICTED, Step, predict
from cw_ext import Interactions, cw_loss_from_embeddings, cw_loss_in_batch, draw_negatives
from cw_ext.distributed import RowShardedTable

QUERIES = 10_000
KNOWN_PER_QUERY = 10
MEASURED = (
    *(Step("per row", items, negatives) for items in (10**4, 10**5, 10**6) for negatives in (100, 1000)),
    *(Step("shared", items, 1000) for items in (10**4, 10**6)),
    *(Step("ids", items) for items in (10**4, 10**5)),
    *(Step(way, 10**6, batch_size=size) for size in (256, 1024) for way in ("vectors", "own gradients", "ring")),
)
Phase = Callable[[str], AbstractContextManager[None]]


def measure(steps: Sequence[Step] = MEASURED, repeats: int = 20) -> dict[str, Any]:
    """Measure steps in this and all other processes, which must call this with the same arguments.

    Queries and encoded items are fixed random vectors: neither the encoders are measured nor what their parameters'
    gradients send. In "ids" the gradient of the table is summed over the processes, as DistributedDataParallel does.

    Args:
        steps: what to measure. They take turns, so that a disturbance of the machine affects all of them.
        repeats: of each, after an untimed one.

    Returns:
        A JSON-ready dict: the number of processes; per step its sizes, the distinct rows and the bytes sent, means over
        processes and steps, what was predicted, and quantiles of the slowest process's seconds per phase and in all;
        and predictions for larger tables and more processes.
    """
    processes = dist.get_world_size()
    runners = [_Runner(step) for step in steps]
    for repeat in range(repeats + 1):
        for runner in runners:
            if repeat == 1:  # the first repeat warms up
                runner.forget()
            runner.run()
    return {
        "processes": processes,
        "dim": DIM,
        "repeats": repeats,
        "measured": [runner.report(repeats) for runner in runners],
        "predicted": [{**asdict(s), "processes": r, **predict(s, r)} for s, r in PREDICTED],
    }


class _Runner:
    """Runs a step again and again, and keeps what it sent and how long it took."""

    def __init__(self, step: Step) -> None:
        torch.manual_seed(dist.get_rank())
        self.step, self.sent = step, SentBytes()
        self.distinct = 0
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.work = _drawn(step) if step.way in DRAWN else _of_a_table(step) if step.way == "ids" else _encoded(step)

    def forget(self) -> None:
        self.sent.total.clear()
        self.seconds.clear()
        self.distinct = 0

    def run(self) -> None:
        total = 0.0

        @contextmanager
        def phase(name: str) -> Iterator[None]:
            nonlocal total
            self.sent.phase, start = name, time.perf_counter()
            yield
            slowest = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            self.sent.phase = None
            dist.all_reduce(slowest, dist.ReduceOp.MAX)  # also lets the processes start the next phase together
            self.seconds[name].append(slowest.item())
            total += slowest.item()

        with self.sent:
            self.distinct += self.work(phase)
        self.seconds["step"].append(total)

    def report(self, repeats: int) -> dict[str, Any]:
        totals = {"distinct_rows": self.distinct, **{kind: self.sent.total[kind] for kind in SENT}}
        means = torch.tensor(list(totals.values()), dtype=torch.float64) / (dist.get_world_size() * repeats)
        dist.all_reduce(means)
        return {
            **asdict(self.step),
            **dict(zip(totals, means.tolist(), strict=True)),
            "predicted": predict(self.step, dist.get_world_size()),
            "seconds": {name: quantiles(values) for name, values in self.seconds.items()},
        }


def _known(step: Step) -> Interactions:
    """The same in all processes."""
    pairs, shared = QUERIES * KNOWN_PER_QUERY, torch.Generator().manual_seed(0)
    query_ids, item_ids = (torch.randint(n, (pairs,), generator=shared) for n in (QUERIES, step.items))
    return Interactions(query_ids, item_ids, num_queries=QUERIES, num_items=step.items, keep_counts=True)


def _batch(step: Step) -> tuple[Tensor, Tensor]:
    return torch.randint(QUERIES, (step.batch_size,)), torch.randint(step.items, (step.batch_size,))


def _drawn(step: Step) -> Callable[[Phase], int]:
    """Draws negatives, fetches rows of the spread table, and has SparseAdam update it; tells how many rows."""
    known, table = _known(step), RowShardedTable(step.items, DIM)
    optimizer = torch.optim.SparseAdam([table.weight])
    queries = torch.randn(step.batch_size, DIM, requires_grad=True)

    def run(phase: Phase) -> int:
        query_ids, pos_ids = _batch(step)
        with phase("draw"):
            neg_ids = draw_negatives(None if step.way == "shared" else query_ids, known, step.negatives)
        with phase("fetch"):
            rows, (pos, neg) = table(pos_ids, neg_ids)
        with phase("loss"):
            loss = cw_loss_from_embeddings(queries, rows, pos, neg)
        with phase("backward"):
            optimizer.zero_grad()
            loss.backward()
        with phase("update"):
            optimizer.step()
        return len(rows)

    return run


def _of_a_table(step: Step) -> Callable[[Phase], int]:
    """In-batch negatives of a table that all hold alike; its whole gradient is summed, and Adam updates it."""
    known, table = _known(step), torch.nn.Parameter(torch.randn(step.items, DIM))
    dist.broadcast(table.data, 0)
    optimizer = torch.optim.Adam([table], fused=True)
    queries = torch.randn(step.batch_size, DIM, requires_grad=True)

    def run(phase: Phase) -> int:
        query_ids, pos_ids = _batch(step)
        with phase("loss"):
            given = {"query_ids": query_ids, "interactions": known, "process_group": dist.group.WORLD}
            loss = cw_loss_in_batch(queries, table, pos_ids, **given)
        with phase("backward"):
            optimizer.zero_grad()
            loss.backward()
            dist.all_reduce(table.grad)
            table.grad /= dist.get_world_size()
        with phase("update"):
            optimizer.step()
        return 0

    return run


def _encoded(step: Step) -> Callable[[Phase], int]:
    """In-batch negatives as vectors that each process has encoded."""
    known = _known(step)
    queries, items = (torch.randn(step.batch_size, DIM, requires_grad=True) for _ in range(2))
    places = torch.arange(step.batch_size)

    def run(phase: Phase) -> int:
        query_ids, item_ids = _batch(step)
        with phase("loss"):
            loss = cw_loss_in_batch(
                queries,
                items,
                places,
                item_ids=item_ids,
                query_ids=query_ids,
                interactions=known,
                process_group=dist.group.WORLD,
                gather_gradients=step.way != "own gradients",
                ring=step.way == "ring",
            )
        with phase("backward"):
            queries.grad = items.grad = None
            loss.backward()
        return 0

    return run

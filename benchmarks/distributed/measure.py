"""What a step on a row-sharded table sends and how long it takes: measured, and for larger tables computed."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from cw_ext import Interactions, cw_loss_from_embeddings, draw_negatives
from examples.row_sharded import RowShardedTable

DIM = 64
ROW_BYTES = 4 * DIM
QUERIES = 10_000
KNOWN_PER_QUERY = 10
SENT = ("sent_ids", "sent_rows", "sent_gradients")


@dataclass(frozen=True)
class Step:
    """Sizes of a step, per process.

    Attributes:
        items: rows of the whole table, I.
        negatives: per row, N.
        shared: whether all rows of a process have the same negatives.
        batch_size: rows, B.
    """

    items: int
    negatives: int
    shared: bool = False
    batch_size: int = 256


MEASURED = (
    *(Step(items, negatives) for items in (10**4, 10**5, 10**6) for negatives in (100, 1000)),
    *(Step(items, 1000, shared=True) for items in (10**4, 10**6)),
)
PREDICTED = tuple(
    (Step(items, negatives, shared, 1024), processes)
    for negatives, shared in ((100, False), (1000, False), (1000, True))
    for items in (10**6, 10**7, 10**8, 10**9)
    for processes in (2, 8, 64)
)


def predict(step: Step, processes: int) -> dict[str, float]:
    """Count what a process sends per step and holds, for uniform negatives and positives.

    Returns:
        distinct_rows: the expected number that a step uses, I·(1 − (1 − 1/I)^draws).
        sent: bytes by kind; a share 1/R of the rows that a process asks for is its own.
        held: bytes of its rows of the table and of Adam's two moments, fp32.
    """
    draws = step.batch_size + step.negatives * (1 if step.shared else step.batch_size)
    missed = draws * math.log1p(-1 / step.items) if step.items > 1 else -math.inf
    distinct = -step.items * math.expm1(missed)
    elsewhere = distinct * (1 - 1 / processes)
    return {
        "distinct_rows": distinct,
        "sent_ids": 8 * elsewhere + 8 * (processes - 1),  # and how many
        "sent_rows": ROW_BYTES * elsewhere,
        "sent_gradients": ROW_BYTES * elsewhere,
        "held": 3 * ROW_BYTES * math.ceil(step.items / processes),
    }


class SentBytes(TorchDispatchMode):
    """Bytes that this process sends to others by all-to-all, by the number of dimensions and the phase."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.total: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.name().startswith("_c10d_functional::all_to_all_single"):
            tensor, _, splits, _ = args
            others = sum(splits) - splits[dist.get_rank()]
            kind = "sent_ids" if tensor.dim() == 1 else "sent_gradients" if self.phase == "backward" else "sent_rows"
            self.total[kind] += others * tensor[:1].numel() * tensor.element_size()
        return op(*args, **(kwargs or {}))


def measure(steps: Sequence[Step] = MEASURED, repeats: int = 5) -> dict[str, Any]:
    """Measure steps in this and all other processes, which must call this with the same arguments.

    A step draws negatives, fetches the rows, computes the loss and its gradients, and has SparseAdam update the table.
    Queries are fixed random vectors: the user side is not measured.

    Args:
        steps: what to measure.
        repeats: steps of each size after an untimed one.

    Returns:
        A JSON-ready dict: the number of processes; per step its sizes, the distinct rows and the bytes sent, means over
        processes and steps, what was predicted, and the median over steps of the slowest process's seconds per phase;
        and predictions for larger tables.
    """
    return {
        "processes": dist.get_world_size(),
        "dim": DIM,
        "repeats": repeats,
        "measured": [_measure(step, repeats) for step in steps],
        "predicted": [{**asdict(s), "processes": r, **predict(s, r)} for s, r in PREDICTED],
    }


def _measure(step: Step, repeats: int) -> dict[str, Any]:
    world = dist.get_world_size()
    torch.manual_seed(dist.get_rank())
    pairs = QUERIES * KNOWN_PER_QUERY
    known = Interactions(
        torch.randint(QUERIES, (pairs,)),
        torch.randint(step.items, (pairs,)),
        num_queries=QUERIES,
        num_items=step.items,
    )
    table = RowShardedTable(step.items, DIM)
    optimizer = torch.optim.SparseAdam([table.weight])
    queries = torch.randn(step.batch_size, DIM, requires_grad=True)
    sent, distinct, seconds = SentBytes(), [], defaultdict(list)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        sent.phase, start = name, time.perf_counter()
        yield
        slowest = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)  # also lets the processes start the next phase together
        seconds[name].append(slowest.item())

    for repeat in range(repeats + 1):
        if repeat == 1:  # the first repeat warms up
            for counts in (sent.total, distinct, seconds):
                counts.clear()
        query_ids, pos_ids = torch.randint(QUERIES, (step.batch_size,)), torch.randint(step.items, (step.batch_size,))
        with sent:
            with phase("draw"):
                neg_ids = draw_negatives(None if step.shared else query_ids, known, step.negatives)
            with phase("fetch"):
                rows, (pos, neg) = table(pos_ids, neg_ids)
            with phase("loss"):
                loss = cw_loss_from_embeddings(queries, rows, pos, neg)
            with phase("backward"):
                optimizer.zero_grad()
                loss.backward()
            with phase("update"):
                optimizer.step()
        distinct.append(len(rows))

    totals = {"distinct_rows": sum(distinct), **{kind: sent.total[kind] for kind in SENT}}
    means = torch.tensor(list(totals.values()), dtype=torch.float64) / (world * repeats)
    dist.all_reduce(means)
    return {
        **asdict(step),
        **dict(zip(totals, means.tolist())),
        "predicted": predict(step, world),
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }

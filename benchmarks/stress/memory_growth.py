"""Whether memory stays flat over thousands of training steps with every form of the loss.

Steps differ as those of a long run do: batches of all sizes, every reduction, dense and sparse gradients, two backward
passes, double backward, losses that are never differentiated, known positives that are made and dropped, and calls that
raise.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import reporting
from cw_ext import (
    Interactions,
    cw_loss,
    cw_loss_from_embeddings,
    cw_loss_full,
    cw_loss_in_batch,
    draw_negatives,
    sampled_cw_loss,
)

QUERIES, ITEMS, DIM = 60, 300, 16
MOST_ROWS, MOST_NEGATIVES = 64, 200
# Samples before this share of the steps are not counted: allocators and caches are still filling.
WARM_UP = 0.3
EVERY = 100

Arguments = dict[str, Any]


class Training:
    """A small model, and steps on it that are drawn from a seed.

    Attributes:
        counts: how often each form of the loss, and each use of it, has occurred.
    """

    def __init__(self, device: str, seed: int = 0) -> None:
        self.device = torch.device(device)
        self.random = random.Random(seed)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.queries, self.items, self.sparse_items = (
            torch.randn(size, DIM, generator=self.generator, device=device).requires_grad_()
            for size in (QUERIES, ITEMS, ITEMS)
        )
        self.optimizers = [
            torch.optim.Adam([self.queries, self.items], lr=1e-3),
            torch.optim.SparseAdam([self.sparse_items], lr=1e-3),
        ]
        self.interactions = self.make_interactions()
        self.counts: dict[str, int] = {}

    def make_interactions(self) -> Interactions:
        pairs = self.random.randint(1, 1000)
        ids = (torch.randint(n, (pairs,), generator=self.generator, device=self.device) for n in (QUERIES, ITEMS - 1))
        return Interactions(*ids, num_queries=QUERIES, num_items=ITEMS, keep_counts=True)

    def step(self) -> None:
        """One step, of a kind that the seed decides."""
        if self.random.random() < 0.05:
            self.interactions = self.make_interactions()
        batch_loss = self.random.choice(BATCH_LOSSES)
        use = self.random.choices(USES, WEIGHTS)[0]
        for name in (batch_loss.__name__, use.__name__):
            self.counts[name] = self.counts.get(name, 0) + 1
        use(self, batch_loss)
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def ids(self, high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=self.generator, device=self.device)

    def update(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


# A function of the training, the item table and further arguments: the loss of a batch.
BatchLoss = Callable[..., Tensor]


def _batch(t: Training) -> tuple[Tensor, Tensor, int]:
    """Ids of queries and of positives, and a number of negatives."""
    rows = t.random.randint(1, MOST_ROWS)
    return t.ids(QUERIES, rows), t.ids(ITEMS, rows), t.random.randint(1, MOST_NEGATIVES)


def _extra(t: Training, rows: int) -> Tensor | None:
    m = t.random.randint(0, 3)
    return t.ids(ITEMS, rows, m) if m else None


def scores(t: Training, items: Tensor, sparse_grad: bool = False, **loss: Any) -> Tensor:
    """From scores, in a view whose rows do not follow one another."""
    query_ids, pos_ids, n = _batch(t)
    queries = t.queries[query_ids]
    rows = queries @ t.items.T / DIM
    return cw_loss(rows.gather(1, pos_ids.unsqueeze(1)).squeeze(1), rows[:, :n], **loss)


def own_ids(t: Training, items: Tensor, **loss: Any) -> Tensor:
    """From embeddings, with ids per row."""
    query_ids, pos_ids, n = _batch(t)
    neg_ids = t.ids(ITEMS, len(pos_ids), n).to(t.random.choice([torch.int32, torch.int64]))
    extra = _extra(t, len(pos_ids))
    return cw_loss_from_embeddings(t.queries[query_ids], items, pos_ids, neg_ids, extra_pos_ids=extra, **loss)


def shared_ids(t: Training, items: Tensor, **loss: Any) -> Tensor:
    """From embeddings, with ids for all rows and log weights."""
    query_ids, pos_ids, n = _batch(t)
    log_q = torch.randn(n, generator=t.generator, device=t.device)
    queries = t.queries[query_ids]
    return cw_loss_from_embeddings(queries, items, pos_ids, t.ids(ITEMS, n), neg_log_weights=log_q, **loss)


def sampled(t: Training, items: Tensor, **loss: Any) -> Tensor:
    """Sampled negatives, in all forms."""
    query_ids, pos_ids, n = _batch(t)
    forms: list[Arguments] = [{}, {"recompute": True}, {"shared": True}, {"distribution": "popularity"}]
    settings = t.random.choice(forms) | {"extra_pos_ids": _extra(t, len(pos_ids))}
    return sampled_cw_loss(t.queries[query_ids], items, query_ids, pos_ids, t.interactions, n, **settings, **loss)


def in_batch(t: Training, items: Tensor, **loss: Any) -> Tensor:
    """The batch's own positives, and some negatives mixed in."""
    query_ids, pos_ids, n = _batch(t)
    more: Arguments = {
        "query_ids": query_ids,
        "interactions": t.interactions,
        "num_negatives": n * t.random.randint(0, 1),
    }
    return cw_loss_in_batch(t.queries[query_ids], items, pos_ids, **more, **loss)


def full(t: Training, items: Tensor, sparse_grad: bool = False, **loss: Any) -> Tensor:
    """All items, whose gradient is always dense."""
    query_ids, pos_ids, _ = _batch(t)
    return cw_loss_full(
        t.queries[query_ids], t.items, pos_ids, query_ids=query_ids, interactions=t.interactions, **loss
    )


BATCH_LOSSES: tuple[BatchLoss, ...] = (scores, own_ids, shared_ids, sampled, in_batch, full)


def plain(t: Training, batch_loss: BatchLoss) -> None:
    batch_loss(t, t.items, prior=0.05).backward()
    t.update()


def per_row(t: Training, batch_loss: BatchLoss) -> None:
    losses = batch_loss(t, t.items, reduction="none", prior=t.random.random() / 2)
    losses.backward(torch.rand(losses.shape, generator=t.generator, device=t.device))
    t.update()


def sparse(t: Training, batch_loss: BatchLoss) -> None:
    batch_loss(t, t.sparse_items, sparse_grad=True).backward()
    t.update()


def twice(t: Training, batch_loss: BatchLoss) -> None:
    loss = batch_loss(t, t.items, reduction="sum")
    loss.backward(retain_graph=True)
    loss.backward()


def double_backward(t: Training, batch_loss: BatchLoss) -> None:
    (gradient,) = torch.autograd.grad(batch_loss(t, t.items, detach_weights=False), t.queries, create_graph=True)
    gradient.square().sum().backward()


def never_differentiated(t: Training, batch_loss: BatchLoss) -> None:
    batch_loss(t, t.items)
    with torch.no_grad():
        batch_loss(t, t.items)


def raises(t: Training, batch_loss: BatchLoss) -> None:
    """Arguments that are refused; ids of no item, which the kernels notice while they run; and a spent graph."""
    _expect(ValueError, lambda: batch_loss(t, t.items, temperature=-1.0))
    if t.device.type == "cpu":  # on a GPU they end the process
        query_ids, pos_ids, n = _batch(t)
        queries, bad = t.queries[query_ids], t.ids(ITEMS, len(pos_ids), n) + ITEMS
        _expect(IndexError, lambda: cw_loss_from_embeddings(queries, t.items, pos_ids, bad))
        _expect(IndexError, lambda: draw_negatives(query_ids + QUERIES, t.interactions, n))
    loss = batch_loss(t, t.items)
    loss.backward()
    _expect(RuntimeError, loss.backward)


USES = (plain, per_row, sparse, twice, double_backward, never_differentiated, raises)
WEIGHTS = (8, 3, 2, 1, 1, 1, 1)


def _expect(error: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"expected {error.__name__}, and the call went through")


def status_bytes(field: str) -> int | None:
    """A size that /proc has of this process, such as "VmRSS"; None on systems without it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{status} has no field {field}")


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                     "keepcost")
    ]  # fmt: skip


def heap_bytes() -> int | None:
    """What the main thread has allocated and not freed, tensors included, and all large allocations; None without
    glibc. Unlike the resident set it does not depend on what the allocator keeps for later."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return int(found.uordblks + found.hblkhd)


def python_blocks() -> int:
    """Small blocks that Python's allocator has given out, without garbage and the cache of method names, which fills
    for a long time."""
    gc.collect()
    if hasattr(sys, "_clear_type_cache"):
        sys._clear_type_cache()
    return sys.getallocatedblocks()


def sample(device: str) -> dict[str, int]:
    """Memory in use, in each way that this system and device can report it."""
    found = {
        "python blocks": python_blocks(),
        "heap bytes": heap_bytes(),
        "resident bytes": status_bytes("VmRSS"),
        "GPU bytes": torch.cuda.memory_allocated() if device == "cuda" else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def slope(places: list[int], values: list[int]) -> float:
    """The least-squares line's rise per place; 0 for fewer than two."""
    if len(places) < 2:
        return 0.0
    x, y = (torch.tensor(of, dtype=torch.float64) for of in (places, values))
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


def measure(steps: int, device: str) -> dict[str, Any]:
    """Run the steps and sample memory.

    Returns:
        A JSON-ready dict: steps, counts of what they were, and per kind of memory, under "memory", the samples
        [step, value], the peak, and by how much a step the line through the samples after the warm-up rises.
    """
    training = Training(device)
    known = training.interactions
    known.popularity(0.75)
    samples: dict[str, array[int]] = {}  # arrays, since a list's numbers would be growth themselves
    for step in range(1, steps + 1):
        training.step()
        if step % EVERY == 0:
            training.interactions = known  # the current ones may be larger or smaller
            for name, value in sample(device).items():
                samples.setdefault(name, array("q")).append(value)
    warm_up = int(WARM_UP * steps)
    memory = {}
    for name, values in samples.items():
        own = [(EVERY * (k + 1), value) for k, value in enumerate(values)]
        counted = [(step, value) for step, value in own if step > warm_up]
        memory[name] = {
            "per_step": slope([step for step, _ in counted], [value for _, value in counted]),
            "first": counted[0][1],
            "last": counted[-1][1],
            "peak": max(value for _, value in own),
            "samples": own,
        }
    return {"steps": steps, "warm_up_steps": warm_up, "counts": training.counts, "memory": memory}


def describe(found: dict[str, Any]) -> str:
    """What was measured, a line per kind of memory."""
    counts = ", ".join(f"{name} {n}" for name, n in sorted(found["counts"].items()))
    lines = [
        [name, f"{own['per_step']:.2f}", str(own["first"]), str(own["last"]), str(own["peak"])]
        for name, own in found["memory"].items()
    ]
    table = reporting.format_table(
        [f"from step {found['warm_up_steps']} on", "per step", "first", "last", "peak"], lines
    )
    return f"{found['steps']} steps: {counts}\n{table}\n"

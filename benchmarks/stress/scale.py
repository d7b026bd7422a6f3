"""Check very large calls against the fp64 reference, and whether memory stays flat over thousands of training steps.

    python -m benchmarks.stress.scale --out DIR

The calls have more than 2^31 pairs of a row and a negative, or a table of more than 2^31 numbers. On the CPU, the
largest inputs (ids, scores, the table) are memory-mapped files, whose pages the system can reclaim. Only what the
kernels allocate has to fit into memory: at most 6 bytes per pair, or as much as the table.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import command, gpu, reporting
from benchmarks.common.arguments import add_out, positive_int
from benchmarks.stress import memory_growth
from cw_ext import (
    Interactions,
    cw_loss,
    cw_loss_from_embeddings,
    negative_sampling,
    reference,
    reference_sampling,
    sampled_cw_loss,
)

# Steps come first: memory that large calls leave in the allocator would look like growth.
PARTS = ("steps", "embeddings", "exact", "scores", "table")
LOSS: dict[str, Any] = {"prior": 0.05, "reduction": "none"}
SEED = 20
NEGATIVES = 8200
DIM = 8
ITEMS = 1000
# Numbers in the large table, beyond what 31 bits count.
TABLE_NUMBERS = 2**31 + 2**24
TABLE_DIM = 64
ROWS_CHECKED = 64
# Pairs for which the fp64 reference holds its intermediates at a time.
CHUNK_PAIRS = 2**20
# How many roundings a result of each dtype may be off by, as in the tests.
ROUNDINGS = {torch.float64: 256, torch.float32: 64, torch.bfloat16: 1}


@dataclass(frozen=True)
class Check:
    """A result against its truth: the largest error over the largest value, and what it may be."""

    what: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Call:
    """A call that was made and checked.

    Attributes:
        shape: sizes by letter.
        pairs: of a row and a negative.
        seconds: forward, and backward where all rows have a gradient.
        peak_bytes: on the CPU the process's resident set, mapped inputs included, on a GPU what torch had allocated.
    """

    name: str
    shape: dict[str, int]
    pairs: int
    seconds: dict[str, float]
    peak_bytes: int | None
    checks: list[Check]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Gradients:
    queries: Tensor
    items: Tensor


@dataclass(frozen=True)
class Outcome:
    """Of one step: losses [B]; gradients from the rows to check alone, and from all."""

    losses: Tensor
    few: Gradients
    all: Gradients
    seconds: dict[str, float]
    peak_bytes: int | None


@dataclass(frozen=True)
class Batch:
    """What calls from embeddings and calls with sampled negatives have in common.

    Attributes:
        weights: [B], the gradients of the rows' losses.
        checked: ids of the rows that are looked at one by one.
    """

    queries: Tensor
    items: Tensor
    query_ids: Tensor
    pos_ids: Tensor
    interactions: Interactions
    weights: Tensor
    checked: Tensor
    negatives: int


def tolerance(dtype: torch.dtype) -> float:
    """Relative to the largest value."""
    return ROUNDINGS[dtype] * torch.finfo(dtype).eps


def compared(what: str, actual: Tensor, expected: Tensor, allowed: float) -> Check:
    """The largest error over the largest value; the largest float where either is not finite."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    return Check(what, error if math.isfinite(error) else sys.float_info.max, allowed)


def rows_to_check(rows: int, negatives: int) -> Tensor:
    """The first rows, the last, those in which an offset of an element or a byte passes 2^31 or 2^32, and others."""
    places = {
        limit // (size * width) + step
        for limit in (2**31, 2**32)
        for size in (1, 2, 4)  # elements; sorted keys and bf16; ids and coefficients
        for width in (negatives, negatives + 1)  # the positive's coefficient is stored with the negatives'
        for step in (-1, 0, 1)
    }
    chosen = {row for row in places | {0, 1, rows - 2, rows - 1} if 0 <= row < rows}
    for row in torch.randperm(rows, generator=torch.Generator().manual_seed(SEED)).tolist():
        if len(chosen) >= min(ROWS_CHECKED, rows):
            break
        chosen.add(row)
    return torch.tensor(sorted(chosen))


def large_input(shape: tuple[int, int], dtype: torch.dtype, device: str, scratch: Path | None) -> Tensor:
    """Zeros to be filled: on the CPU in a mapped file, deleted and still empty."""
    if device != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        file = str(Path(folder) / "input")
        return torch.from_file(file, shared=True, size=math.prod(shape), dtype=dtype).view(shape)


def chunks(rows: int, negatives: int) -> list[slice]:
    size = max(1, CHUNK_PAIRS // negatives)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def make_batch(rows: int, negatives: int, dim: int, items: int, device: str) -> Batch:
    """Queries that lean to one side, so that the gradients of an item's many negatives add up; rows take their query's
    known positives in turn, so that no item is the positive of so many that fp32 loses its negatives beside them."""
    generator = torch.Generator().manual_seed(SEED)
    known_of, queries = 20, 1000
    interactions = Interactions(
        torch.arange(queries).repeat_interleave(known_of),
        torch.randint(items, (queries * known_of,), generator=generator),
        num_queries=queries,
        num_items=items,
    )
    query_ids = torch.arange(rows) % queries
    starts, lengths = interactions.starts[query_ids], interactions.starts.diff()[query_ids]
    pos_ids = interactions.items.long()[starts + torch.arange(rows) // queries % lengths]
    return Batch(
        (torch.randn(rows, dim, generator=generator) + 1).to(device),
        torch.randn(items, dim, generator=generator).to(device),
        query_ids.to(device),
        pos_ids.to(device),
        interactions.to(device),
        (0.5 + torch.rand(rows, generator=generator)).to(device),
        rows_to_check(rows, negatives).to(device),
        negatives,
    )


# --- from embeddings, and with sampled negatives ---


def run(batch: Batch, loss: Callable[[Tensor, Tensor], Tensor]) -> Outcome:
    """One forward pass and two backward passes of a loss of queries and items."""
    device = batch.queries.device.type
    queries, items = (t.clone().requires_grad_() for t in (batch.queries, batch.items))
    few = torch.zeros_like(batch.weights)
    few[batch.checked] = batch.weights[batch.checked]
    start_peak(device)
    clock = Clock(device)
    losses = loss(queries, items)
    forward = clock.lap()
    of_few = Gradients(*torch.autograd.grad(losses, (queries, items), few, retain_graph=True))
    clock.lap()
    of_all = Gradients(*torch.autograd.grad(losses, (queries, items), batch.weights))
    seconds = {"forward": forward, "backward": clock.lap()}
    return Outcome(losses.detach(), of_few, of_all, seconds, peak(device))


def truth_of_few(batch: Batch, neg_ids: Tensor) -> tuple[Tensor, Gradients]:
    """The reference on the rows to check, with their ids as they are."""
    at = batch.checked
    queries, items = batch.queries[at].double().requires_grad_(), batch.items.double().requires_grad_()
    losses = cw_loss_from_embeddings(queries, items, batch.pos_ids[at], neg_ids[at], backend="reference", **LOSS)
    gradients = torch.autograd.grad(losses, (queries, items), batch.weights[at].double())
    return losses.detach(), Gradients(*gradients)


def truth_of_all(batch: Batch, neg_ids: Tensor) -> tuple[Tensor, Gradients]:
    """The reference on all rows, a few at a time, with each item once and the log of how often it occurs as its weight.

    That is the same loss except for N, which then counts distinct items. It takes a tenth of the time.
    """
    items = batch.items.double().requires_grad_()
    unit_items = reference.unit_rows(items, "half_cosine")
    gradient = torch.zeros_like(unit_items)
    # Made beforehand: small results kept between large temporaries would leave holes that no temporary fits into.
    losses, of_queries = torch.zeros_like(batch.weights).double(), torch.zeros_like(batch.queries).double()
    for part in chunks(*neg_ids.shape):
        ids = neg_ids[part].long()
        counts = torch.zeros(len(ids), len(items), dtype=torch.float64, device=ids.device)
        counts.scatter_add_(1, ids, torch.ones_like(ids, dtype=torch.float64))
        queries, table = batch.queries[part].double().requires_grad_(), unit_items.detach().requires_grad_()
        scores = 0.5 * reference.unit_rows(queries, "half_cosine") @ table.T
        pos = scores.gather(1, batch.pos_ids[part].unsqueeze(1)).squeeze(1)
        loss = cw_loss(pos, scores, neg_log_weights=counts.log(), backend="reference", **LOSS)
        found = torch.autograd.grad(loss, (queries, table), batch.weights[part].double())
        of_queries[part] = found[0]
        gradient += found[1]
        losses[part] = loss.detach() + math.log(batch.negatives) - (counts > 0).sum(1).double().log()
    (of_items,) = torch.autograd.grad(unit_items, items, gradient)
    return losses, Gradients(of_queries, of_items)


def checks_of(
    batch: Batch, outcome: Outcome, few: tuple[Tensor, Gradients], whole: tuple[Tensor, Gradients]
) -> list[Check]:
    """A step's results against both truths."""
    at, rows, dtype = batch.checked, len(batch.queries), outcome.losses.dtype
    exact = tolerance(dtype)
    elsewhere = outcome.few.queries.index_fill(0, at, 0).abs().max().item()
    return [
        compared(f"loss, {len(at)} rows", outcome.losses[at], few[0], exact),
        compared(f"gradient of {len(at)} queries", outcome.few.queries[at], few[1].queries, exact),
        compared(f"gradient of the items, from {len(at)} rows", outcome.few.items, few[1].items, exact),
        Check(f"gradient of the other {rows - len(at)} queries, which have none", elsewhere, 0.0),
        compared(f"loss, {rows} rows", outcome.losses, whole[0], exact),
        compared(f"gradient of {rows} queries", outcome.all.queries, whole[1].queries, exact),
        compared(f"gradient of the items, from {rows} rows", outcome.all.items, whole[1].items, exact),
    ]


def wrong_draws(batch: Batch, neg_ids: Tensor) -> Check:
    """How many ids of the rows to check are not the generator's first draws, or are known positives.

    Philox and the choice of an item are computed here again; where the first attempt is rejected any other id will do.
    """
    n, num_items, at = batch.negatives, len(batch.items), batch.checked.unsqueeze(1)
    place = torch.arange(n, device=at.device).expand(len(at), n)
    seed = torch.tensor(SEED, device=at.device)
    zero = torch.zeros_like(place)
    words = torch.stack(reference_sampling.philox(place // 4, zero, at.expand_as(place), zero, seed), -1)
    product = words.gather(2, (place % 4).unsqueeze(2)).squeeze(2) * num_items
    first, fair = product >> 32, (product & 0xFFFFFFFF) >= 2**32 % num_items
    known = reference_sampling.is_known(reference_sampling.history_of(batch.query_ids, batch.interactions), num_items)
    found, row = neg_ids[batch.checked].long(), at.expand_as(place)
    wrong = (fair & ~known(row, first) & (found != first)) | known(row, found)
    return Check(f"ids of {len(at)} rows that were not to be drawn", float(wrong.sum()), 0.0)


def drawn_ids(batch: Batch, device: str, scratch: Path | None) -> Tensor:
    """The negatives that sampled_cw_loss draws, [B, N]."""
    rows, items = len(batch.queries), len(batch.items)
    neg_ids = large_input((rows, batch.negatives), torch.int32, device, scratch)
    draws = negative_sampling.draws_of(batch.query_ids, batch.interactions, batch.negatives, SEED)
    return neg_ids.copy_(negative_sampling.draw(draws, rows, items, fused=True))


def sampled(batch: Batch, **settings: Any) -> Outcome:
    """A step with sampled negatives."""
    ids = (batch.query_ids, batch.pos_ids, batch.interactions, batch.negatives)
    settings = {"seed": SEED, "backend": "fused"} | LOSS | settings
    return run(batch, lambda queries, items: sampled_cw_loss(queries, items, *ids, **settings))


def embedding_calls(rows: int, negatives: int, dim: int, items: int, device: str, scratch: Path | None) -> list[Call]:
    """Sampled negatives, twice, and the same negatives given as ids, so that one truth serves all three."""
    batch = make_batch(rows, negatives, dim, items, device)
    outcomes = {"sampled": sampled(batch), "sampled, recompute": sampled(batch, recompute=True)}
    neg_ids = drawn_ids(batch, device, scratch)
    outcomes["embeddings"] = run(
        batch, lambda q, x: cw_loss_from_embeddings(q, x, batch.pos_ids, neg_ids, backend="fused", **LOSS)
    )
    return checked_calls(batch, outcomes, neg_ids)


def exact_call(rows: int, negatives: int, dim: int, items: int, device: str, scratch: Path | None) -> list[Call]:
    """Sampled negatives in fp64, where sums over the rows are exact enough to show a few misplaced pairs."""
    batch = make_batch(rows, negatives, dim, items, device)
    exact = replace(batch, queries=batch.queries.double(), items=batch.items.double(), weights=batch.weights.double())
    outcomes = {"sampled, recompute, fp64": sampled(exact, recompute=True)}
    return checked_calls(exact, outcomes, drawn_ids(batch, device, scratch))


def checked_calls(batch: Batch, outcomes: dict[str, Outcome], neg_ids: Tensor) -> list[Call]:
    """Steps on the same negatives, against the truth."""
    few, whole = truth_of_few(batch, neg_ids), truth_of_all(batch, neg_ids)
    draws = wrong_draws(batch, neg_ids)
    (rows, negatives), (items, dim) = neg_ids.shape, batch.items.shape
    shape = {"B": rows, "N": negatives, "D": dim, "I": items}
    return [
        Call(name, shape, rows * negatives, outcome.seconds, outcome.peak_bytes,
             [*checks_of(batch, outcome, few, whole), draws])
        for name, outcome in outcomes.items()
    ]  # fmt: skip


# --- from scores ---


def score_call(rows: int, negatives: int, device: str, scratch: Path | None) -> Call:
    """From scores in bf16: some rows against the reference, and an identity that holds in all rows."""
    generator = torch.Generator(device).manual_seed(SEED)
    neg = large_input((rows, negatives), torch.bfloat16, device, scratch)
    for part in chunks(rows, negatives):
        neg[part].uniform_(-0.5, 0.5, generator=generator)
    pos = (torch.rand(rows, generator=generator, device=device) - 0.5).bfloat16().requires_grad_()
    neg.requires_grad_()
    at = rows_to_check(rows, negatives).to(device)

    start_peak(device)
    clock = Clock(device)
    losses = cw_loss(pos, neg, backend="fused", **LOSS)
    forward = clock.lap()
    d_pos, d_neg = torch.autograd.grad(losses.sum(), (pos, neg))
    seconds = {"forward": forward, "backward": clock.lap()}
    most = peak(device)

    pos_alone, neg_alone = (t.detach()[at].double().requires_grad_() for t in (pos, neg))
    truth = cw_loss(pos_alone, neg_alone, backend="reference", **LOSS)
    d_pos_alone, d_neg_alone = torch.autograd.grad(truth.sum(), (pos_alone, neg_alone))
    # A row's loss depends on differences of its scores alone.
    sums = torch.empty(rows, dtype=torch.float64, device=device)
    for part in chunks(rows, negatives):
        sums[part] = d_neg[part].double().sum(1)
    half = tolerance(torch.bfloat16)
    checks = [
        compared(f"loss, {len(at)} rows", losses[at], truth, tolerance(torch.float32)),
        compared(f"gradient of {len(at)} positives", d_pos[at], d_pos_alone, half),
        compared(f"gradient of {len(at)} rows of negatives", d_neg[at], d_neg_alone, half),
        compared(f"sum of a row's gradients, {rows} rows", sums, -d_pos, half),
    ]
    return Call("scores, bf16", {"B": rows, "N": negatives}, rows * negatives, seconds, most, checks)


# --- a large table ---


def table_call(numbers: int, dim: int, device: str, scratch: Path | None) -> Call:
    """From embeddings, with a table of more than 2³¹ numbers; a batch uses rows at both ends and between."""
    items, rows, n = -(-numbers // dim), 64, 100
    generator = torch.Generator().manual_seed(SEED)
    bounds = torch.tensor([min(limit // (size * dim), items - 1) for limit in (2**31, 2**32) for size in (1, 2, 4)])
    named = torch.cat(
        [bounds, bounds - 1, torch.tensor([0, items - 1]), torch.randint(items, (50,), generator=generator)]
    )
    named = named.clamp(min=0).unique()
    table = large_input((items, dim), torch.float32, device, scratch)
    table[named.to(device)] = torch.randn(len(named), dim, generator=generator).to(device)
    places = torch.randint(len(named), (rows, 1 + n), generator=generator)
    places[0, : 1 + min(n, len(named))] = torch.arange(1 + n)[: 1 + min(n, len(named))] % len(named)  # each occurs
    queries = torch.randn(rows, dim, generator=generator)

    ids = named[places].to(device)
    there, table = queries.to(device).requires_grad_(), table.requires_grad_()
    start_peak(device)
    clock = Clock(device)
    losses = cw_loss_from_embeddings(there, table, ids[:, 0], ids[:, 1:], backend="fused", **LOSS)
    forward = clock.lap()
    d_queries, d_table = torch.autograd.grad(losses.sum(), (there, table))
    seconds = {"forward": forward, "backward": clock.lap()}
    most = peak(device)

    small = table.detach()[named.to(device)].cpu().double().requires_grad_()
    alone = queries.double().requires_grad_()
    truth = cw_loss_from_embeddings(alone, small, places[:, 0], places[:, 1:], backend="reference", **LOSS)
    d_alone, d_small = torch.autograd.grad(truth.sum(), (alone, small))
    exact = tolerance(torch.float32)
    found = d_table[named.to(device)]
    d_table[named.to(device)] = 0
    elsewhere = max(part.abs().max().item() for part in d_table.split(2**18))
    checks = [
        compared("loss", losses, truth, exact),
        compared("gradient of the queries", d_queries, d_alone, exact),
        compared(f"gradient of the {len(named)} items named", found, d_small, exact),
        Check(f"gradient of the other {items - len(named)} items, which have none", elsewhere, 0.0),
    ]
    return Call("embeddings, large table", {"B": rows, "N": n, "D": dim, "I": items}, rows * n, seconds, most, checks)


# --- time and memory ---


class Clock:
    """Seconds from lap to lap, including the device's pending work."""

    def __init__(self, device: str) -> None:
        self.device = device
        gpu.synchronize(device)
        self.last = time.perf_counter()

    def lap(self) -> float:
        gpu.synchronize(self.device)
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds


def start_peak(device: str) -> None:
    """Forget the peak so far."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # where that is not allowed, the peak also covers what came before
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int | None:
    """Bytes at the peak since then; None on systems without /proc."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return memory_growth.status_bytes("VmHWM")


# --- the command line ---


def describe(call: Call) -> str:
    """A call as text: its figures, and a table of its checks."""
    shape = " ".join(f"{letter}={size}" for letter, size in call.shape.items())
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in call.seconds.items())
    most = "" if call.peak_bytes is None else f", peak {call.peak_bytes / 2**30:.2f} GiB"
    lines = [[c.what, f"{c.error:.1e}", f"{c.tolerance:.1e}", "yes" if c.passed else "NO"] for c in call.checks]
    table = reporting.format_table(["checked", "error", "tolerance", "within"], lines)
    return f"{call.name}: {shape}, {call.pairs} pairs; {seconds}{most}\n{table}\n"


def as_json(call: Call) -> dict[str, Any]:
    return asdict(call) | {"passed": call.passed}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 1 where a check failed."""
    parser = command.make_parser(
        "python -m benchmarks.stress.scale",
        __doc__,
        "bad arguments, or an error",
        "the parts that finished are written",
        "1 a check failed",
    )
    add_out(parser)
    parser.add_argument("--device", choices=gpu.DEVICES, default="cpu", help="device to run on")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to run (default: all)")
    parser.add_argument("--pairs", type=positive_int, default=2_200_000_000, metavar="P", help="pairs in a call, B·N")
    parser.add_argument("--negatives", type=positive_int, default=NEGATIVES, metavar="N", help="negatives per row")
    parser.add_argument(
        "--table", type=positive_int, default=TABLE_NUMBERS, metavar="I*D", help="numbers in the large table"
    )
    parser.add_argument("--steps", type=positive_int, default=10_000, metavar="S", help="training steps")
    parser.add_argument(
        "--scratch",
        type=Path,
        metavar="DIR",
        help="folder for the memory-mapped inputs (default: the system's temporary folder)",
    )
    arguments = parser.parse_args(argv)
    out = arguments.out or reporting.default_directory("scale")
    return command.run(lambda: run_parts(arguments, out), f"the parts that finished are in {out}")


def run_parts(arguments: argparse.Namespace, out: Path) -> int:
    """Run the chosen parts one after the other; 1 where a check failed, else 0."""
    gpu.require(arguments.device)
    reporting.make_writable_directory(out)
    passed = [run_part(part, arguments, out) for part in PARTS if part in arguments.parts]
    reporting.print_results(*(out / f"{part}.json" for part in PARTS if part in arguments.parts))
    return 0 if all(passed) else 1


def run_part(part: str, arguments: argparse.Namespace, out: Path) -> bool:
    """Run one part, print it and write its file; whether its checks passed."""
    device, scratch = arguments.device, arguments.scratch
    size = (-(-arguments.pairs // arguments.negatives), arguments.negatives)
    environment = reporting.environment(device)
    calls: list[Call] = []
    match part:
        case "steps":
            found = memory_growth.measure(arguments.steps, device)
            print(memory_growth.describe(found), flush=True)
            reporting.write_json(out / "steps.json", {"environment": environment, **found})
            return True
        case "embeddings":
            calls = embedding_calls(*size, DIM, ITEMS, device, scratch)
        case "exact":
            calls = exact_call(*size, DIM, ITEMS, device, scratch)
        case "scores":
            calls = [score_call(*size, device, scratch)]
        case _:
            calls = [table_call(arguments.table, TABLE_DIM, device, scratch)]
    for call in calls:
        print(describe(call), flush=True)
    reporting.write_json(out / f"{part}.json", {"environment": environment, "calls": [as_json(call) for call in calls]})
    return all(call.passed for call in calls)


if __name__ == "__main__":
    sys.exit(main())

"""Measures arrangements of processes on one training set, each in fresh processes, in turns."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import command, reporting
from benchmarks.common.timing import quantiles
from benchmarks.scaling.steps import WAYS, Sizes

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Arrangement:
    """How a batch is computed.

    Attributes:
        processes: that share the batch.
        threads: of each process.
        batches: the batch in multiples of the usual one.
    """

    processes: int
    threads: int
    batches: int = 1


ARRANGEMENTS = {
    "1 process, 1 thread": Arrangement(1, 1),
    "1 process, 2 threads": Arrangement(1, 2),
    "2 processes": Arrangement(2, 1),
    "1 process, 2 threads, twice the batch": Arrangement(1, 2, 2),
    "2 processes, twice the batch": Arrangement(2, 1, 2),
}


def measure(
    users: Tensor, items: Tensor, batch_size: int, sizes: Sizes, steps: int, rounds: int, ways: Sequence[str] = (*WAYS,)
) -> dict[str, Any]:
    """Measure all ways in all arrangements. In each round each runs once, in random order.

    Args:
        users, items: training pairs, each int64 [P], of which an epoch takes each once; a last part of a batch is
            left out.
        batch_size: the usual batch, even.
        sizes: of the model.
        steps: how many steps of the epoch are timed, after some that are not.
        rounds: how often each contestant is started.
        ways: keys of :data:`benchmarks.scaling.steps.WAYS`.

    Returns:
        A JSON-ready dict: by way and arrangement the quantiles, over the rounds, of a mean step's seconds, the steps
        and (by the median) seconds of an epoch, and the losses of the steps, the same for all that have the same batch.
    """
    contestants = [(way, name) for way in ways for name in ARRANGEMENTS]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {contestant: [] for contestant in contestants}
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.pt"
        torch.save((users, items), pairs)
        turns = [turn for _ in range(rounds) for turn in order.sample(contestants, len(contestants))]
        for way, name in command.progress(turns, unit="run"):
            how = ARRANGEMENTS[name]
            found[way, name].append(_run(pairs, way, how, batch_size * how.batches, sizes, steps))
    results: dict[str, dict[str, Any]] = {way: {} for way in ways}
    for (way, name), runs in found.items():
        epoch_steps = len(users) // (batch_size * ARRANGEMENTS[name].batches)
        step = quantiles([mean(run["seconds"]) for run in runs])
        results[way][name] = {
            **asdict(ARRANGEMENTS[name]),
            "step_seconds": step,
            "epoch_steps": epoch_steps,
            "epoch_seconds": epoch_steps * step["median"],
            "losses": runs[0]["losses"],
        }
    return {"batch_size": batch_size, **asdict(sizes), "steps": steps, "rounds": rounds, "ways": results}


def _run(pairs: Path, way: str, how: Arrangement, batch_size: int, sizes: Sizes, steps: int) -> dict[str, Any]:
    """What the first process of a contestant writes."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(how.processes), "-m"]
    arguments = [str(pairs), way, *map(str, (batch_size, steps, sizes.dim, sizes.negatives))]
    done = subprocess.run(
        [sys.executable, "-m", *(launcher if how.processes > 1 else []), "benchmarks.scaling.worker", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(how.threads)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        raise RuntimeError(f"{way}, {how}: expected the processes to succeed, got exit status {done.returncode}")
    report: dict[str, Any] = json.loads(pairs.with_name("report.json").read_text(encoding="utf-8"))
    return report


def describe(report: dict[str, Any]) -> str:
    """The report as a table."""
    rows = []
    for way, arrangements in report["ways"].items():
        base = arrangements["1 process, 1 thread"]["epoch_seconds"]
        for name, found in arrangements.items():
            low, middle, high = (f"{1e3 * found['step_seconds'][q]:.2f}" for q in ("q20", "median", "q80"))
            epoch = found["epoch_seconds"]
            rows.append([way, name, middle, f"{low}-{high}", f"{epoch:.1f}", f"{base / epoch:.2f}"])
    return reporting.format_table(["way", "", "ms a step", "20-80 %", "s an epoch", "speed-up"], rows)

"""Measures the steps with one table: peak memory in a fresh process each, then time in turns in one process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import memory, timing
from benchmarks.growth.contestants import Sizes, make_inputs, make_step, needed_bytes

GIB = 2**30
# For the rounds of each contestant with one table. Slow steps exceed it, to reach 5 rounds.
BUDGET_SECONDS = 15.0
# Loads what a step needs, and leaves no memory behind for it.
WARM_UP = Sizes(items=50, rows=4, negatives=4, dim=8, known=2)


def available_bytes() -> int | None:
    """Return how much memory the system can still give, or None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def measure(sizes: Sizes, names: Sequence[str], rounds: int) -> dict[str, Any]:
    """Measure the contestants that the memory is enough for.

    Returns:
        A JSON-ready dict: the number of items and the table's bytes; per contestant the seconds of a step, the number
        of samples and the peak memory beside the table; per contestant left out the reason.
    """
    left_out = {}
    for name in names:
        needed, available = needed_bytes(name, sizes), available_bytes()
        if available is not None and needed > available:
            left_out[name] = f"would need {needed / GIB:.1f} GiB, of which {available / GIB:.1f} are available"
    measured = [name for name in names if name not in left_out]
    costs: dict[str, dict[str, Any]] = {}
    for name in measured:  # first, as long as this process holds no table
        peak = memory.peak_extra_bytes(partial(make_step, name, WARM_UP), partial(make_step, name, sizes))
        costs[name] = {"peak_extra_bytes": peak}
    for name, cost in _time(sizes, measured, rounds).items():
        costs[name] |= cost
    return {"items": sizes.items, "table_bytes": sizes.table_bytes, "contestants": costs, "left_out": left_out}


def _time(sizes: Sizes, names: Sequence[str], rounds: int) -> dict[str, dict[str, Any]]:
    if not names:
        return {}
    inputs = make_inputs(sizes)
    steps = {name: make_step(name, sizes, inputs) for name in names}
    plans = {}
    for name, step in steps.items():
        step()
        plans[name] = timing.plan(timing.estimate(step, _nothing), rounds, BUDGET_SECONDS)
    samples = timing.alternate(steps, plans, _nothing)
    return {name: {"seconds": timing.quantiles(samples[name]), "rounds": plans[name].rounds} for name in names}


def _nothing() -> None:
    """The CPU has nothing to wait for."""

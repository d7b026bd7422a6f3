"""Two steps in turns, compared by the time that they take: the processor's or the clock's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.step_ratios.inputs import Step

# Seconds that a step takes, the mean of so many runs.
Clock = Callable[[int], float]
# The processor's time adds up that of all threads, and other work disturbs it less.
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}
# Of a sample; runs of the step fill it.
SAMPLE_SECONDS = 0.02


def clock(step: Step, now: Callable[[], float] = time.process_time) -> Clock:
    """Return what times a step in this process by now(), after a run that is not counted."""

    def seconds(repetitions: int) -> float:
        step()  # frees what the other step has left, and fills the caches
        start = now()
        for _ in range(repetitions):
            step()
        return (now() - start) / repetitions

    return seconds


def compare(first: Clock, second: Clock, rounds: int) -> dict[str, Any]:
    """Time two steps in turns and :func:`summarize` the samples."""
    return summarize(*alternate(first, second, rounds))


def alternate(first: Clock, second: Clock, rounds: int) -> tuple[list[float], list[float]]:
    """Time two steps in turns, of which each begins every other round.

    Args:
        first: the step to compare.
        second: what it is compared with.
        rounds: samples of each.

    Returns:
        The samples of both, in seconds.
    """
    repetitions = {}
    for step in (first, second):
        step(1)
        repetitions[step] = max(1, math.ceil(SAMPLE_SECONDS / max(step(1), 1e-9)))
    samples: dict[Clock, list[float]] = {first: [], second: []}
    for round_ in range(rounds):
        for step in (first, second) if round_ % 2 else (second, first):
            samples[step].append(step(repetitions[step]))
    return samples[first], samples[second]


def summarize(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Return, JSON-ready, the rounds' ratios first/second and the steps' times.

    Returns:
        ``"ratio"`` with its quartiles ``"q25"``, ``"median"`` and ``"q75"``, and the median ``"seconds"`` of both.
    """
    quartiles = np.quantile(np.divide(first, second), (0.25, 0.5, 0.75)).tolist()
    return {
        "ratio": dict(zip(("q25", "median", "q75"), quartiles, strict=True)),
        "seconds": [float(np.median(first)), float(np.median(second))],
    }

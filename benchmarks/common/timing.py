"""Time steps that take turns in one process, and return quantiles."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Step = Callable[[], object]

LEAST_ROUNDS = 5
# Steps shorter than this run once before each sample.
WARM_UP_SECONDS = 0.1


@dataclass(frozen=True)
class Limits:
    """How long samples must be on a device.

    Attributes:
        sample_seconds: the least length of a sample, so that reading the clock does not matter: on the CPU its
            resolution, on a GPU also the wait for the device, some 10 µs in which nothing is launched.
        slow_step_seconds: steps longer than this get fewer rounds.
    """

    sample_seconds: float
    slow_step_seconds: float


LIMITS = {"cpu": Limits(1e-3, 0.3), "cuda": Limits(1e-2, 0.02)}


@dataclass(frozen=True)
class Plan:
    """How one step is timed.

    Attributes:
        rounds: samples to take.
        repetitions: runs of the step in a sample.
        warm_up: whether the step runs once, untimed, before each sample. Memory that the step before it has freed goes
            back to the system when the next step frees something, which takes longer than a short step.
    """

    rounds: int
    repetitions: int
    warm_up: bool = False


def plan(step_seconds: float, rounds: int, budget_seconds: float, limits: Limits = LIMITS["cpu"]) -> Plan:
    """Choose the number of samples of a step, given about how long it takes.

    Slow steps get as many rounds as the budget allows, but at least 5 (or `rounds`, where that is less).
    """
    repetitions = max(1, math.ceil(limits.sample_seconds / max(step_seconds, 1e-9)))
    if step_seconds > limits.slow_step_seconds:
        rounds = min(rounds, max(LEAST_ROUNDS, int(budget_seconds / step_seconds)))
    return Plan(rounds, repetitions, warm_up=step_seconds < WARM_UP_SECONDS)


def alternate(
    steps: Mapping[str, Step], plans: Mapping[str, Plan], synchronize: Callable[[], None]
) -> dict[str, list[float]]:
    """Time the steps in turns, so that a disturbance of the machine affects all of them.

    A step with fewer rounds than others skips some, evenly. The order within a round is random, since the step before
    decides what is in the caches.

    Args:
        steps: by name; each has run before.
        plans: by the same names.
        synchronize: waits for the device; called before the clock is read.

    Returns:
        Seconds per run of each step, one number per sample.
    """
    order = random.Random(0)
    total = max((p.rounds for p in plans.values()), default=0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(total):
        names = [name for name, p in plans.items() if (round_ + 1) * p.rounds // total > round_ * p.rounds // total]
        order.shuffle(names)
        for name in names:
            repetitions = plans[name].repetitions
            if plans[name].warm_up:
                steps[name]()
            seconds[name].append(seconds_of(steps[name], synchronize, repetitions) / repetitions)
    return seconds


def seconds_of(step: Step, synchronize: Callable[[], None], repetitions: int = 1) -> float:
    """Return how long the repetitions take together."""
    synchronize()
    start = time.perf_counter()
    for _ in range(repetitions):
        step()
    synchronize()
    return time.perf_counter() - start


def estimate(step: Step, synchronize: Callable[[], None], limits: Limits = LIMITS["cpu"]) -> float:
    """Return about how long a step takes among others, from a first sample of sufficient length."""
    repetitions = 1
    while (seconds := seconds_of(step, synchronize, repetitions)) < limits.sample_seconds:
        repetitions *= 2
    return seconds / repetitions


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """Return the median and the 20 % and 80 % quantiles."""
    values = torch.quantile(
        torch.tensor(samples, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    )
    return dict(zip(("q20", "median", "q80"), values.tolist(), strict=True))

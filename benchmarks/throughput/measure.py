"""Measures one shape of the throughput benchmark: checks every contestant, and measures its time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.common import gpu, memory, timing
from benchmarks.throughput import contestants, report
from benchmarks.throughput.contestants import Step
from benchmarks.throughput.inputs import Inputs
from benchmarks.throughput.shapes import Shape

# For all rounds of one shape. Slow steps exceed it, to reach 5 rounds.
BUDGET_SECONDS = {"cpu": 20.0, "cuda": 4.0}


def measure_shape(
    shape: Shape, names: Sequence[str], device: str = "cpu", rounds: int = 30, with_memory: bool = True
) -> dict[str, Any]:
    """Check all contestants on one shape, and measure their time and memory.

    Contestants that run out of the GPU's memory in their first run are left out, and all of them where it happens
    elsewhere; so are optional ones (:data:`contestants.OPTIONAL`) that cannot run here, and those with wrong results.

    Args:
        shape: sizes of the step.
        names: contestants; those that do not exist for this shape and device are skipped.
        device: "cpu" or "cuda".
        rounds: samples of each contestant, fewer for slow ones.
        with_memory: whether to measure peak memory as well.

    Returns:
        A JSON-ready dict: the shape; per contestant the seconds per step and what :func:`report.add_derived` derives
        from them; per contestant left out the reason; and a line on each wrong result.
    """
    try:
        outcome = _check(shape, names, device)
        _measure(shape, outcome, device, rounds, with_memory)
    except torch.OutOfMemoryError as error:
        outcome = _Outcome(left_out={"everyone": describe_error(error)})
    report.add_derived(shape, outcome.costs)
    return {
        "shape": asdict(shape),
        "table": shape.table,
        "label": shape.label,
        "contestants": outcome.costs,
        "left_out": outcome.left_out,
        "wrong": outcome.wrong,
    }


def measure_scaling(shape: Shape, rounds: int = 30) -> dict[str, Any]:
    """Time cw_ext on the CPU with one thread and with all that torch has, in turns.

    Returns:
        A JSON-ready dict: the shape, seconds per step by number of threads, and the factor between the medians.
    """
    threads = torch.get_num_threads()
    synchronize = partial(gpu.synchronize, "cpu")
    step = contestants.make_step("cw_ext", shape, contestants.make_inputs(shape))

    def step_with(count: int) -> None:
        torch.set_num_threads(count)
        step()

    try:
        steps = {str(count): partial(step_with, count) for count in (1, threads)}
        plans = {}
        for count, counted_step in steps.items():
            counted_step()
            seconds = timing.estimate(counted_step, synchronize)
            plans[count] = timing.plan(seconds, rounds, BUDGET_SECONDS["cpu"] / 2)
        samples = timing.alternate(steps, plans, synchronize)
    finally:
        torch.set_num_threads(threads)
    seconds = {count: timing.quantiles(values) for count, values in samples.items()}
    factor = seconds["1"]["median"] / seconds[str(threads)]["median"]
    described = {"shape": asdict(shape), "table": shape.table, "label": shape.label}
    return {**described, "threads": threads, "seconds": seconds, "factor": factor}


def describe_error(error: BaseException) -> str:
    """Return the error's type and the first line of its message."""
    message = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {message[0]}"


@dataclass
class _Outcome:
    """The results of a shape's contestants: steps and costs, why some were left out, and wrong results."""

    steps: dict[str, Step] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def _check(shape: Shape, names: Sequence[str], device: str) -> _Outcome:
    """Run each contestant once and check what it computes."""
    torch.compiler.reset()  # what was compiled for earlier shapes counts against a limit, and holds memory
    _empty_cache(device)
    synchronize = partial(gpu.synchronize, device)
    inputs = contestants.make_inputs(shape, device)
    expected = contestants.exact_results(shape, inputs)
    outcome = _Outcome()
    for name in contestants.contestants_of(shape, names, device):
        try:
            own = contestants.draws_itself(name, shape)
            truth = contestants.exact_results(shape, inputs, name) if own else expected
            outcome.steps[name], seconds = _first_run(name, shape, inputs, truth, synchronize)
        except contestants.WrongResult as error:
            outcome.left_out[name] = "wrong result"
            outcome.wrong.append(str(error))
        except torch.OutOfMemoryError as error:
            outcome.left_out[name] = describe_error(error)
        except Exception as error:
            if name not in contestants.OPTIONAL:
                raise
            outcome.left_out[name] = describe_error(error)
        else:
            outcome.costs[name] = {"compile_seconds": seconds} if name == "compile" else {}
        if name in outcome.left_out:
            _empty_cache(device)
    return outcome


def _measure(shape: Shape, outcome: _Outcome, device: str, rounds: int, with_memory: bool) -> None:
    """Add to the costs the seconds of each step and its peak memory."""
    steps, costs = outcome.steps, outcome.costs
    synchronize = partial(gpu.synchronize, device)
    limits = timing.LIMITS[device]
    plans = {}
    for name, step in steps.items():
        seconds = timing.estimate(step, synchronize, limits)
        plans[name] = timing.plan(seconds, rounds, BUDGET_SECONDS[device] / len(steps), limits)
    for name, samples in timing.alternate(steps, plans, synchronize).items():
        costs[name] |= {"seconds": timing.quantiles(samples), **asdict(plans[name]), "peak_extra_bytes": None}
    if with_memory:
        # A graph allocates its memory before it runs.
        for name in (name for name in steps if name not in ("floor", "graph")):
            costs[name]["peak_extra_bytes"] = _peak_extra_bytes(name, shape, device, steps[name])


def _first_run(
    name: str, shape: Shape, inputs: Inputs, expected: Sequence[torch.Tensor], synchronize: Callable[[], None]
) -> tuple[Step, float]:
    """Make the contestant's step and check its first run; return it and the seconds of both."""
    start = time.perf_counter()
    step = contestants.make_step(name, shape, inputs)
    found = step()
    synchronize()
    seconds = time.perf_counter() - start
    if name != "floor":
        contestants.check(name, shape, found, expected)
    return step, seconds


def _empty_cache(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()


def _peak_extra_bytes(name: str, shape: Shape, device: str, step: Step) -> int | None:
    if device == "cuda":
        return memory.peak_extra_bytes_cuda(step)
    return memory.peak_extra_bytes(
        partial(contestants.make_tiny_step, name, shape), partial(contestants.make_fresh_step, name, shape)
    )

"""Throughput of one training step of the CW loss: cw_ext against what PyTorch offers without it, and a yardstick.

A step is forward and backward with the loss's defaults, gradients of all inputs included; sampling and optimizer are
not. The contestants, described in benchmarks/contestants.py, take turns in one process after each has been checked to
compute the same loss and gradients. Slow ones get fewer turns. Compiling is timed apart, without a cache from earlier
runs. On the CPU peak memory is that of a fresh process per contestant, beyond the inputs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import contestants, memory, reporting, throughput_plots, throughput_report, timing
from benchmarks.arguments import positive_int
from benchmarks.contestants import CONTESTANTS
from benchmarks.throughput_shapes import FULL, FULL_SCALING, QUICK, QUICK_SCALING, Shape

# For the rounds of one shape. Steps of a second and more go beyond it, for the sake of 5 rounds.
BUDGET_SECONDS = 20.0


def measure_shape(
    shape: Shape, names: Sequence[str], device: str = "cpu", rounds: int = 30, with_memory: bool = True
) -> dict[str, Any]:
    """Check, time and weigh all contestants on one shape.

    Args:
        shape: sizes of the step.
        names: contestants; those that do not exist for this shape are passed over.
        device: "cpu" or "cuda".
        rounds: samples of each contestant, fewer for slow ones.
        with_memory: whether to measure peak memory as well.

    Returns:
        A JSON-ready dict: the shape; per contestant the seconds per step and what :func:`throughput_report.derived`
        makes of them; and per contestant left out the reason.

    Raises:
        ValueError: a contestant computes something else; names it and the shape.
    """
    synchronize = _synchronize(device)
    torch.compiler.reset()  # what was compiled for earlier shapes counts against a limit, and holds memory
    inputs = contestants.make_inputs(shape, device)
    expected = contestants.exact_results(shape, inputs)
    steps: dict[str, contestants.Step] = {}
    costs: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for name in contestants.contestants_of(shape, names):
        step = contestants.make_step(name, shape, inputs)
        start = time.perf_counter()
        try:
            found = step()
        except Exception as error:
            if name != "compile":
                raise
            message = str(error).strip().splitlines() or [""]
            left_out[name] = f"{type(error).__name__}: {message[0]}"
            continue
        synchronize()
        costs[name] = {"compile_seconds": time.perf_counter() - start} if name == "compile" else {}
        if name != "floor":
            contestants.check(name, shape, found, expected)
        steps[name] = step
        del found
    del expected

    plans = {
        name: timing.plan(timing.seconds_of(step, synchronize), rounds, BUDGET_SECONDS / len(steps))
        for name, step in steps.items()
    }
    for name, samples in timing.alternate(steps, plans, synchronize).items():
        costs[name] |= {"seconds": timing.quantiles(samples), **asdict(plans[name]), "peak_extra_bytes": None}
    if with_memory:
        for name in (name for name in steps if name != "floor"):
            costs[name]["peak_extra_bytes"] = _peak_extra_bytes(name, shape, device, steps[name])
    throughput_report.add_derived(shape, costs)
    return {"shape": asdict(shape), "label": shape.label, "contestants": costs, "left_out": left_out}


def measure_scaling(shape: Shape, rounds: int = 30) -> dict[str, Any]:
    """Time cw_ext on the CPU with one thread and with all that torch has, in turns.

    Returns:
        A JSON-ready dict: the shape, seconds per step by number of threads, and the factor between the medians.
    """
    threads = torch.get_num_threads()
    step = contestants.make_step("cw_ext", shape, contestants.make_inputs(shape))

    def step_with(count: int) -> None:
        torch.set_num_threads(count)
        step()

    try:
        steps = {str(count): partial(step_with, count) for count in (1, threads)}
        plans = {}
        for count, counted_step in steps.items():
            counted_step()
            seconds = timing.seconds_of(counted_step, _synchronize("cpu"))
            plans[count] = timing.plan(seconds, rounds, BUDGET_SECONDS / 2)
        samples = timing.alternate(steps, plans, _synchronize("cpu"))
    finally:
        torch.set_num_threads(threads)
    seconds = {count: timing.quantiles(values) for count, values in samples.items()}
    factor = seconds["1"]["median"] / seconds[str(threads)]["median"]
    return {"shape": asdict(shape), "label": shape.label, "threads": threads, "seconds": seconds, "factor": factor}


def run(
    shapes: Sequence[Shape],
    scaling_shapes: Sequence[Shape],
    settings: dict[str, Any],
    out: Path,
) -> tuple[dict[str, Any], bool]:
    """Measure all shapes, writing throughput.json after each.

    Args:
        shapes: for :func:`measure_shape`.
        scaling_shapes: for :func:`measure_scaling`.
        settings: keyword arguments of :func:`measure_shape`.
        out: an existing directory.

    Returns:
        The report, and whether Ctrl-C ended it early.
    """
    report: dict[str, Any] = {
        "environment": reporting.environment(),
        "settings": settings,
        "shapes": [],
        "scaling": [],
    }
    if settings["device"] == "cuda":
        report["environment"]["gpu"] = torch.cuda.get_device_name()
    jobs: list[tuple[str, Shape, Callable[[Shape], dict[str, Any]]]] = [
        *(("shapes", shape, partial(measure_shape, **settings)) for shape in shapes),
        *(("scaling", shape, partial(measure_scaling, rounds=settings["rounds"])) for shape in scaling_shapes),
    ]
    with tqdm(jobs, unit="shape") as progress, _fresh_compiler_cache():
        try:
            for section, shape, measure in progress:
                progress.set_description(f"level {shape.level}, {shape.label}")
                report[section].append(measure(shape))
                reporting.write_json(out / "throughput.json", report)
        except KeyboardInterrupt:
            return report, True
    return report, False


def _synchronize(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def _peak_extra_bytes(name: str, shape: Shape, device: str, step: contestants.Step) -> int | None:
    if device == "cuda":
        return memory.peak_extra_bytes_cuda(step)
    return memory.peak_extra_bytes(
        partial(contestants.make_tiny_step, name, shape), partial(contestants.make_fresh_step, name, shape)
    )


@contextmanager
def _fresh_compiler_cache() -> Iterator[None]:
    """Let torch.compile start from nothing, as the first run of a user's program does."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        os.environ[variable] = directory
        try:
            yield
        finally:
            if before is None:
                del os.environ[variable]
            else:
                os.environ[variable] = before


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few small shapes, in under a minute")
    parser.add_argument(
        "--level", type=int, nargs="+", choices=(1, 2), default=[1, 2], help="1: scores, 2: embeddings (default: both)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: %(default)s)")
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=30,
        help="samples of each contestant but slow ones (default: %(default)s)",
    )
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        default=list(CONTESTANTS),
        help="whom to measure (default: all)",
    )
    parser.add_argument("--threads", type=positive_int, help="of torch, in place of its own choice")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where results go (default: benchmarks/results/throughput-DEVICE; with --quick a new folder under runs/)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    names = [name for name in CONTESTANTS if name in arguments.contestants]
    full, scaling = (QUICK, QUICK_SCALING) if arguments.quick else (FULL, FULL_SCALING)
    shapes = [shape for shape in full if shape.level in arguments.level and contestants.contestants_of(shape, names)]
    if not shapes:
        parser.error("argument --contestants: tuned and checkpoint are for level 2 only")
    kept = Path(os.path.relpath(Path(__file__).parent)) / "results" / f"throughput-{arguments.device}"
    out = arguments.out or (reporting.default_directory("throughput") if arguments.quick else kept)
    settings = {
        "names": names,
        "device": arguments.device,
        "rounds": arguments.rounds,
        "with_memory": not arguments.no_memory,
    }
    try:
        if arguments.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device cuda: expected a GPU that torch can use, got none (torch {torch.__version__})")
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        scales = arguments.device == "cpu" and torch.get_num_threads() > 1 and "cw_ext" in names
        reporting.make_writable_directory(out)
        report, interrupted = run(
            shapes, [shape for shape in scaling if scales and shape.level in arguments.level], settings, out
        )
        pictures = throughput_plots.plot(report, out)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; what was finished is in {out}", file=sys.stderr)
        return reporting.INTERRUPTED

    if report["shapes"]:
        print(f"\n{throughput_report.describe(report)}")
        print(f"\nresults: {', '.join(str(path) for path in [out / 'throughput.json', *pictures])}")
    if interrupted:
        print(f"interrupted; {len(report['shapes'])} of {len(shapes)} shapes finished", file=sys.stderr)
        return reporting.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())

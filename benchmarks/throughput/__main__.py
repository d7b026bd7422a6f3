"""Compare one training step of the CW loss by cw_ext with what PyTorch offers without it.

A step is the forward and backward pass with the loss's defaults, with the gradients of all inputs. The optimizer is
not part of it, nor is sampling, except for shapes of the kind "sampled", where the contestants draw negatives
themselves. Every contestant is first checked to compute the right loss and gradients. Then they take turns in one
process; slow ones get fewer turns. benchmarks/throughput/contestants.py describes them, and the floor that they are
also compared with.

Compiling is timed apart, without a cache from earlier runs. On the CPU, peak memory is that of a fresh process per
contestant, beyond the inputs. On a GPU it is that of torch's allocator, which also covers what cw_ext's kernels
allocate.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import command, gpu, reporting
from benchmarks.common.arguments import non_negative_float, positive_int
from benchmarks.throughput import cce, contestants, plots, shapes
from benchmarks.throughput import report as throughput_report
from benchmarks.throughput.contestants import CONTESTANTS
from benchmarks.throughput.measure import describe_error, measure_scaling, measure_shape
from benchmarks.throughput.shapes import Shape


def run(
    grid: Sequence[Shape],
    scaling_grid: Sequence[Shape],
    settings: dict[str, Any],
    out: Path,
    budget: float = math.inf,
) -> tuple[dict[str, Any], BaseException | None]:
    """Measure all shapes, writing throughput.json after each.

    Args:
        grid: for :func:`measure_shape`.
        scaling_grid: for :func:`measure_scaling`.
        settings: keyword arguments of :func:`measure_shape`.
        out: an existing directory.
        budget: seconds after which no further shape begins.

    Returns:
        The report, and what ended it early: Ctrl-C, an error, or nothing.
    """
    end = time.monotonic() + budget
    device = settings["device"]
    report: dict[str, Any] = {
        "environment": reporting.environment(device),
        "settings": settings,
        "shapes": [],
        "scaling": [],
        "not_begun": [],
    }
    if device == "cuda":
        report["environment"]["copy_bytes_per_second"] = gpu.copy_bytes_per_second()
    jobs: list[tuple[str, Shape, Callable[[Shape], dict[str, Any]]]] = [
        *(("shapes", shape, partial(measure_shape, **settings)) for shape in grid),
        *(("scaling", shape, partial(measure_scaling, rounds=settings["rounds"])) for shape in scaling_grid),
    ]
    with command.progress(jobs, unit="shape") as progress, _fresh_compiler_cache():
        try:
            for section, shape, measure in progress:
                if time.monotonic() >= end:
                    report["not_begun"].append(f"{shape.table}, {shape.label}")
                    continue
                progress.set_description(f"{shape.table}, {shape.label}")
                report[section].append(measure(shape))
                reporting.write_json(out / "throughput.json", report)
        except (KeyboardInterrupt, ValueError, OSError, RuntimeError) as error:
            return report, error
    reporting.write_json(out / "throughput.json", report)  # it may have been too late for the last ones
    return report, None


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
    parser = command.make_parser(
        "python -m benchmarks.throughput",
        __doc__,
        "bad arguments, an error or a wrong result",
        "the shapes that finished are written",
        "1 the budget was too small for all shapes",
    )
    parser.add_argument("--quick", action="store_true", help="measure a few small shapes only, in a minute or two")
    parser.add_argument(
        "--shapes",
        choices=("all", "main", "rest", "cce"),
        default="all",
        help="with --device cuda: all shapes, the main ones, the rest, or those for CCE⁻",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        choices=shapes.KINDS,
        default=shapes.KINDS,
        metavar="KIND",
        help="where the negatives come from. scores: the model computed their scores; ids: their ids are given, and "
        "the loss is computed from embeddings; sampled: drawn for each row. Or one set for all rows: shared (drawn), "
        "in-batch, mixed (both) or full (all items). (default: all)",
    )
    parser.add_argument(
        "--history",
        metavar="DIR|FILE",
        help="data with the known positives, as for --data of benchmarks.training; for all kinds but scores and ids "
        "(default: made up, as many as Gowalla has)",
    )
    parser.add_argument(
        "--device",
        choices=gpu.DEVICES,
        default="cpu",
        help="device to run on; a GPU has other contestants and shapes",
    )
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=30,
        help="samples of each contestant; slow ones get fewer",
    )
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=CONTESTANTS,
        metavar="NAME",
        help=f"what to measure: {', '.join(CONTESTANTS)} (default: all; cce only with --cce)",
    )
    parser.add_argument(
        "--cce",
        type=Path,
        metavar="DIR",
        help="also measure CCE⁻, from this checkout of https://github.com/On-Point-RND/MemoryEfficientSRS; needs "
        "--device cuda",
    )
    parser.add_argument(
        "--budget",
        type=non_negative_float,
        default=math.inf,
        metavar="SECONDS",
        help="start no further shape after this time (default: no limit)",
    )
    parser.add_argument("--threads", type=positive_int, help="threads of torch (default: what torch chooses)")
    parser.add_argument("--no-memory", action="store_true", help="don't measure peak memory")
    parser.add_argument(
        "--report", action="store_true", help="measure nothing; print and plot the results that are in --out"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the results (default: benchmarks/results/throughput-DEVICE; with --quick: a new folder under "
        "runs/)",
    )
    return parser


def _grid(arguments: argparse.Namespace) -> list[Shape]:
    if arguments.device == "cpu":
        grid = shapes.QUICK if arguments.quick else shapes.FULL
    else:
        grid, softmax = (
            (shapes.QUICK_CUDA, shapes.QUICK_CCE) if arguments.quick else (shapes.FULL_CUDA, shapes.FULL_CCE)
        )
        softmax = softmax if arguments.cce is not None else ()
        rest = tuple(shape for shape in grid if shape not in shapes.MAIN_CUDA)
        grid = {"all": grid + softmax, "main": shapes.MAIN_CUDA, "rest": rest, "cce": softmax}[arguments.shapes]
    return _chosen(grid, arguments)


def _chosen(grid: Sequence[Shape], arguments: argparse.Namespace) -> list[Shape]:
    """Those of the chosen kinds, with the history that was named."""
    chosen = (shape for shape in grid if shape.kind in arguments.kinds)
    return shapes.with_history(chosen, arguments.history)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.cce is not None and arguments.device != "cuda":
        parser.error("argument --cce: needs --device cuda")
    if arguments.shapes != "all" and (arguments.device != "cuda" or arguments.quick):
        parser.error("argument --shapes: needs --device cuda, without --quick")
    if arguments.cce is None and arguments.shapes == "cce":
        parser.error("argument --shapes: cce needs --cce DIR")
    if arguments.cce is None and "cce" in (arguments.contestants or ()):
        parser.error("argument --contestants: cce needs --cce DIR")
    kept = Path(os.path.relpath(Path(__file__).parents[1])) / "results" / f"throughput-{arguments.device}"
    out = arguments.out or (reporting.default_directory("throughput") if arguments.quick else kept)
    if arguments.report:
        return command.run(lambda: _report(out))
    return command.run(lambda: _run(parser, arguments, out), f"the shapes that finished are in {out}")


def _report(out: Path) -> None:
    """Print and plot earlier results, with the names that tables have now."""
    path = out / "throughput.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        for entry in [*report["shapes"], *report["scaling"]]:
            entry["table"] = shapes.TABLES[entry["shape"]["kind"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: expected results of this benchmark, got something else") from None
    pictures = plots.plot(report, out)
    print(throughput_report.describe(report), end="\n\n")
    reporting.print_results(*pictures)


def _run(parser: argparse.ArgumentParser, arguments: argparse.Namespace, out: Path) -> int:
    device = arguments.device
    chosen = [name for name in arguments.contestants or CONTESTANTS if name != "cce" or arguments.cce is not None]
    of_shape = {shape: contestants.contestants_of(shape, chosen, device) for shape in _grid(arguments)}
    grid = [shape for shape, names in of_shape.items() if names]
    names = [name for name in CONTESTANTS if any(name in of_shape[shape] for shape in grid)]
    if not grid:
        kinds = ", ".join(arguments.kinds)
        parser.error(f"argument --contestants: none of {', '.join(chosen)} exists for {kinds} on {device}")
    settings = {
        "names": names,
        "device": device,
        "rounds": arguments.rounds,
        "with_memory": not arguments.no_memory,
    }
    gpu.require(device)
    if arguments.cce is not None:
        cce.use_cce(arguments.cce)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    scales = device == "cpu" and torch.get_num_threads() > 1 and "cw_ext" in names
    scaling_grid = shapes.QUICK_SCALING if arguments.quick else shapes.FULL_SCALING
    reporting.make_writable_directory(out)
    report, cause = run(
        grid,
        _chosen(scaling_grid, arguments) if scales else [],
        settings,
        out,
        arguments.budget,
    )
    pictures = plots.plot(report, out)

    if report["shapes"]:
        print(f"\n{throughput_report.describe(report)}")
        print()
        reporting.print_results(out / "throughput.json", *pictures)
    if isinstance(cause, KeyboardInterrupt):
        print(f"interrupted; {len(report['shapes'])} of {len(grid)} shapes finished", file=sys.stderr)
        return command.INTERRUPTED
    errors = [line for entry in report["shapes"] for line in entry["wrong"]]
    if cause is not None:
        errors.append(describe_error(cause))
    for line in errors:
        print(f"error: {line}", file=sys.stderr)
    if errors:
        return 2
    if report["not_begun"]:
        print(f"out of time; {len(report['shapes'])} of {len(grid)} shapes finished", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

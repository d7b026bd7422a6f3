"""Compare the time and peak memory of one step of the CW loss: fused kernels against the reference in eager PyTorch.

A step is the forward and backward pass of `cw_loss_from_embeddings` with the gradients of both tables, without sampling
and without the optimizer. Both backends take turns in one process for the times. Memory is measured in a fresh process
for each backend, by how much its resident set grows at the peak. Unlike a profiler of torch's allocator, that also
counts what a kernel allocates for itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import cw_ext
from benchmarks.common import command, memory, reporting
from benchmarks.common.arguments import non_negative_int, positive_int
from cw_ext import cw_loss_from_embeddings, presets

MIB = 2**20


@dataclass(frozen=True)
class StepShape:
    """Sizes of one training step.

    Attributes:
        batch_size: rows, B.
        negatives: per row, N.
        extra_positives: per row, M.
        dim: length of an embedding, D.
        items: rows of the item table.
    """

    batch_size: int = 1024
    negatives: int = 1000
    extra_positives: int = 5
    dim: int = 64
    items: int = 10_000


def measure(shape: StepShape, repeats: int = 7) -> dict[str, Any]:
    """Measure both backends, or the reference alone where the compiled kernels are missing.

    Args:
        shape: sizes of the step.
        repeats: timed steps per backend, at least 1.

    Returns:
        A JSON-ready dict: the shape, and per backend the median and the 20 % and 80 % quantiles of the
        seconds per step, and the peak extra memory in bytes (None on systems without /proc).
    """
    backends = ["fused", "reference"] if cw_ext.build_config()["available"] else ["reference"]
    seconds = _step_seconds(shape, backends, repeats)
    report: dict[str, Any] = {"shape": asdict(shape), "repeats": repeats, "backends": {}}
    for backend in backends:
        low, median, high = torch.quantile(
            torch.tensor(seconds[backend], dtype=torch.float64),
            torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64),
        ).tolist()
        tiny = StepShape(2, 2, 2, 2, 2)
        peak = memory.peak_extra_bytes(partial(_make_step, tiny, backend), partial(_make_step, shape, backend))
        report["backends"][backend] = {
            "seconds": {"q20": low, "median": median, "q80": high},
            "peak_extra_bytes": peak,
        }
    return report


def describe(report: dict[str, Any]) -> str:
    """Return the result of :func:`measure` as a table, with the ratios where both backends were measured."""
    header = ["CW training step", "median ms", "20-80 % ms", "peak extra MiB"]
    rows = []
    for backend, cost in report["backends"].items():
        low, median, high = (1e3 * cost["seconds"][name] for name in ("q20", "median", "q80"))
        peak = cost["peak_extra_bytes"]
        rows.append([backend, f"{median:.1f}", f"{low:.1f}-{high:.1f}", "-" if peak is None else f"{peak / MIB:.1f}"])
    shape = report["shape"]
    lines = [
        "B={batch_size} N={negatives} M={extra_positives} D={dim}, {items} items, fp32".format(**shape),
        reporting.format_table(header, rows),
    ]
    if "fused" in report["backends"]:
        fused, reference = report["backends"]["fused"], report["backends"]["reference"]
        ratios = [f"{reference['seconds']['median'] / fused['seconds']['median']:.1f} times the speed"]
        if fused["peak_extra_bytes"] and reference["peak_extra_bytes"]:
            ratios.append(f"1/{reference['peak_extra_bytes'] / fused['peak_extra_bytes']:.0f} of the memory")
        lines.append("fused: " + ", ".join(ratios))
    else:
        lines.append("fused kernels not measured: " + cw_ext.build_config()["reason"])
    return "\n".join(lines)


def _make_step(shape: StepShape, backend: str) -> Callable[[], None]:
    """Return a function that runs the step once on fixed random inputs."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(shape.batch_size, shape.dim, generator=generator, requires_grad=True)
    items = torch.randn(shape.items, shape.dim, generator=generator, requires_grad=True)
    pos_ids = torch.randint(shape.items, (shape.batch_size,), generator=generator)
    neg_ids = torch.randint(shape.items, (shape.batch_size, shape.negatives), generator=generator)
    extra_pos_ids = None
    if shape.extra_positives:
        extra_pos_ids = torch.randint(shape.items, (shape.batch_size, shape.extra_positives), generator=generator)
    arguments = presets.cw(0.1, prior=0.1, confidence_temperature=1.25)  # all stages

    def step() -> None:
        queries.grad = items.grad = None
        cw_loss_from_embeddings(
            queries, items, pos_ids, neg_ids, extra_pos_ids=extra_pos_ids, backend=backend, **arguments
        ).backward()

    return step


def _step_seconds(shape: StepShape, backends: Sequence[str], repeats: int) -> dict[str, list[float]]:
    steps = {backend: _make_step(shape, backend) for backend in backends}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {backend: [] for backend in backends}
    for _ in command.progress(range(repeats), desc="step cost", unit="round"):
        for backend, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[backend].append(time.perf_counter() - start)
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    defaults = StepShape()
    parser = command.make_parser("python -m benchmarks.demo.step_cost", __doc__)
    parser.add_argument("--batch-size", type=positive_int, default=defaults.batch_size, help="rows, B")
    parser.add_argument("--negatives", type=positive_int, default=defaults.negatives, help="negatives per row, N")
    parser.add_argument(
        "--extra-positives",
        type=non_negative_int,
        default=defaults.extra_positives,
        help="extra positives per row, M",
    )
    parser.add_argument("--dim", type=positive_int, default=defaults.dim, help="length of an embedding, D")
    parser.add_argument("--items", type=positive_int, default=defaults.items, help="rows of the item table")
    parser.add_argument("--repeats", type=positive_int, default=7, help="timed steps per backend")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the results to this JSON file")
    arguments = parser.parse_args(argv)
    shape = StepShape(
        arguments.batch_size, arguments.negatives, arguments.extra_positives, arguments.dim, arguments.items
    )
    return command.run(lambda: _run(shape, arguments.repeats, arguments.out))


def _run(shape: StepShape, repeats: int, out: Path | None) -> None:
    if out is not None:
        reporting.make_writable_directory(out.parent)
    report = measure(shape, repeats)
    print(describe(report))
    if out is not None:
        reporting.write_json(out, {"environment": reporting.environment(), "step_cost": report})
        reporting.print_results(out)


if __name__ == "__main__":
    sys.exit(main())

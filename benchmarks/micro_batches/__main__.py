"""Show what encode_in_micro_batches saves in memory and costs in time, by the number of rows encoded at a time.

Two transformers of four layers encode a batch of token sequences, and the loss is CW in both directions. The steps take
turns in one process. Memory is measured in a fresh process for each, by how much its resident set grows in a step.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import command, reporting, timing
from benchmarks.common.arguments import add_out, positive_int
from benchmarks.common.memory import peak_extra_bytes
from benchmarks.micro_batches.steps import Sizes, make_step

PARTS = (512, 128, 32, 8)
ROUNDS = 10
# For all rounds of one size.
BUDGET_SECONDS = 10.0
MIB = 2**20


def run(sizes: Sizes, parts: Sequence[int], rounds: int) -> dict[str, Any]:
    """Measure the plain way and each size of the parts, and return the content of results.json."""
    steps = {part: make_step(sizes, part) for part in (None, *parts)}
    plans = {}
    for part, step in steps.items():
        step()
        seconds = timing.estimate(step, lambda: None)
        plans[part] = timing.plan(seconds, rounds, BUDGET_SECONDS)
    samples = timing.alternate(steps, plans, lambda: None)
    warm_up = partial(make_step, Sizes(2, 2, 4), 1)
    results = [
        {
            "part": part,
            "seconds": timing.quantiles(samples[part]),
            "peak_bytes": peak_extra_bytes(warm_up, partial(make_step, sizes, part)),
        }
        for part in steps
    ]
    return {"environment": reporting.environment(), "sizes": sizes._asdict(), "results": results}


def describe(report: dict[str, Any]) -> str:
    """A row per size of the parts."""
    plain = report["results"][0]
    rows = []
    for result in report["results"]:
        peak, seconds = result["peak_bytes"], result["seconds"]
        rows.append(
            [
                "all, once" if result["part"] is None else str(result["part"]),
                "-" if peak is None else f"{peak / MIB:.0f}",
                f"{seconds['median']:.2f} [{seconds['q20']:.2f}, {seconds['q80']:.2f}]",
                f"{seconds['median'] / plain['seconds']['median']:.2f}",
            ]
        )
    return reporting.format_table(["rows at a time", "MiB", "seconds [20 %, 80 %]", "x plain"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser("python -m benchmarks.micro_batches", __doc__, interrupted="nothing is written")
    sizes = Sizes()
    parser.add_argument("--rows", type=positive_int, default=sizes.rows, help="rows of the batch")
    parser.add_argument("--length", type=positive_int, default=sizes.length, help="tokens per row")
    parser.add_argument(
        "--parts", type=positive_int, nargs="+", default=PARTS, metavar="M", help="rows to encode at a time"
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=ROUNDS, help="samples of each step; slow steps get fewer"
    )
    add_out(parser)
    arguments = parser.parse_args(argv)
    out = arguments.out or reporting.default_directory("micro-batches")
    chosen = Sizes(arguments.rows, arguments.length)
    return command.run(lambda: _run(chosen, arguments.parts, arguments.rounds, out))


def _run(sizes: Sizes, parts: Sequence[int], rounds: int, out: Path) -> None:
    reporting.make_writable_directory(out)
    report = run(sizes, parts, rounds)
    reporting.write_json(out / "results.json", report)
    print(describe(report))
    print()
    reporting.print_results(out / "results.json")


if __name__ == "__main__":
    sys.exit(main())

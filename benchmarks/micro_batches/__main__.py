"""What encode_in_micro_batches costs and saves: memory and time of a training step, by the size of its parts.

Two transformers of four layers encode a batch of token sequences; the loss is CW in both directions. The steps take
turns in one process; memory is by how much the resident set of a process of its own grows in a step.
"""

from __future__ import annotations

import argparse
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.micro_batches",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sizes = Sizes()
    parser.add_argument("--rows", type=positive_int, default=sizes.rows, help="of the batch")
    parser.add_argument("--length", type=positive_int, default=sizes.length, help="tokens of a row")
    parser.add_argument("--parts", type=positive_int, nargs="+", default=PARTS, metavar="M", help="rows at a time")
    parser.add_argument("--rounds", type=positive_int, default=ROUNDS, help="samples of each step, at most")
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
    print(f"\nresults: {out / 'results.json'}")


if __name__ == "__main__":
    sys.exit(main())

"""How time and memory of a training step grow with the number of items.

Steps, forward and backward without an optimizer: with negatives drawn for each row and with shared ones, with dense and
with sparse gradients of the table, and by eager PyTorch with sparse gradients. All contestants with one table take
turns in one process; peak memory is measured in a process each, and is what a step takes beside the table.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import cw_ext
from benchmarks.common import command, reporting
from benchmarks.common.arguments import add_out, positive_int
from benchmarks.growth.contestants import CONTESTANTS, Sizes
from benchmarks.growth.measure import measure
from benchmarks.growth.plot import MIB, plot_growth

ITEMS = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
QUICK_ITEMS = (50, 200)
QUICK = Sizes(items=0, rows=8, negatives=16, dim=8, known=4)
ROUNDS = 15


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        epilog="Exit status: 0 done, 2 bad arguments, or no compiled kernels, 130 ended by Ctrl-C.",
    )
    parser.add_argument(
        "--items",
        type=positive_int,
        nargs="+",
        metavar="I",
        help=f"sizes of the table (default: {' '.join(map(str, ITEMS))}; what there is no memory for is left out)",
    )
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=ROUNDS,
        help="samples of each step, fewer of slow ones (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny steps")
    add_out(parser)
    arguments = parser.parse_args(argv)
    return command.run(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if not cw_ext.build_config()["available"]:
        raise RuntimeError(cw_ext.build_config()["reason"])
    directory = arguments.out or reporting.default_directory("growth")
    reporting.make_writable_directory(directory)
    sizes = QUICK if arguments.quick else Sizes(items=0)
    items = sorted({*(arguments.items or (QUICK_ITEMS if arguments.quick else ITEMS))})
    load = os.getloadavg()
    tables = []
    for count in items:
        tables.append(measure(replace(sizes, items=count), CONTESTANTS, arguments.rounds))
        print(f"{count:,} items measured", file=sys.stderr)
    sizes_of_all = {name: value for name, value in asdict(sizes).items() if name != "items"}
    report = {
        "environment": reporting.environment(),
        "load_before_and_after": [load, os.getloadavg()],
        "sizes": sizes_of_all,
        "step": f"B={sizes.rows}, N={sizes.negatives}, D={sizes.dim}, fp32",
        "tables": tables,
    }
    reporting.write_json(directory / "growth.json", report)
    print(describe(report))
    if any(table["contestants"] for table in tables):
        plot_growth(report, directory / "growth.png")
    print(f"results: {directory}")


def describe(report: dict[str, Any]) -> str:
    """The report as two tables, time and memory, and what was left out."""
    tables = report["tables"]
    header = ["", *(f"{table['items']:,} items" for table in tables)]

    def rows(cell: Any) -> list[list[str]]:
        return [
            [name, *(cell(table["contestants"][name]) if name in table["contestants"] else "–" for table in tables)]
            for name in CONTESTANTS
        ]

    time = reporting.format_table(["ms per step, 20-80 %", *header[1:]], rows(_milliseconds))
    weights = [["the table itself", *(f"{table['table_bytes'] / MIB:,.1f}" for table in tables)], *rows(_mebibytes)]
    memory = reporting.format_table(["peak MiB of a step", *header[1:]], weights)
    left_out = [
        f"left out with {table['items']:,} items: {name}, which {reason}"
        for table in tables
        for name, reason in table["left_out"].items()
    ]
    return "\n\n".join([report["step"], time, memory, *(["\n".join(left_out)] if left_out else [])])


def _milliseconds(cost: dict[str, Any]) -> str:
    low, middle, high = (1e3 * cost["seconds"][quantile] for quantile in ("q20", "median", "q80"))
    digits = 0 if high >= 100 else 1
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _mebibytes(cost: dict[str, Any]) -> str:
    peak = cost["peak_extra_bytes"]
    return "–" if peak is None else f"{peak / MIB:,.1f}"


if __name__ == "__main__":
    sys.exit(main())

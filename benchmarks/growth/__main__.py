"""Show how the time and memory of a training step grow with the number of items.

A step is a forward and backward pass without the optimizer. Five kinds are compared: negatives drawn for each row and
shared negatives, each with a dense and with a sparse gradient of the item table, and eager PyTorch with a sparse
gradient. They take turns in one process for each size of the table. Peak memory is measured in a fresh process for each
kind; it is what a step needs besides the table.
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
    parser = command.make_parser(
        "python -m benchmarks.growth", __doc__, "bad arguments or no compiled kernels", "nothing is written"
    )
    parser.add_argument(
        "--items",
        type=positive_int,
        nargs="+",
        metavar="I",
        help=f"numbers of items; sizes that do not fit into memory are left out (default: {' '.join(map(str, ITEMS))})",
    )
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=ROUNDS,
        help="samples of each step; slow steps get fewer",
    )
    parser.add_argument("--quick", action="store_true", help="tiny steps, to try the program")
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
    for count in command.progress(items, unit="table"):
        tables.append(measure(replace(sizes, items=count), CONTESTANTS, arguments.rounds))
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
    written = [directory / "growth.json"]
    if any(table["contestants"] for table in tables):
        written.append(directory / "growth.png")
        plot_growth(report, written[-1])
    reporting.print_results(*written)


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

"""Compare an epoch of matrix factorization on two processes of one thread each with one process of two threads.

For strong scaling, the two processes share a batch of the usual size. For weak scaling, each process has a batch of
that size; the single process then gets twice as much, so that an epoch has half as many steps. Every arrangement runs
in fresh processes, in turns, on the first steps of an epoch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.common import command, data, data_arguments, reporting
from benchmarks.common.arguments import add_out, positive_int
from benchmarks.scaling.measure import describe, measure
from benchmarks.scaling.plot import plot_scaling
from benchmarks.scaling.steps import LOSS, WAYS, Sizes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser(
        "python -m benchmarks.scaling", __doc__, "bad arguments or data, or a process failed", "nothing is written"
    )
    data_arguments.add_data(parser)
    data_arguments.add(parser)
    parser.add_argument("--steps", type=positive_int, default=50, help="steps to time in each run")
    parser.add_argument("--rounds", type=positive_int, default=7, help="runs of each arrangement")
    parser.add_argument("--dim", type=positive_int, default=Sizes.dim, help="length of an embedding, D")
    parser.add_argument("--negatives", type=positive_int, default=Sizes.negatives, help="negatives drawn per row, N")
    parser.add_argument(
        "--batch-size", type=positive_int, default=1024, help="positives in a batch of the usual size, B; even"
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=[*WAYS],
        default=[*WAYS],
        help="; ".join(f"{way}: {what}" for way, what in WAYS.items()),
    )
    add_out(parser)
    arguments = parser.parse_args(argv)
    if arguments.batch_size % 2:
        parser.error(f"argument --batch-size: expected an even number, for two processes, got {arguments.batch_size}")
    return command.run(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    dataset = data.load(arguments.data, **data_arguments.chosen(arguments))
    directory = arguments.out or reporting.default_directory(f"{dataset.name}-scaling")
    reporting.make_writable_directory(directory)
    sizes = Sizes(arguments.dim, arguments.negatives)
    counts = (arguments.steps, arguments.rounds)
    found = measure(dataset.train_users, dataset.train_items, arguments.batch_size, sizes, *counts, arguments.ways)
    report = {"environment": reporting.environment(), "data": dataset.sizes(), "loss": LOSS, **found}
    reporting.write_json(directory / "results.json", report)
    plot_scaling(report, directory / "results.png")
    print(describe(report))
    reporting.print_results(directory / "results.json", directory / "results.png")


if __name__ == "__main__":
    sys.exit(main())

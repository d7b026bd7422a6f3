"""An epoch of matrix factorisation on two processes of one thread each, against one process of two threads.

Strong scaling: the two share a batch of the usual size. Weak scaling: each has one of that size, and the one process
that they are compared with has twice as much, so that an epoch has half the steps. Each contestant runs in processes of
its own, in turns, on the first steps of an epoch.
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        epilog="Exit status: 0 done, 2 bad arguments or data, or a process that failed, 130 ended by Ctrl-C.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR|FILE", help="as for benchmarks.training; MovieLens-100K if not given")
    data_arguments.add(parser)
    parser.add_argument("--steps", type=positive_int, default=50, help="timed steps of each start")
    parser.add_argument("--rounds", type=positive_int, default=7, help="starts of each contestant")
    parser.add_argument("--dim", type=positive_int, default=Sizes.dim, help="length of an embedding D")
    parser.add_argument("--negatives", type=positive_int, default=Sizes.negatives, help="drawn negatives N")
    parser.add_argument("--batch-size", type=positive_int, default=1024, help="positives of a usual batch B, even")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS], help="what to measure")
    add_out(parser)
    arguments = parser.parse_args(argv)
    if arguments.batch_size % 2:
        parser.error(f"--batch-size must be even, for two processes, got {arguments.batch_size}")
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
    print(f"results: {directory / 'results.json'}, {directory / 'results.png'}")


if __name__ == "__main__":
    sys.exit(main())

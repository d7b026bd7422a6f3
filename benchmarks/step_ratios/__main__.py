"""Compare how long a step takes: with an argument of the loss and without it, or with this build and with another.

Without --against: a forward and backward pass from embeddings with each of several arguments, in turns with the same
step without them, in one process. --steps candidates compares choosing negatives by their scores with not choosing.

With --against CHECKOUT: steps from scores, from embeddings and with sampled negatives, by this build and by the other
checkout's. Each build runs in a process of its own, in turns, and there are several pairs of processes.

The output shows ratios, as medians and quartiles over the rounds. They are ratios of processor time, which other work
on the machine disturbs less than elapsed time; --clock wall compares elapsed time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import cw_ext
from benchmarks.common import command, reporting
from benchmarks.common.arguments import add_out, positive_int
from benchmarks.step_ratios import argument_costs, candidates, checkouts, floors, grid, inputs
from benchmarks.step_ratios.ratios import CLOCKS

ROUNDS = 30


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser(
        "python -m benchmarks.step_ratios", __doc__, "bad arguments or no compiled kernels", "nothing is written"
    )
    parser.add_argument(
        "--against", type=Path, metavar="CHECKOUT", help="compare with this clone of cw_ext, whose kernels are built"
    )
    parser.add_argument(
        "--rounds",
        type=positive_int,
        default=ROUNDS,
        help="samples of each step; with --against, per pair of processes",
    )
    parser.add_argument(
        "--steps",
        choices=("few", "grid", "candidates"),
        default="few",
        help="with --against: a few steps, or a grid of many; without it: candidates instead of arguments",
    )
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="processor",
        help="with --against or --steps candidates: the time to compare",
    )
    parser.add_argument(
        "--floors", action="store_true", help="with --steps grid: also estimate the least time that each step can take"
    )
    parser.add_argument("--threads", type=positive_int, default=1, help="threads of torch")
    parser.add_argument("--quick", action="store_true", help="tiny steps, to try the program")
    add_out(parser)
    arguments = parser.parse_args(argv)
    if arguments.floors and (arguments.against is None or arguments.steps != "grid"):
        parser.error("--floors needs --against and --steps grid")
    needs_other = {"grid": True, "candidates": False}.get(arguments.steps)
    if needs_other is not None and needs_other != (arguments.against is not None):
        parser.error("--steps grid needs --against, and --steps candidates needs a run without it")
    return command.run(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    if not cw_ext.build_config()["available"]:
        raise RuntimeError(cw_ext.build_config()["reason"])
    directory = arguments.out or reporting.default_directory("step-ratios")
    reporting.make_writable_directory(directory)
    load, threads = os.getloadavg(), torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        about = {"environment": reporting.environment(), "rounds": arguments.rounds}
        sizes = inputs.QUICK if arguments.quick else inputs.FULL
        if arguments.steps == "candidates":
            catalogues = (sizes.few_items, sizes.many_items) if arguments.quick else candidates.ITEMS
            found = candidates.measure(sizes, catalogues, arguments.rounds, CLOCKS[arguments.clock])
            results = {"clock": arguments.clock, **found}
            name, table = "candidates.json", candidates.describe(results)
        elif arguments.against is None:
            results, name = argument_costs.measure(sizes, arguments.rounds), "arguments.json"
            table = argument_costs.describe(results)
        else:
            how = (arguments.threads, arguments.steps, arguments.clock, arguments.quick)
            results = checkouts.measure(arguments.against, arguments.rounds, *how)
            name, table = "against.json", checkouts.describe(results)
            if arguments.floors:
                shapes = grid.QUICK if arguments.quick else grid.FULL
                results["floors"] = floors.floors(shapes, arguments.threads)
                table += "\n\n" + floors.describe(results["floors"], results["steps"])
    finally:
        torch.set_num_threads(threads)
    path = directory / name
    reporting.write_json(path, {**about, "load_before_and_after": [load, os.getloadavg()], **results})
    print(table)
    reporting.print_results(path)


if __name__ == "__main__":
    sys.exit(main())

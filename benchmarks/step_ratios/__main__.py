"""How many times as long a step takes: with an argument as without it, or here as with another checkout's build.

Without --against: a step at level 2, forward and backward, with each of several arguments, each in turns with the step
that has none, in one process; with --steps candidates, what choosing negatives by their scores costs beside level 2.
With --against: steps of every level by this build and by the other, a process each, in turns, with several pairs of
processes.
Ratios are of processor time, which other work on the machine disturbs less than the time that passes, but for
--clock wall; medians and quartiles over the rounds.
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_ratios",
        description=__doc__,
        epilog="Exit status: 0 done, 2 bad arguments, or no compiled kernels, 130 ended by Ctrl-C.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="a clone of cw_ext with its kernels built")
    parser.add_argument(
        "--rounds", type=positive_int, default=ROUNDS, help="samples of each step, with --against in each pair"
    )
    parser.add_argument(
        "--steps",
        choices=("levels", "grid", "candidates"),
        default="levels",
        help="with --against: a few of each level, or many; without it: candidates in place of arguments",
    )
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="processor",
        help="what is compared, with --against or --steps candidates",
    )
    parser.add_argument("--floors", action="store_true", help="with --steps grid: the least time that a step can take")
    parser.add_argument("--threads", type=positive_int, default=1, help="of torch")
    parser.add_argument("--quick", action="store_true", help="tiny steps")
    add_out(parser)
    arguments = parser.parse_args(argv)
    if arguments.floors and (arguments.against is None or arguments.steps != "grid"):
        parser.error("--floors needs --against and --steps grid")
    needs_other = {"grid": True, "candidates": False}.get(arguments.steps)
    if needs_other is not None and needs_other != (arguments.against is not None):
        parser.error("--steps grid needs --against, and --steps candidates goes without it")
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
    print(f"results: {path}")


if __name__ == "__main__":
    sys.exit(main())

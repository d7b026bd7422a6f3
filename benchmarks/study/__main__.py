"""Train everything that the study needs, and draw its tables and plots. Finished runs are skipped.

The study compares how well losses rank on Amazon-Health, Amazon-Electronic and Gowalla. The whole of it takes days. If
you stop it, the same command goes on from there. Choose a part of it with --parts, --datasets, --models and --seeds.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common import command, reporting
from benchmarks.common.arguments import positive_int
from benchmarks.common.data import DataError
from benchmarks.study import csv_results, parts, searched
from benchmarks.study.kept import kept
from benchmarks.study.parts import PARTS
from benchmarks.study.published import DATASETS, SHIFTED
from benchmarks.study.report import write_report
from benchmarks.study.runs import Run, Store
from benchmarks.study.workers import run_all

_DATASETS = (*DATASETS, *SHIFTED.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser(
        "python -m benchmarks.study", __doc__, "bad arguments or data", "the same command goes on from there"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", default=Path("data"), help=f"folder with {', '.join(DATASETS)}"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/study"), help="folder for the results")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="PART",
        help=f"questions to answer, in this order: {', '.join(PARTS)} (default: all)",
    )
    parser.add_argument(
        "--datasets",
        nargs="+",
        choices=_DATASETS,
        default=list(DATASETS),
        metavar="NAME",
        help=f"data sets to train on: {', '.join(_DATASETS)}",
    )
    parser.add_argument(
        "--models", nargs="+", choices=("mf", "lightgcn", "xsimgcl"), help="models to train (default: all)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to train with (default: all)")
    parser.add_argument(
        "--workers", type=positive_int, default=os.cpu_count(), help="runs at the same time, with one thread each"
    )
    parser.add_argument(
        "--list", action="store_true", help="only list the remaining runs, as far as they are known now"
    )
    parser.add_argument(
        "--report", action="store_true", help="train nothing; draw tables and plots of the finished runs"
    )
    arguments = parser.parse_args(argv)

    return command.run(lambda: _run(arguments), "the same command goes on from there")


def _run(arguments: argparse.Namespace) -> None:
    reporting.make_writable_directory(arguments.out)
    store = Store(arguments.out)

    def wanted() -> Iterator[Run]:
        # Whatever is asked for may wait for them.
        every = (*parts.searches(store), *parts.contestant_searches(store), *searched.searches(store))
        searches = {run.key for run in every}
        for part in arguments.parts:
            for run in PARTS[part](store):
                is_asked_for = (arguments.models is None or run.config.model in arguments.models) and (
                    arguments.seeds is None or run.config.seed in arguments.seeds
                )
                if run.dataset in arguments.datasets and (is_asked_for or run.key in searches):
                    yield run

    if arguments.list:
        for key in dict.fromkeys(run.key for run in wanted() if run not in store):
            print(key)
        return
    if not arguments.report:
        missing = [path for name in arguments.datasets if not (path := arguments.data / name).is_dir()]
        if missing:
            raise DataError(f"{missing[0]}: expected a folder with train.tsv and test.tsv, got none")
        run_all(wanted, store, arguments.data, arguments.workers)
    csv_results.write(arguments.out, kept(store, PARTS))
    reporting.print_results(*write_report(store, arguments.out))


if __name__ == "__main__":
    sys.exit(main())

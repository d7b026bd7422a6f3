"""Train what the study asks for, skipping what is done, and draw its tables and plots."""

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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=__doc__,
        epilog="Exit status: 0 done, 2 bad arguments or data, 130 ended by Ctrl-C (the same command goes on).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", default=Path("data"), help=f"holds the folders {', '.join(DATASETS)}"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/study"), help="where results go")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="questions to answer, in order")
    parser.add_argument("--datasets", nargs="+", choices=_DATASETS, default=list(DATASETS), help="data to train on")
    parser.add_argument("--models", nargs="+", choices=("mf", "lightgcn", "xsimgcl"), help="models to train; all")
    parser.add_argument("--seeds", nargs="+", type=int, help="seeds to train with; all")
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count(), help="runs at a time, a thread each")
    parser.add_argument("--list", action="store_true", help="only list the runs that are known to be still to do")
    parser.add_argument("--report", action="store_true", help="train nothing; tables and plots of what there is")
    arguments = parser.parse_args(argv)

    return command.run(lambda: _run(arguments), "the same command goes on from here")


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
            raise DataError(f"{missing[0]}: expected a folder with train.tsv and test.tsv, got nothing there")
        run_all(wanted, store, arguments.data, arguments.workers)
    csv_results.write(arguments.out, kept(store, PARTS))
    for path in write_report(store, arguments.out):
        print(path)


if __name__ == "__main__":
    sys.exit(main())

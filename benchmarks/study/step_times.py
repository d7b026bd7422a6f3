"""Time training steps by the number of negatives, for the study: all losses and numbers take turns in one process."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.common import command, data, reporting
from benchmarks.common.arguments import positive_int
from benchmarks.common.timing import Plan, alternate, quantiles
from benchmarks.study import parts
from benchmarks.study.runs import Run, Store
from benchmarks.training.trainer import Trainer

TIMES_FILE = "step_times.json"

# Seconds of a step by loss and number of negatives, the latter a string as in JSON: {"q20", "median", "q80"}.
Times = dict[str, dict[str, dict[str, float]]]


def measure(dataset: data.InteractionData, runs: Sequence[Run], rounds: int) -> Times:
    """Time whole training steps (sampling, loss, backward, optimizer) on one thread, a step of each run per round.

    Args:
        dataset: training interactions.
        runs: no two with the same loss and number of negatives.
        rounds: timed steps per run, at least 1.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steps = {str(index): _step(Trainer(dataset, run.ranking_loss, run.config)) for index, run in enumerate(runs)}
        plan = Plan(rounds, repetitions=1, warm_up=True)
        seconds = alternate(steps, dict.fromkeys(steps, plan), synchronize=lambda: None)
    finally:
        torch.set_num_threads(threads)
    times: Times = {run.loss: {} for run in runs}
    for run, samples in zip(runs, seconds.values(), strict=True):
        times[run.loss][str(run.options.negatives.number)] = quantiles(samples)
    return times


def _step(trainer: Trainer) -> Callable[[], object]:
    batches = trainer.shuffled_batches()
    full = itertools.cycle(batches[:-1] or batches)
    return lambda: trainer.train_step(next(full))


def _runs(store: Store, dataset: str) -> list[Run]:
    runs = []
    for loss in parts.NUMBER_LOSSES:
        of_loss = [run for number in parts.NUMBERS for run in parts.number_runs(store, dataset, loss, number)[:1]]
        if not of_loss:
            raise ValueError(
                f"{store.directory}: expected the study's search of {loss}'s hyper-parameters on {dataset}, got none"
            )
        runs += of_loss
    return runs


def read(directory: Path) -> dict[str, Times]:
    """Return the measured times by data set; empty where there are none.

    Raises:
        ValueError: the file does not contain times; the message contains its name.
    """
    path = directory / TIMES_FILE
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["datasets"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: expected step times, got something else; measure them again") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser(
        "python -m benchmarks.study.step_times", __doc__, "bad arguments or data", "nothing is written"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", default=Path("data"), help="folder with the study's data sets"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("runs/study"), help="folder with the study's results"
    )
    parser.add_argument("--rounds", type=positive_int, default=40, help="steps to time per loss and number")
    arguments = parser.parse_args(argv)

    return command.run(lambda: _run(arguments.data, arguments.out, arguments.rounds))


def _run(data_directory: Path, out: Path, rounds: int) -> None:
    store = Store(out)
    runs = {name: _runs(store, name) for name in parts.NUMBER_DATASETS}
    loaded = {name: data.load_split_directory(data_directory / name) for name in runs}
    datasets = {name: measure(loaded[name], runs[name], rounds) for name in runs}
    report = {"environment": reporting.environment(), "rounds": rounds, "threads": 1, "datasets": datasets}
    reporting.write_json(out / TIMES_FILE, report)
    reporting.print_results(out / TIMES_FILE)


if __name__ == "__main__":
    sys.exit(main())

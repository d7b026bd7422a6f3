"""Compare SL@20 with two ways to find its thresholds: counts of each step's negatives, and passes over the catalogue.

Both train MF with the study's settings for Amazon-Health, one run after the other for each seed. The table shows NDCG
and Recall, and how many items score above a user's threshold at the end of training: of all items, and of those that
the user's negatives are drawn from. Then epochs of new runs are timed, with steps of the two ways in turns.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

from benchmarks.common import command, data, reporting
from benchmarks.common.arguments import add_out, non_negative_int, positive_int
from benchmarks.common.timing import quantiles
from benchmarks.study import grids
from benchmarks.study.published import HEALTH
from benchmarks.training.losses import LossOptions, RankingLoss, build_loss
from benchmarks.training.trainer import Trainer, TrainingConfig

_OPTIONS = LossOptions(temperature=0.1, confidence_temperature=1.25, negatives=grids.NEGATIVES)
WAYS = {"catalogue": grids.REFRESH_EPOCHS, "counts": None}


def losses() -> dict[str, RankingLoss]:
    """Return SL@20 with the thresholds of either way."""
    return {way: build_loss("slk", replace(_OPTIONS, refresh_epochs=epochs)) for way, epochs in WAYS.items()}


def run(dataset: data.InteractionData, loss: RankingLoss, config: TrainingConfig) -> dict[str, Any]:
    """Train once, and return metrics and how many items score above the thresholds."""
    trainer = Trainer(dataset, loss, config)
    ended_by = trainer.train()
    if ended_by == "interrupt":
        raise KeyboardInterrupt
    best = trainer.best
    return {
        "seed": config.seed,
        "epochs": trainer.epoch,
        "best_epoch": best["epoch"],
        "best_validation": {name: best[name] for name in ("recall", "ndcg")},
        **trainer.test(),
        "items_above": items_above(trainer),
    }


@torch.no_grad()
def items_above(trainer: Trainer) -> dict[str, dict[str, float]]:
    """Return the 20 %, 50 % and 80 % quantiles, over the users, of how many items score above their thresholds."""
    users, items = trainer.tables()
    above = users @ items.T / 2 > trainer.thresholds.unsqueeze(1)  # [num_users, num_items], half cosines
    unknown = above.index_put((trainer.fit.train_users, trainer.fit.train_items), torch.tensor(False))
    return {"all": quantiles(above.sum(1).tolist()), "unknown": quantiles(unknown.sum(1).tolist())}


def time_epochs(dataset: data.InteractionData, config: TrainingConfig, epochs: int) -> dict[str, Any]:
    """Return the seconds of a step of both ways, of a pass over the catalogue, and of an epoch with its share of it."""
    trainers = {way: Trainer(dataset, loss, config) for way, loss in losses().items()}
    steps: dict[str, list[float]] = {way: [] for way in trainers}
    passes = []
    for _ in range(epochs):
        batches = {way: trainer.shuffled_batches() for way, trainer in trainers.items()}
        for number in range(len(batches["counts"])):
            for way, trainer in trainers.items():
                steps[way].append(_seconds(lambda: trainer.train_step(batches[way][number])))  # noqa: B023
        passes.append(_seconds(trainers["catalogue"].refresh_thresholds))
    steps_per_epoch = math.ceil(len(trainers["counts"].sampler.users) / config.batch_size)
    epoch = {way: steps_per_epoch * median(seconds) for way, seconds in steps.items()}
    epoch["catalogue"] += median(passes) / grids.REFRESH_EPOCHS
    return {
        "steps_per_epoch": steps_per_epoch,
        "step": {way: quantiles(seconds) for way, seconds in steps.items()},
        "pass": quantiles(passes),
        "epoch": epoch,
    }


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def describe(report: dict[str, Any]) -> str:
    """Return the table of the runs, and the times."""
    rows = []
    for way, runs in report["runs"].items() if all(report["runs"].values()) else ():
        metrics = [("best_validation", "ndcg"), ("test", "ndcg"), ("test", "recall")]
        above = [f"{mean(run['items_above'][of]['median'] for run in runs):.1f}" for of in ("unknown", "all")]
        cells = [_mean_and_deviation([run[part][name] for run in runs]) for part, name in metrics]
        rows.append([way, *cells, ", ".join(f"{run['best_epoch']}/{run['epochs']}" for run in runs), *above])
    header = ["thresholds by", "val NDCG@20", "NDCG@20", "Recall@20", "best epoch", "unknown above", "all above"]
    times = report["times"]
    epochs = ", ".join(f"{way} {seconds:.3f} s" for way, seconds in times["epoch"].items())
    in_time = f"an epoch: {epochs}; a pass over the catalogue {times['pass']['median']:.3f} s"
    return f"{reporting.format_table(header, rows)}\n{in_time}" if rows else in_time


def _mean_and_deviation(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    defaults = TrainingConfig()
    parser = command.make_parser(
        "python -m benchmarks.topk_threshold", __doc__, "bad arguments or data", "the runs that finished are written"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", default=Path("data") / HEALTH, help="folder with train.tsv and test.tsv"
    )
    parser.add_argument(
        "--seed",
        type=non_negative_int,
        nargs="*",
        default=[0, 1, 2, 3, 4],
        help="seeds to train with; none: only measure times",
    )
    parser.add_argument("--epochs", type=positive_int, default=defaults.epochs, help="epochs to train, at most")
    parser.add_argument("--timed-epochs", type=positive_int, default=10, help="epochs to time of each way, in turns")
    add_out(parser)
    arguments = parser.parse_args(argv)
    return command.run(lambda: _run(arguments), "the runs that finished are written")


def _run(arguments: argparse.Namespace) -> None:
    dataset = data.load_split_directory(arguments.data)
    directory = arguments.out or reporting.default_directory(f"{dataset.name}-topk-threshold")
    reporting.make_writable_directory(directory)
    config = grids.config(HEALTH, epochs=arguments.epochs)
    report: dict[str, Any] = {
        "data": dataset.sizes(),
        "environment": reporting.environment(),
        "config": asdict(config),
        "loss_settings": {way: loss.settings for way, loss in losses().items()},
        "runs": {way: [] for way in WAYS},
    }
    for seed in arguments.seed:
        for way, loss in losses().items():
            report["runs"][way].append(run(dataset, loss, replace(config, seed=seed)))
            reporting.write_json(directory / "results.json", report)
    report["times"] = time_epochs(dataset, config, arguments.timed_epochs)
    reporting.write_json(directory / "results.json", report)
    print(describe(report))
    reporting.print_results(directory / "results.json")


if __name__ == "__main__":
    sys.exit(main())

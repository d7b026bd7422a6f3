"""Compare the kinds of negatives: what a step costs with each, and how well the trained model ranks.

Cost is the time and peak extra memory of the forward and backward pass of the CW loss. All kinds take turns in one
process. That the steps compute the right result is checked by benchmarks.throughput, not here.

Quality is the demo's test metrics, with its model, data and protocol, for SL and CW. For each kind and loss, validation
NDCG on seed 0 decides the temperature and then the learning rate. The other seeds train with these values.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import command, data, data_arguments, gpu, memory, reporting, timing
from benchmarks.common.arguments import add_out, positive_int
from benchmarks.demo import settings as demo
from benchmarks.negative_kinds.plot import plot_kinds
from benchmarks.throughput import contestants
from benchmarks.throughput import shapes as throughput_shapes
from benchmarks.throughput.shapes import Shape
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.negatives import NUMBERED, Negatives
from benchmarks.training.trainer import TrainingConfig, train

MIB = 2**20
# CW by its weights alone.
LOSSES = {"sl": LossOptions(), "cw": LossOptions(weighting="sigmoid", prior=0.0, extra_positives=0)}
# In this order, each starting from the best of those before; the search begins with the first values. A first search
# (seed 0; shared:256 and full; SL and CW) found τ = 0.14, lr = 0.2 and a weight decay of 1e-6 or 1e-5 worse than these.
SEARCHED: dict[str, tuple[float, ...]] = {"temperature": (0.1, 0.08, 0.06), "lr": (0.05, 0.1)}
ROUNDS = 20
# For all rounds of one kind.
BUDGET_SECONDS = 10.0
# As the demo; a quarter of what the step is timed with.
NEGATIVES = demo.NEGATIVES

Settings = dict[str, float]


def negatives_of(shape: Shape, number: int) -> Negatives:
    """The negatives of a shape of the throughput benchmark, in another number where there is one to choose."""
    kind = {True: "popularity", False: "uniform"}[shape.popularity] if shape.kind == "sampled" else shape.kind
    return Negatives(kind, number if kind in NUMBERED else None)


def measure_cost(shapes: Sequence[Shape], rounds: int) -> list[dict[str, Any]]:
    """Time and weigh a step of each shape on the CPU.

    Returns:
        Per shape its ``"label"``, ``"negatives"``, quantiles of the ``"seconds"`` per step and ``"peak_extra_bytes"``
        (None on systems without /proc).
    """
    synchronize = partial(gpu.synchronize, "cpu")
    steps = {shape: contestants.make_step("cw_ext", shape, contestants.make_inputs(shape)) for shape in shapes}
    plans = {}
    for shape, step in steps.items():
        step()
        plans[shape] = timing.plan(timing.estimate(step, synchronize), rounds, BUDGET_SECONDS)
    samples = timing.alternate(steps, plans, synchronize)
    return [
        {
            "label": shape.label,
            "negatives": str(negatives_of(shape, shape.negatives)),
            "seconds": timing.quantiles(samples[shape]),
            "peak_extra_bytes": memory.peak_extra_bytes(
                partial(contestants.make_tiny_step, "cw_ext", shape),
                partial(contestants.make_fresh_step, "cw_ext", shape),
            ),
        }
        for shape in shapes
    ]


def search(
    score: Callable[[Settings], float], searched: dict[str, tuple[float, ...]]
) -> tuple[Settings, list[tuple[Settings, float]]]:
    """Choose settings one after the other, each by the best score with the ones before at their best.

    Returns:
        The best settings, and all that were tried with their scores; the first tried of equally good ones.
    """
    best = {name: values[0] for name, values in searched.items()}
    tried: list[tuple[Settings, float]] = []
    for name, values in searched.items():
        for value in values:
            settings = {**best, name: value}
            if settings not in [before for before, _ in tried]:
                tried.append((settings, score(settings)))
        best = max(tried, key=lambda entry: entry[1])[0]
    return best, tried


def measure_quality(
    datasets: Sequence[data.InteractionData], loss: str, negatives: Negatives, epochs: int
) -> dict[str, Any]:
    """Search a loss's settings on the first data set, and test with the best on all.

    Args:
        datasets: the same data split by each seed, from 0.
        loss: key in :data:`LOSSES`, which has its options but those searched.
        negatives: to train with.
        epochs: of each run.

    Returns:
        The best ``"settings"``; with them validation NDCG, test recall and test NDCG, as means (``"validation_ndcg"``,
        ``"recall"``, ``"ndcg"``) and the last for each of the ``"seeds"``; and all that was ``"tried"`` on the first.
    """

    def run(settings: Settings, seed: int) -> dict[str, Any]:
        options = replace(LOSSES[loss], temperature=settings["temperature"], negatives=negatives)
        config = TrainingConfig(lr=settings["lr"], epochs=epochs, eval_every=demo.EVAL_EVERY, seed=seed)
        return train(datasets[seed], build_loss(loss, options), config, show_progress=False)

    first: dict[tuple[float, ...], dict[str, Any]] = {}

    def score(settings: Settings) -> float:
        first[tuple(settings.values())] = found = run(settings, 0)
        return found["best_validation"]["ndcg"]

    best, tried = search(score, SEARCHED)
    runs = [first[tuple(best.values())], *(run(best, seed) for seed in range(1, len(datasets)))]
    tests = [found["test"] for found in runs]
    return {
        "settings": best,
        "validation_ndcg": _mean([found["best_validation"]["ndcg"] for found in runs]),
        "recall": _mean([test["recall"] for test in tests]),
        "ndcg": _mean([test["ndcg"] for test in tests]),
        "seeds": [test["ndcg"] for test in tests],
        "tried": [{**settings, "validation_ndcg": value} for settings, value in tried],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def describe(report: dict[str, Any]) -> str:
    """Return the report as a table, a row per kind, with a dash for what was not measured."""
    header = ["negatives", "ms (20-80 %)", "peak extra MiB", "trained with"]
    header += [f"{loss} {metric}@20" for loss in LOSSES for metric in ("Recall", "NDCG")]
    header += [f"{loss} τ, lr" for loss in LOSSES]
    rows = []
    for kind in report["kinds"]:
        low, median, high = (1e3 * kind["cost"]["seconds"][name] for name in ("q20", "median", "q80"))
        peak = kind["cost"]["peak_extra_bytes"]
        cells = [kind["cost"]["negatives"], f"{median:.2f} ({low:.2f}-{high:.2f})"]
        cells += ["-" if peak is None else f"{peak / MIB:.1f}", kind["trained_with"]]
        found = [kind["quality"].get(loss) for loss in LOSSES]
        for quality in found:
            cells += ["-", "-"] if quality is None else [f"{quality[name]:.4f}" for name in ("recall", "ndcg")]
        for quality in found:
            cells.append("-" if quality is None else ", ".join(f"{value:g}" for value in quality["settings"].values()))
        rows.append(cells)
    return "\n".join(
        [
            f"cost: {report['step']}, {report['history']}",
            "quality: {name}, {users} users, {items} items, {train} + {test} interactions; mean of seeds 0 to {last}, "
            "{epochs} epochs".format(**report["data"], **report["settings"], last=report["settings"]["seeds"] - 1),
            reporting.format_table(header, rows),
        ]
    )


def run(
    shapes: Sequence[Shape], datasets: Sequence[data.InteractionData], settings: dict[str, Any], directory: Path
) -> tuple[dict[str, Any], bool]:
    """Measure the kinds of all shapes, writing results.json and results.png after each loss of each.

    Args:
        shapes: one for each kind.
        datasets: as for :func:`measure_quality`.
        settings: ``"epochs"``, ``"rounds"``, ``"negatives"`` and others, which are only recorded.
        directory: an existing, writable directory.

    Returns:
        ``(report, interrupted)``: the content of results.json, and whether Ctrl-C ended it early.
    """
    named = shapes[0].history
    report: dict[str, Any] = {
        "environment": reporting.environment(),
        "settings": settings,
        "data": datasets[0].sizes(),
        "step": shapes[0].group,
        "history": f"history of {named}" if named else f"made-up history of {shapes[0].users} users",
        "kinds": [],
    }
    try:
        for shape, cost in zip(shapes, measure_cost(shapes, settings["rounds"]), strict=True):
            trained_with = str(negatives_of(shape, settings["negatives"]))
            report["kinds"].append({"cost": cost, "trained_with": trained_with, "quality": {}})
        jobs = [(kind, loss) for kind in report["kinds"] for loss in LOSSES]
        with command.progress(jobs, unit="search") as progress:
            for kind, loss in progress:
                progress.set_description(f"{kind['trained_with']}, {loss}")
                negatives = Negatives.parse(kind["trained_with"])
                kind["quality"][loss] = measure_quality(datasets, loss, negatives, settings["epochs"])
                reporting.write_json(directory / "results.json", report)
                plot_kinds(report, directory / "results.png")
    except KeyboardInterrupt:
        return report, True
    return report, False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser(
        "python -m benchmarks.negative_kinds",
        __doc__,
        "bad arguments or data, or no compiled kernels",
        "what was measured before is written",
    )
    parser.add_argument("--quick", action="store_true", help="measure the cost on small shapes")
    data_arguments.add_data(parser)
    data_arguments.add(parser)
    parser.add_argument(
        "--history",
        metavar="DIR|FILE",
        help="known positives for the cost, as in benchmarks.throughput (default: made up, as many as Gowalla has)",
    )
    parser.add_argument("--seeds", type=positive_int, default=3, help="number of seeds, from 0")
    parser.add_argument("--epochs", type=positive_int, default=demo.EPOCHS, help="epochs of each run")
    parser.add_argument(
        "--negatives", type=positive_int, default=NEGATIVES, help="number of negatives N, for the kinds that have one"
    )
    parser.add_argument("--rounds", type=positive_int, default=ROUNDS, help="samples of each step")
    add_out(parser)
    arguments = parser.parse_args(argv)
    return command.run(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    settings = {name: getattr(arguments, name) for name in ("seeds", "epochs", "negatives", "rounds")}
    shapes = throughput_shapes.KINDS_SMALL if arguments.quick else throughput_shapes.KINDS_AT_GOWALLAS_SIZE
    build_loss("cw", LossOptions(backend="fused"))  # for the cost, which is that of the kernels
    seeds = range(arguments.seeds)
    datasets = [*data.load_seeds(arguments.data, seeds, **data_arguments.chosen(arguments)).values()]
    shapes = throughput_shapes.with_history(shapes, arguments.history)
    directory = arguments.out or reporting.default_directory("negative-kinds")
    reporting.make_writable_directory(directory)
    report, interrupted = run(shapes, datasets, settings, directory)
    if report["kinds"]:
        print(describe(report))
        reporting.print_results(directory / "results.json", directory / "results.png")
    if interrupted:
        print("interrupted; what was measured before is written", file=sys.stderr)
        return command.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Show where the time of a training step goes, with the fused kernels and with eager PyTorch.

The model is matrix factorization, set up as in `benchmarks.training`: a tenth of the training interactions is held out
for validation, and an epoch goes over the rest. A few warm-up steps are not counted. Neither are set-up, validation and
test.

The fused loss draws its negatives inside. It draws them once in the forward pass and, where each row has its own, again
in the backward pass. Eager PyTorch gets each row's own negatives from cw_ext.draw_negatives, and that time counts as
sampling.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from benchmarks.common import command, data, data_arguments, gpu, reporting
from benchmarks.common.arguments import add_out, non_negative_int, positive_int
from benchmarks.common.timing import quantiles
from benchmarks.epoch.plot import plot_epoch
from benchmarks.study import grids
from benchmarks.training.losses import LOSSES, RankingLoss, build_loss
from benchmarks.training.negatives import negatives_argument
from benchmarks.training.trainer import STEP_PARTS, Trainer, TrainingConfig

WARM_UP_STEPS = 3
BACKENDS = ("fused", "reference")
# Every part of a step; "rest" is the remaining time, such as the release of memory.
PARTS = (*STEP_PARTS, "rest")
# The part of the training configuration that a result file has.
_SETTINGS = ("model", "dim", "batch_size", "lr", "seed", "device")


def measure(
    dataset: data.InteractionData, losses: Mapping[str, RankingLoss], config: TrainingConfig, steps: Mapping[str, int]
) -> dict[str, Any]:
    """Measure both backends, one after the other, from the same start and with the same draws.

    Args:
        dataset: training interactions.
        losses: the same loss, by its backend (:data:`BACKENDS`).
        config: model, batch size and seed; its epochs do not matter.
        steps: as :func:`measure_backend`, by backend.

    Returns:
        A JSON-ready dict: data, settings, the result of :func:`measure_backend` for each backend, and how many times
        as long an eager epoch takes (``"epoch_ratio"``).
    """
    costs = {backend: measure_backend(dataset, losses[backend], config, steps[backend]) for backend in BACKENDS}
    fused = losses["fused"]
    return {
        "data": dataset.sizes(),
        "loss": fused.name,
        "loss_settings": {name: value for name, value in fused.settings.items() if name != "backend"},
        "config": {name: asdict(config)[name] for name in _SETTINGS},
        "backends": costs,
        "epoch_ratio": costs["reference"]["epoch_seconds"] / costs["fused"]["epoch_seconds"],
    }


def measure_backend(
    dataset: data.InteractionData, loss: RankingLoss, config: TrainingConfig, steps: int = 0
) -> dict[str, Any]:
    """Train for an epoch, or for its first steps only.

    Args:
        dataset: training interactions.
        loss: with the backend to measure.
        config: model, batch size and seed; its epochs do not matter.
        steps: how many steps of the epoch to take; 0, or more than it has, for all.

    Returns:
        As :func:`summarize`.
    """
    trainer = Trainer(dataset, loss, config)
    for batch in trainer.shuffled_batches()[:WARM_UP_STEPS]:
        trainer.train_step(batch)
    seconds_before = dict(trainer.stopwatch.seconds)
    epoch = trainer.shuffled_batches()
    step_seconds = []
    for batch in command.progress(epoch[: steps or None], desc=str(loss.settings["backend"]), unit="step"):
        start = time.perf_counter()
        trainer.train_step(batch)
        step_seconds.append(time.perf_counter() - start)
    part_seconds = {part: trainer.stopwatch.seconds[part] - seconds_before[part] for part in STEP_PARTS}
    return summarize(part_seconds, step_seconds, len(epoch))


def summarize(part_seconds: Mapping[str, float], step_seconds: Sequence[float], epoch_steps: int) -> dict[str, Any]:
    """Reduce measured times to means per step and to the time of an epoch.

    Args:
        part_seconds: seconds of each of :data:`STEP_PARTS`, all steps together.
        step_seconds: seconds of each measured step, at least one.
        epoch_steps: how many steps the whole epoch has.

    Returns:
        A JSON-ready dict: ``"steps"`` measured and ``"epoch_steps"``, mean ``"parts"`` of a step in seconds
        (:data:`PARTS`), ``"step"`` with the mean and quantiles of its seconds, ``"epoch_seconds"`` (the mean step
        times epoch_steps), and whether that is ``"extrapolated"`` from fewer steps.
    """
    steps, total = len(step_seconds), sum(step_seconds)
    parts = {part: part_seconds[part] / steps for part in STEP_PARTS}
    return {
        "steps": steps,
        "epoch_steps": epoch_steps,
        "parts": {**parts, "rest": total / steps - sum(parts.values())},
        "step": {"mean": total / steps, **quantiles(step_seconds)},
        "epoch_seconds": total / steps * epoch_steps,
        "extrapolated": steps < epoch_steps,
    }


def describe(report: Mapping[str, Any]) -> str:
    """Return a report of :func:`measure` as a table, with how the times of an epoch were measured."""
    fused, eager = (report["backends"][backend] for backend in BACKENDS)

    def line(name: str, fused_seconds: float, eager_seconds: float) -> list[str]:
        cells = [
            cell
            for seconds, cost in ((fused_seconds, fused), (eager_seconds, eager))
            for cell in (f"{1e3 * seconds:.2f}", f"{100 * seconds / cost['step']['mean']:.1f}")
        ]
        return [name, *cells, f"{eager_seconds / fused_seconds:.1f}" if fused_seconds > 0 else "-"]

    header = ["mean of a step", "fused ms", "%", "eager ms", "%", "eager/fused"]
    rows = [line(part.replace("_", " "), fused["parts"][part], eager["parts"][part]) for part in PARTS]
    rows.append(line("step", fused["step"]["mean"], eager["step"]["mean"]))
    lines = [
        "{name}: {users} users, {items} items, ".format(**report["data"]) + f"{fused['epoch_steps']} steps an epoch",
        "{model}, {loss}, B={batch_size} D={dim}, fp32, negatives {negatives}".format(
            loss=report["loss"], negatives=report["loss_settings"]["negatives"], **report["config"]
        ),
        reporting.format_table(header, rows),
    ]
    for name, cost in (("fused", fused), ("eager", eager)):
        low, median, high = (1e3 * cost["step"][quantile] for quantile in ("q20", "median", "q80"))
        basis = f"extrapolated from the first {cost['steps']} steps" if cost["extrapolated"] else "measured in full"
        lines.append(
            f"{name}: {cost['epoch_seconds']:.1f} s per epoch ({basis}); "
            f"median step {median:.1f} ms, 20-80 %: {low:.1f}-{high:.1f} ms"
        )
    lines.append(f"with the fused kernels an epoch is {report['epoch_ratio']:.1f} times as fast")
    return "\n".join(lines)


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults = TrainingConfig()
    parser = command.make_parser(
        "python -m benchmarks.epoch", __doc__, "bad arguments or data, or no compiled kernels", "nothing is written"
    )
    data_arguments.add_data(parser)
    data_arguments.add(parser)
    # BPR has one implementation, and so nothing to compare.
    parser.add_argument(
        "--loss",
        choices=[name for name in LOSSES if name != "bpr"],
        default="cw",
        help="loss to train with; cw uses all of its parts: weights, correction and confidence",
    )
    parser.add_argument(
        "--steps", type=non_negative_int, default=0, help="steps to measure with the fused kernels; 0: the whole epoch"
    )
    parser.add_argument(
        "--eager-steps",
        type=non_negative_int,
        default=10,
        help="steps to measure with eager PyTorch; 0: the whole epoch",
    )
    parser.add_argument("--dim", type=positive_int, default=defaults.dim, help="length of an embedding, D")
    parser.add_argument("--batch-size", type=positive_int, default=defaults.batch_size, help="positives per step, B")
    parser.add_argument(
        "--negatives",
        type=negatives_argument,
        metavar="SPEC",
        default=grids.START.negatives,
        help="kind and number of negatives, as in benchmarks.training",
    )
    parser.add_argument("--device", choices=gpu.DEVICES, default=defaults.device, help="where to train")
    parser.add_argument(
        "--seed",
        type=non_negative_int,
        default=defaults.seed,
        help="seed of the splits, the initial weights and the sampling",
    )
    add_out(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = _parse_arguments(argv)
    return command.run(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    config = TrainingConfig(
        dim=arguments.dim,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        device=arguments.device,
    )
    steps = {"fused": arguments.steps, "reference": arguments.eager_steps}
    gpu.require(arguments.device)
    losses = {
        backend: build_loss(arguments.loss, replace(grids.START, negatives=arguments.negatives, backend=backend))
        for backend in BACKENDS
    }
    dataset = data.load(arguments.data, seed=arguments.seed, **data_arguments.chosen(arguments))
    directory = arguments.out or reporting.default_directory(f"{dataset.name}-epoch")
    reporting.make_writable_directory(directory)
    report = {"environment": reporting.environment(arguments.device), **measure(dataset, losses, config, steps)}
    reporting.write_json(directory / "results.json", report)
    plot_epoch(report, directory / "results.png")
    print(describe(report))
    reporting.print_results(directory / "results.json", directory / "results.png")


if __name__ == "__main__":
    sys.exit(main())

"""Matrix factorisation on MovieLens-100K with BPR, SL and CW at one budget: metrics, recommendations, a step's cost."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cw_ext
from benchmarks import data, reporting, step_cost
from benchmarks.arguments import non_negative_int
from benchmarks.losses import LossOptions, build_loss
from benchmarks.negatives import Negatives
from benchmarks.trainer import TrainingConfig
from benchmarks.training import Case, compare, describe_runs

# Each loss at its best on a grid, by validation NDCG@20 averaged over seeds 0 to 2, the simplest where equal:
# learning rate and weight decay for BPR, learning rate and τ for SL and CW, for CW also π (0, 0.02, more) and
# τ_c (none, 1.25, 2.5). On this dense data set the weights help and the correction (π > 0) does not.
SETTINGS = {
    "bpr": (LossOptions(), {"lr": 0.003, "weight_decay": 4e-5}),
    "sl": (LossOptions(temperature=0.1), {"lr": 0.1}),
    "cw": (
        LossOptions(temperature=0.08, prior=0.0, extra_positives=0, confidence_temperature=None),
        {"lr": 0.1},
    ),
}
EPOCHS = 30
EVAL_EVERY = 2
# A quarter of the protocol's 1000: there are about 1000 items here, and validation is no better with more.
NEGATIVES = 256
# Without compiled kernels a step is too slow for as many.
NEGATIVES_REFERENCE = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of split, start and sampling")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/demo"), help="where results go")
    arguments = parser.parse_args(argv)

    build = cw_ext.build_config()
    negatives = Negatives("uniform", NEGATIVES if build["available"] else NEGATIVES_REFERENCE)
    try:
        reporting.make_writable_directory(arguments.out)
        dataset = data.load(seed=arguments.seed)
        cases = [
            Case(
                dataset,
                build_loss(name, replace(options, negatives=negatives)),
                TrainingConfig(
                    epochs=EPOCHS,
                    eval_every=EVAL_EVERY,
                    seed=arguments.seed,
                    **optimizer,
                ),
            )
            for name, (options, optimizer) in SETTINGS.items()
        ]
        model = arguments.out / "model"
        report, interrupted = compare(cases, arguments.out, save={len(cases) - 1: model})
        if interrupted:
            raise KeyboardInterrupt
        report["step_cost"] = step_cost.measure(step_cost.StepShape(items=dataset.num_items), repeats=5)
        reporting.write_json(arguments.out / "results.json", report)
        _print_summary(dataset, cases[0].config, negatives, report, build)
        _print_recommendations(model)
    except KeyboardInterrupt:
        print(f"interrupted; the losses finished before are in {arguments.out}", file=sys.stderr)
        return reporting.INTERRUPTED
    except reporting.ERRORS as error:
        print(f"error: {reporting.first_line(error)}", file=sys.stderr)
        return 2
    print(f"\nresults: {arguments.out / 'results.json'}, {arguments.out / 'results.png'}; the CW model: {model}")
    return 0


def _print_summary(
    dataset: data.InteractionData,
    config: TrainingConfig,
    negatives: Negatives,
    report: dict[str, Any],
    build: dict[str, Any],
) -> None:
    print(
        f"\n{dataset.name}: {dataset.num_users} users, {dataset.num_items} items, "
        f"{len(dataset.train_users)} training and {len(dataset.test_users)} test interactions\n"
        f"MF, D={config.dim}, batch {config.batch_size}, {config.epochs} epochs, "
        f"N={negatives.number} negatives per positive (bpr: 1), seed {config.seed}\n"
    )
    print(describe_runs(report["runs"]))
    if not build["available"]:
        print(f"trained on the reference backend, and therefore with N={negatives.number}: {build['reason']}")
    print(f"\n{step_cost.describe(report['step_cost'])}")


def _print_recommendations(directory: Path) -> None:
    from benchmarks import films, saved  # need polars and safetensors

    print("\nWhat the CW model recommends to five users (✓: a film that the user has in the test set)\n")
    print(films.describe(saved.load(directory), films.titles()))
    print(f"\nall users: python -m benchmarks.recommend --model {directory} --k 5 --out recommendations.csv")


if __name__ == "__main__":
    sys.exit(main())

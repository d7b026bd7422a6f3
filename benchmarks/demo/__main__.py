"""Train matrix factorization on MovieLens-100K with BPR, SL, SL@20 and CW, and compare them.

All four losses get the same number of epochs. The demo prints test metrics, what the CW model recommends to five users,
and the time and memory of one step of the loss against the reference in eager PyTorch. It takes under a minute on two
CPU cores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cw_ext
from benchmarks.common import command, data, reporting
from benchmarks.common.arguments import non_negative_int
from benchmarks.demo import step_cost
from benchmarks.demo.settings import EPOCHS, EVAL_EVERY, NEGATIVES, NEGATIVES_REFERENCE, SETTINGS
from benchmarks.training.compare import Case, compare, describe_runs
from benchmarks.training.losses import build_loss
from benchmarks.training.negatives import Negatives
from benchmarks.training.trainer import TrainingConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status."""
    parser = command.make_parser("python -m benchmarks.demo", __doc__, "bad arguments or data")
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, help="seed of the split, the initial weights and the sampling"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("runs/demo"), help="folder for the results")
    arguments = parser.parse_args(argv)

    left = f"the losses that finished are in {arguments.out}"
    return command.run(lambda: _run(arguments.seed, arguments.out), left)


def _run(seed: int, out: Path) -> None:
    build = cw_ext.build_config()
    negatives = Negatives("uniform", NEGATIVES if build["available"] else NEGATIVES_REFERENCE)
    reporting.make_writable_directory(out)
    dataset = data.load(seed=seed)
    cases = [
        Case(
            dataset,
            build_loss(name, replace(options, negatives=negatives)),
            TrainingConfig(epochs=EPOCHS, eval_every=EVAL_EVERY, seed=seed, **optimizer),
        )
        for name, (options, optimizer) in SETTINGS.items()
    ]
    model = out / "model"
    report, interrupted = compare(cases, out, save={len(cases) - 1: model})
    if interrupted:
        raise KeyboardInterrupt
    report["step_cost"] = step_cost.measure(step_cost.StepShape(items=dataset.num_items), repeats=5)
    reporting.write_json(out / "results.json", report)
    _print_summary(dataset, cases[0].config, negatives, report, build)
    _print_recommendations(model)
    print()
    reporting.print_results(out / "results.json", out / "results.png")
    print(f"saved: {model}")


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
        print(f"trained with the reference backend, and therefore with N={negatives.number}: {build['reason']}")
    print(f"\n{step_cost.describe(report['step_cost'])}")


def _print_recommendations(directory: Path) -> None:
    from benchmarks.demo import films  # need polars and safetensors
    from benchmarks.training import saved  # need polars and safetensors

    print("\nWhat the CW model recommends to five users (✓: in the user's test set)\n")
    print(films.describe(saved.load(directory), films.titles()))
    print(f"\nFor all users: python -m benchmarks.recommend --model {directory} --k 5 --out recommendations.csv")


if __name__ == "__main__":
    sys.exit(main())

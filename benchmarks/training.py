"""Train a recommender with one loss after another and compare how well it ranks the test items."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import data, gpu, reporting
from benchmarks.arguments import negatives, non_negative_float, non_negative_int, positive_int
from benchmarks.losses import LOSSES, LossOptions, RankingLoss, build_loss
from benchmarks.models import MODELS
from benchmarks.plots import plot_runs
from benchmarks.trainer import TrainingConfig, train


def describe_runs(runs: Sequence[dict[str, Any]]) -> str:
    """Return the table that a comparison ends with: one line per loss."""
    k = runs[0]["k"]
    header = ["loss", f"Recall@{k}", f"NDCG@{k}", f"Recall@{k}*", f"NDCG@{k}*", f"val NDCG@{k}", "best epoch"]
    header += ["s/epoch", "negatives", "lr", "weight decay", "loss settings"]
    rows = [
        [
            run["loss"],
            f"{run['test']['recall']:.4f}",
            f"{run['test']['ndcg']:.4f}",
            f"{run['test_validation_masked']['recall']:.4f}",
            f"{run['test_validation_masked']['ndcg']:.4f}",
            f"{run['best_validation']['ndcg']:.4f}",
            f"{run['best_epoch']}/{run['epochs']}",
            f"{run['seconds']['per_epoch']:.2f}",
            run["loss_settings"]["negatives"],
            f"{run['config']['lr']:g}",
            f"{run['config']['weight_decay']:g}",
            _describe_settings(run["loss_settings"]),
        ]
        for run in runs
    ]
    return reporting.format_table(header, rows) + "\n* validation items left out of the ranking too"


def _describe_settings(settings: dict[str, Any]) -> str:
    symbols = {"temperature": "τ", "prior": "π", "extra_positives": "M", "confidence_temperature": "τ_c"}
    shown = [f"{symbol}={settings[name]:g}" for name, symbol in symbols.items() if settings.get(name)]
    return " ".join(shown) or "-"


def compare(
    dataset: data.InteractionData,
    cases: Sequence[tuple[RankingLoss, TrainingConfig]],
    directory: Path,
) -> tuple[dict[str, Any], bool]:
    """Train with each loss in turn; after each, write results.json and results.png to the directory.

    Args:
        dataset: training and test interactions.
        cases: a loss and its training configuration, for each run.
        directory: an existing, writable directory.

    Returns:
        ``(report, interrupted)``: what results.json holds, with one entry in ``report["runs"]`` per run that
        got as far as a first validation; and whether Ctrl-C cut the comparison short.

    Raises:
        TrainingError: as :func:`train`; the runs before it are on disk.
    """
    report: dict[str, Any] = {
        "data": dataset.sizes(),
        "environment": reporting.environment(cases[0][1].device),
        "runs": [],
    }
    for loss, config in cases:
        try:
            run = train(dataset, loss, config)
        except KeyboardInterrupt:
            return report, True
        report["runs"].append(run)
        reporting.write_json(directory / "results.json", report)
        plot_runs(report["runs"], directory / "results.png", f"{dataset.name}, {config.model}, dim {config.dim}")
        if run["ended_by"] == "interrupt":
            return report, True
    return report, False


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults, loss_defaults = TrainingConfig(), LossOptions()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        epilog="Exit status: 0 done, 2 bad arguments or data, or training that diverged, "
        "130 ended by Ctrl-C (what was validated by then is tested and written).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        metavar="DIR|FILE",
        help="directory with train.tsv and test.tsv (header user_procid<TAB>item_procid, 0-based ids), kept "
        "as split; or a file with a user and an item per line, or a RecBole .inter file, filtered and split "
        "80/20; MovieLens-100K if not given",
    )
    parser.add_argument("--core", type=positive_int, default=data.DEFAULT_CORE, help="k of the k-core filter of a file")
    parser.add_argument(
        "--min-rating",
        type=float,
        default=data.DEFAULT_MIN_RATING,
        help="lowest rating that counts as positive, for .inter files with ratings",
    )
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=["sl", "cw"], help="losses to compare")
    parser.add_argument("--model", choices=MODELS, default=defaults.model, help="the model to train")
    parser.add_argument("--dim", type=positive_int, default=defaults.dim, help="length of an embedding")
    parser.add_argument("--lr", type=non_negative_float, default=defaults.lr, help="learning rate of Adam")
    parser.add_argument(
        "--weight-decay", type=non_negative_float, default=defaults.weight_decay, help="weight decay of Adam"
    )
    parser.add_argument(
        "--tau",
        type=float,
        default=loss_defaults.temperature,
        help="temperature on the half cosine: half of a value published for the cosine (psl: as published)",
    )
    parser.add_argument(
        "--prior",
        type=float,
        default=loss_defaults.prior,
        help="share of the sampled negatives that are positives, in [0, 1) (cw, dcl)",
    )
    parser.add_argument(
        "--extra-positives",
        type=non_negative_int,
        default=loss_defaults.extra_positives,
        help="further positives per row that the correction averages over (cw, dcl)",
    )
    parser.add_argument(
        "--confidence-tau",
        type=non_negative_float,
        default=loss_defaults.confidence_temperature,
        help="temperature of the confidence in the positive, on the half cosine; 0 for none (cw)",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "fused", "reference"),
        default=loss_defaults.backend,
        help="compiled kernels, plain PyTorch, or the kernels where they are there (all but bpr)",
    )
    parser.add_argument("--epochs", type=positive_int, default=defaults.epochs, help="most epochs to train")
    parser.add_argument("--batch-size", type=positive_int, default=defaults.batch_size, help="positives per step")
    parser.add_argument(
        "--negatives",
        type=negatives,
        metavar="SPEC",
        default=loss_defaults.negatives,
        help="N or uniform:N, N per positive drawn inside the op; popularity:N, the same by popularity^0.75, corrected "
        "by log Q; shared:N, one set for the batch; in-batch, the batch's other positives, corrected; mixed:N, these "
        "and N uniform ones; full, all items. Items that the user is known to like are left out (bpr: uniform:1 or "
        "popularity:1)",
    )
    parser.add_argument("--k", type=positive_int, default=defaults.k, help="length of the ranking that is judged")
    parser.add_argument(
        "--eval-every", type=positive_int, default=defaults.eval_every, help="epochs between validations"
    )
    parser.add_argument(
        "--patience",
        type=non_negative_int,
        default=0,
        help="stop after this many validations without a better NDCG; 0 trains all epochs, as the protocol does",
    )
    parser.add_argument("--device", choices=gpu.DEVICES, default=defaults.device, help="where to train")
    parser.add_argument("--seed", type=non_negative_int, default=defaults.seed, help="of splits, start and sampling")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where results go; a new folder under runs/ if not given"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = _parse_arguments(argv)
    options = LossOptions(
        temperature=arguments.tau,
        prior=arguments.prior,
        extra_positives=arguments.extra_positives,
        confidence_temperature=arguments.confidence_tau or None,
        negatives=arguments.negatives,
        backend=arguments.backend,
    )
    config = TrainingConfig(
        model=arguments.model,
        dim=arguments.dim,
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        eval_every=arguments.eval_every,
        patience=arguments.patience or None,
        k=arguments.k,
        seed=arguments.seed,
        device=arguments.device,
    )
    try:
        gpu.require(arguments.device)
        losses = [build_loss(name, options) for name in dict.fromkeys(arguments.loss)]
        dataset = data.load(arguments.data, seed=arguments.seed, core=arguments.core, min_rating=arguments.min_rating)
        directory = arguments.out or reporting.default_directory(f"{dataset.name}-{config.model}")
        reporting.make_writable_directory(directory)
        report, interrupted = compare(dataset, [(loss, config) for loss in losses], directory)
    except KeyboardInterrupt:
        print("interrupted before training began; nothing was written", file=sys.stderr)
        return reporting.INTERRUPTED
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if report["runs"]:
        print(describe_runs(report["runs"]))
        print(f"results: {directory / 'results.json'}, {directory / 'results.png'}")
    if interrupted:
        finished = ", ".join(run["loss"] for run in report["runs"]) or "none"
        print(f"interrupted; runs written: {finished}", file=sys.stderr)
        return reporting.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())

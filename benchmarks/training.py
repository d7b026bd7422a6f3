"""Train a recommender with one loss after another and compare how well it ranks the test items."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks import checkpoints, data, data_arguments, gpu, id_maps, reporting
from benchmarks.arguments import negatives, non_negative_float, non_negative_int, positive_int, prior, share
from benchmarks.losses import LOSSES, LossOptions, RankingLoss, build_loss
from benchmarks.models import MODELS
from benchmarks.plots import plot_runs
from benchmarks.trainer import TrainingConfig, identity, train
from cw_ext.parameters import WEIGHTINGS


class Case(NamedTuple):
    """One training run to do."""

    dataset: data.InteractionData
    loss: RankingLoss
    config: TrainingConfig


def describe_runs(runs: Sequence[dict[str, Any]]) -> str:
    """Return the table that a comparison ends with: one line per loss, means and deviations over its seeds."""
    k = runs[0]["k"]
    header = ["loss", f"Recall@{k}", f"NDCG@{k}", f"Recall@{k}*", f"NDCG@{k}*", f"val NDCG@{k}", "best epoch"]
    header += ["s/epoch", "negatives", "lr", "weight decay", "loss settings"]
    metrics = [("test", "recall"), ("test", "ndcg"), ("test_validation_masked", "recall")]
    metrics += [("test_validation_masked", "ndcg"), ("best_validation", "ndcg")]
    rows = []
    for name in dict.fromkeys(run["loss"] for run in runs):
        seeds = [run for run in runs if run["loss"] == name]
        first = seeds[0]
        rows.append(
            [
                name,
                *(_mean_and_deviation([run[part][metric] for run in seeds]) for part, metric in metrics),
                ", ".join(f"{run['best_epoch']}/{run['epochs']}" for run in seeds),
                f"{mean(run['seconds']['per_epoch'] for run in seeds):.2f}",
                first["loss_settings"]["negatives"],
                f"{first['config']['lr']:g}",
                f"{first['config']['weight_decay']:g}",
                describe_settings(first["loss_settings"]),
            ]
        )
    return reporting.format_table(header, rows) + "\n* validation items left out of the ranking too"


def _mean_and_deviation(values: Sequence[float]) -> str:
    deviation = f"±{stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{deviation}"


_SYMBOLS = {
    "temperature": "τ",
    "prior": "π",
    "extra_positives": "M",
    "weighting": "ω",
    "weight_temperature": "ρ",
    "floor": "ε",
    "positive_temperature": "τ₁",
    "confidence_temperature": "τ_c",
    "confidence_detached": "detached",
    "adversary_every": "adversary every",
    "confidence_top_k": "K",
    "refresh_epochs": "T",
    "top_positives": "α",
    "top_negatives": "β",
}


def describe_settings(settings: dict[str, Any]) -> str:
    """Return a loss's hyper-parameters as a table shows them."""
    shown = []
    for name, symbol in _SYMBOLS.items():
        value = settings.get(name)
        if name == "floor" and not settings.get("prior"):
            continue  # of no effect
        if value and value != "none":
            shown.append(f"{symbol}={value}" if isinstance(value, str) else f"{symbol}={value:g}")
    return " ".join(shown) or "-"


def compare(
    cases: Sequence[Case], directory: Path, resume: bool = False, save: Mapping[int, Path] = MappingProxyType({})
) -> tuple[dict[str, Any], bool]:
    """Do one training run after another; after each, write results.json and results.png to the directory.

    user_ids.parquet and item_ids.parquet there hold the file's own id of each row.

    Args:
        cases: what to train, at least one, all on data of one name.
        directory: an existing, writable directory.
        resume: whether to go on where an earlier call with the same directory was interrupted: finished runs are
            kept, the unfinished one goes on from its last validation.
        save: the directories that models are saved to, by the number of their case.

    Returns:
        ``(report, interrupted)``: what results.json holds, with one entry in ``report["runs"]`` per run that
        got as far as a first validation; and whether Ctrl-C cut the comparison short.

    Raises:
        TrainingError: as :func:`train`; the runs before it are on disk.
        ValueError: what is to be resumed is not of these cases; a directory in `save` holds something else than a saved
            model, or not that of a run that is finished.
        OSError: a file cannot be written; the message names it.
    """
    results, checkpoint = directory / "results.json", directory / "checkpoint.pt"
    runs = _finished_runs(results, cases) if resume else {}
    if save:
        _check_saved(runs, save)
    # Also that of a run that was interrupted, or killed, just after its result was written.
    if not resume or checkpoints.is_of_any(checkpoint, [identity(*cases[number]) for number in runs]):
        checkpoint.unlink(missing_ok=True)
    dataset, _, config = cases[0]
    id_maps.write(dataset, directory)
    report: dict[str, Any] = {
        "data": dataset.sizes(),
        "environment": reporting.environment(config.device),
        "runs": list(runs.values()),
    }
    try:
        for number, case in enumerate(cases):
            if number in runs:
                continue
            run = runs[number] = train(*case, checkpoint=checkpoint, save=save.get(number))
            # With those that come later but were finished earlier.
            report["runs"] = [runs[number] for number in sorted(runs)]
            reporting.write_json(results, report)
            interrupted = run["ended_by"] == "interrupt"
            if not interrupted:
                checkpoint.unlink(missing_ok=True)
            plot_runs(report["runs"], directory / "results.png", f"{dataset.name}, {config.model}, dim {config.dim}")
            if interrupted:
                return report, True
    except KeyboardInterrupt:
        return report, True
    return report, False


def _finished_runs(results: Path, cases: Sequence[Case]) -> dict[int, dict[str, Any]]:
    """Read the runs that are not to be done again, by the number of their case."""
    try:
        report = json.loads(results.read_text(encoding="utf-8"))
        runs = [run for run in report["runs"] if run["ended_by"] != "interrupt"]
        settings = [(run["loss"], run["loss_settings"], run["config"]) for run in runs]
        found = report["data"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{results}: expected the results of an earlier comparison, got something else") from None
    if found not in [case.dataset.sizes() for case in cases]:
        raise ValueError(f"{results}: expected results on {cases[0].dataset.sizes()} to go on from, got {found}")
    known = [(case.loss.name, case.loss.settings, asdict(case.config)) for case in cases]
    for loss, loss_settings, config in settings:
        if (loss, loss_settings, config) not in known:
            raise ValueError(
                f"{results}: expected runs of this comparison only, got {loss} with {loss_settings} and {config}; "
                "resume with the same arguments, or give another --out"
            )
    finished = {known.index(of_run): run for of_run, run in zip(settings, runs, strict=True)}
    return dict(sorted(finished.items()))


def _check_saved(finished: dict[int, dict[str, Any]], save: Mapping[int, Path]) -> None:
    """Refuse directories that cannot be saved to, and finished runs whose models are not in theirs."""
    from benchmarks import saved  # needs polars and safetensors

    for number, directory in save.items():
        saved.check_target(directory)
        if number in finished and saved.run_of(directory) != finished[number]:
            run = finished[number]
            raise ValueError(
                f"{directory}: expected the model of the finished run of {run['loss']} (seed {run['config']['seed']}), "
                "got none or another; without --resume it is trained again"
            )


def _save_directories(cases: Sequence[Case], directory: Path | None) -> dict[int, Path]:
    """Where the model of each case is saved: the directory, or a folder in it for each if there are several."""
    if directory is None:
        return {}
    if len(cases) == 1:
        return {0: directory}
    if (directory / "config.json").exists():
        raise ValueError(f"{directory}: expected a directory for {len(cases)} models, got a saved model")
    names = [f"{case.loss.name}-seed{case.config.seed}" for case in cases]
    return {number: directory / name for number, name in enumerate(names)}


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults, loss_defaults = TrainingConfig(), LossOptions()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        epilog="Exit status: 0 done, 2 bad arguments or data, or training that diverged, "
        "130 ended by Ctrl-C (what was validated by then is tested and written; --resume goes on).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        metavar="DIR|FILE",
        help="directory with train.* and test.*, kept as split; or a file, filtered and split 80/20 (or by its column "
        "split): a table, RecBole .inter, LightGCN lists, MovieLens, MIND, SNAP check-ins, JSON lines or parquet; "
        "MovieLens-100K if not given",
    )
    data_arguments.add(parser)
    parser.add_argument("--loss", nargs="+", choices=LOSSES, default=["sl", "cw"], help="losses to compare")
    parser.add_argument("--model", choices=MODELS, default=defaults.model, help="the model to train")
    parser.add_argument("--dim", type=positive_int, default=defaults.dim, help="length of an embedding")
    parser.add_argument("--num-layers", type=positive_int, help="of a graph model; lightgcn 2, xsimgcl 3 if not given")
    parser.add_argument(
        "--contrastive-weight",
        type=non_negative_float,
        default=defaults.contrastive_weight,
        help="of the contrastive loss that xsimgcl adds",
    )
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
        "--positive-tau",
        type=float,
        default=loss_defaults.positive_temperature,
        help="temperature of the positive, on the half cosine (bsl, two-tau)",
    )
    parser.add_argument(
        "--prior",
        type=prior,
        metavar="PRIOR|auto",
        default=loss_defaults.prior,
        help="share of the sampled negatives that are positives, in [0, 1); auto: estimated at each validation, and 0 "
        "until the first (cw, dcl)",
    )
    parser.add_argument(
        "--extra-positives",
        type=non_negative_int,
        default=loss_defaults.extra_positives,
        help="extra positives per row that the correction averages over (cw, dcl)",
    )
    parser.add_argument("--weighting", choices=WEIGHTINGS, default=loss_defaults.weighting, help="of negatives (cw)")
    parser.add_argument("--weight-tau", type=float, help="temperature of the weights; the loss's if not given (cw)")
    parser.add_argument(
        "--floor", type=float, default=loss_defaults.floor, help="share of the mass that the correction leaves (cw)"
    )
    parser.add_argument(
        "--confidence-tau",
        type=non_negative_float,
        default=loss_defaults.confidence_temperature,
        help="temperature of the confidence in the positive, on the half cosine; 0 for none (cw; slk)",
    )
    parser.add_argument(
        "--confidence-detached", action="store_true", help="the confidence is a constant in the gradient (cw)"
    )
    parser.add_argument(
        "--confidence-top-k",
        type=positive_int,
        help="measure the confidence from the score of the user's K-th item; from 0 if not given (cw; slk: 20)",
    )
    parser.add_argument(
        "--refresh-epochs",
        type=positive_int,
        default=loss_defaults.refresh_epochs,
        help="epochs from one estimate of these scores to the next (cw, slk)",
    )
    parser.add_argument(
        "--top-positives", type=float, default=loss_defaults.top_positives, help="share of positives, alpha (llpauc)"
    )
    parser.add_argument(
        "--top-negatives", type=float, default=loss_defaults.top_negatives, help="share of negatives, beta (llpauc)"
    )
    parser.add_argument(
        "--adversary-every",
        type=positive_int,
        default=loss_defaults.adversary_every,
        help="of this many epochs the adversary learns in the last, the model in the others (advinfonce)",
    )
    parser.add_argument(
        "--false-negatives",
        type=share,
        metavar="SHARE",
        help="hold out a tenth of the training items, and make this share of the negatives such items of their users",
    )
    parser.add_argument(
        "--backend",
        choices=("auto", "fused", "reference"),
        default=loss_defaults.backend,
        help="compiled kernels, plain PyTorch, or the kernels where they are there (not bpr, llpauc and advinfonce)",
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
    parser.add_argument(
        "--seed",
        type=non_negative_int,
        nargs="+",
        default=[defaults.seed],
        help="of splits, start and sampling; with more than one, each loss is trained with each",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where results go; a new folder under runs/ if not given"
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="DIR",
        help="keep the model that validates best, for benchmarks.recommend; with several losses or seeds each in "
        "DIR/LOSS-seedSEED",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on where the comparison with this --out was interrupted: what is finished is kept",
    )
    arguments = parser.parse_args(argv)
    if arguments.resume and arguments.out is None:
        parser.error("--resume needs the --out of the comparison to go on with")
    if arguments.save is not None and arguments.out is not None and arguments.save.resolve() == arguments.out.resolve():
        parser.error("--save and --out must be different directories")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        return _run(_parse_arguments(argv))
    except KeyboardInterrupt:
        print("interrupted; what was finished before is written", file=sys.stderr)
        return reporting.INTERRUPTED
    except reporting.ERRORS as error:
        print(f"error: {reporting.first_line(error)}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace) -> int:
    options = LossOptions(
        temperature=arguments.tau,
        positive_temperature=arguments.positive_tau,
        prior=arguments.prior,
        extra_positives=arguments.extra_positives,
        weighting=arguments.weighting,
        weight_temperature=arguments.weight_tau,
        floor=arguments.floor,
        confidence_temperature=arguments.confidence_tau or None,
        confidence_detached=arguments.confidence_detached,
        confidence_top_k=arguments.confidence_top_k,
        refresh_epochs=arguments.refresh_epochs,
        top_positives=arguments.top_positives,
        top_negatives=arguments.top_negatives,
        adversary_every=arguments.adversary_every,
        negatives=arguments.negatives,
        backend=arguments.backend,
    )
    config = TrainingConfig(
        model=arguments.model,
        dim=arguments.dim,
        num_layers=arguments.num_layers,
        contrastive_weight=arguments.contrastive_weight,
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        eval_every=arguments.eval_every,
        patience=arguments.patience or None,
        k=arguments.k,
        false_negatives=arguments.false_negatives,
        device=arguments.device,
    )
    gpu.require(arguments.device)
    losses = [build_loss(name, options) for name in dict.fromkeys(arguments.loss)]
    seeds = list(dict.fromkeys(arguments.seed))
    datasets = data.load_seeds(arguments.data, seeds, **data_arguments.chosen(arguments))
    cases = [Case(datasets[seed], loss, replace(config, seed=seed)) for loss in losses for seed in seeds]
    directory = arguments.out or reporting.default_directory(f"{cases[0].dataset.name}-{config.model}")
    save = _save_directories(cases, arguments.save)
    if save:
        _check_saved({}, save)  # before a folder for results is made
    reporting.make_writable_directory(directory)
    for note in cases[0].dataset.notes:
        print(note)
    report, interrupted = compare(cases, directory, arguments.resume, save)
    if report["runs"]:
        print(describe_runs(report["runs"]))
        print(f"results: {directory / 'results.json'}, {directory / 'results.png'}")
        if arguments.save is not None:
            print(f"saved: {arguments.save}")
    if interrupted:
        finished = ", ".join(f"{run['loss']} (seed {run['config']['seed']})" for run in report["runs"]) or "none"
        print(f"interrupted; runs written: {finished}", file=sys.stderr)
        return reporting.INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compare losses: one training run after another, their results in a file, a table and a plot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.common import data, reporting
from benchmarks.training import checkpoints, id_maps
from benchmarks.training.auto import Choice
from benchmarks.training.losses import RankingLoss
from benchmarks.training.plots import plot_runs
from benchmarks.training.trainer import TrainingConfig, identity, train


class Case(NamedTuple):
    """One training run to do."""

    dataset: data.InteractionData
    loss: RankingLoss
    config: TrainingConfig


def describe_runs(runs: Sequence[dict[str, Any]]) -> str:
    """Return the table of a comparison: one line per loss, means and deviations over its seeds."""
    k = runs[0]["k"]
    header = ["loss", f"Recall@{k}", f"NDCG@{k}", f"balanced NDCG@{k}", "mean popularity", "coverage", "Gini"]
    header += [f"Recall@{k}*", f"NDCG@{k}*", f"val NDCG@{k}", "best epoch"]
    header += ["s/epoch", "negatives", "lr", "weight decay", "loss settings"]
    metrics = [("test", name) for name in ("recall", "ndcg", "balanced_ndcg", "mean_popularity", "coverage", "gini")]
    metrics += [("test_validation_masked", "recall"), ("test_validation_masked", "ndcg"), ("best_validation", "ndcg")]
    # What only some runs have.
    is_reranked = any("test_reranked" in run for run in runs)
    header += [f"NDCG@{k} reranked", "λ"] if is_reranked else []
    has_numbers = any("final_num_negatives" in run for run in runs)
    header += ["N at the end"] if has_numbers else []
    rows = []
    for name in dict.fromkeys(run["loss"] for run in runs):
        seeds = [run for run in runs if run["loss"] == name]
        first = seeds[0]
        rows.append(
            [
                name,
                *(_of_seeds(seeds, part, metric) for part, metric in metrics),
                ", ".join(f"{run['best_epoch']}/{run['epochs']}" for run in seeds),
                f"{mean(run['seconds']['per_epoch'] for run in seeds):.2f}",
                first["loss_settings"]["negatives"],
                f"{first['config']['lr']:g}",
                f"{first['config']['weight_decay']:g}",
                describe_settings(first["loss_settings"]),
                *(_reranked([run.get("test_reranked") for run in seeds]) if is_reranked else ()),
                *([", ".join(str(run.get("final_num_negatives", "-")) for run in seeds)] if has_numbers else ()),
            ]
        )
    return reporting.format_table(header, rows) + "\n* validation items are left out of the ranking, too"


def _reranked(results: Sequence[Mapping[str, float] | None]) -> tuple[str, str]:
    """NDCG@K and λ of a loss's reranked tests; a dash for each where it has none."""
    found = [result for result in results if result is not None]
    if not found:
        return "-", "-"
    return _mean_and_deviation([r["ndcg"] for r in found]), ", ".join(f"{r['exponent']:g}" for r in found)


def _of_seeds(seeds: Sequence[dict[str, Any]], part: str, metric: str) -> str:
    """A metric as the table shows it; a dash where a run lacks it, as those of earlier versions may."""
    if any(metric not in run[part] for run in seeds):
        return "-"
    return _mean_and_deviation([run[part][metric] for run in seeds], digits=1 if metric == "mean_popularity" else 4)


def _mean_and_deviation(values: Sequence[float], digits: int = 4) -> str:
    deviation = f"±{stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}"


_SYMBOLS = {
    "temperature": "τ",
    "prior": "π",
    "extra_positives": "M",
    "held_out_positives": "held out",
    "likely_positives": "likely",
    "weighting": "ω",
    "weight_temperature": "ρ",
    "floor": "ε",
    "positive_temperature": "τ⁺",
    "falling_pull": "κ",
    "cross_fitted": "cross-fitted",
    "confidence_temperature": "τ_c",
    "confidence_detached": "detached",
    "adversary_every": "adversary every",
    "confidence_top_k": "K",
    "refresh_epochs": "T",
    "top_positives": "α",
    "top_negatives": "β",
    "false_negative_prior": "π_FN",
    "false_negative_family": "f",
    "false_negative_strength": "γ",
    "adapter_candidates": "adapter",
    "sampler_temperature": "τ_s",
    "chain_temperature": "τ_s",
    "scored_corrected": "corrected",
    "memory_pool": "pool",
    "stage_prior": "π_N",
}


def describe_settings(settings: dict[str, Any]) -> str:
    """Return a loss's hyper-parameters as a table shows them."""
    shown = []
    for name, symbol in _SYMBOLS.items():
        value = settings.get(name)
        if name == "floor" and not settings.get("prior"):
            continue  # has no effect
        if value and value != "none":
            shown.append(f"{symbol}={value}" if isinstance(value, str) else f"{symbol}={value:g}")
    return " ".join(shown) or "-"


def compare(
    cases: Sequence[Case],
    directory: Path,
    resume: bool = False,
    save: Mapping[int, Path] = MappingProxyType({}),
    choices: Mapping[str, Choice] = MappingProxyType({}),
) -> tuple[dict[str, Any], bool]:
    """Do one training run after another; after each, write results.json and results.png to the directory.

    user_ids.parquet and item_ids.parquet there have the file's own id of each row.

    Args:
        cases: the runs, at least one, all on data of the same name.
        directory: an existing, writable directory.
        resume: whether to go on where an earlier call with the same directory was interrupted: finished runs are
            kept, the unfinished one goes on from its last validation.
        save: the directories that models are saved to, by the number of their case.
        choices: by the losses' names, what ``--auto`` chose; they are in ``report["auto"]``. The run that a choice has
            the checkpoint of goes on from there, and then the checkpoint is removed.

    Returns:
        ``(report, interrupted)``: the content of results.json, with one entry in ``report["runs"]`` per run that
        reached a first validation; and whether Ctrl-C ended the comparison early.

    Raises:
        TrainingError: as :func:`train`; the runs before it are on disk.
        ValueError: what is to be resumed does not belong to these cases; a directory in `save` contains something other
            than a saved model, or not the model of its finished run.
        OSError: a file cannot be written; the message contains it.
    """
    results, checkpoint = directory / "results.json", directory / "checkpoint.pt"
    runs = _finished_runs(results, cases) if resume else {}
    if save:
        check_saved(runs, save)
    # Also the checkpoint of a run that was interrupted or killed just after its result was written.
    if not resume or checkpoints.is_of_any(checkpoint, [identity(*cases[number]) for number in runs]):
        checkpoint.unlink(missing_ok=True)
    dataset, _, config = cases[0]
    id_maps.write(dataset, directory)
    report: dict[str, Any] = {
        "data": dataset.sizes(),
        "environment": reporting.environment(config.device),
        "runs": list(runs.values()),
        **({"auto": {name: choice.report() for name, choice in choices.items()}} if choices else {}),
    }
    try:
        for number, case in enumerate(cases):
            if number in runs:
                continue
            start = _start(case, choices)
            if start is not None and not checkpoint.exists():
                with reporting.written_whole(checkpoint) as unfinished:
                    shutil.copyfile(start, unfinished)
            run = runs[number] = train(*case, checkpoint=checkpoint, save=save.get(number))
            # Including later runs that were finished by an earlier call.
            report["runs"] = [runs[number] for number in sorted(runs)]
            reporting.write_json(results, report)
            interrupted = run["ended_by"] == "interrupt"
            if not interrupted:
                checkpoint.unlink(missing_ok=True)
                if start is not None:
                    start.unlink()
            plot_runs(report["runs"], directory / "results.png", f"{dataset.name}, {config.model}, dim {config.dim}")
            if interrupted:
                return report, True
    except KeyboardInterrupt:
        return report, True
    return report, False


def _start(case: Case, choices: Mapping[str, Choice]) -> Path | None:
    """The checkpoint that the search for a loss left for this case; None for cases with other seeds than its."""
    choice = choices.get(case.loss.name)
    if choice is None or choice.checkpoint is None or choice.config != case.config:
        return None
    return choice.checkpoint if choice.checkpoint.exists() else None


def _finished_runs(results: Path, cases: Sequence[Case]) -> dict[int, dict[str, Any]]:
    """Read the finished runs, by the number of their case."""
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


def check_saved(finished: dict[int, dict[str, Any]], save: Mapping[int, Path]) -> None:
    """Refuse directories that cannot be saved to, and finished runs whose models are not in theirs.

    Args:
        finished, save: runs and directories by the number of their case, as :func:`compare` has them.

    Raises:
        ValueError, OSError: as :func:`compare`.
    """
    from benchmarks.training import saved  # needs polars and safetensors

    for number, directory in save.items():
        saved.check_target(directory)
        if number in finished and saved.run_of(directory) != finished[number]:
            run = finished[number]
            raise ValueError(
                f"{directory}: expected the model of the finished run of {run['loss']} (seed {run['config']['seed']}), "
                "got none or another; without --resume it is trained again"
            )

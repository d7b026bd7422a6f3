"""The study's tables, as one Markdown file, and its plots."""

from __future__ import annotations

from pathlib import Path

from benchmarks.common import reporting
from benchmarks.study import grids, parts, plots, searched_report, step_times
from benchmarks.study.markdown import section
from benchmarks.study.published import SHORT_NAMES, published
from benchmarks.study.runs import Store
from benchmarks.study.summary import RERANKED, Summary, difference, diverged, summarise
from benchmarks.training.compare import describe_settings

TABLES_FILE = "tables.md"


def write_report(store: Store, directory: Path) -> list[Path]:
    """Write tables and plots of the results, each file whole or not at all; return the files.

    Args:
        store: the results; missing ones are left out.
        directory: an existing, writable directory.
    """
    parts_of_report = (searched_report.overview, searched_report.contests, searched_report.dial)
    parts_of_report += (
        searched_report.candidates,
        _comparison,
        _search,
        _models,
        _stages,
        _mechanisms,
        _sweeps,
        _combinations,
    )
    parts_of_report += (_noise, _estimated, _contestants, _numbers, _priors, _sampled)
    sections = [part(store) for part in parts_of_report]
    text = "# Results of the study\n\n" + "\n".join(text for text in sections if text)
    tables = directory / TABLES_FILE
    with reporting.written_whole(tables) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    drawn = [directory / f"{name}.png" for name, draw in plots.PLOTS.items() if draw(store, directory / f"{name}.png")]
    return [tables, *drawn, *searched_report.draw_fronts(store, directory)]


def _comparison(store: Store) -> str:
    text = []
    for (dataset, model), (losses, _) in parts.COMPARED.items():
        found = {loss: summarise(store, parts.compared_runs(store, dataset, model, loss)) for loss in losses}
        rows = []
        for loss, summary in found.items():
            if summary is None:
                if diverged(store, parts.compared_runs(store, dataset, model, loss)):
                    rows.append([loss, "diverged", *[""] * 9])
                continue
            ndcg, known, sl = summary.mean("ndcg"), published(dataset, model, loss), found["sl"]
            rows.append(
                [
                    loss,
                    str(len(summary.results)),
                    summary.text("recall"),
                    summary.text("ndcg"),
                    summary.text("ndcg", "test_validation_masked"),
                    difference(ndcg, sl.mean("ndcg")) if sl else "",
                    f"{known[0]:.4f} / {known[1]:.4f}" if known else "",
                    difference(ndcg, known[1]) if known else "",
                    f"{summary.seconds_per_epoch:.2f}",
                    describe_settings(summary.results[0]["loss_settings"]),
                    f"{summary.results[0]['config']['lr']:g} / {summary.results[0]['config']['weight_decay']:g}",
                ]
            )
        header = ["loss", "seeds", "Recall@20", "NDCG@20", "NDCG@20, validation masked", "NDCG against SL"]
        header += ["published", "NDCG against it", "s/epoch", "settings", "lr / weight decay"]
        title = f"{SHORT_NAMES[dataset]}, {model}"
        settings = parts.model_settings(store, dataset, model)
        title += "".join(f", {_setting(name, value)}" for name, value in (settings or {}).items())
        text.append(section(title, "Test, mean ± standard deviation over the seeds.", header, rows))
    return "\n".join(section for section in text if section)


def _search(store: Store) -> str:
    rows = []
    for (dataset, model), (losses, _) in parts.COMPARED.items():
        for loss in losses if model == "mf" else grids.SEARCHED_ON_EACH_MODEL.get(dataset, ()):
            tries = grids.search_runs(dataset, loss, model)
            if loss not in losses or len(tries) == 1:
                continue
            runs = [run for run in tries if run in store]
            best = grids.chosen(store, dataset, loss, model)
            for run in runs:
                result = store[run]
                is_best = best is not None and run == grids.with_negatives(best, run.options.negatives)
                found = "diverged" if "diverged" in result else f"{result['best_validation']['ndcg']:.4f}"
                rows.append(
                    [
                        f"{SHORT_NAMES[dataset]}, {model}, {loss}",
                        describe_settings(result["loss_settings"]),
                        f"{run.config.lr:g}",
                        f"{run.config.weight_decay:g}",
                        str(run.options.negatives),
                        f"**{found}**" if is_best else found,
                    ]
                )
    header = ["loss", "settings", "lr", "weight decay", "negatives", "validation NDCG@20"]
    return section("The search", f"Seed {grids.SEARCH_SEED}. Bold: chosen.", header, rows)


def _setting(name: str, value: float) -> str:
    return f"{name.replace('_', ' ')} {value:g}"


def _models(store: Store) -> str:
    rows = []
    for (dataset, model), tries in parts.MODEL_TRIES.items():
        known = published(dataset, model, "sl")
        for run, changes in zip(parts.model_tries(store, dataset, model), tries, strict=False):
            if run not in store:
                continue
            result = store[run]
            name = ", ".join([SHORT_NAMES[dataset], model, *(_setting(*change) for change in changes.items())])
            if "diverged" in result:
                rows.append([name, "diverged", "", "", ""])
                continue
            validation, test = result["best_validation"]["ndcg"], result["test"]
            shown = [f"{value:.4f}" for value in (validation, test["recall"], test["ndcg"])]
            rows.append([name, *shown, difference(test["ndcg"], known[1]) if known else ""])
    header = ["", "validation NDCG@20", "Recall@20", "NDCG@20", "NDCG against published"]
    return section("Settings shared by all losses", f"SL, seed {grids.SEARCH_SEED}.", header, rows)


def _stages(store: Store) -> str:
    rows = []
    for weighting in parts.WEIGHTINGS:
        for correction in parts.CORRECTIONS:
            summaries = [
                summarise(store, parts.stage_runs(weighting, correction, confidence))
                for confidence in parts.CONFIDENCES
            ]
            if any(summaries):
                cells = [_validation_and_test(summary) if summary else "" for summary in summaries]
                rows.append([weighting, correction, *cells])
    header = ["weighting", "correction", *(f"confidence: {name}" for name in parts.CONFIDENCES)]
    text = "NDCG@20, validation / test, on Health, MF, all items as negatives."
    return section("The parts of CW", text, header, rows)


def _validation_and_test(summary: Summary) -> str:
    return f"{summary.text('ndcg', 'best_validation')} / {summary.text('ndcg')}"


def _mechanisms(store: Store) -> str:
    rows = []
    for dataset, names in parts.MECHANISMS.items():
        for name in names:
            summary = summarise(store, parts.mechanism_runs(dataset, name))
            if summary:
                shown = [summary.text("ndcg", "best_validation"), summary.text("recall"), summary.text("ndcg")]
                rows.append([f"{SHORT_NAMES[dataset]}, {name}", *shown])
    text = "Test, MF, τ = .1, τ_c = 1.25. Negatives: all items on Health, 1000 uniform ones on Electronic."
    return section("What the confidence does", text, ["", "validation NDCG@20", "Recall@20", "NDCG@20"], rows)


def _sweeps(store: Store) -> str:
    rows = []
    for name, values in parts.SWEEPS.items():
        for value in values:
            summary = summarise(store, parts.sweep_runs(name, value))
            if summary:
                shown = [summary.text("ndcg", "best_validation"), summary.text("recall"), summary.text("ndcg")]
                rows.append([name, f"{value:g}", *shown])
    text = (
        "One at a time (ρ follows the temperature), around CW with all its parts. Health, MF, all items as negatives."
    )
    return section("CW's hyper-parameters", text, ["", "value", "validation NDCG@20", "Recall@20", "NDCG@20"], rows)


def _combinations(store: Store) -> str:
    rows = []
    for dataset in parts.COMBINED_DATASETS:
        base = summarise(store, parts.compared_runs(store, dataset, "mf", "slk")[:1])
        for name in parts.COMBINATIONS:
            summary = summarise(store, parts.combination_runs(store, dataset, name))
            if summary and base:
                shown = [summary.text("ndcg", "best_validation"), summary.text("recall"), summary.text("ndcg")]
                against = difference(summary.mean("ndcg"), base.mean("ndcg"))
                settings = describe_settings(summary.results[0]["loss_settings"])
                rows.append([f"{SHORT_NAMES[dataset]}, {name}", *shown, against, settings])
    header = ["SL@20 and", "validation NDCG@20", "Recall@20", "NDCG@20", "NDCG against SL@20, same seed", "settings"]
    return section("SL@20 with the other parts of CW", "MF, seed 0.", header, rows)


def _noise(store: Store) -> str:
    rows = []
    for loss in parts.NOISE_LOSSES:
        summaries = [summarise(store, parts.noise_runs(store, loss, share)) for share in parts.SHARES]
        if any(summaries):
            rows.append([loss, *(summary.text("ndcg") if summary else "" for summary in summaries)])
    text = (
        "Test NDCG@20 on Health, MF, by the share of negatives that are held-out positives of their users. SL@20 "
        "estimates the score of each user's 20th item from negatives without them."
    )
    return section("False negatives", text, ["loss", *(f"{share:g}" for share in parts.SHARES)], rows)


def _estimated(store: Store) -> str:
    rows = []
    for name, of_shares in parts.estimated_runs(store).items():
        summaries = [summarise(store, runs) for runs in of_shares]
        known = {
            name: [_part(summary, "test") for summary in summaries],
            f"{name}, reranked": [_part(summary, RERANKED) for summary in summaries],
            f"{name}: π": [_estimated_priors(summary) for summary in summaries],
        }
        rows += [[row, *cells] for row, cells in known.items() if any(cells)]
    text = (
        "Test NDCG@20 on Health, MF, by the share of negatives that are held-out positives of their users. No loss "
        "knows this share. An estimated π is its value at the end of training, by seed. Another tenth of each user's "
        "training items is left out of the rows: the adapter learns from it, and extra positives are drawn from it. "
        "The correction's gradient still raises the scores of these extra positives."
    )
    header = ["", *(f"{share:g}" for share in parts.ESTIMATED_SHARES)]
    return section("False negatives, estimated", text, header, rows)


def _part(summary: Summary | None, part: str) -> str:
    return summary.text("ndcg", part) if summary and summary.has(part) else ""


def _estimated_priors(summary: Summary | None) -> str:
    if summary is None or summary.results[0]["loss_settings"].get("false_negative_prior") != "auto":
        return ""
    return ", ".join(f"{result['final_false_negative_prior']:.3f}" for result in summary.results)


def _contestants(store: Store) -> str:
    rows = []
    for name in parts.CONTESTANTS:
        best, tries = parts.contestant_choice(store, name), parts.contestant_tries(store, name)
        for run in tries if len(tries) > 1 else []:
            if run in store:
                result = store[run]
                found = "diverged" if "diverged" in result else f"{result['best_validation']['ndcg']:.4f}"
                settings = describe_settings(result["loss_settings"])
                rows.append([name, settings, str(run.options.negatives), f"**{found}**" if run == best else found])
    text = f"On the data without planted false negatives, as for the losses. Seed {grids.SEARCH_SEED}. Bold: chosen."
    header = ["", "settings", "negatives", "validation NDCG@20"]
    return section("The search for methods against false negatives", text, header, rows)


def _numbers(store: Store) -> str:
    rows, times = [], step_times.read(store.directory)
    for dataset in parts.NUMBER_DATASETS:
        for loss in parts.NUMBER_LOSSES:
            for number in parts.NUMBERS:
                summary = summarise(store, parts.number_runs(store, dataset, loss, number))
                if summary:
                    seconds = times.get(dataset, {}).get(loss, {}).get(str(number))
                    time = (
                        "{median:.1f} ({q20:.1f} to {q80:.1f})".format(
                            **{quantile: 1e3 * value for quantile, value in seconds.items()}
                        )
                        if seconds
                        else ""
                    )
                    name = f"{SHORT_NAMES[dataset]}, {loss}"
                    rows.append([name, str(number), summary.text("recall"), summary.text("ndcg"), time])
    text = "Test, MF. Times are the median of a whole training step on one thread (20 to 80 %), measured in turns."
    return section("How many negatives", text, ["", "N", "Recall@20", "NDCG@20", "ms per step"], rows)


def _priors(store: Store) -> str:
    rows = []
    for prior in parts.PRIORS:
        summary = summarise(store, parts.prior_runs(store, prior))
        if summary:
            found = [result["final_prior"] for result in summary.results if "final_prior" in result]
            shown = ", ".join(f"{value:.4f}" for value in found)
            rows.append([str(prior), shown, summary.text("recall"), summary.text("ndcg")])
    header = ["π", "estimated at the end, by seed", "Recall@20", "NDCG@20"]
    return section("The prior", "CW on Health, MF.", header, rows)


def _sampled(store: Store) -> str:
    rows = []
    for name in parts.SAMPLED:
        summary = summarise(store, parts.sampled_runs(store, name))
        if summary:
            last = [result["final_num_negatives"] for result in summary.results if "final_num_negatives" in result]
            shown = [summary.text("recall"), summary.text("ndcg"), f"{summary.seconds_per_epoch:.2f}"]
            settings = describe_settings(summary.results[0]["loss_settings"])
            rows.append([name, *shown, ", ".join(map(str, last)), settings])
    header = ["", "Recall@20", "NDCG@20", "s/epoch", "N at the end, by seed", "settings"]
    return section("Negatives chosen by their scores", "Test, Health, MF.", header, rows)

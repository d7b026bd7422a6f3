"""The tables and the plot of :mod:`benchmarks.study.searched`: what ranks best, and what a gain is made of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from benchmarks.study import searched
from benchmarks.study.markdown import section
from benchmarks.study.published import ELECTRONIC, HEALTH, LOSS_NAMES, SHORT_NAMES
from benchmarks.study.runs import Run, Store
from benchmarks.study.searched import CONTESTS, Contest
from benchmarks.study.summary import Summary, difference, summarise
from benchmarks.training.compare import describe_settings
from benchmarks.training.front import FrontPoint, plot_front

# What is recommended: (metric, decimals).
_OF_LISTS = (("balanced_ndcg", 4), ("mean_popularity", 1), ("coverage", 3), ("gini", 3))
_LIST_HEADER = ["balanced NDCG@20", "mean popularity", "coverage", "Gini"]


def name_of(contest: Contest) -> str:
    """What a table calls a comparison."""
    share = contest.false_negatives
    noise = "" if share is None else f", {100 * share:g} % false negatives"
    further = "" if contest.losses == searched.DECISIVE else ", other losses"
    return f"{SHORT_NAMES[contest.dataset]}, {contest.model}{noise}{further}"


def _found(store: Store, contest: Contest) -> dict[str, Summary]:
    found = {loss: _summarise(store, searched.contest_runs(store, contest, loss)) for loss in contest.losses}
    return {loss: summary for loss, summary in found.items() if summary is not None}


def _summarise(store: Store, runs: Iterable[Run]) -> Summary | None:
    """Summarise the runs whose results include what is recommended, which older results lack."""
    return summarise(store, [run for run in runs if run in store and "balanced_ndcg" in store[run].get("test", {})])


def _lists(summary: Summary) -> list[str]:
    return [f"{summary.mean(metric):.{decimals}f}" for metric, decimals in _OF_LISTS]


def _against(summary: Summary, other: Summary | None) -> str:
    """Only of the same seeds."""
    if other is None or len(other.results) != len(summary.results):
        return ""
    return difference(summary.mean("ndcg"), other.mean("ndcg"))


def contests(store: Store) -> str:
    """A table for each comparison."""
    return "\n".join(text for contest in CONTESTS if (text := _contest(store, contest)))


def _contest(store: Store, contest: Contest) -> str:
    found = _found(store, contest)
    rows = []
    for loss, summary in found.items():
        result = store[searched.search(contest, loss)]["auto"]
        rows.append(
            [
                LOSS_NAMES[loss],
                str(len(summary.results)),
                summary.text("recall"),
                summary.text("ndcg"),
                _against(summary, found.get("sl")),
                _against(summary, found.get("slk")),
                *_lists(summary),
                describe_settings(summary.results[0]["loss_settings"]),
                f"{result['epochs']} + {mean(run['epochs'] for run in summary.results):.0f}",
            ]
        )
    header = ["loss", "seeds", "Recall@20", "NDCG@20", "against SL", "against SL@20", *_LIST_HEADER]
    header += ["settings", "epochs of search + training"]
    title = f"Settings chosen by `--auto`: {name_of(contest)}"
    return section(title, "Test, mean ± standard deviation over the seeds.", header, rows)


def overview(store: Store) -> str:
    """CW against SL@20 and SL in every comparison."""
    rows, gains = [], []
    for contest in CONTESTS:
        found = _found(store, contest) if contest.losses == searched.DECISIVE else {}
        if {"sl", "slk", "cw"} <= found.keys() and len({len(found[loss].results) for loss in ("sl", "slk", "cw")}) == 1:
            cw, slk, sl = found["cw"], found["slk"], found["sl"]
            ahead = sum(a > b for a, b in zip(cw.values("ndcg"), slk.values("ndcg"), strict=True))
            shown = [difference(cw.mean(metric), slk.mean(metric)) for metric in ("ndcg", "recall", "balanced_ndcg")]
            against_sl = [difference(cw.mean(metric), sl.mean(metric)) for metric in ("ndcg", "balanced_ndcg")]
            rows.append([name_of(contest), f"{ahead} of {len(cw.results)}", *shown, *against_sl])
            if contest.model == "mf" and contest.false_negatives is None and "shifted" not in contest.dataset:
                gains.append(cw.mean("ndcg") / slk.mean("ndcg") - 1)
    header = [
        "",
        "seeds where CW is ahead of SL@20",
        "NDCG against SL@20",
        "Recall",
        "balanced NDCG",
        "NDCG against SL",
    ]
    header += ["balanced NDCG"]
    text = "Each loss has the settings that `--auto` chose."
    if len(gains) > 1:
        average = f"{100 * mean(gains):+.1f} %"
        text += f" On the {len(gains)} unmodified data sets, with MF, CW is {average} against SL@20 on average."
    return section("CW against SL@20 and SL", text, header, rows)


def candidates(store: Store) -> str:
    """What else was tried, around the chosen settings."""
    found = {name: _summarise(store, searched.candidate_runs(store, name)) for name in searched.CANDIDATES}
    plain = _found(store, searched.contest_of(HEALTH))
    rows = []
    for name, summary in found.items():
        loss, _ = searched.CANDIDATES[name]
        if summary and loss in plain:
            number = len(summary.results)
            base = Summary(plain[loss].results[:number])
            shown = [summary.text("recall"), summary.text("ndcg"), difference(summary.mean("ndcg"), base.mean("ndcg"))]
            rows.append([name, str(number), *shown, *_lists(summary)])
    header = ["", "seeds", "Recall@20", "NDCG@20", "against the loss alone", *_LIST_HEADER]
    text = "Health, MF, with the settings that `--auto` chose for SL, SL@20 and CW, on the same seeds."
    return section("Candidates", text, header, rows)


def dial(store: Store) -> str:
    """SL and CW by the pull on the positive."""
    rows = []
    for dataset in searched.DIALLED:
        for loss in ("sl", "cw"):
            for pull in searched.PULLS:
                summary = _summarise(store, searched.dialled_runs(store, dataset, loss, pull))
                if summary:
                    name = f"{SHORT_NAMES[dataset]}, {LOSS_NAMES[loss]}, pull × {pull:g}"
                    shown = [str(len(summary.results)), summary.text("recall"), summary.text("ndcg")]
                    rows.append([name, *shown, *_lists(summary)])
    header = ["", "seeds", "Recall@20", "NDCG@20", *_LIST_HEADER]
    text = (
        "A pull × a on the positive means positive_temperature = τ/a. MF, otherwise with the settings that `--auto` "
        "chose."
    )
    return section("One dial, from balanced to popular", text, header, rows)


def front_points(store: Store, dataset: str) -> list[FrontPoint]:
    """A point per loss, and per pull of SL and CW."""
    points = []
    with_model = [
        each for each in CONTESTS if (each.dataset, each.model, each.false_negatives) == (dataset, "mf", None)
    ]
    found: dict[str, Summary] = {}
    for contest in with_model:
        found = _found(store, contest) | found
    for loss, summary in found.items():
        if loss not in ("sl", "cw"):
            points.append(_point(LOSS_NAMES[loss], "", summary))
    for loss in ("sl", "cw"):
        for pull in searched.PULLS:
            summary = _summarise(store, searched.dialled_runs(store, dataset, loss, pull))
            if summary:
                points.append(_point(LOSS_NAMES[loss], f"{LOSS_NAMES[loss]} × {pull:g}", summary))
    return points


def _point(loss: str, setting: str, summary: Summary) -> FrontPoint:
    return FrontPoint(loss, setting, summary.values("ndcg"), summary.values("balanced_ndcg"))


def draw_fronts(store: Store, directory: Path) -> list[Path]:
    """Plot the front of each data set whose dial has been turned; return the files."""
    files = []
    for dataset, name in ((HEALTH, "health"), (ELECTRONIC, "electronic")):
        points = front_points(store, dataset)
        if len(points) > 1:
            file = directory / f"front-{name}.png"
            plot_front(
                points, file, title=f"{SHORT_NAMES[dataset]}, MF: settings chosen by --auto, pull × a on the positive"
            )
            files.append(file)
    return files

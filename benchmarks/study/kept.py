"""Which results the study hands on: what its tables and plots are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.study import parts, searched
from benchmarks.study.runs import Run, Store

# In no table, and large or told by another number.
_DROPPED = ("validation", "k", "steps_per_epoch")


def used(store: Store, all_parts: Mapping[str, Callable[[Store], Iterable[Run]]]) -> set[str]:
    """Return the keys of the results that a part takes.

    While a search is incomplete, what it will choose is not known: then all results on its data set are used.
    """
    keys = {run.key for part in all_parts.values() for run in part(store)}
    searches = [*parts.searches(store), *parts.contestant_searches(store), *searched.searches(store)]
    unfinished = {run.dataset for run in searches if run not in store}
    return keys | {result["key"] for result in store if result["dataset"] in unfinished}


def kept(store: Store, all_parts: Mapping[str, Callable[[Store], Iterable[Run]]]) -> list[dict[str, Any]]:
    """Return the results that are :func:`used`, without learning curves and what else no table or plot takes."""
    keys = used(store, all_parts)
    # The effectiveness of a number of negatives is predicted from these runs' ranks of the positives.
    ranked = {run.key for dataset in parts.NUMBER_DATASETS for run in parts.compared_runs(store, dataset, "mf", "sl")}
    return [_without_unused(result, result["key"] in ranked) for result in store if result["key"] in keys]


def _without_unused(result: dict[str, Any], with_shares: bool) -> dict[str, Any]:
    dropped = _DROPPED if with_shares else (*_DROPPED, "shares_below")
    less = {name: value for name, value in result.items() if name not in dropped}
    if "auto" in less:
        less["auto"] = {name: value for name, value in less["auto"].items() if name != "tries"}
    if "seconds" in less:
        less["seconds"] = {"per_epoch": less["seconds"]["per_epoch"]}
    return less

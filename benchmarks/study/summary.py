"""Means and deviations of the study's results over the seeds."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, stdev
from typing import Any, NamedTuple

from benchmarks.study.runs import Run, Store

# The part of the results of a ranking that an adapter changed.
RERANKED = "test_reranked"


class Summary(NamedTuple):
    """Runs that differ in their seeds only.

    Attributes:
        results: of each run, at least one.
    """

    results: list[dict[str, Any]]

    def values(self, metric: str, part: str = "test") -> list[float]:
        """One value per seed of a metric, ``"recall"`` or ``"ndcg"``, of a part of the results."""
        return [result[part][metric] for result in self.results]

    def has(self, part: str) -> bool:
        """Whether all results have this part."""
        return all(part in result for result in self.results)

    def mean(self, metric: str, part: str = "test") -> float:
        """The mean over the seeds."""
        return mean(self.values(metric, part))

    def deviation(self, metric: str, part: str = "test") -> float:
        """The sample standard deviation over the seeds, 0 of one seed."""
        values = self.values(metric, part)
        return stdev(values) if len(values) > 1 else 0.0

    def text(self, metric: str, part: str = "test") -> str:
        """Mean and deviation as a table shows them."""
        deviation = f" ± {self.deviation(metric, part):.4f}" if len(self.results) > 1 else ""
        return f"{self.mean(metric, part):.4f}{deviation}"

    @property
    def seconds_per_epoch(self) -> float:
        """The mean over the seeds."""
        return mean(result["seconds"]["per_epoch"] for result in self.results)


def summarise(store: Store, runs: Iterable[Run]) -> Summary | None:
    """Return the results of these runs; None where none is done, or one diverged."""
    results = [store[run] for run in runs if run in store]
    if not results or any("diverged" in result for result in results):
        return None
    return Summary(results)


def diverged(store: Store, runs: Iterable[Run]) -> bool:
    """Whether one of these runs diverged."""
    return any(run in store and "diverged" in store[run] for run in runs)


def difference(value: float, reference: float) -> str:
    """The relative difference as a table shows it."""
    return f"{100 * (value / reference - 1):+.1f} %"

"""Training runs of the study, and the folder that keeps their results."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.common import reporting
from benchmarks.training.losses import LossOptions, RankingLoss, build_loss
from benchmarks.training.trainer import TrainingConfig

RUNS_FILE = "runs.json"


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        dataset: name of a data set's folder.
        loss: key in :data:`benchmarks.training.losses.LOSSES`.
        options, config: as a training run takes them.
    """

    dataset: str
    loss: str
    options: LossOptions = field(default_factory=LossOptions)
    config: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def ranking_loss(self) -> RankingLoss:
        """The loss itself.

        Raises:
            ValueError: a hyper-parameter out of its range.
        """
        return build_loss(self.loss, self.options)

    @property
    def key(self) -> str:
        """The name of this run; options that its loss does not have do not change it."""
        return _key(self)

    def with_seed(self, seed: int) -> Run:
        """The same run with another seed."""
        return replace(self, config=replace(self.config, seed=seed))


@functools.cache
def _key(run: Run) -> str:
    settings = {"loss": run.ranking_loss.settings, "config": asdict(run.config)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    return f"{run.dataset}-{run.config.model}-{run.loss}-seed{run.config.seed}-{digest}"


class Store:
    """Results of runs, by their key: a folder with one JSON file per run, under ``runs/``, and one file for all,
    ``runs.json``, to be shared.

    Args:
        directory: the folder.

    Raises:
        ValueError: a file that is not a result; the message contains it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._results: dict[str, dict[str, Any]] = {}
        if (directory / RUNS_FILE).exists():
            self._read_summary(directory / RUNS_FILE)
        for path in sorted((directory / "runs").glob("*.json")):
            result = self._read(path)
            self._results[result["key"]] = result

    def _read_summary(self, path: Path) -> None:
        summary = self._read(path)
        try:
            for result in summary["runs"]:
                environment = summary["environments"][result["environment"]] | {"time": result.pop("time")}
                self._results[result["key"]] = result | {"environment": environment}
        except (KeyError, TypeError, IndexError):
            raise self._not_results(path) from None

    @staticmethod
    def _not_results(path: Path) -> ValueError:
        return ValueError(f"{path}: expected results of the study, got something else; remove it to have it run again")

    @classmethod
    def _read(cls, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if "key" in content or "runs" in content:
                return content
        except ValueError:
            pass
        raise cls._not_results(path)

    def __contains__(self, run: Run) -> bool:
        return run.key in self._results

    def __getitem__(self, run: Run) -> dict[str, Any]:
        return self._results[run.key]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._results.values())

    def checkpoint(self, run: Run) -> Path:
        """The file from which an interrupted run goes on."""
        return self.directory / "runs" / f"{run.key}.pt"

    def add(self, run: Run, result: dict[str, Any]) -> None:
        """Write a result, then drop the run's checkpoint."""
        result = {"key": run.key, "dataset": run.dataset, **result}
        self._results[run.key] = result
        (self.directory / "runs").mkdir(parents=True, exist_ok=True)
        reporting.write_json(self.directory / "runs" / f"{run.key}.json", result)
        self.checkpoint(run).unlink(missing_ok=True)

    def write_summary(self) -> Path:
        """Write ``runs.json``: all results without their learning curves, and each environment once, since most differ
        in the time only."""
        environments: list[dict[str, Any]] = []
        runs = []
        for key in sorted(self._results):
            run = {name: value for name, value in self._results[key].items() if name != "validation"}
            environment = dict(run.pop("environment"))
            run["time"] = environment.pop("time")
            if environment not in environments:
                environments.append(environment)
            runs.append(run | {"environment": environments.index(environment)})
        reporting.write_json(self.directory / RUNS_FILE, {"environments": environments, "runs": runs})
        return self.directory / RUNS_FILE

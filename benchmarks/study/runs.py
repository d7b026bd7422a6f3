"""Training runs of the study, and the folder that keeps their results."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.common import reporting
from benchmarks.study import csv_results
from benchmarks.training.losses import LossOptions, RankingLoss, build_loss
from benchmarks.training.trainer import TrainingConfig

# Settings of losses that are part of a key even where they are None or False, as when the first results were kept.
_KEYED_UNUSED = ("weight_temperature", "confidence_temperature", "adapter_candidates", "scored_corrected")
# The same for the configuration's fields, at their defaults.
_KEYED_AT_DEFAULT = (
    "model", "dim", "num_layers", "contrastive_weight", "lr", "weight_decay", "epochs", "batch_size", "eval_every",
    "patience", "k", "false_negatives", "seed", "device",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        dataset: name of a data set's folder.
        loss: key in :data:`benchmarks.training.losses.LOSSES`.
        options, config: as a training run takes them.
        auto: whether it is the search for the loss's settings, from these on, and no training.
    """

    dataset: str
    loss: str
    options: LossOptions = field(default_factory=LossOptions)
    config: TrainingConfig = field(default_factory=TrainingConfig)
    auto: bool = False

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
    key = key_of(run.dataset, run.loss, run.ranking_loss.settings, asdict(run.config))
    return f"{key}-auto" if run.auto else key


def key_of(dataset: str, loss: str, settings: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return the key of a run with these settings of its loss and this configuration.

    What came after the first results, a setting that is None or False or a field of the configuration at its default,
    is not part of it: older results keep their keys.
    """
    # SL with a separate temperature for the positive used to be a loss with its own name.
    name = "two-tau" if loss == "sl" and settings.get("positive_temperature") is not None else loss
    in_use = {
        setting: value
        for setting, value in settings.items()
        if setting in _KEYED_UNUSED or (value is not None and value is not False)
    }
    default = asdict(TrainingConfig())
    changed = {
        field: value for field, value in config.items() if field in _KEYED_AT_DEFAULT or value != default.get(field)
    }  # fmt: skip
    text = json.dumps({"loss": in_use, "config": changed}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{dataset}-{config['model']}-{name}-seed{config['seed']}-{digest}"


class Store:
    """Results of runs, by their key: a folder with one JSON file per run, under ``runs/``, and what is shared of them,
    the files of :mod:`benchmarks.study.csv_results`.

    Args:
        directory: the folder.

    Raises:
        ValueError: a file that is not a result; the message contains it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._results = {result["key"]: result for result in csv_results.read(directory)}
        for path in sorted((directory / "runs").glob("*.json")):
            result = self._read(path)
            self._results[result["key"]] = result

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if "key" in content:
                return content
        except ValueError:
            pass
        raise csv_results.not_results(path)

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

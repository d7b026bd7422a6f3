"""A setting that the search of ``--auto`` tries: a training that halts and goes on, in a checkpoint file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import data
from benchmarks.training import checkpoints
from benchmarks.training.losses import RankingLoss
from benchmarks.training.metrics import ranking_metrics
from benchmarks.training.search_spaces import Changes, Setting
from benchmarks.training.trainer import Trainer, TrainingError

# Validations in a row without a better NDCG after which a candidate is trained no further.
_FLAT_AFTER = 3


def text(value: Any) -> str:
    """A setting's value as reports show it."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else f"{value:.6g}"


class _WithUserNDCG:
    """A trainer, and the users' NDCG of each validation that was better than all before, in one checkpoint.

    A trainer alone can go on from the same file.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.user_ndcg: list[tuple[int, torch.Tensor]] = []

    def identity(self) -> dict[str, Any]:
        return self.trainer.identity()

    def state_dict(self) -> dict[str, Any]:
        return self.trainer.state_dict() | {"user_ndcg": self.user_ndcg}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.user_ndcg = [(epoch, values.cpu()) for epoch, values in state["user_ndcg"]]
        self.trainer.load_state_dict(state)

    def train_to_next_validation(self) -> None:
        """Train to where the whole training validates next, as it does.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        trainer, config = self.trainer, self.trainer.config
        epoch = min((trainer.epoch // config.eval_every + 1) * config.eval_every, config.epochs)
        trainer.config = replace(config, epochs=epoch, patience=None)
        try:
            if trainer.train(show_progress=False) == "interrupt":
                raise KeyboardInterrupt
        finally:
            trainer.config = config
        if trainer.best is trainer.curve[-1]:
            values: list[torch.Tensor] = []
            targets = (trainer.validation_users, trainer.validation_items)
            ranking_metrics(*trainer.best_tables, *targets, *trainer.seen, k=config.k, user_ndcg=values)
            self.user_ndcg.append((trainer.epoch, torch.cat(values).cpu()))


class Candidate:
    """A setting that is tried.

    What a checkpoint has beyond :attr:`epoch` is not looked at, so that a search that was interrupted decides as it
    did before.

    Args:
        dataset, loss, setting: to train with.
        changes: what differs from the other candidates, for reports.
        complexity: see :mod:`benchmarks.training.auto`.
        path: of the checkpoint; if it is there, the training goes on from it.

    Attributes:
        epoch: epochs that the search has had from it.
        seconds: that it has trained and validated.
        diverged: the message, where its training did.
    """

    def __init__(
        self, dataset: data.InteractionData, loss: RankingLoss, setting: Setting, changes: Changes, complexity: int,
        path: Path,
    ) -> None:  # fmt: skip
        self.dataset, self.loss, self.setting, self.changes = dataset, loss, setting, changes
        self.complexity, self.path = complexity, path
        self.epoch, self.seconds = 0, 0.0
        self.diverged: str | None = None
        self._curve: list[tuple[int, float]] = []
        self._user_ndcg: list[tuple[int, torch.Tensor]] = []
        self._rungs: dict[int, float] = {}
        if path.exists():
            self._look_at(self._training())

    @property
    def best_epoch(self) -> int:
        """Of the best validation so far; 0 before the first."""
        return max((point for point in self._curve if point[0] <= self.epoch), key=lambda p: p[1], default=(0, 0.0))[0]

    @property
    def is_flat(self) -> bool:
        """Whether it is not to be trained further: its last validations brought nothing better."""
        patience = self.setting.config.patience
        enough = _FLAT_AFTER if patience is None else max(1, min(patience, _FLAT_AFTER))
        return sum(self.best_epoch < epoch <= self.epoch for epoch, _ in self._curve) >= enough

    def train_to(self, epoch: int) -> int:
        """Train on to an epoch, or to where it is flat or diverges; return how many epochs that were."""
        before, training = self.epoch, None
        every = self.setting.config.eval_every
        while self.diverged is None and not self.is_flat:
            end = min((self.epoch // every + 1) * every, self.setting.config.epochs)
            if end > epoch or end == self.epoch:
                break
            if not self._curve or self._curve[-1][0] < end:
                training = training or self._training()
                try:
                    training.train_to_next_validation()
                except TrainingError as error:
                    self.diverged = str(error)
                    return end - before  # the epochs up to there count as trained
                checkpoints.save(training, self.path)
                self._look_at(training)
            self.epoch = end
        return self.epoch - before

    def reached(self, epoch: int) -> bool:
        """Whether it can be compared with others at that epoch: trained that far, or not further since it is flat."""
        return self.diverged is None and self.epoch > 0 and (self.epoch >= epoch or self.is_flat)

    def user_ndcg(self, epoch: int) -> torch.Tensor:
        """Validation NDCG of the users, float64 [U], at the best validation up to that epoch."""
        return next(values for at, values in reversed(self._user_ndcg) if at <= min(epoch, self.epoch))

    def note_rung(self, epoch: int) -> None:
        """Note, for the report, how it stood at that epoch."""
        self._rungs[epoch] = self.user_ndcg(epoch).mean().item()

    def report(self) -> dict[str, Any]:
        """See :attr:`benchmarks.training.auto.Choice.tries`."""
        found = {"settings": dict(self.changes), "epochs": self.epoch, "rungs": [list(r) for r in self._rungs.items()]}
        return found | ({"diverged": self.diverged} if self.diverged else {})

    def describe(self) -> str:
        """What differs from the other candidates, in words."""
        return ", ".join(f"{name} {text(value)}" for name, value in self.changes.items())

    def _training(self) -> _WithUserNDCG:
        training = _WithUserNDCG(Trainer(self.dataset, self.loss, self.setting.config))
        if self.path.exists():
            checkpoints.load(training, self.path, self.setting.config.device)
        return training

    def _look_at(self, training: _WithUserNDCG) -> None:
        self._curve = [(int(point["epoch"]), point["ndcg"]) for point in training.trainer.curve]
        self._user_ndcg = list(training.user_ndcg)
        self.seconds = sum(training.trainer.stopwatch.seconds.values())

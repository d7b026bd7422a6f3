"""Choose a loss's hyper-parameters by validation, in the time of about two trainings: ``--auto``.

A stage of a :func:`~benchmarks.training.search_spaces.search_space` is successive halving. All its candidates train for
a few epochs: a fortieth of the maximum, and at least until one validation. The worse half is dropped, the others go on
for twice as long, and so on. Candidates within the noise of the best are kept too, since a few epochs don't decide
between them. A candidate that starts behind by more than the noise but would be best in the end is lost. A stage ends
when one candidate is left, when all curves are flat, or when its epochs are spent.

Budget: if a training has at most E epochs, the whole search has 2·E. The stages share it evenly, and what one stage
leaves goes to the next ones. Many trainings stop by patience long before E. So once the leader's curve is flat, a
training is taken to last until its best epoch plus the patience, and the budget is twice that. If more than that has
been spent already, later stages get one validation per candidate, still within 2·E. A candidate is not trained further
after three validations (or the patience, if that is less) in a row without a better NDCG.

Noise: two candidates count as equal if their mean validation NDCG differs by less than two standard errors of the mean
of the users' differences. Of those equal to the best, the simplest is chosen: the one with the fewest stages where
something other than the first candidate, which is the default, was taken. Of equally simple ones, the best is chosen.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import command, data
from benchmarks.training.candidates import Candidate
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.search_spaces import Changes, Setting, search_space
from benchmarks.training.trainer import TrainingConfig, TrainingError, identity

_FIRST_RUNG = 1 / 40  # of the most epochs of a training
# By how many standard errors settings must differ to count as different.
_ERRORS = 2


@dataclass(frozen=True)
class Choice:
    """What was chosen for a loss.

    Attributes:
        options, config: to train with; the configuration is the given one, except for what the search chose.
        chosen: the values of the fields that were searched.
        tries: in the order they came up, ``{"settings", "epochs", "rungs"}``; a rung is ``[epochs, best validation
            NDCG by then]``. One that diverged has ``"diverged"``, the message.
        epochs, seconds: that the search took, the chosen candidate's among them.
        reason: one sentence.
        checkpoint: file from which a training with this choice goes on where the search left it; None if the search
            had no folder.
    """

    options: LossOptions
    config: TrainingConfig
    chosen: dict[str, Any]
    tries: list[dict[str, Any]]
    epochs: int
    seconds: float
    reason: str
    checkpoint: Path | None = None

    def report(self) -> dict[str, Any]:
        """The entry of a result file."""
        names = ("chosen", "reason", "epochs", "seconds", "tries")
        return {name: getattr(self, name) for name in names}


def simplest_within_noise(user_ndcg: Sequence[torch.Tensor], complexities: Sequence[int]) -> int:
    """Return which candidate is chosen, by the rule above.

    Args:
        user_ndcg: of each candidate the NDCG of all users, float [U], users in the same order.
        complexities: of each candidate, the fewer the simpler.
    """
    means = [values.mean().item() for values in user_ndcg]
    best = max(range(len(means)), key=means.__getitem__)
    equal = [number for number, values in enumerate(user_ndcg) if _is_equal(user_ndcg[best], values)]
    return min(equal, key=lambda number: (complexities[number], -means[number]))


def _is_equal(best: torch.Tensor, other: torch.Tensor) -> bool:
    differences = best.double() - other.double()
    if not differences.any():
        return True
    if len(differences) == 1:  # whose error is not known
        return False
    return bool(differences.mean() < _ERRORS * differences.std() / len(differences) ** 0.5)


def choose(
    dataset: data.InteractionData,
    loss_name: str,
    options: LossOptions,
    config: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    show_progress: bool = False,
) -> Choice:
    """Choose the hyper-parameters of a loss.

    Args:
        dataset, options, config: as for a training; what is not searched stays as it is here. The search uses the
            configuration's seed.
        loss_name: key in :data:`benchmarks.training.losses.LOSSES`.
        checkpoint: folder for the candidates' checkpoints, made if it is not there. With those of an interrupted
            search, this one goes on and ends as it would have. They stay; the caller removes them.
        show_progress: whether there is a bar on stderr.

    Raises:
        TrainingError: all candidates of a stage diverged.
        ValueError: an option out of its range, or as of :func:`benchmarks.training.trainer.train`.
        KeyboardInterrupt: Ctrl-C; what was validated by then is kept in the folder.
    """
    if checkpoint is None:
        with tempfile.TemporaryDirectory() as directory:
            return _choose(dataset, loss_name, Setting(options, config), Path(directory), False, show_progress)
    checkpoint.mkdir(parents=True, exist_ok=True)
    return _choose(dataset, loss_name, Setting(options, config), checkpoint, True, show_progress)


def _choose(
    dataset: data.InteractionData, loss_name: str, given: Setting, directory: Path, keep: bool, show_progress: bool
) -> Choice:
    space = search_space(loss_name)
    start = given.changed(space.fixed)

    def candidate(changes: Changes, complexity: int) -> Candidate:
        setting = start.changed(changes)
        loss = build_loss(loss_name, setting.options)
        name = json.dumps(identity(dataset, loss, setting.config), sort_keys=True)
        path = directory / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.pt"
        return Candidate(dataset, loss, setting, changes, complexity, path)

    best: Candidate | None = None
    tried: list[Candidate] = []
    reasons = []
    with command.progress(
        total=2 * given.config.epochs, desc=f"{loss_name} --auto", unit="epoch", shown=show_progress
    ) as progress:
        budget = _Budget(given.config, progress.update)
        for number, stage in enumerate(space.stages):
            known, complexity = ({}, 0) if best is None else (best.changes, best.complexity)
            new = []
            for place, tries in enumerate(stage.tries(best.setting if best else start)):
                if best is not None and best.setting.changed(tries) == best.setting:
                    best.changes = {**known, **tries}  # the same setting, whose report now has these numbers too
                else:
                    new.append(candidate({**known, **tries}, complexity + (place > 0)))
            candidates = [*([best] if best is not None else []), *new]
            budget.begin_stage(len(space.stages) - number)
            best, reason = _halve(candidates, budget)
            # Those that the budget had no epoch for were not tried.
            tried += [each for each in new if each.epoch or each.diverged]
            reasons.append(reason)
    assert best is not None
    return Choice(
        best.setting.options,
        best.setting.config,
        dict(best.changes),
        [each.report() for each in tried],
        budget.spent,
        sum(each.seconds for each in tried),
        "; then ".join(reasons),
        best.path if keep else None,
    )


@dataclass
class _Budget:
    """Epochs that the search may still take."""

    config: TrainingConfig
    progress: Callable[[int], Any]
    spent: int = 0
    length: int = field(init=False)  # expected epochs of one training
    stage_end: int = field(init=False)  # of `spent`

    def __post_init__(self) -> None:
        self.length = self.config.epochs

    def begin_stage(self, stages_left: int) -> None:
        left = max(2 * self.length - self.spent, 0)
        self.stage_end = self.spent + left // stages_left

    def next_target(self, candidates: Sequence[Candidate], target: int, wanted: int) -> int:
        """The epoch to train the candidates to, at most as wanted, which the stage has the epochs for.

        In whole validations; the first rung of a stage has one at least.
        """
        every, most = self.config.eval_every, self.config.epochs
        wanted, left = min(wanted, most), min(self.stage_end, 2 * self.length) - self.spent
        while wanted > target and self._cost(candidates, wanted) > left:
            wanted = (wanted - 1) // every * every
        return max(wanted, target) if target else max(wanted, min(every, most))

    @staticmethod
    def _cost(candidates: Sequence[Candidate], target: int) -> int:
        return sum(max(target - each.epoch, 0) for each in candidates if not each.is_flat)

    @property
    def left(self) -> int:
        """Epochs up to the limit that holds whatever happens."""
        return 2 * self.config.epochs - self.spent

    def train(self, candidate: Candidate, target: int) -> None:
        taken = candidate.train_to(min(target, candidate.epoch + self.left))
        self.spent += taken
        self.progress(taken)

    def expect(self, leader: Candidate) -> None:
        """Note how long trainings are, where the leader shows it."""
        if self.config.patience is not None and leader.is_flat:
            expected = leader.best_epoch + self.config.patience * self.config.eval_every
            self.length = min(self.length, expected)


def _halve(candidates: Sequence[Candidate], budget: _Budget) -> tuple[Candidate, str]:
    """Return the chosen candidate of a stage, and why in words. The first may have been trained before."""
    every, epochs = budget.config.eval_every, budget.config.epochs
    rung = max(every, int(epochs * _FIRST_RUNG) // every * every)
    alive, target = list(candidates), 0
    while True:
        before, target = target, budget.next_target(alive, target, 2 * target or rung)
        if target == before:
            break
        for each in alive:
            budget.train(each, target)
        alive = [each for each in alive if each.reached(target)]
        if not alive:
            raise TrainingError(
                f"{candidates[0].loss.name}: all of {len(candidates)} settings diverged; lower the learning rate (--lr)"
            )
        scores = {each: each.user_ndcg(target) for each in alive}
        alive.sort(key=lambda each: -scores[each].mean().item())
        for each in alive:
            each.note_rung(target)
        budget.expect(alive[0])
        half = (len(alive) + 1) // 2
        kept = [each for place, each in enumerate(alive) if place < half or _is_equal(scores[alive[0]], scores[each])]
        if len(kept) == 1 or target == epochs or all(each.is_flat for each in kept):
            alive = kept
            break
        alive = kept
    final = [each.user_ndcg(target) for each in alive]
    chosen = alive[simplest_within_noise(final, [each.complexity for each in alive])]
    tried = sum(bool(each.epoch or each.diverged) for each in candidates)
    return chosen, _reason(chosen, alive[0], tried, target)


def _reason(chosen: Candidate, best: Candidate, number: int, epochs: int) -> str:
    settings = chosen.describe()
    ndcg = chosen.user_ndcg(epochs).mean().item()
    how = f"the best of {number}"
    if chosen is not best:
        how = f"the simplest of {number} within the noise of the best ({best.describe()})"
    return f"{settings} is {how} after up to {epochs} epochs, with a validation NDCG of {ndcg:.4f}"

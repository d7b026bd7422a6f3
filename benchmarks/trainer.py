"""Train a model with one loss, validating as it goes, and test the epoch that validated best."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks import data, gpu
from benchmarks.losses import RankingLoss
from benchmarks.metrics import ranking_metrics
from benchmarks.models import MODELS
from benchmarks.negatives import Batch
from benchmarks.sampling import InteractionSampler
from cw_ext import Interactions


class TrainingError(RuntimeError):
    """Training that cannot go on, with the likely remedy in its message."""


@dataclass(frozen=True)
class TrainingConfig:
    """What a training run takes beside the data and the loss.

    Attributes:
        model: key in :data:`benchmarks.models.MODELS`.
        dim: length D of an embedding.
        lr, weight_decay: of Adam.
        epochs: at most this many passes over the training interactions.
        batch_size: interactions per step, B.
        eval_every: epochs from one validation to the next.
        patience: stop after this many validations without a better NDCG@K; None to go through all epochs.
        k: length of the ranking in Recall@K and NDCG@K.
        seed: of the initial embeddings, the order of the interactions and the sampling. The same embeddings come out
            on every device, the others differ.
        device: "cpu" or "cuda", where all of it runs.
    """

    model: str = "mf"
    dim: int = 64
    lr: float = 0.1
    weight_decay: float = 0.0
    epochs: int = 200
    batch_size: int = 1024
    eval_every: int = 5
    patience: int | None = None
    k: int = 20
    seed: int = 0
    device: str = "cpu"


# Below this are the seeds of the draws.
_SEEDS = 2**63 - 1

# The parts of a training step that are timed, in their order; "sampling" is the further positives, and the negatives
# where the loss does not draw them itself; "queries" is the model and the look-up of the users.
STEP_PARTS = ("sampling", "queries", "loss_forward", "backward", "optimizer")


class _Stopwatch:
    """Adds up wall-clock seconds per part of a training run.

    It waits for the device at the end of each part, or what a part launches would be counted as a later one's.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.seconds = dict.fromkeys((*STEP_PARTS, "evaluation"), 0.0)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        gpu.synchronize(self._device)
        self.seconds[part] += time.perf_counter() - start


class Trainer:
    """Trains one model with one loss, keeping the embeddings of the epoch that validates best.

    Attributes:
        interactions: what is trained on, and what a user's negatives are not.
        curve: validation results so far, each ``{"epoch", "recall", "ndcg", "training_loss"}``.
        epoch: epochs completed.
        stopwatch: seconds so far for each of :data:`STEP_PARTS` and for ``"evaluation"``.
    """

    def __init__(self, dataset: data.InteractionData, loss: RankingLoss, config: TrainingConfig) -> None:
        self.loss, self.config = loss, config
        fit, validation_users, validation_items = data.split_validation(dataset, seed=config.seed)
        if len(validation_users) == 0:
            raise data.DataError(f"{dataset.name}: expected a user with at least 2 training items to validate on")
        self.dataset, self.fit = dataset.to(config.device), fit.to(config.device)
        self.validation_users = validation_users.to(config.device)
        self.validation_items = validation_items.to(config.device)
        self.interactions = Interactions(
            self.fit.train_users, self.fit.train_items, num_queries=dataset.num_users, num_items=dataset.num_items
        )
        loss.negatives.check_drawable(self.interactions)
        self.sampler = InteractionSampler(self.interactions)
        generator = torch.Generator().manual_seed(config.seed)
        self.model = MODELS[config.model](self.fit, config.dim, generator).to(config.device)
        if config.device != "cpu":  # its own draws, since a generator serves one device
            generator = torch.Generator(config.device).manual_seed(config.seed)
        self.generator = generator
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.stopwatch = _Stopwatch(config.device)
        self.curve: list[dict[str, float]] = []
        self.epoch = 0
        self._best_tables: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def best(self) -> dict[str, float]:
        """The entry of the curve with the highest validation NDCG@K."""
        return max(self.curve, key=lambda point: point["ndcg"])

    def train(self, show_progress: bool = True) -> str:
        """Train to the end of the epochs, to the end of patience, or until Ctrl-C.

        Args:
            show_progress: whether there is a bar on stderr.

        Returns:
            Why it ended: ``"epochs"``, ``"patience"`` or ``"interrupt"``.

        Raises:
            TrainingError: the loss became infinite or NaN.
            KeyboardInterrupt: Ctrl-C before the first validation, which leaves nothing to test.
        """
        config = self.config
        progress = tqdm(
            total=config.epochs, desc=self.loss.name, unit="epoch", mininterval=0.5, disable=not show_progress
        )
        try:
            while self.epoch < config.epochs:
                training_loss = self._train_epoch()
                self.epoch += 1
                if self.epoch % config.eval_every == 0 or self.epoch == config.epochs:
                    self._validate(training_loss)
                shown = {"loss": f"{training_loss:.4f}"}
                if self.curve:
                    shown[f"val NDCG@{config.k}"] = f"{self.curve[-1]['ndcg']:.4f}"
                progress.set_postfix(shown, refresh=False)
                progress.update()
                if config.patience is not None and self._evaluations_since_best() >= config.patience:
                    return "patience"
            return "epochs"
        except KeyboardInterrupt:
            if not self.curve:
                raise
            return "interrupt"
        finally:
            progress.close()

    def test(self) -> dict[str, dict[str, float]]:
        """Test the best epoch's embeddings.

        Returns:
            Recall@K and NDCG@K under ``"test"`` with the items trained on left out of the ranking (the
            protocol of published results, where validation items stay in it), and under
            ``"test_validation_masked"`` with the validation items left out as well.
        """
        with self.stopwatch.time("evaluation"):
            targets = (self.dataset.test_users, self.dataset.test_items)
            fit = (self.fit.train_users, self.fit.train_items)
            all_training = (self.dataset.train_users, self.dataset.train_items)
            return {
                "test": ranking_metrics(*self._best_tables, *targets, *fit, k=self.config.k),
                "test_validation_masked": ranking_metrics(*self._best_tables, *targets, *all_training, k=self.config.k),
            }

    def shuffled_batches(self) -> tuple[torch.Tensor, ...]:
        """Split the training interactions at random into the batches of an epoch, each int64 indices [B] or fewer."""
        order = torch.randperm(len(self.sampler.users), generator=self.generator, device=self.config.device)
        return order.split(self.config.batch_size)

    def _train_epoch(self) -> float:
        """Pass once over the training interactions; return the mean loss of the batches."""
        losses = [self.train_step(batch) for batch in self.shuffled_batches()]
        mean = sum(losses) / len(losses)
        if not abs(mean) < float("inf"):
            raise TrainingError(
                f"{self.loss.name}: the training loss became {mean} in epoch {self.epoch + 1}; lower the lr"
            )
        return mean

    def train_step(self, batch: torch.Tensor) -> float:
        """Take one optimizer step on the interactions batch [B]; return the loss."""
        with self.stopwatch.time("sampling"):
            users, pos_ids = self.sampler.users[batch], self.sampler.items[batch]
            # Drawn whether it is used or not, so that the other draws are the same for all kinds of negatives.
            seed = torch.randint(_SEEDS, (), generator=self.generator, device=self.config.device)
            neg_ids = extra_pos_ids = None
            if self.loss.takes_ids:
                neg_ids = self.loss.negatives.draw(users, self.interactions, seed)
            if self.loss.extra_positives:
                extra_pos_ids = self.sampler.further_positives(batch, self.loss.extra_positives, self.generator)
        with self.stopwatch.time("queries"):
            user_table, item_table = self.model()
            queries = F.embedding(users, user_table)
        with self.stopwatch.time("loss_forward"):
            known = (self.interactions, seed, neg_ids)
            loss = self.loss.function(Batch(queries, item_table, users, pos_ids, extra_pos_ids, *known))
        with self.stopwatch.time("optimizer"):
            self.optimizer.zero_grad()
        with self.stopwatch.time("backward"):
            loss.backward()
        with self.stopwatch.time("optimizer"):
            self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def _validate(self, training_loss: float) -> None:
        with self.stopwatch.time("evaluation"):
            tables = tuple(table.detach().clone() for table in self.model())
            if self.loss.similarity == "cosine":
                tables = tuple(F.normalize(table, dim=1) for table in tables)
            metrics = ranking_metrics(
                *tables,
                self.validation_users,
                self.validation_items,
                self.fit.train_users,
                self.fit.train_items,
                k=self.config.k,
            )
        self.curve.append({"epoch": self.epoch, **metrics, "training_loss": training_loss})
        if self.best is self.curve[-1]:
            self._best_tables = tables

    def _evaluations_since_best(self) -> int:
        return len(self.curve) - 1 - self.curve.index(self.best) if self.curve else 0


def train(
    dataset: data.InteractionData, loss: RankingLoss, config: TrainingConfig, show_progress: bool = True
) -> dict[str, Any]:
    """Train with one loss, test once, and return all that a result file says about the run.

    Args:
        dataset: training and test interactions.
        loss: from :func:`benchmarks.losses.build_loss`.
        config: the rest.
        show_progress: whether there is a bar on stderr.

    Returns:
        A JSON-ready dict: settings, validation curve, test metrics, why training ended, and seconds.

    Raises:
        TrainingError: the loss became infinite or NaN.
        ValueError: there is nothing to validate on, or nothing to draw for a user.
        KeyboardInterrupt: Ctrl-C before the first validation.
    """
    start = time.perf_counter()
    trainer = Trainer(dataset, loss, config)
    ended_by = trainer.train(show_progress)
    metrics = trainer.test()
    total = time.perf_counter() - start
    seconds = trainer.stopwatch.seconds
    return {
        "loss": loss.name,
        "loss_settings": loss.settings,
        "k": config.k,
        "config": asdict(config),
        "ended_by": ended_by,
        "epochs": trainer.epoch,
        "best_epoch": trainer.best["epoch"],
        "best_validation": {name: trainer.best[name] for name in ("recall", "ndcg")},
        **metrics,
        "validation": trainer.curve,
        "seconds": {
            "total": total,
            "per_epoch": (total - seconds["evaluation"]) / max(trainer.epoch, 1),
            "sampling": seconds["sampling"],
            "loss": seconds["queries"] + seconds["loss_forward"] + seconds["backward"],
            "optimizer": seconds["optimizer"],
            "evaluation": seconds["evaluation"],
        },
    }

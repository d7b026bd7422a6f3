"""Train a model with one loss, validating as it goes, and test the epoch that validated best."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common import command, data, gpu
from benchmarks.training import checkpoints
from benchmarks.training.estimates import LARGEST_PRIOR, EstimatedWeights, Unseen, inner_products
from benchmarks.training.false_negatives import FalseNegatives, hold_out
from benchmarks.training.learnable_losses import LearningLoss
from benchmarks.training.losses import RankingLoss
from benchmarks.training.metrics import ranking_metrics, shares_below
from benchmarks.training.models import MODELS, ModelOptions
from benchmarks.training.negatives import PER_ROW, Batch
from benchmarks.training.positives import Folds, HeldOutPositives, InteractionSampler, likely_positives
from benchmarks.training.reranking import reranked
from benchmarks.training.stage_numbers import stage_number
from benchmarks.training.topk_thresholds import LearnedThresholds, top_k_thresholds
from cw_ext import Interactions, draw_negatives
from cw_ext.prior import estimate_prior


class TrainingError(RuntimeError):
    """Training that cannot go on, with the likely remedy in its message."""


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of a training run besides data and loss.

    Attributes:
        model: key in :data:`benchmarks.training.models.MODELS`.
        dim: length D of an embedding.
        num_layers: of a graph model; None for the model's own number.
        contrastive_weight: of a contrastive model's own loss.
        lr, weight_decay: of Adam.
        epochs: at most this many passes over the training interactions.
        batch_size: interactions per step, B.
        eval_every: epochs from one validation to the next.
        patience: stop after this many validations without a better NDCG@K; None to go through all epochs.
        k: length of the ranking in Recall@K and NDCG@K.
        false_negatives: hold out a tenth of each user's training items, and put one of them in the place of a negative
            with this probability, in [0, 1]; None to hold nothing out.
        seed: of the initial embeddings, the order of the interactions and the sampling. The same embeddings come out
            on every device, the others differ.
        device: "cpu" or "cuda", where all of it runs.
    """

    model: str = "mf"
    dim: int = 64
    num_layers: int | None = None
    contrastive_weight: float = 0.1
    lr: float = 0.1
    weight_decay: float = 0.0
    epochs: int = 200
    batch_size: int = 1024
    eval_every: int = 5
    patience: int | None = None
    k: int = 20
    false_negatives: float | None = None
    seed: int = 0
    device: str = "cpu"


# The number of groups in which a result reports the positives' ranks.
_SHARE_GROUPS = 50
# Seeds of draws are below this.
_SEEDS = 2**63 - 1
# So that these positives are other draws than the false negatives and the validation items.
_HELD_OUT_SEED, _FOLDS_SEED = 1_000_003, 2_000_003

# The parts of a training step that are timed, in their order; "sampling" is the extra positives, and the negatives
# where the loss does not draw them itself; "queries" is the model and the look-up of the users.
STEP_PARTS = ("sampling", "queries", "loss_forward", "backward", "optimizer")
# What is timed before an epoch, for the losses that need it.
_PASSES = ("thresholds", "estimates")
# What points of the curve have for the losses that estimate it.
_ESTIMATED = ("prior", "false_negative_prior", "num_negatives")


class _Stopwatch:
    """Adds up wall-clock seconds per part of a training run.

    It waits for the device at the end of each part, or the work that it launched would count for a later part.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.seconds = dict.fromkeys((*STEP_PARTS, "evaluation"), 0.0)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        gpu.synchronize(self._device)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start


def _interactions(dataset: data.InteractionData) -> Interactions:
    return Interactions(
        dataset.train_users, dataset.train_items, num_queries=dataset.num_users, num_items=dataset.num_items
    )


def identity(dataset: data.InteractionData, loss: RankingLoss, config: TrainingConfig) -> dict[str, Any]:
    """What tells a run from others: data, loss and configuration."""
    settings = {name: value for name, value in loss.settings.items() if name != "backend"}
    return {"data": dataset.sizes(), "loss": loss.name, "settings": settings, "config": asdict(config)}


class Trainer:
    """Trains one model with one loss, keeping the embeddings of the epoch that validates best.

    Attributes:
        negative_sampler: chooses the negatives by their scores; None where none does.
        interactions: the training pairs, which a user's negatives must not be among: those of the rows, and those that
            the loss has held out.
        held_out: these; None where the loss holds none out.
        likely: what the extra positives are drawn from where they are no known ones; None where they are.
        folds: of which each epoch leaves one out of its rows; None where the rows are all of :attr:`sampler`'s.
        weights: of the negatives, where the loss has them estimated.
        curve: validation results so far, each with its ``"epoch"``, all that ``ranking_metrics`` returns with
            popularity, and the ``"training_loss"``; also the ``"prior"`` that the loss had from then on where it is
            estimated, or the ``"false_negative_prior"`` behind the weights of the epoch before, or its
            ``"num_negatives"`` where each epoch has its own.
        epoch: epochs completed.
        stopwatch: seconds so far for each of :data:`STEP_PARTS`, for ``"evaluation"``, and for ``"thresholds"`` where
            passes over the catalogue estimate them, and ``"estimates"`` where negatives are weighed by them.
    """

    def __init__(self, dataset: data.InteractionData, loss: RankingLoss, config: TrainingConfig) -> None:
        self.loss, self.config = loss, config
        fit, validation_users, validation_items = data.split_validation(dataset, seed=config.seed)
        if len(validation_users) == 0:
            raise data.DataError(f"{dataset.name}: expected a user with at least 2 training items to validate on")
        self.dataset = dataset.to(config.device)
        self.validation_users = validation_users.to(config.device)
        self.validation_items = validation_items.to(config.device)
        fit = fit.to(config.device)
        # Rankings for validation and test leave out all that training has seen, also as false negatives.
        self.seen = (fit.train_users, fit.train_items)
        # Of what is seen, so that it is the same for losses that hold some of it out.
        self._popularity = torch.bincount(fit.train_items, minlength=fit.num_items)
        self.false_negatives = None
        if config.false_negatives is not None:
            if loss.negatives.kind not in PER_ROW:
                raise ValueError(f"false_negatives need negatives drawn for each row, got {loss.negatives}")
            self.false_negatives, fit = FalseNegatives.hold_out(fit, config.false_negatives, config.seed)
        self.interactions = _interactions(fit)
        self.held_out = None
        if loss.holds_out:
            held_out, fit = hold_out(fit, config.seed + _HELD_OUT_SEED)
            self.held_out = HeldOutPositives(held_out)
        self.fit = fit
        self.likely = likely_positives(loss.likely_positives, self.interactions) if loss.likely_positives else None
        loss.negatives.check_drawable(self.interactions)
        self.sampler = InteractionSampler(_interactions(fit))
        generator = torch.Generator().manual_seed(config.seed)
        options = ModelOptions(num_layers=config.num_layers, contrastive_weight=config.contrastive_weight)
        self.model = MODELS[config.model](self.fit, config.dim, generator, options).to(config.device)
        with torch.no_grad():
            for table in (self.model.user_embeddings, self.model.item_embeddings):
                table.mul_(loss.initial_std(*table.shape))
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self._function = loss.build(dataset.num_users, dataset.num_items, config.dim, generator)
        self._loss_optimizer = None
        if isinstance(self._function, nn.Module):
            self._function.to(config.device)
        if isinstance(self._function, LearningLoss):
            self._loss_optimizer = self._function.optimizer(config.lr, config.weight_decay)
        if config.device != "cpu":  # with its own draws, since a generator belongs to one device
            generator = torch.Generator(config.device).manual_seed(config.seed)
        self.generator = generator
        self._unseen = Unseen(self.validation_users, self.validation_items, self._drawn)
        self.weights = self.folds = None
        if loss.estimate is not None:
            self.weights = EstimatedWeights(loss.estimate, self.held_out, config.dim, generator)
            if loss.estimate.cross_fitted:
                self.folds = Folds(self.sampler.users, config.seed + _FOLDS_SEED)
        self.negative_sampler = loss.sampler.build(self.interactions, config.seed) if loss.sampler else None
        self.stopwatch = _Stopwatch(config.device)
        self._number = None
        self.curve: list[dict[str, float]] = []
        self.epoch = 0
        self._thresholds = torch.zeros(dataset.num_users, device=config.device) if loss.thresholds else None
        self._prior = 0.0 if loss.estimates_prior else None
        self._best_tables: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def best(self) -> dict[str, float]:
        """The entry of the curve with the highest validation NDCG@K."""
        return max(self.curve, key=lambda point: point["ndcg"])

    @property
    def best_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of the users [num_users, D] and of the items [num_items, D] at that epoch, after the graph
        convolutions if there are any; their inner products are the scores, and for cosines they have length 1."""
        assert self._best_tables is not None, "nothing was validated"
        return self._best_tables

    @property
    def thresholds(self) -> torch.Tensor | None:
        """The score of each user's K-th item [num_users], where the confidence is measured from it."""
        if isinstance(self._function, LearnedThresholds):
            return self._function.top_k.thresholds
        return self._thresholds

    def identity(self) -> dict[str, Any]:
        """What tells this run from others: data, loss and configuration."""
        return identity(self.dataset, self.loss, self.config)

    def state_dict(self) -> dict[str, Any]:
        """All that the next epoch depends on, and the results so far."""
        return {
            "epoch": self.epoch,
            "curve": self.curve,
            "best_tables": self._best_tables,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss": self._function.state_dict() if isinstance(self._function, nn.Module) else None,
            "loss_optimizer": self._loss_optimizer.state_dict() if self._loss_optimizer else None,
            "weights": self.weights.state_dict() if self.weights else None,
            "negative_sampler": self.negative_sampler.state_dict() if self.negative_sampler else None,
            "thresholds": self._thresholds,
            "prior": self._prior,
            "generator": self.generator.get_state(),
            "seconds": self.stopwatch.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was called, in a run of the same :meth:`identity`."""
        self.epoch, self.curve, self._best_tables = state["epoch"], state["curve"], state["best_tables"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if isinstance(self._function, nn.Module):
            self._function.load_state_dict(state["loss"])
        if self._loss_optimizer:
            self._loss_optimizer.load_state_dict(state["loss_optimizer"])
        if self.weights:
            self.weights.load_state_dict(state["weights"])
        if self.negative_sampler:
            self.negative_sampler.load_state_dict(state["negative_sampler"])
        self._thresholds, self._prior = state["thresholds"], state["prior"]
        self.generator.set_state(state["generator"].cpu())
        self.stopwatch.seconds = state["seconds"]

    def train(self, show_progress: bool = True, checkpoint: Path | None = None) -> str:
        """Train to the end of the epochs, to the end of patience, or until Ctrl-C.

        Args:
            show_progress: whether there is a bar on stderr.
            checkpoint: file to go on from if it is there, and to write after each validation.

        Returns:
            Why it ended: ``"epochs"``, ``"patience"`` or ``"interrupt"``.

        Raises:
            TrainingError: the loss became infinite or NaN.
            CheckpointError: the checkpoint is not one of this run.
            KeyboardInterrupt: Ctrl-C before the first validation, which leaves nothing to test.
        """
        config = self.config
        if checkpoint is not None and checkpoint.exists():
            checkpoints.load(self, checkpoint, config.device)
        progress = command.progress(
            total=config.epochs, initial=self.epoch, desc=self.loss.name, unit="epoch", shown=show_progress
        )
        try:
            while self.epoch < config.epochs and not self._is_out_of_patience():
                training_loss = self._train_epoch()
                self.epoch += 1
                if self.epoch % config.eval_every == 0 or self.epoch == config.epochs:
                    self._validate(training_loss)
                    if checkpoint is not None:
                        checkpoints.save(self, checkpoint)
                shown = {"loss": f"{training_loss:.4f}"}
                if self.curve:
                    shown[f"val NDCG@{config.k}"] = f"{self.curve[-1]['ndcg']:.4f}"
                progress.set_postfix(shown, refresh=False)
                progress.update()
            return "patience" if self.epoch < config.epochs else "epochs"
        except KeyboardInterrupt:
            if not self.curve:
                raise
            return "interrupt"
        finally:
            progress.close()

    def test(self) -> dict[str, dict[str, float]]:
        """Test the best epoch's embeddings.

        Returns:
            What ``ranking_metrics`` returns with popularity, under ``"test"`` with the items trained on left out of
            the ranking (the protocol of published results, where validation items stay in it), and under
            ``"test_validation_masked"`` with the validation items left out as well. With an adapter also
            ``"test_reranked"``, as :func:`benchmarks.training.reranking.reranked`.
        """
        with self.stopwatch.time("evaluation"):
            targets = (self.dataset.test_users, self.dataset.test_items)
            all_training = (self.dataset.train_users, self.dataset.train_items)
            settings: dict[str, Any] = {"k": self.config.k, "popularity": self._popularity}
            return {
                "test": ranking_metrics(*self._best_tables, *targets, *self.seen, **settings),
                "test_validation_masked": ranking_metrics(*self._best_tables, *targets, *all_training, **settings),
                **({"test_reranked": self._reranked()} if self.held_out is not None and self.weights else {}),
            }

    def _reranked(self) -> dict[str, float]:
        validation = (self.validation_users, self.validation_items)
        test = (self.dataset.test_users, self.dataset.test_items)
        generator = torch.Generator(self.config.device).manual_seed(self.config.seed)
        temperature = 2 * self.loss.settings["temperature"]  # the tables' scores are cosines, the loss's half of them
        return reranked(
            self._best_tables, temperature, (self.held_out, self._drawn, generator), validation, test, self.seen,
            k=self.config.k,
        )  # fmt: skip

    def shares_below(self) -> list[float]:
        """How many of the other items a positive that was not trained on scores above, with the best epoch's
        embeddings: of the validation positives in increasing order, the means of groups of equal size."""
        targets = (self.validation_users, self.validation_items)
        shares = shares_below(*self._best_tables, *targets, *self.seen)
        shares = shares[~shares.isnan()].sort().values
        return [round(group.mean().item(), 6) for group in shares.tensor_split(_SHARE_GROUPS) if len(group)]

    @property
    def num_rows(self) -> int:
        """How many rows the next epoch has."""
        return len(self.sampler.users if self.folds is None else self.folds.rows(self.epoch))

    def shuffled_batches(self) -> tuple[torch.Tensor, ...]:
        """Split the training interactions at random into the batches of an epoch, each int64 indices [B] or fewer."""
        order = torch.randperm(self.num_rows, generator=self.generator, device=self.config.device)
        if self.folds is not None:
            order = self.folds.rows(self.epoch)[order]
        return order.split(self.config.batch_size)

    def _train_epoch(self) -> float:
        """Pass once over the training interactions; return the mean loss of the batches."""
        if self._thresholds is not None and self.epoch and self.epoch % self.loss.thresholds.refresh_epochs == 0:
            with self.stopwatch.time("thresholds"):
                self.refresh_thresholds()
        if self.weights and self.epoch:
            with self.stopwatch.time("estimates"):
                self.weights.refresh(self.tables(), self._not_in_rows(), self.generator)
        if self.loss.negatives.kind == "auto":
            with self.stopwatch.time("estimates"):
                known = (self.loss.settings["stage_prior"], self.loss.negatives.number)
                self._number = stage_number(self._unseen, self.tables(), *known, self.generator)
        self.model.train()
        if isinstance(self._function, LearningLoss):
            self._function.requires_grad_(self._function.learners(self.epoch + 1)[1])  # gradients only where needed
        losses = [self.train_step(batch) for batch in self.shuffled_batches()]
        mean = sum(losses) / len(losses)
        if not abs(mean) < float("inf"):
            raise TrainingError(
                f"{self.loss.name}: the training loss became {mean} in epoch {self.epoch + 1}; lower the learning rate "
                "(--lr)"
            )
        return mean

    def train_step(self, batch: torch.Tensor) -> float:
        """Take one optimizer step on the interactions batch [B]; return the loss."""
        with self.stopwatch.time("sampling"):
            users, pos_ids = self.sampler.users[batch], self.sampler.items[batch]
            # Drawn whether it is used or not, so that the other draws are the same for all kinds of negatives.
            seed = torch.randint(_SEEDS, (), generator=self.generator, device=self.config.device)
            neg_ids = extra_pos_ids = None
            if self.loss.takes_ids or self.false_negatives is not None:
                neg_ids = self.loss.negatives.draw(users, self.interactions, seed)
            if self.false_negatives is not None:
                neg_ids = self.false_negatives.put_among(neg_ids, users, self.generator)
            if self.likely is not None:
                extra_pos_ids = self.likely.draw(users, self.loss.extra_positives, seed=seed)
            elif self.loss.extra_positives and self.held_out is None:
                extra_pos_ids = self.sampler.extra_positives(batch, self.loss.extra_positives, self.generator)
            elif self.loss.extra_positives:
                extra_pos_ids = self.held_out.draw(users, self.loss.extra_positives, self.generator)
        with self.stopwatch.time("queries"):
            user_table, item_table = self.model()
            queries = F.embedding(users, user_table)
        log_weights = None
        if self.negative_sampler:
            with self.stopwatch.time("sampling"):
                try:
                    neg_ids, log_weights = self.negative_sampler.draw(queries, item_table, users, pos_ids, seed=seed)
                except RuntimeError as error:  # mostly more candidates than memory holds
                    raise RuntimeError(f"--negatives {self.loss.negatives}: {error}") from error
        with self.stopwatch.time("loss_forward"):
            thresholds = None if self._thresholds is None else self._thresholds[users]
            known = (self.interactions, seed, neg_ids, thresholds, self._prior)
            if self.weights:
                known += self.weights.of_batch(queries, item_table, neg_ids)
            given = Batch(queries, item_table, users, pos_ids, extra_pos_ids, *known)
            given = given._replace(num_negatives=self._number)
            if log_weights is not None:
                given = given._replace(neg_log_weights=log_weights)
            loss = self._function(given)
            auxiliary = self.model.auxiliary_loss(users, pos_ids)
            if auxiliary is not None:
                loss = loss + auxiliary
        with self.stopwatch.time("optimizer"):
            self.optimizer.zero_grad()
            if self._loss_optimizer is not None:
                self._loss_optimizer.zero_grad()
        with self.stopwatch.time("backward"):
            loss.backward()
        with self.stopwatch.time("optimizer"):
            self._update()
        if self.negative_sampler:
            with self.stopwatch.time("sampling"):
                self.negative_sampler.update(queries, item_table, users, pos_ids, epoch=self.epoch, seed=seed)
        return loss.item()

    def _update(self) -> None:
        if self._loss_optimizer is None:
            self.optimizer.step()
            return
        model_learns, loss_learns = self._function.learners(self.epoch + 1)
        if model_learns:
            self.optimizer.step()
        if loss_learns:
            self._loss_optimizer.step()
            self._function.after_step()

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What items are ranked by: the inner products of these are the scores."""
        self.model.eval()
        tables = tuple(table.detach().clone() for table in self.model())
        if self.loss.similarity == "cosine":
            tables = tuple(F.normalize(table, dim=1) for table in tables)
        return tables

    @torch.no_grad()
    def refresh_thresholds(self) -> None:
        """Estimate the scores, on the half cosine, that the confidence is measured from, ignoring false negatives."""
        users, items = self.tables()
        seed = torch.randint(_SEEDS, (), generator=self.generator, device=self.config.device)
        number = self.loss.negatives.number or self.interactions.num_items
        self._thresholds = top_k_thresholds(users, items / 2, self.interactions, self.loss.thresholds.k, number, seed)

    def _drawn(self, users: torch.Tensor, number: int, generator: torch.Generator) -> torch.Tensor:
        """Items [B, number] drawn uniformly for the users [B], among them the run's false negatives."""
        seed = torch.randint(_SEEDS, (), generator=generator, device=self.config.device)
        ids = draw_negatives(users, self.interactions, number, seed=seed)
        return ids if self.false_negatives is None else self.false_negatives.put_among(ids, users, generator)

    def _not_in_rows(self) -> Unseen:
        """The positives that the weights are estimated from: in no row of the epoch before."""
        if self.folds is None:
            return self._unseen
        left_out = self.folds.left_out(self.epoch - 1)
        return Unseen(self.sampler.users[left_out], self.sampler.items[left_out], self._drawn)

    def _refresh_prior(self, tables: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Estimate the share of positives among a user's negatives."""
        scores = self._unseen.scores(inner_products(tables), self.generator)
        self._prior = min(estimate_prior(*scores).prior, LARGEST_PRIOR)

    @torch.no_grad()
    def _validate(self, training_loss: float) -> None:
        with self.stopwatch.time("evaluation"):
            tables = self.tables()
            targets = (self.validation_users, self.validation_items)
            metrics = ranking_metrics(*tables, *targets, *self.seen, k=self.config.k, popularity=self._popularity)
            point = {"epoch": self.epoch, **metrics, "training_loss": training_loss}
            if self.loss.estimates_prior:
                self._refresh_prior(tables)
                point["prior"] = self._prior
            if self.weights:
                point["false_negative_prior"] = self.weights.prior
            if self._number is not None:
                point["num_negatives"] = self._number
        if not self.curve or metrics["ndcg"] > self.best["ndcg"]:
            best_tables = tables
        else:
            best_tables = self._best_tables
        # With no call between the two, where Ctrl-C could leave an epoch with another's tables.
        self.curve, self._best_tables = [*self.curve, point], best_tables

    def _is_out_of_patience(self) -> bool:
        if self.config.patience is None or not self.curve:
            return False
        return len(self.curve) - 1 - self.curve.index(self.best) >= self.config.patience


def train(
    dataset: data.InteractionData,
    loss: RankingLoss,
    config: TrainingConfig,
    show_progress: bool = True,
    checkpoint: Path | None = None,
    save: Path | None = None,
) -> dict[str, Any]:
    """Train with one loss, test once, and return the run's entry for a result file.

    Args:
        dataset: training and test interactions.
        loss: from :func:`benchmarks.training.losses.build_loss`.
        config: the rest.
        show_progress: whether there is a bar on stderr.
        checkpoint: file to go on from if it is there, and to write after each validation. It stays: the caller
            removes it once the result is kept.
        save: directory to write the epoch that validated best to, as :func:`benchmarks.training.saved.save`.

    Returns:
        A JSON-ready dict: settings, validation curve, test metrics, why training ended, and seconds.

    Raises:
        TrainingError: the loss became infinite or NaN.
        CheckpointError: the checkpoint is not one of this run.
        ValueError: there is nothing to validate on, or nothing to draw for a user.
        OSError: the model or the checkpoint cannot be written; the message contains the file.
        KeyboardInterrupt: Ctrl-C before the first validation.
    """
    trainer = Trainer(dataset, loss, config)
    ended_by = trainer.train(show_progress, checkpoint)
    metrics = trainer.test()
    seconds = trainer.stopwatch.seconds
    training = sum(seconds.get(part, 0.0) for part in (*STEP_PARTS, *_PASSES))
    run = {
        "loss": loss.name,
        "loss_settings": loss.settings,
        "k": config.k,
        "config": asdict(config),
        "ended_by": ended_by,
        "epochs": trainer.epoch,
        "steps_per_epoch": math.ceil(trainer.num_rows / config.batch_size),
        "best_epoch": trainer.best["epoch"],
        "best_validation": {name: trainer.best[name] for name in ("recall", "ndcg")},
        **metrics,
        "shares_below": trainer.shares_below(),
        "validation": trainer.curve,
        **{f"final_{name}": trainer.curve[-1][name] for name in _ESTIMATED if name in trainer.curve[-1]},
        "seconds": {
            "total": training + seconds["evaluation"],
            "per_epoch": training / max(trainer.epoch, 1),
            "sampling": seconds["sampling"],
            "loss": seconds["queries"] + seconds["loss_forward"] + seconds["backward"],
            "optimizer": seconds["optimizer"],
            **{part: seconds[part] for part in _PASSES if part in seconds},
            "evaluation": seconds["evaluation"],
        },
    }
    if save is not None:
        from benchmarks.training import saved  # needs polars and safetensors

        saved.save(save, dataset, trainer.best_tables, loss.similarity, run)
    return run

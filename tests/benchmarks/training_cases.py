"""Made-up data to train on, and what tests of training share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.common import data
from benchmarks.training.learnable_losses import LearningLoss
from benchmarks.training.losses import BatchLoss
from benchmarks.training.negatives import Batch
from benchmarks.training.trainer import Trainer

FLAGS = ["--backend", "reference", "--negatives", "8", "--batch-size", "64", "--dim", "8", "--core", "2"]


def write_blocks(path: Path) -> Path:
    """Write a file in which users of each of 4 blocks take 10 of their block's 14 items, and no others."""
    rng = np.random.default_rng(0)
    lines = [
        f"user{user} item{14 * (user % 4) + item}\n"
        for user in range(60)
        for item in rng.choice(14, size=10, replace=False)
    ]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def load_blocks(directory: Path) -> data.InteractionData:
    return data.load(write_blocks(directory / "blocks.txt"), core=2)


def write_split(directory: Path, dataset: data.InteractionData) -> None:
    """Write train.tsv and test.tsv."""
    for name in ("train", "test"):
        users, items = (getattr(dataset, f"{name}_{kind}").tolist() for kind in ("users", "items"))
        lines = ["user_procid\titem_procid", *(f"{user}\t{item}" for user, item in zip(users, items, strict=True))]
        (directory / f"{name}.tsv").write_text("\n".join(lines) + "\n")


def make_data(train: dict[int, list[int]], num_items: int) -> data.InteractionData:
    """Data with the training items of each user, sorted by user, and nothing to test on."""
    pairs = [(user, item) for user in sorted(train) for item in train[user]]
    users, items = torch.tensor(pairs).unbind(1)
    nothing = torch.empty(0, dtype=torch.int64)
    return data.InteractionData(users, items, nothing, nothing, max(train) + 1, num_items, "made up")


def pairs(users: torch.Tensor, items: torch.Tensor) -> set[tuple[int, int]]:
    """No pair may be there twice."""
    found = list(zip(users.tolist(), items.tolist(), strict=True))
    assert len(set(found)) == len(found)
    return set(found)


def record_batches(trainer: Trainer) -> list[tuple[int, Batch]]:
    """Have the trainer note (epochs completed, batch) of each step from now on, in the list returned."""
    seen: list[tuple[int, Batch]] = []
    function: BatchLoss = trainer._function

    def record(batch: Batch) -> torch.Tensor:
        seen.append((trainer.epoch, batch))
        return function(batch)

    if isinstance(function, LearningLoss):  # which the trainer asks what to do after a step
        record.learners, record.after_step = function.learners, function.after_step
    trainer._function = record
    return seen


def p_value(counts: torch.Tensor) -> float:
    """Of the chi-square test that counts come from a uniform distribution."""
    expected = counts.double().mean()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2).item()

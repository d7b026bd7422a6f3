"""Train matrix factorization with CW in Lightning.

The loss draws the negatives, so that a batch is just users and their items. The program prints NDCG@20 before and after
training. It needs the package lightning.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import benchmarks  # noqa: F401  # first, since it reports a missing lightning in one line

# isort: split
import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.common import command, data, data_arguments
from benchmarks.common.arguments import non_negative_int, positive_int
from benchmarks.common.data import InteractionData
from benchmarks.training.metrics import ranking_metrics
from cw_ext import CWSampledLoss, Interactions


class LightningMF(lightning.LightningModule):
    """An embedding per user and per item, ranked by cosine and trained with CW on drawn negatives."""

    def __init__(self, dataset: InteractionData, dim: int = 64, num_negatives: int = 256, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.users, self.items = nn.Embedding(dataset.num_users, dim), nn.Embedding(dataset.num_items, dim)
        sizes = {"num_queries": dataset.num_users, "num_items": dataset.num_items}
        known = Interactions(dataset.train_users, dataset.train_items, **sizes)
        self.criterion = CWSampledLoss(known, num_negatives, temperature=0.08)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return the loss of users [B] and their items [B]."""
        users, items = batch
        loss = self.criterion(self.users(users), self.items.weight, users, items)
        self.log("loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(users))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam for both tables."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    @torch.no_grad()
    def ndcg(self, dataset: InteractionData) -> float:
        """Return NDCG@20 of the test items, in [0, 1]. Training items are left out of the rankings."""
        tables = [F.normalize(table.weight.cpu(), dim=-1) for table in (self.users, self.items)]
        test, train = (dataset.test_users, dataset.test_items), (dataset.train_users, dataset.train_items)
        return ranking_metrics(*tables, *test, *train, k=20)["ndcg"]


def batches(dataset: InteractionData, batch_size: int = 1024) -> DataLoader:
    """Return the training pairs in a new order each epoch, a batch at a time."""
    pairs = TensorDataset(dataset.train_users, dataset.train_items)
    return DataLoader(pairs, sampler=BatchSampler(RandomSampler(pairs), batch_size, drop_last=False), batch_size=None)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print NDCG@20 before and after, and return the exit status."""
    parser = command.make_parser("python -m examples.lightning_mf", __doc__, "bad arguments or data")
    data_arguments.add_data(parser)
    parser.add_argument("--epochs", type=positive_int, default=5, help="epochs to train")
    parser.add_argument(
        "--seed",
        type=non_negative_int,
        default=0,
        help="seed of the split, the initial weights, the order and the negatives",
    )
    arguments = parser.parse_args(argv)
    return command.run(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    dataset = data.load(arguments.data, seed=arguments.seed)
    lightning.seed_everything(arguments.seed)
    model = LightningMF(dataset)
    before = model.ndcg(dataset)
    trainer = lightning.Trainer(max_epochs=arguments.epochs, logger=False, enable_checkpointing=False)
    trainer.fit(model, batches(dataset))
    print(f"{dataset.name}: NDCG@20 {before:.4f} before, {model.ndcg(dataset):.4f} after {arguments.epochs} epochs")


if __name__ == "__main__":
    sys.exit(main())

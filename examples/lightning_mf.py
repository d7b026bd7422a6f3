"""Matrix factorisation with CW in Lightning; negatives are drawn in the loss, so that a batch is users and their items.

Needs the package lightning. By default on MovieLens-100K; else on a file with a user and an item per line, or on a
directory with train.tsv and test.tsv, as benchmarks.common.data takes them.
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

from benchmarks.common import data
from benchmarks.common.arguments import non_negative_int, positive_int
from benchmarks.common.data import InteractionData
from benchmarks.training.metrics import ranking_metrics
from cw_ext import CWSampledLoss, Interactions


class LightningMF(lightning.LightningModule):
    """An embedding per user and per item, ranked by their cosine and trained with CW on drawn negatives."""

    def __init__(self, dataset: InteractionData, dim: int = 64, num_negatives: int = 256, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr
        self.users, self.items = nn.Embedding(dataset.num_users, dim), nn.Embedding(dataset.num_items, dim)
        sizes = {"num_queries": dataset.num_users, "num_items": dataset.num_items}
        known = Interactions(dataset.train_users, dataset.train_items, **sizes)
        self.criterion = CWSampledLoss(known, num_negatives, temperature=0.08)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """The loss of users [B] and their items [B]."""
        users, items = batch
        loss = self.criterion(self.users(users), self.items.weight, users, items)
        self.log("loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(users))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam for both tables."""
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    @torch.no_grad()
    def ndcg(self, dataset: InteractionData) -> float:
        """NDCG@20 of the test items, in [0, 1]; training items are left out of the ranking."""
        tables = [F.normalize(table.weight.cpu(), dim=-1) for table in (self.users, self.items)]
        test, train = (dataset.test_users, dataset.test_items), (dataset.train_users, dataset.train_items)
        return ranking_metrics(*tables, *test, *train, k=20)["ndcg"]


def batches(dataset: InteractionData, batch_size: int = 1024) -> DataLoader:
    """The training pairs in a new order each epoch, indexed a batch at a time."""
    pairs = TensorDataset(dataset.train_users, dataset.train_items)
    return DataLoader(pairs, sampler=BatchSampler(RandomSampler(pairs), batch_size, drop_last=False), batch_size=None)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print NDCG@20 before and after, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.lightning_mf", description=__doc__)
    parser.add_argument("--data", metavar="PATH", help="a file or a directory; default: MovieLens-100K")
    parser.add_argument("--epochs", type=positive_int, default=5, help="default: 5")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of split, start, order and negatives")
    arguments = parser.parse_args(argv)
    try:
        dataset = data.load(arguments.data, seed=arguments.seed)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    lightning.seed_everything(arguments.seed)
    model = LightningMF(dataset)
    before = model.ndcg(dataset)
    trainer = lightning.Trainer(max_epochs=arguments.epochs, logger=False, enable_checkpointing=False)
    trainer.fit(model, batches(dataset))
    print(f"{dataset.name}: NDCG@20 {before:.4f} before, {model.ndcg(dataset):.4f} after {arguments.epochs} epochs")
    return 0


if __name__ == "__main__":
    sys.exit(main())

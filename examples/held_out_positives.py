"""Further positives for the correction whose scores training has not pushed up.

The correction takes out of the negative mass what positives would contribute, as seen on further positives of the user.
Where these score higher than the positives that are still hidden among the negatives (a positive shift), it takes out
too much. Two things push them up: rows of their own, and the gradient of the correction itself, which lowers the loss
by raising their scores. So a tenth of each user's items is held out of the rows, and their scores get no gradient.

Trains matrix factorisation on MovieLens-100K (or a file or directory of your own) in six ways, and prints for each the
mean score of the rows' positives, of the further ones and of the test items, which nothing has seen, and NDCG@20.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import benchmarks  # noqa: F401  # first, since it reports a missing package in one line

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.common import data
from benchmarks.common.arguments import positive_int
from benchmarks.common.data import InteractionData, split_validation
from benchmarks.common.reporting import format_table
from benchmarks.training.metrics import ranking_metrics
from cw_ext import Interactions, cw_loss, draw_negatives

HELD_OUT = 0.1
DIM, NEGATIVES, BATCH = 64, 256, 1024
TEMPERATURE, PRIOR, LEARNING_RATE = 0.1, 0.1, 0.03


@dataclass(frozen=True)
class Way:
    """Which items have rows, and what the correction is told."""

    prior: float
    held_out: bool  # whether the further positives have no rows
    gradient: bool = False  # whether the correction may push them up


WAYS = {
    "no correction": Way(0.0, held_out=False),
    "no correction, fewer rows": Way(0.0, held_out=True),
    "further ones have rows and gradient": Way(PRIOR, held_out=False, gradient=True),
    "rows, no gradient": Way(PRIOR, held_out=False),
    "gradient, no rows": Way(PRIOR, held_out=True, gradient=True),
    "neither rows nor gradient": Way(PRIOR, held_out=True),
}


def further_positives(users: Tensor, items: Tensor, num_users: int) -> Tensor:
    """The items of each user, [users, most of any user], filled up with −1."""
    users, order = users.sort(stable=True)
    counts = torch.bincount(users, minlength=num_users)
    place = torch.arange(len(users)) - (counts.cumsum(0) - counts)[users]
    table = torch.full((num_users, int(counts.max())), -1)
    table[users, place] = items[order]
    return table


class Result:
    """The tables of a trained model."""

    def __init__(self, users: nn.Embedding, items: nn.Embedding) -> None:
        self.tables = [F.normalize(table.weight.detach(), dim=-1) for table in (users, items)]

    def score(self, users: Tensor, items: Tensor) -> float:
        """The mean half cosine of pairs."""
        return ((self.tables[0][users] * self.tables[1][items]).sum(1).mean() / 2).item()

    def ndcg(self, dataset: InteractionData) -> float:
        """NDCG@20 of the test items; training items, held out or not, are left out of the ranking."""
        test, train = (dataset.test_users, dataset.test_items), (dataset.train_users, dataset.train_items)
        return ranking_metrics(*self.tables, *test, *train, k=20)["ndcg"]


def train(dataset: InteractionData, way: Way, epochs: int, seed: int) -> tuple[Result, dict[str, float]]:
    """Train one model.

    Returns:
        The model, and the mean scores of the rows' positives, of the further ones and of the test items.
    """
    torch.manual_seed(seed)
    fit, users, items = split_validation(dataset, HELD_OUT, seed)
    further = further_positives(users, items, dataset.num_users)
    rows = fit if way.held_out else dataset
    # Items held out are no negatives either.
    sizes = {"num_queries": dataset.num_users, "num_items": dataset.num_items}
    known = Interactions(dataset.train_users, dataset.train_items, **sizes)
    user_table, item_table = nn.Embedding(dataset.num_users, DIM), nn.Embedding(dataset.num_items, DIM)
    optimizer = torch.optim.Adam([*user_table.parameters(), *item_table.parameters()], lr=LEARNING_RATE)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows.train_users)).split(BATCH):
            of_batch, positives = rows.train_users[batch], rows.train_items[batch]
            further_ids = further[of_batch]
            # The row's own positive is none of its further ones.
            further_ids = further_ids.masked_fill(further_ids == positives.unsqueeze(1), -1)
            neg_ids = draw_negatives(of_batch, known, NEGATIVES)
            # The items are few: all are scored, and those of each row picked out.
            queries, candidates = (F.normalize(x, dim=-1) for x in (user_table(of_batch), item_table.weight))
            scores = queries @ candidates.T / 2
            extra = scores.gather(1, further_ids.clamp(min=0)).masked_fill(further_ids < 0, -torch.inf)
            pos = scores.gather(1, positives.unsqueeze(1))
            if not way.gradient:  # the margin is a constant, and not only the score: the row's positive moves along
                extra = pos + (extra - pos).detach()
            loss = cw_loss(
                pos.squeeze(1),
                scores.gather(1, neg_ids),
                extra_pos_scores=extra,
                prior=way.prior,
                temperature=TEMPERATURE,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    result = Result(user_table, item_table)
    scores = {
        "rows": result.score(fit.train_users, fit.train_items),
        "further": result.score(users, items),
        "hidden": result.score(dataset.test_users, dataset.test_items),
    }
    return result, scores


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.held_out_positives", description=__doc__)
    parser.add_argument("--data", metavar="PATH", help="a file or a directory; default: MovieLens-100K")
    parser.add_argument("--epochs", type=positive_int, default=10, help="default: 10")
    parser.add_argument("--seeds", type=positive_int, default=3, help="how many, from 0; default: 3")
    parser.add_argument("--core", type=positive_int, help="as for python -m benchmarks.training")
    arguments = parser.parse_args(argv)
    try:
        datasets = [data.load(arguments.data, seed=seed, core=arguments.core) for seed in range(arguments.seeds)]
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = []
    for name, way in tqdm(WAYS.items(), unit="way"):
        trained = [train(dataset, way, arguments.epochs, seed) for seed, dataset in enumerate(datasets)]
        ndcg = [result.ndcg(dataset) for (result, _), dataset in zip(trained, datasets, strict=True)]
        spread = f" ± {statistics.stdev(ndcg):.4f}" if len(ndcg) > 1 else ""
        means = {key: statistics.mean(scores[key] for _, scores in trained) for key in trained[0][1]}
        rows.append([name, *(f"{mean:.3f}" for mean in means.values()), f"{statistics.mean(ndcg):.4f}{spread}"])
    print(f"{datasets[0].name}, π = {PRIOR} where there is a correction; mean ½·cosine of positives, and the ranking:")
    print(format_table(["", "with rows", "further", "test", "NDCG@20"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

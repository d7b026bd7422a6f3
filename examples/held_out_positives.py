"""Give the correction extra positives whose scores training has not pushed up.

The correction subtracts from the negatives' mass what positives would contribute, as measured on extra positives of the
user. If these score higher than the positives that still hide among the negatives (a positive shift), the correction
subtracts too much. Two things push their scores up: rows of their own, and the gradient of the correction itself, which
lowers the loss by raising their scores. This example therefore leaves a tenth of each user's items out of the rows, and
stops the gradient to their scores.

It trains matrix factorization in six ways. For each it prints NDCG@20 and the mean scores of three kinds of positives:
those with rows, the extra ones, and the test items, which no part of training has seen.
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

from benchmarks.common import command, data, data_arguments
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
    """Which items have rows, and what the correction gets."""

    prior: float
    held_out: bool  # whether the extra positives have no rows
    gradient: bool = False  # whether the correction may push them up


WAYS = {
    "no correction": Way(0.0, held_out=False),
    "no correction, fewer rows": Way(0.0, held_out=True),
    "extra ones have rows and gradient": Way(PRIOR, held_out=False, gradient=True),
    "rows, no gradient": Way(PRIOR, held_out=False),
    "gradient, no rows": Way(PRIOR, held_out=True, gradient=True),
    "neither rows nor gradient": Way(PRIOR, held_out=True),
}


def extra_positives(users: Tensor, items: Tensor, num_users: int) -> Tensor:
    """Return the items of each user, [users, most of any user], padded with −1."""
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
        """Return the mean half cosine of pairs."""
        return ((self.tables[0][users] * self.tables[1][items]).sum(1).mean() / 2).item()

    def ndcg(self, dataset: InteractionData) -> float:
        """Return NDCG@20 of the test items. Training items, held out or not, are left out of the rankings."""
        test, train = (dataset.test_users, dataset.test_items), (dataset.train_users, dataset.train_items)
        return ranking_metrics(*self.tables, *test, *train, k=20)["ndcg"]


def train(dataset: InteractionData, way: Way, epochs: int, seed: int) -> tuple[Result, dict[str, float]]:
    """Train one model.

    Returns:
        The model, and the mean scores of the positives with rows, of the extra ones and of the test items.
    """
    torch.manual_seed(seed)
    fit, users, items = split_validation(dataset, HELD_OUT, seed)
    extra_of_user = extra_positives(users, items, dataset.num_users)
    rows = fit if way.held_out else dataset
    # Held-out items are not drawn as negatives either.
    sizes = {"num_queries": dataset.num_users, "num_items": dataset.num_items}
    known = Interactions(dataset.train_users, dataset.train_items, **sizes)
    user_table, item_table = nn.Embedding(dataset.num_users, DIM), nn.Embedding(dataset.num_items, DIM)
    optimizer = torch.optim.Adam([*user_table.parameters(), *item_table.parameters()], lr=LEARNING_RATE)
    for _ in range(epochs):
        for batch in torch.randperm(len(rows.train_users)).split(BATCH):
            of_batch, positives = rows.train_users[batch], rows.train_items[batch]
            extra_ids = extra_of_user[of_batch]
            # The row's own positive is not one of its extra ones.
            extra_ids = extra_ids.masked_fill(extra_ids == positives.unsqueeze(1), -1)
            neg_ids = draw_negatives(of_batch, known, NEGATIVES)
            # There are few items: score all of them, and pick those of each row.
            queries, candidates = (F.normalize(x, dim=-1) for x in (user_table(of_batch), item_table.weight))
            scores = queries @ candidates.T / 2
            extra = scores.gather(1, extra_ids.clamp(min=0)).masked_fill(extra_ids < 0, -torch.inf)
            pos = scores.gather(1, positives.unsqueeze(1))
            if not way.gradient:  # make the margin a constant, not just the score, since the row's positive moves too
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
        "extra": result.score(users, items),
        "hidden": result.score(dataset.test_users, dataset.test_items),
    }
    return result, scores


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table, and return the exit status."""
    parser = command.make_parser("python -m examples.held_out_positives", __doc__, "bad arguments or data")
    data_arguments.add_data(parser)
    parser.add_argument("--epochs", type=positive_int, default=10, help="epochs of each run")
    parser.add_argument("--seeds", type=positive_int, default=3, help="number of seeds, from 0")
    parser.add_argument("--core", type=positive_int, metavar="K", help="as for benchmarks.training")
    arguments = parser.parse_args(argv)
    return command.run(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    datasets = [data.load(arguments.data, seed=seed, core=arguments.core) for seed in range(arguments.seeds)]
    rows = []
    for name, way in command.progress(WAYS.items(), unit="way"):
        trained = [train(dataset, way, arguments.epochs, seed) for seed, dataset in enumerate(datasets)]
        ndcg = [result.ndcg(dataset) for (result, _), dataset in zip(trained, datasets, strict=True)]
        spread = f" ± {statistics.stdev(ndcg):.4f}" if len(ndcg) > 1 else ""
        means = {key: statistics.mean(scores[key] for _, scores in trained) for key in trained[0][1]}
        rows.append([name, *(f"{mean:.3f}" for mean in means.values()), f"{statistics.mean(ndcg):.4f}{spread}"])
    print(f"{datasets[0].name}, π = {PRIOR} where there is a correction; mean ½·cosine of positives, and the ranking:")
    print(format_table(["", "with rows", "extra", "test", "NDCG@20"], rows))


if __name__ == "__main__":
    sys.exit(main())

"""Find false negatives among the hardest negatives with a small network, for weights in training and for reranking.

This follows the stages of RRRA (arXiv 2508.11670). First, matrix factorization is trained with SL. Then a network
learns from its embeddings which candidates are hidden positives. Training goes on with each row's hardest negatives
weighted by (1 − p_FN)^γ. At the end, each user's top items are reranked by the product of score and probability.

RRRA's code, its exponents γ and λ, the size of its network and the source of its labels were not available. Here the
network learns to tell a tenth of each user's items, which are left out of the rows, from items drawn at random. γ is 1,
and validation chooses λ. Unlike RRRA's, the network has two classes instead of four, doesn't move candidates (RRRA's
c' = c + MLP(z), and the constraint on it), and the model never learns together with it.

The program prints NDCG@20 of the test items with and without weights and reranking. It also prints that of a model
without the network, where the held-out items are rows too. On MovieLens-100K, neither weights nor reranking gained
anything.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence

import benchmarks  # noqa: F401  # first, since it reports a missing package in one line

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import command, data, data_arguments
from benchmarks.common.arguments import positive_int
from benchmarks.common.data import DataError, InteractionData, split_validation
from benchmarks.common.reporting import format_table
from benchmarks.training.adapter import Adapter, teach
from benchmarks.training.estimates import Unseen
from benchmarks.training.false_negatives import hold_out
from benchmarks.training.matrix_factorization import MatrixFactorization
from benchmarks.training.metrics import ranking_metrics
from benchmarks.training.positives import HeldOutPositives
from benchmarks.training.reranking import reranked
from cw_ext import FalseNegatives, Interactions, ScoreCurve, cw_loss_from_embeddings, draw_negatives, presets

DIM, NEGATIVES, BATCH = 64, 128, 1024
TEMPERATURE, LEARNING_RATE = 0.1, 0.1
CANDIDATES, STRENGTH = 32, 1.0  # K and γ
# π, the share of positives among the negatives: on MovieLens-100K that of validation and test items.
PRIOR = 0.024
# Passes over the held-out positives before the first weights. Then one before each epoch, as embeddings move.
PASSES = 10

Tables = tuple[Tensor, Tensor]  # of the users and of the items, with rows of length 1


class Split:
    """Which part of the data each stage sees.

    Attributes:
        fit: what is known in training; negatives are drawn from all other items.
        rows: the pairs of `fit` that are rows of the model's batches.
        held_out: the other pairs of `fit`, which the network learns from.
        validation: pairs that neither the model nor the network has seen.
        test: pairs to evaluate on at the end.
        seen: the pairs of `fit`, which are left out of rankings.
    """

    def __init__(self, dataset: InteractionData, seed: int) -> None:
        self.fit, *validation = split_validation(dataset, seed=seed)
        if len(validation[0]) == 0:
            raise DataError(f"{dataset.name}: expected a user with at least 2 training items to validate on")
        held_out, self.rows = hold_out(self.fit, seed)
        self.held_out, self.validation = HeldOutPositives(held_out), tuple(validation)
        self.test, self.seen = (dataset.test_users, dataset.test_items), (self.fit.train_users, self.fit.train_items)
        self._known = Interactions(*self.seen, num_queries=dataset.num_users, num_items=dataset.num_items)

    def draw(self, users: Tensor, number: int, generator: torch.Generator) -> Tensor:
        """Return items [B, number] for the users [B], drawn like their negatives."""
        return draw_negatives(users, self._known, number, seed=torch.randint(2**63 - 1, (), generator=generator))


class HardWeights:
    """Weights (1 − p_FN)^γ for the hardest negatives of a row."""

    def __init__(self, split: Split, seed: int) -> None:
        self.split = split
        self.generator = torch.Generator().manual_seed(seed)  # separate, so that the model's draws stay the same
        self.adapter = Adapter(DIM, self.generator)
        self.curve: ScoreCurve | None = None

    @torch.no_grad()
    def learn(self, tables: Tables) -> None:
        """Train the network on held-out positives, then fit p_FN to its output for validation items."""
        for _ in range(PASSES if self.curve is None else 1):
            teach(self.adapter, tables, self.split.held_out, self.split.draw, self.generator)
        unseen = Unseen(*self.split.validation, self.split.draw)
        ratios = unseen.scores(lambda users, ids: self.adapter(tables[0][users], tables[1], ids), self.generator)
        self.curve = FalseNegatives.fit(*ratios, PRIOR).curve(strength=STRENGTH)

    def of_batch(self, queries: Tensor, items: Tensor, neg_ids: Tensor) -> Tensor:
        """Return log weights [B, N] of the negatives."""
        return self.adapter.log_weights(queries.detach(), items.detach(), neg_ids, CANDIDATES, self.curve)


def train(split: Split, rows: InteractionData, epochs: tuple[int, int], seed: int, weighted: bool) -> Tables:
    """Train one model.

    Args:
        split: the data of each stage.
        rows: the pairs that are rows.
        epochs: how many without weights, and how many with them after that.
        seed: of the first embeddings, the order and the negatives.
        weighted: whether to use weights; without them, everything else is the same.
    """
    generator = torch.Generator().manual_seed(seed)
    model = MatrixFactorization(rows, DIM, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    weights = HardWeights(split, seed) if weighted else None
    for epoch in range(sum(epochs)):
        is_weighted = weights is not None and epoch >= epochs[0]
        if is_weighted:
            weights.learn(directions(model))
        for batch in torch.randperm(len(rows.train_users), generator=generator).split(BATCH):
            users, pos_ids = rows.train_users[batch], rows.train_items[batch]
            neg_ids = split.draw(users, NEGATIVES, generator)
            user_table, items = model()
            queries = F.embedding(users, user_table)
            log_weights = weights.of_batch(queries, items, neg_ids) if is_weighted else None
            loss = cw_loss_from_embeddings(
                queries, items, pos_ids, neg_ids, neg_log_weights=log_weights, **presets.sl(TEMPERATURE)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return directions(model)


def directions(model: MatrixFactorization) -> Tables:
    """Return tables whose inner products are the cosines that rank the items."""
    users, items = model()
    return F.normalize(users.detach(), dim=1), F.normalize(items.detach(), dim=1)


def compare(dataset: InteractionData, epochs: int, seed: int) -> dict[str, tuple[float, float | None]]:
    """Return NDCG@20 of each variant on the test items, and the λ that validation chose."""
    split = Split(dataset, seed)
    found: dict[str, tuple[float, float | None]] = {}

    def test(name: str, tables: Tables, rerank: bool = True) -> None:
        found[name] = (ranking_metrics(*tables, *split.test, *split.seen, k=20)["ndcg"], None)
        if rerank:
            lesson = (split.held_out, split.draw, torch.Generator().manual_seed(seed))
            # The tables' scores are cosines, and the loss takes half of them.
            result = reranked(tables, 2 * TEMPERATURE, lesson, split.validation, split.test, split.seen, k=20)
            found[f"{name}, reranked"] = (result["ndcg"], result["exponent"])

    test("base", train(split, split.rows, (epochs, epochs), seed, weighted=False))
    test("weighted", train(split, split.rows, (epochs, epochs), seed, weighted=True))
    # The held-out items as rows. None are left to train a network on.
    test("base, all rows", train(split, split.fit, (epochs, epochs), seed, weighted=False), rerank=False)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print the table, and return the exit status."""
    parser = command.make_parser("python -m examples.hard_candidates", __doc__, "bad arguments or data")
    data_arguments.add_data(parser)
    parser.add_argument("--epochs", type=positive_int, default=5, help="epochs without weights, and again with weights")
    parser.add_argument("--seeds", type=positive_int, default=3, help="number of seeds, from 0")
    parser.add_argument("--core", type=positive_int, metavar="K", help="as for benchmarks.training")
    arguments = parser.parse_args(argv)
    return command.run(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> None:
    datasets = [data.load(arguments.data, seed=seed, core=arguments.core) for seed in range(arguments.seeds)]
    turns = command.progress(enumerate(datasets), total=len(datasets), unit="seed")
    results = [compare(dataset, arguments.epochs, seed) for seed, dataset in turns]
    rows = []
    for name in results[0]:
        ndcg = [result[name][0] for result in results]
        gain = [result[name][0] - result["base"][0] for result in results]
        exponents = [result[name][1] for result in results]
        shown = "" if None in exponents else ", ".join(f"{exponent:g}" for exponent in exponents)
        rows.append([name, _spread(ndcg), "" if name == "base" else _spread(gain, "+z"), shown])
    print(f"{datasets[0].name}, NDCG@20; π = {PRIOR}, γ = {STRENGTH:g}, λ of each seed by validation:")
    print(format_table(["", "test", "- base", "λ"], rows))


def _spread(values: Sequence[float], sign: str = "") -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.4f}{deviation}"


if __name__ == "__main__":
    sys.exit(main())

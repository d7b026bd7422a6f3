"""PyTorch Geometric's LightGCN trained with CW in place of its recommendation_loss.

PyTorch Geometric's own example draws one negative for each pair and takes the BPR loss of their two ranks. Here the
loss draws `num_negatives` that the user has not had, and sees the propagated embeddings of all items, so that nothing
else changes: the graph, the model, and `model.recommend`, which ranks by the same dot product.

Needs the package torch_geometric. By default on MovieLens-100K; else on a file with a user and an item per line, or on
a directory with train.tsv and test.tsv, as benchmarks.common.data takes them. Prints NDCG@20; `--loss bpr` is
PyTorch Geometric's own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Unpack

import benchmarks  # noqa: F401  # first, since it reports a missing torch_geometric in one line

# isort: split
import torch
from torch import Tensor
from torch_geometric.nn import LightGCN

from benchmarks.common import data
from benchmarks.common.arguments import non_negative_int, positive_int
from benchmarks.common.data import InteractionData
from benchmarks.training.metrics import ranking_metrics
from cw_ext import Interactions, presets, sampled_cw_loss
from cw_ext.parameters import LossArguments

BATCH_SIZE = 1024
LAMBDA = 1e-4  # of PyTorch Geometric's regularization, which stays


def graph_of(dataset: InteractionData) -> Tensor:
    """The training pairs as edges in both directions, [2, 2·P]; the items' nodes follow the users'."""
    there = torch.stack([dataset.train_users, dataset.num_users + dataset.train_items])
    return torch.cat([there, there.flip(0)], dim=1)


def cw_recommendation_loss(
    model: LightGCN,
    graph: Tensor,
    users: Tensor,
    items: Tensor,
    known: Interactions,
    num_negatives: int = 256,
    **loss: Unpack[LossArguments],
) -> Tensor:
    """The loss of users [B] and their items [B], numbered from 0, with regularization as in recommendation_loss."""
    nodes = model.get_embedding(graph)
    table = nodes[known.num_queries :]
    main = sampled_cw_loss(nodes[users], table, users, items, known, num_negatives, similarity="dot", **loss)
    involved = model.embedding.weight[torch.cat([users, known.num_queries + items]).unique()]
    return main + LAMBDA * involved.norm().pow(2) / len(users)


def bpr_recommendation_loss(
    model: LightGCN, graph: Tensor, users: Tensor, items: Tensor, known: Interactions
) -> Tensor:
    """As in PyTorch Geometric's example."""
    negatives = torch.randint(known.num_items, items.shape)
    pairs = torch.stack([users.repeat(2), known.num_queries + torch.cat([items, negatives])])
    positive, negative = model(graph, pairs).chunk(2)
    return model.recommendation_loss(positive, negative, node_id=pairs.unique(), lambda_reg=LAMBDA)


def train(model: LightGCN, dataset: InteractionData, epochs: int, loss: str = "cw", lr: float = 0.01) -> None:
    """Take Adam's steps on the training pairs, in a new order each epoch."""
    sizes = {"num_queries": dataset.num_users, "num_items": dataset.num_items}
    known = Interactions(dataset.train_users, dataset.train_items, **sizes)
    graph = graph_of(dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(epochs):
        for rows in torch.randperm(len(dataset.train_users)).split(BATCH_SIZE):
            users, items = dataset.train_users[rows], dataset.train_items[rows]
            optimizer.zero_grad()
            if loss == "bpr":
                value = bpr_recommendation_loss(model, graph, users, items, known)
            else:
                value = cw_recommendation_loss(model, graph, users, items, known, **presets.cw(temperature=1.0))
            value.backward()
            optimizer.step()


@torch.no_grad()
def ndcg(model: LightGCN, dataset: InteractionData) -> float:
    """NDCG@20 of the test items, in [0, 1]; training items are left out of the ranking."""
    users, items = model.get_embedding(graph_of(dataset)).split([dataset.num_users, dataset.num_items])
    test, seen = (dataset.test_users, dataset.test_items), (dataset.train_users, dataset.train_items)
    return ranking_metrics(users, items, *test, *seen, k=20)["ndcg"]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print NDCG@20 before and after, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m examples.lightgcn", description=__doc__)
    parser.add_argument("--data", metavar="PATH", help="a file or a directory; default: MovieLens-100K")
    parser.add_argument("--loss", choices=["cw", "bpr"], default="cw", help="default: cw")
    parser.add_argument("--epochs", type=positive_int, default=10, help="default: 10")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of split, start, order and negatives")
    arguments = parser.parse_args(argv)
    try:
        dataset = data.load(arguments.data, seed=arguments.seed)
    except data.DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.manual_seed(arguments.seed)
    model = LightGCN(dataset.num_users + dataset.num_items, embedding_dim=64, num_layers=2)
    before = ndcg(model, dataset)
    train(model, dataset, arguments.epochs, arguments.loss)
    print(f"{dataset.name}: NDCG@20 {before:.4f} before, {ndcg(model, dataset):.4f} after {arguments.epochs} epochs")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Train PyTorch Geometric's LightGCN with CW instead of its recommendation_loss.

PyTorch Geometric's own example draws one negative per pair, and takes the BPR loss of the two scores. Here the loss
draws `num_negatives` items that the user hasn't interacted with, and it sees the propagated embeddings of all items.
Nothing else changes: not the graph, not the model, and not `model.recommend`, which ranks by the same dot product.

The program prints NDCG@20 before and after training. --loss bpr uses PyTorch Geometric's own loss. It needs the package
torch_geometric.
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

from benchmarks.common import command, data, data_arguments
from benchmarks.common.arguments import non_negative_int, positive_int
from benchmarks.common.data import InteractionData
from benchmarks.training.metrics import ranking_metrics
from cw_ext import Interactions, presets, sampled_cw_loss
from cw_ext.parameters import LossArguments

BATCH_SIZE = 1024
LAMBDA = 1e-4  # strength of PyTorch Geometric's regularization, which stays


def graph_of(dataset: InteractionData) -> Tensor:
    """Return the training pairs as edges in both directions, [2, 2·P]. The items' nodes come after the users'."""
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
    """Return the loss of users [B] and their items [B], numbered from 0, regularized as in recommendation_loss."""
    nodes = model.get_embedding(graph)
    table = nodes[known.num_queries :]
    main = sampled_cw_loss(nodes[users], table, users, items, known, num_negatives, similarity="dot", **loss)
    involved = model.embedding.weight[torch.cat([users, known.num_queries + items]).unique()]
    return main + LAMBDA * involved.norm().pow(2) / len(users)


def bpr_recommendation_loss(
    model: LightGCN, graph: Tensor, users: Tensor, items: Tensor, known: Interactions
) -> Tensor:
    """Return the loss of PyTorch Geometric's example."""
    negatives = torch.randint(known.num_items, items.shape)
    pairs = torch.stack([users.repeat(2), known.num_queries + torch.cat([items, negatives])])
    positive, negative = model(graph, pairs).chunk(2)
    return model.recommendation_loss(positive, negative, node_id=pairs.unique(), lambda_reg=LAMBDA)


def train(model: LightGCN, dataset: InteractionData, epochs: int, loss: str = "cw", lr: float = 0.01) -> None:
    """Train with Adam on the training pairs, in a new order each epoch."""
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
    """Return NDCG@20 of the test items, in [0, 1]. Training items are left out of the rankings."""
    users, items = model.get_embedding(graph_of(dataset)).split([dataset.num_users, dataset.num_items])
    test, seen = (dataset.test_users, dataset.test_items), (dataset.train_users, dataset.train_items)
    return ranking_metrics(users, items, *test, *seen, k=20)["ndcg"]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, print NDCG@20 before and after, and return the exit status."""
    parser = command.make_parser("python -m examples.lightgcn", __doc__, "bad arguments or data")
    data_arguments.add_data(parser)
    parser.add_argument("--loss", choices=["cw", "bpr"], default="cw", help="loss to train with")
    parser.add_argument("--epochs", type=positive_int, default=10, help="epochs to train")
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
    torch.manual_seed(arguments.seed)
    model = LightGCN(dataset.num_users + dataset.num_items, embedding_dim=64, num_layers=2)
    before = ndcg(model, dataset)
    train(model, dataset, arguments.epochs, arguments.loss)
    print(f"{dataset.name}: NDCG@20 {before:.4f} before, {ndcg(model, dataset):.4f} after {arguments.epochs} epochs")


if __name__ == "__main__":
    sys.exit(main())

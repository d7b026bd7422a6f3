"""A small model that returns its own loss, with the loss at any level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from cases import generator
from drawing import make_interactions
from torch import Tensor, nn

from cw_ext import CWEmbeddingLoss, CWFullLoss, CWInBatchLoss, CWLoss, CWSampledLoss

USERS, ITEMS = 20, 50
CRITERIA: dict[str, Callable[..., nn.Module]] = {
    "scores": CWLoss,
    "embeddings": CWEmbeddingLoss,
    "sampled": lambda **loss: CWSampledLoss(make_interactions(USERS, ITEMS), 9, **loss),
    "popularity": lambda **loss: CWSampledLoss(
        make_interactions(USERS, ITEMS), 9, distribution="popularity", recompute=True, **loss
    ),
    "shared": lambda **loss: CWSampledLoss(make_interactions(USERS, ITEMS), 9, shared=True, **loss),
    "in-batch": lambda **loss: CWInBatchLoss(make_interactions(USERS, ITEMS), **loss),
    "mixed": lambda **loss: CWInBatchLoss(make_interactions(USERS, ITEMS), num_negatives=5, **loss),
    "full": lambda **loss: CWFullLoss(make_interactions(USERS, ITEMS), **loss),
}


class Recommender(nn.Module):
    """Tables, a layer and the loss of a batch: users [B], positives [B], negatives [B, N] for scores and embeddings."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(87)
        self.users, self.items, self.layer = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, 8), nn.Linear(8, 8)
        self.criterion = criterion

    def forward(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        queries, table = torch.tanh(self.layer(self.users(users))), self.items.weight
        match self.criterion:
            case CWLoss():
                pos, neg = self.items(positives), self.items(negatives)
                return self.criterion((queries * pos).sum(-1), (queries.unsqueeze(1) * neg).sum(-1))
            case CWEmbeddingLoss():
                return self.criterion(queries, table, positives, negatives)
            case CWSampledLoss():
                return self.criterion(queries, table, users, positives)
            case _:
                return self.criterion(queries, table, positives, query_ids=users)


def make_recommender(name: str, backend: str = "fused") -> Recommender:
    return Recommender(CRITERIA[name](prior=0.1, backend=backend))


def make_batch(rows: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Users, positives and negatives for a model's forward."""
    g = generator(rows)
    users, positives = (torch.randint(size, (rows,), generator=g) for size in (USERS, ITEMS))
    return users, positives, torch.randint(ITEMS, (rows, n), generator=g)


def training_step(model: nn.Module, forward: Callable[..., Tensor], *batch: Tensor) -> dict[str, Tensor]:
    """The loss and the gradients of the model's parameters, after torch.manual_seed()."""
    model.zero_grad()
    torch.manual_seed(88)
    loss = forward(*batch)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

"""A small network that finds hidden positives among hard candidates, for weights and for reranking.

After RRRA (arXiv 2508.11670): its input z = [q − c, q⊙c, q + c] of a query q and a candidate c, the weight
(1 − p_FN)^γ of hard negatives, and reranking by a product. The source of its labels, its sizes and its exponents were
not available. Here the network learns to tell positives held out from training from items drawn at random. The encoder
does not learn with it, and candidates are not moved.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training.positives import HeldOutPositives
from cw_ext import ScoreCurve

_HIDDEN, _LR, _BATCH = 64, 0.01, 1024
# Drawn for each held-out positive and pass.
_UNLABELED = 10


class Adapter(nn.Module):
    """Estimates log(f⁺/f_u) of a query and a candidate, f⁺ the density of hidden positives, f_u of unlabeled items.

    Args:
        dim: length D of an embedding.
        generator: of the first weights; the network is on its device.
    """

    def __init__(self, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * dim, _HIDDEN, device=generator.device)
        self.out = nn.Linear(_HIDDEN, 1, device=generator.device)
        with torch.no_grad():
            self.hidden.weight.normal_(std=(3 * dim) ** -0.5, generator=generator)
            self.hidden.bias.zero_()
            for parameter in self.out.parameters():  # all odds start even
                parameter.zero_()
        self.optimizer = torch.optim.Adam(self.parameters(), lr=_LR, fused=True)

    def forward(self, queries: Tensor, items: Tensor, ids: Tensor) -> Tensor:
        """Log ratios [B, K] of the queries [B, D] and the items ids [B, K] of a table [num_items, D].

        Rows of both tables may have any length; it is their directions that count.
        """
        scale = queries.shape[1] ** 0.5  # elements of order 1
        queries, items = (scale * F.normalize(table, dim=1) for table in (queries, items))
        # hidden(z), without z [B, K, 3·D]: the parts of z that are linear in q or c are multiplied before the look-up.
        difference, product, total = self.hidden.weight.split(queries.shape[1], dim=1)
        of_queries = F.linear(queries, total + difference, self.hidden.bias).unsqueeze(1)
        of_items = F.embedding(ids, F.linear(items, total - difference))
        of_products = F.linear(queries.unsqueeze(1) * F.embedding(ids, items), product)
        return self.out(F.relu(of_queries + of_items + of_products)).squeeze(-1)

    def learn(self, queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor, order: Tensor) -> None:
        """Pass once over held-out positives.

        Args:
            queries: [P, D], of each positive; a constant, as `items` is.
            items: [num_items, D].
            pos_ids: int64 [P].
            neg_ids: int64 [P, M], items drawn for each.
            order: int64 [P], a permutation.
        """
        with torch.enable_grad():
            for rows in order.split(_BATCH):
                ids = torch.cat([pos_ids[rows].unsqueeze(1), neg_ids[rows]], dim=1)
                ratios = self(queries[rows].detach(), items.detach(), ids)
                # Both classes count alike, so that the best answer is the ratio of the densities.
                loss = F.softplus(-ratios[:, 0]).mean() + F.softplus(ratios[:, 1:]).mean()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()

    @torch.no_grad()
    def log_weights(self, queries: Tensor, items: Tensor, neg_ids: Tensor, number: int, curve: ScoreCurve) -> Tensor:
        """The curve at the log ratios of a row's hardest negatives, 0 for the others.

        All items are scored, as in :mod:`benchmarks.training.learnable_losses`.

        Args:
            queries, items: [B, D] and [num_items, D], which are compared by cosines.
            neg_ids: int64 [B, N]. An item that is there several times is one candidate.
            number: K, how many different items are candidates.
            curve: log weights by log ratio.

        Returns:
            [B, N].
        """
        scores = F.normalize(queries, dim=1) @ F.normalize(items, dim=1).T  # [B, num_items]
        drawn = torch.full_like(scores, -torch.inf).scatter_(1, neg_ids, 0.0)
        candidates = (scores + drawn).topk(min(number, len(items))).indices
        # A row with fewer items than candidates gets others too, which are not among its negatives.
        weights = torch.zeros_like(scores).scatter_(1, candidates, curve(self(queries, items, candidates)))
        return weights.gather(1, neg_ids)


def teach(
    adapter: Adapter,
    tables: tuple[Tensor, Tensor],
    positives: HeldOutPositives,
    draw: Callable[[Tensor, int, torch.Generator], Tensor],
    generator: torch.Generator,
) -> None:
    """Have an adapter pass once over held-out positives.

    Args:
        tables: the users' and the items' embeddings.
        draw: of negatives, given users [B], their number N and a generator, int64 [B, N].
        generator: of these and of the order.
    """
    users, items = tables
    order = torch.randperm(len(positives.users), generator=generator, device=items.device)
    neg_ids = draw(positives.users, _UNLABELED, generator)
    adapter.learn(users[positives.users], items, positives.items, neg_ids, order)


def rerank(log_scores: Tensor, probabilities: Tensor, exponent: float) -> Tensor:
    """The logarithm of s_base·s_adapter^λ: RRRA's product, where a base score is e^{s/τ} as in the softmax.

    Args:
        log_scores: s/τ, any shape.
        probabilities: s_adapter in [0, 1], the same shape.
        exponent: λ ≥ 0; 0 leaves the base's ranking.

    >>> rerank(torch.tensor([1.0, 0.9]), torch.tensor([0.2, 0.8]), 1.0).argmax()  # 1
    """
    return log_scores if exponent == 0 else log_scores + exponent * probabilities.log()

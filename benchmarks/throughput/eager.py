"""The CW loss with its defaults in plain PyTorch, with no more operations than the formula needs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TEMPERATURE = 0.1


def from_scores(pos_scores: Tensor, neg_scores: Tensor) -> Tensor:
    """The loss from scores [B] and [B, N]."""
    return _of_scaled_margins((neg_scores - pos_scores.unsqueeze(1)) / TEMPERATURE)


def from_embeddings(
    queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor, log_q: Tensor | None = None
) -> Tensor:
    """The loss from embeddings, with negatives per row [B, N] and their log weights."""
    q = _scaled_unit(queries)
    pos = (q * F.normalize(F.embedding(pos_ids, items), dim=-1)).sum(-1)
    neg = (q.unsqueeze(1) * F.normalize(F.embedding(neg_ids, items), dim=-1)).sum(-1)
    return _of_scaled_margins(neg - pos.unsqueeze(1), log_q)


def tuned_from_embeddings(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    """The same without log weights, normalising each row of the table once."""
    return _of_unit_rows(_scaled_unit(queries), F.normalize(items, dim=1), pos_ids, neg_ids)


def checkpointed(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    """The same, with gather, scores and loss computed again in backward."""
    unit = F.normalize(items, dim=1)
    return checkpoint(_of_unit_rows, _scaled_unit(queries), unit, pos_ids, neg_ids, use_reentrant=False)


def shared(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    """The loss from embeddings, with shared negatives [N]."""
    return _of_scaled_margins(_one_set_margins(queries, items, pos_ids, neg_ids))


def one_set(
    queries: Tensor,
    items: Tensor,
    pos_ids: Tensor,
    neg_ids: Tensor | None,
    left_out: Tensor,
    log_q: Tensor | None,
) -> Tensor:
    """The loss from embeddings, with negatives [C] (None: all items) of which each row leaves some out.

    Args:
        queries, items, pos_ids: [B, D], [I, D], [B].
        neg_ids: int64 [C], or None.
        left_out: bool [B, C].
        log_q: log weights [C], or None.
    """
    d = _one_set_margins(queries, items, pos_ids, neg_ids)
    if log_q is None:
        terms = d + F.logsigmoid(-d.detach())
        return torch.logsumexp(terms.masked_fill(left_out, -torch.inf), 1).mean()
    return _of_scaled_margins(d, torch.where(left_out, -torch.inf, log_q))


def _one_set_margins(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor | None) -> Tensor:
    q = _scaled_unit(queries)
    pos = (q * F.normalize(F.embedding(pos_ids, items), dim=1)).sum(1)
    negatives = items if neg_ids is None else F.embedding(neg_ids, items)
    return q @ F.normalize(negatives, dim=1).T - pos.unsqueeze(1)


def _scaled_unit(queries: Tensor) -> Tensor:
    # The factor 1/2 of the half cosine and 1/τ are applied to B·D numbers instead of B·N.
    return F.normalize(queries, dim=1) * (0.5 / TEMPERATURE)


def _of_unit_rows(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    pos = (queries * F.embedding(pos_ids, items)).sum(1)
    neg = torch.bmm(F.embedding(neg_ids, items), queries.unsqueeze(2)).squeeze(2)
    return _of_scaled_margins(neg - pos.unsqueeze(1))


def _of_scaled_margins(d: Tensor, log_q: Tensor | None = None) -> Tensor:
    """d/τ [B, N], weighted by the detached sigmoid; with log weights [B, N], −inf leaves out, N times their mean."""
    terms = d + F.logsigmoid(-d.detach())
    if log_q is None:
        return torch.logsumexp(terms, 1).mean()
    count = (log_q > -torch.inf).sum(1, dtype=torch.promote_types(d.dtype, torch.float32))
    return (torch.logsumexp(terms + log_q, 1) - torch.logsumexp(log_q, 1) + count.log()).mean()

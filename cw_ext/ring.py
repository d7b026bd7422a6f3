"""Losses of rows whose candidates arrive one process's part at a time, in forward and again in backward.

log A = log Σ_j q_j ω(d_j) exp(d_j/τ) − log Σ_j q_j is a logsumexp over the parts. The op of the loss from embeddings
computes log A of each part. The rest of the formula needs a few numbers per row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cw_ext import reference
from cw_ext.autocast import without_autocast
from cw_ext.collectives import Parts
from cw_ext.embedding_batch import EmbeddingBatch, rows_of_ids
from cw_ext.excluded_pairs import Pairs, Side
from cw_ext.op_inputs import Losses
from cw_ext.row_values import RowValues


class Direction(NamedTuple):
    """Where the candidates come from, and what is known about those of a part."""

    parts: Parts
    gather_gradients: bool
    own: Side  # this process's pairs
    left_out: Callable[[Side], Pairs]
    log_q: Callable[[Side], Tensor | None]


class _Part(NamedTuple):
    """What the candidates in a part contribute to each row."""

    log_sum: Tensor  # [B], log Σ q ω exp(d/τ)
    log_weight: Tensor  # [B], log Σ q
    number: Tensor  # int64 [B]
    above: Tensor  # int64 [B], or empty
    loss: Tensor  # [B], log_sum plus a constant, for the gradients


def ring_rows(direction: Direction, batch: EmbeddingBatch, positives: Tensor, candidates: Tensor) -> Losses:
    """The rows' losses.

    Args:
        batch: the other arguments of the loss. Its table has the extra positives.
        positives: [B, D], one per row.
        candidates: [n, D], what this process sends to the others: one for each of its pairs.
    """
    numbers = [direction.own.items] + ([] if direction.own.queries is None else [direction.own.queries])
    tau = batch.row_values.temperature
    log_a, count, above = _LogMean.apply(  # type: ignore[no-untyped-call]
        batch.queries, positives, candidates, tau if isinstance(tau, Tensor) else None, direction, batch, numbers
    )
    return _finished(batch, positives, direction.own.items < 0, log_a, count, above)


def _finished(
    batch: EmbeddingBatch, positives: Tensor, padding: Tensor, log_a: Tensor, count: Tensor, above: Tensor
) -> Losses:
    """The rest of the formula."""
    p, dtype = batch.options.row, batch.dtype
    dead = padding | (count == 0) | (log_a == -math.inf)

    # Rows that are not used may hold NaN.
    queries, positives = (torch.where(dead.unsqueeze(-1), 0.0, x.to(dtype)) for x in (batch.queries, positives))
    units = (reference.unit_rows(x, batch.similarity) for x in (queries, positives))
    pos = reference.SCORE_SCALE[batch.similarity] * torch.mul(*units).sum(-1)
    extra = None
    if batch.extra_ids is not None:
        ids = torch.where(dead.unsqueeze(-1), -1, batch.extra_ids.long())
        extra = reference.candidate_scores(queries, batch.items, ids, batch.similarity)
        pos = torch.where((extra < math.inf).all(-1), pos, math.nan)
    log_c = reference.log_positive_mass(pos, extra, dead, batch.row_values.temperature, p)
    log_a = torch.where(dead, 0.0, log_a)
    loss = reference.row_loss(pos, log_a, log_c, count, batch.row_values, p)
    return Losses(torch.where(dead, 0.0, loss), ~dead, above)


class _LogMean(torch.autograd.Function):
    """log A of rows [B], their numbers of candidates, and how many of these score above the threshold."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        positives: Tensor,
        candidates: Tensor,
        tau: Tensor | None,
        direction: Direction,
        batch: EmbeddingBatch,
        numbers: list[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, dtype = queries.shape[0], batch.dtype
        log_sum, log_weight = (torch.full((rows,), -math.inf, dtype=dtype, device=queries.device) for _ in range(2))
        count = torch.zeros(rows, dtype=torch.int64, device=queries.device)
        above = torch.zeros_like(count) if batch.options.row.return_above else count[:0]
        for _, (vectors, *of_part) in direction.parts.around([candidates, *numbers]):
            if len(vectors) == 0 or rows == 0:
                continue
            part = _of_part(direction, batch, queries, positives, vectors, tau, of_part)
            log_sum = torch.logaddexp(log_sum, part.log_sum)
            log_weight = torch.logaddexp(log_weight, part.log_weight)
            count, above = count + part.number, above + part.above
        ctx.save_for_backward(queries, positives, candidates, tau, log_sum, *numbers)
        ctx.direction, ctx.batch = direction, batch._replace(queries=queries.detach(), items=batch.items.detach())
        ctx.mark_non_differentiable(count, above)
        alive = log_weight > -math.inf
        return torch.where(alive, log_sum - torch.where(alive, log_weight, 0.0), -math.inf), count, above

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        queries, positives, candidates, tau, log_sum, *numbers = ctx.saved_tensors
        direction, batch = ctx.direction, ctx.batch
        parts = direction.parts
        # Sums over parts are in the dtype of the loss.
        of_queries, of_positives, of_own = (
            torch.zeros(x.shape, dtype=batch.dtype, device=x.device) for x in (queries, positives, candidates)
        )
        of_tau = None if tau is None else torch.zeros_like(tau)
        travelling = of_own
        for owner, (vectors, *of_part) in parts.around([candidates, *numbers]):
            if len(vectors) and len(queries):
                leaves = [x.detach().requires_grad_() for x in (queries, positives, vectors)]
                own_tau = None if tau is None else tau.detach().requires_grad_()
                # Backward may run under autocast, which would change what is computed again.
                with torch.enable_grad(), without_autocast(queries.device.type):
                    part = _of_part(direction, batch, leaves[0], leaves[1], leaves[2], own_tau, of_part)
                share = torch.where(part.log_sum > -math.inf, (part.log_sum - log_sum).exp() * grad, 0.0)
                leaves += [] if own_tau is None else [own_tau]
                found = torch.autograd.grad(part.loss, leaves, share, allow_unused=True, materialize_grads=True)
                of_queries += found[0]
                of_positives += found[1]
                if direction.gather_gradients:
                    travelling = travelling + found[2]
                elif owner == parts.rank:
                    of_own += found[2]
                if of_tau is not None:
                    of_tau += found[3]
            if direction.gather_gradients and parts.world > 1:
                # The sums travel with their vectors. After the last step they are back where they started.
                travelling = parts.pass_on([travelling], owner)[0]
        of_candidates = travelling if direction.gather_gradients else of_own
        return (
            of_queries.to(queries.dtype),
            of_positives.to(positives.dtype),
            of_candidates.to(candidates.dtype),
            of_tau,
            None,
            None,
            None,
        )


def _of_part(
    direction: Direction,
    batch: EmbeddingBatch,
    queries: Tensor,
    positives: Tensor,
    vectors: Tensor,
    tau: Tensor | None,
    numbers: list[Tensor],
) -> _Part:
    """Compute the part of the rows' candidates that is among these vectors."""
    part = Side(numbers[0], numbers[1] if len(numbers) > 1 else None)
    rows, device = queries.shape[0], queries.device
    log_q, left_out = direction.log_q(part), direction.left_out(part)
    count, log_weight = _weights(part.items >= 0, log_q, left_out, rows, batch.dtype)

    pos_ids = torch.where(direction.own.items >= 0, torch.arange(rows, device=device), -1)
    neg_ids = torch.where(part.items >= 0, rows + torch.arange(len(vectors), device=device), -1)
    history = Pairs(left_out.rows, left_out.candidates + rows).history(rows)
    of_negatives = batch.options.row._replace(
        include_positive=False, min_margin=None, positive_temperature=None, confidence_temperature=None
    )
    values = RowValues(0.0, batch.row_values.threshold, batch.row_values.temperature if tau is None else tau)
    alone = batch._replace(
        queries=queries,
        items=torch.cat([positives, vectors]),
        pos_ids=pos_ids,
        extra_ids=None,
        row_weights=None,
        row_values=values,
        options=batch.options._replace(row=of_negatives, reduction="none"),
        process_group=None,
    )
    weights = None if log_q is None else log_q.expand(rows, -1)
    loss, live, above = rows_of_ids(alone, neg_ids, weights, sparse_grad=False, exclude=True, history=history)
    assert above is not None
    # A row's loss there is log(N_eff Σ q ω exp(d/τ) / Σ q).
    log_sum = loss.detach() - count.clamp(min=1).to(batch.dtype).log() + log_weight
    return _Part(torch.where(live, log_sum, -math.inf), log_weight, count, above, loss)


def _weights(
    valid: Tensor, log_q: Tensor | None, left_out: Pairs, rows: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(number [B], log Σ q [B]) of the candidates that a row does not leave out."""
    q = None if log_q is None else torch.where(valid, log_q.double().exp(), 0.0)
    some = (valid if q is None else q > 0).long()
    out = torch.zeros(rows, dtype=torch.int64, device=some.device)
    count = some.sum() - out.index_add_(0, left_out.rows, some[left_out.candidates])
    sums = count.double() if q is None else _sums_of_rest(q, left_out, rows)
    return count, torch.where(count > 0, sums.log(), -math.inf).to(dtype)


def _sums_of_rest(q: Tensor, left_out: Pairs, rows: int) -> Tensor:
    """[B], the sum of the q ≥ 0 that a row does not leave out.

    The sum of all minus those left out would be only rounding error if a row keeps nothing but popular items, whose q
    are small. In increasing order, the sum up to any q is at most their number times that q. So differences of such
    sums keep their digits.
    """
    n, device = len(q), q.device
    ordered, order = q.sort()
    place = torch.empty_like(order)
    place[order] = torch.arange(n, device=device)
    below = torch.cat([q.new_zeros(1), ordered.cumsum(0)])
    # The ranges between the places that a row leaves out: −1 before all, its own, and n after all.
    first = torch.arange(rows, device=device) * (n + 2)
    keys = torch.cat([first, left_out.rows * (n + 2) + place[left_out.candidates] + 1, first + n + 1]).sort().values
    row, end = keys // (n + 2), keys % (n + 2) - 1
    between = below[end[1:].clamp(min=0)] - below[(end[:-1] + 1).clamp(max=n)]
    between = torch.where(row[1:] == row[:-1], between, 0.0)
    return torch.zeros(rows, dtype=q.dtype, device=device).index_add_(0, row[1:], between)

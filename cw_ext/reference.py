"""The CW loss in plain PyTorch: every kernel is tested against it, and double backward uses it.

It is short on purpose, to be read next to docs/how-it-works/formula.md. It keeps every intermediate result for
autograd, so it is slow and, on embeddings, allocates [B, N, D]. The formula is implemented here and, for the kernels,
in csrc/cw_row.h; nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cw_ext import sums
from cw_ext.op_inputs import EmbeddingInputs, FullInputs, Losses, ScoreInputs
from cw_ext.parameters import RowParameters
from cw_ext.reference_sampling import History, is_known
from cw_ext.row_values import CurveInputs, RowValues
from cw_ext.score_curve import curve_log_weights

SCORE_SCALE = {"half_cosine": 0.5, "cosine": 1.0, "dot": 1.0}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a row is computed: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _log_positive(x: Tensor) -> Tensor:
    """log(x), and −inf with zero gradient where x ≤ 0."""
    positive = x > 0
    return torch.where(positive, torch.log(torch.where(positive, x, 1.0)), -math.inf)


def log_weight(margin: Tensor, temperature: Tensor | float, p: RowParameters) -> Tensor:
    """log ω(d). Detached weights are a constant in all gradients, that of the temperature too."""
    if p.detach_weights:
        margin = margin.detach()
        temperature = temperature.detach() if isinstance(temperature, Tensor) else temperature
    followed = temperature if p.weighting == "sigmoid" else 1.0
    scaled = margin / (followed if p.weight_temperature is None else p.weight_temperature)
    match p.weighting:
        case "sigmoid":
            return F.logsigmoid(-scaled)
        case "exponential":
            return -scaled
        case "linear":
            return _log_positive(1 - scaled)
        case _:
            return torch.zeros_like(margin)


def log_surrogate(margin: Tensor, temperature: Tensor | float, p: RowParameters) -> Tensor:
    """log of exp(d/τ), or of the surrogate used instead."""
    match p.surrogate:
        case "tanh":  # tanh d + 1 = 2σ(2d), which keeps its digits where tanh d is near −1
            log_value = math.log(2) + F.logsigmoid(2 * margin)
        case "atan":
            log_value = _log_positive(torch.atan(margin) + 1)
        case "relu":
            log_value = _log_positive(margin + 1)
        case _:
            log_value = margin
    # A surrogate of 0 stays 0 at any temperature, with zero gradient, where −∞/τ would have NaN.
    zero = log_value == -math.inf
    return torch.where(zero, -math.inf, torch.where(zero, 0.0, log_value) / temperature)


def of_positive(loss: Tensor, pos: Tensor, tau: Tensor | float, threshold: Tensor | float, p: RowParameters) -> Tensor:
    """c(s⁺)·(L + s⁺(1/τ − 1/τ⁺)) from L."""
    if p.positive_temperature is not None:
        loss = loss + pos * (1 / tau - 1 / p.positive_temperature)
    if p.confidence_temperature is not None:
        loss = 2 * torch.sigmoid((pos - threshold) / p.confidence_temperature) * loss
    return loss


def log_positive_mass(pos: Tensor, extra: Tensor | None, dead: Tensor, tau: Tensor | float, p: RowParameters) -> Tensor:
    """log C. The extra positives of dead rows are ignored."""
    log_c = log_weight(torch.zeros_like(pos), tau, p)
    if extra is None or extra.shape[-1] == 0:
        return log_c
    dtype, of_each = pos.dtype, tau.unsqueeze(-1) if isinstance(tau, Tensor) else tau
    extra = extra.to(dtype)
    padding = (extra == -math.inf) | dead.unsqueeze(-1)
    margin_k = torch.where(padding, 0.0, extra - pos.unsqueeze(-1))
    log_omega_k = log_weight(margin_k, of_each, p)
    exponent_k = torch.where(padding, -math.inf, log_omega_k + log_surrogate(margin_k, of_each, p))
    m = (~padding).sum(-1)
    empty = (exponent_k == -math.inf).all(-1)
    log_sum = torch.logsumexp(torch.where(empty.unsqueeze(-1), 0.0, exponent_k), -1)
    log_mean = torch.where(empty, -math.inf, log_sum - m.clamp(min=1).to(dtype).log())
    return torch.where(m > 0, log_mean, log_c)


def row_loss(pos: Tensor, log_a: Tensor, log_c: Tensor, n_eff: Tensor, values: RowValues, p: RowParameters) -> Tensor:
    """The loss of rows from s⁺, log A, log C and N_eff, all [...]."""
    dtype, tau = log_a.dtype, values.temperature
    # log G = log max(A − πC, floor) − log(1 − π), through R = πC/A
    # Clamped: with any π > 0 the floor binds long before, and 0·∞ must not occur.
    share = values.prior * torch.exp((log_c - log_a).clamp(max=80.0))
    left = 1 - share.detach()
    if p.min_margin is None:
        binds = left <= p.floor
    else:
        binds = log_a.detach() + torch.log(left.clamp(min=0)) <= p.min_margin / tau
    share = torch.where(binds, 0.0, share)
    if p.min_margin is None:
        log_mass = log_a + torch.where(binds, math.log(p.floor), torch.log1p(-share))
    else:
        log_mass = torch.where(binds, p.min_margin / tau, log_a + torch.log1p(-share))
    one_minus_prior = torch.as_tensor(1 - values.prior, dtype=dtype, device=pos.device)
    log_n_g = torch.log(n_eff.clamp(min=1).to(dtype)) + log_mass - torch.log(one_minus_prior)

    loss = torch.logaddexp(torch.zeros_like(log_n_g), log_n_g) if p.include_positive else log_n_g
    return of_positive(loss, pos, tau, values.threshold, p)


def rows(
    pos: Tensor,
    neg: Tensor,
    extra: Tensor | None,
    log_q: Tensor | None,
    values: RowValues,
    curve: CurveInputs,
    p: RowParameters,
) -> Losses:
    """The loss of each row, before row weights and reduction.

    Args:
        pos: s⁺ [...].
        neg: s_j [..., N]. A score of −inf is a negative with no mass.
        extra: s_k [..., M] or None. A score of −inf is padding.
        log_q: log q_j [..., N] or None. −inf masks the negative out.
        values: the prior π, the threshold β and the temperature τ, each a float or [...].
        curve: the log weights [..., K] of a curve, or none.
        p: all other loss arguments.

    Returns:
        The losses, in fp64 for fp64 scores, else in fp32. A row that is not live has no negative mass: its loss and its
        gradients are 0.
    """
    dtype = compute_dtype(pos.dtype)
    pos, neg = pos.to(dtype), neg.to(dtype)
    if curve.curve is not None:
        at = neg - pos.unsqueeze(-1) if curve.curve_on_margin else neg
        of_curve = curve_log_weights(at.detach(), curve.curve, curve.curve_low, curve.curve_high)
        given = torch.zeros_like(neg) if log_q is None else log_q.to(dtype)
        log_q = torch.where(given == -math.inf, -math.inf, given + of_curve)
    masked = torch.zeros_like(neg, dtype=torch.bool) if log_q is None else log_q == -math.inf
    n_eff = (~masked).sum(-1)

    # A NaN or a +inf makes its own row NaN, even where the formula would give a number.
    bad = ~pos.isfinite() | (~masked & ~(neg < math.inf)).any(-1)
    if extra is not None:
        bad = bad | ~(extra < math.inf).all(-1)
    tau = values.temperature
    if isinstance(tau, Tensor):
        bad = bad | ~((tau > 0) & (tau < math.inf))
        tau = torch.where(bad, 1.0, tau)
    of_each = tau.unsqueeze(-1) if isinstance(tau, Tensor) else tau  # of a row's elements
    if curve.curve is not None and log_q is not None:
        bad = bad | ~(log_q < math.inf).all(-1)  # a NaN or a +inf among the curve's values
    bad = bad & (n_eff > 0)
    pos = torch.where(bad, math.nan, pos)

    # Values that the formula must not see are replaced before it, and their results replaced after it: where() alone
    # would let NaN through in the gradient of the branch that was not taken.
    absent = masked | (neg == -math.inf)
    margin = torch.where(absent, 0.0, neg - pos.unsqueeze(-1))
    log_omega = log_weight(margin, of_each, p)
    if log_q is not None:
        log_q = log_q.to(dtype)
        log_omega = log_omega + torch.where(masked, 0.0, log_q)
    exponent = torch.where(absent, -math.inf, log_omega + log_surrogate(margin, of_each, p))
    dead = ~(exponent > -math.inf).any(-1) & ~bad
    filler = dead.unsqueeze(-1)  # a logsumexp over −inf alone has a NaN gradient

    # log A
    log_denominator: Tensor | float
    if p.normalize_weights:
        # The weight of a score of −inf is the limit of ω, or 0 where that limit is infinite.
        limit = 0.0 if p.weighting in ("none", "sigmoid") else -math.inf
        at_limit = limit if log_q is None else log_q + limit
        log_parts = torch.where(absent, torch.where(masked, -math.inf, at_limit), log_omega)
        log_denominator = torch.logsumexp(torch.where(filler, 0.0, log_parts), -1)
    elif log_q is not None:
        log_denominator = torch.logsumexp(torch.where(filler, 0.0, log_q), -1)
    else:
        log_denominator = math.log(neg.shape[-1])
    log_a = torch.logsumexp(torch.where(filler, 0.0, exponent), -1) - log_denominator

    log_c = log_positive_mass(pos, extra, dead, tau, p)
    loss = row_loss(torch.where(dead, 0.0, pos), log_a, log_c, n_eff, values._replace(temperature=tau), p)
    loss = torch.where(dead, 0.0, torch.where(bad, math.nan, loss))
    above = torch.empty(0, dtype=torch.int64, device=pos.device)
    if p.return_above:
        threshold = values.threshold.unsqueeze(-1) if isinstance(values.threshold, Tensor) else values.threshold
        above = ((neg > threshold) & ~masked).sum(-1)
    return Losses(loss, ~dead, above)


def unit_rows(x: Tensor, similarity: str) -> Tensor:
    """x [..., D], divided by its norm unless the similarity is "dot". A zero row stays zero, with zero gradient."""
    if similarity == "dot":
        return x
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm == 0, math.inf, norm)


def scores_from_embeddings(
    queries: Tensor,
    items: Tensor,
    pos_ids: Tensor,
    neg_ids: Tensor,
    extra_ids: Tensor | None,
    log_q: Tensor | None,
    similarity: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The inputs of the loss on scores, from embeddings: (pos [B], neg [B, N], extra [B, M] or None, log_q [B, N] or
    None).

    Ids of −1 are padding: a padded negative is masked out, a padded extra positive is left out, and a row with a padded
    positive has all its negatives masked out. A row without negatives reads neither its query nor its positives, which
    may contain NaN. Allocates [B, N, D] unless the negatives are shared.
    """
    dtype = compute_dtype(queries.dtype)
    scale = SCORE_SCALE[similarity]

    padding = (neg_ids < 0) | (pos_ids < 0).unsqueeze(-1)
    masked = padding if log_q is None else padding | (log_q == -math.inf)
    neg_absent = masked.all(0) if neg_ids.dim() == 1 else masked
    row_absent = masked.all(-1)

    def unit_of(rows: Tensor, absent: Tensor) -> Tensor:
        # Masked rows may hold NaN, which would get into the gradient if only their scores were replaced.
        if torch.compiler.is_compiling() or absent.device.type != "cpu" or absent.any():
            rows = torch.where(absent.unsqueeze(-1), 0.0, rows)
        return unit_rows(rows, similarity)

    def gathered(ids: Tensor, absent: Tensor) -> Tensor:
        # Not items[ids], whose backward pass on several threads adds in an order that varies from run to run.
        rows = items.index_select(0, ids.clamp(min=0).flatten()).reshape(*ids.shape, items.shape[1])
        return unit_of(rows.to(dtype), absent)

    unit = unit_of(queries.to(dtype), row_absent)
    pos = scale * (unit * gathered(pos_ids, row_absent)).sum(-1)
    negatives = gathered(neg_ids, neg_absent)
    if neg_ids.dim() == 1:
        neg = scale * unit @ negatives.T
    else:
        neg = scale * (unit.unsqueeze(1) * negatives).sum(-1)

    base = torch.zeros_like(neg) if log_q is None else log_q.to(dtype)
    log_q = torch.where(padding, -math.inf, base)
    extra = None
    if extra_ids is not None:
        extra = scale * (unit.unsqueeze(1) * gathered(extra_ids, (extra_ids < 0) | row_absent.unsqueeze(-1))).sum(-1)
        extra = torch.where(extra_ids < 0, -math.inf, extra)
    return pos, neg, extra, log_q


def candidate_scores(queries: Tensor, items: Tensor, ids: Tensor, similarity: str) -> Tensor:
    """The scores of items ids [B, K], −inf where an id is −1. Allocates [B, K, D]."""
    dtype = compute_dtype(queries.dtype)
    rows = items.index_select(0, ids.clamp(min=0).flatten()).reshape(*ids.shape, items.shape[1]).to(dtype)
    rows = torch.where((ids < 0).unsqueeze(-1), 0.0, rows)  # which may hold NaN
    units = unit_rows(queries.to(dtype), similarity).unsqueeze(1) * unit_rows(rows, similarity)
    return torch.where(ids < 0, -math.inf, SCORE_SCALE[similarity] * units.sum(-1))


def leave_out(
    log_q: Tensor | None,
    pos_ids: Tensor,
    neg_ids: Tensor,
    history: History | None,
    num_items: int,
    dtype: torch.dtype,
) -> Tensor:
    """log_q [B, N] of shared negatives [N], with −inf where one is the row's own positive or known in `history`."""
    out = neg_ids == pos_ids.unsqueeze(-1)
    rows = torch.arange(pos_ids.shape[0], device=pos_ids.device).unsqueeze(-1).expand(out.shape)
    out = out | is_known(history, num_items)(rows, neg_ids.long().expand(out.shape))
    return torch.where(out, -math.inf, torch.zeros((), dtype=dtype, device=out.device) if log_q is None else log_q)


def score_rows(inputs: ScoreInputs) -> Losses:
    """The loss on scores, with rows of any shape [...]."""
    return _reduced(rows(*inputs[:-1]), inputs.reduction)


def embedding_rows(inputs: EmbeddingInputs) -> Losses:
    """The loss on embeddings."""
    queries, items, pos_ids, neg_ids, extra_ids, log_q = inputs[:6]
    if inputs.exclude:
        dtype = compute_dtype(queries.dtype)
        log_q = leave_out(log_q, pos_ids, neg_ids, inputs.history, items.shape[0], dtype)
    scores = scores_from_embeddings(queries, items, pos_ids, neg_ids, extra_ids, log_q, inputs.similarity)
    return _reduced(rows(*scores, inputs.row_values, inputs.curve, inputs.parameters), inputs.reduction)


def full_rows(inputs: FullInputs) -> Losses:
    """All items as negatives. Allocates [B, I]."""
    return embedding_rows(
        EmbeddingInputs(
            inputs.queries,
            inputs.items,
            inputs.pos_ids,
            torch.arange(inputs.items.shape[0], device=inputs.items.device),
            inputs.extra_ids,
            log_q=None,
            exclude=True,
            history=inputs.history,
            row_values=inputs.row_values,
            curve=inputs.curve,
            parameters=inputs.parameters,
            similarity=inputs.similarity,
            reduction=inputs.reduction,
        )
    )


def _reduced(rows: Losses, reduction: str) -> Losses:
    return Losses(reduce(rows.loss, rows.live, None, reduction), rows.live, rows.above)


def result(rows: Losses, row_weights: Tensor | None, reduction: str, return_above: bool) -> Tensor:
    """What the user gets: the loss of the rows, already reduced unless there are row weights; or (loss, above).

    The pair is declared as a Tensor, which type checkers let users unpack: few calls ask for the pair.
    """
    loss = rows.loss if row_weights is None else reduce(rows.loss, rows.live, row_weights, reduction)
    return (loss, rows.above) if return_above else loss  # type: ignore[return-value]


def reduce(
    loss: Tensor,
    live: Tensor,
    row_weights: Tensor | None,
    reduction: str,
    mean_over: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Row weights and reduction. The mean is over the live rows, and 0 if there is none.

    `mean_over` turns the weight or the number of these rows into what a mean divides by.
    """
    if row_weights is not None:
        row_weights = row_weights.to(loss.dtype)
        loss = torch.where(live, loss * row_weights, 0.0)
    if reduction == "none":
        return loss
    total = sums.total(loss)
    if reduction == "sum":
        return total
    if row_weights is None and mean_over is None:
        return total / live.sum().clamp(min=1)
    weight = live.sum().to(total.dtype) if row_weights is None else sums.total(torch.where(live, row_weights, 0.0))
    weight = weight if mean_over is None else mean_over(weight)
    return total / torch.where(weight == 0, 1, weight)

"""The softmax over all items, estimated from the negatives of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cw_ext.embedding_batch import EmbeddingBatch
from cw_ext.interactions import Interactions
from cw_ext.op_inputs import Losses
from cw_ext.parameters import LossOptions
from cw_ext.reference_sampling import History


def check_estimate_full(estimate_full: bool, options: LossOptions, log_q_correction: bool, candidates: object) -> None:
    """Refuses settings under which a row is not part of the softmax over all items."""
    row = options.row
    if estimate_full and candidates is not None:
        raise ValueError(f"estimate_full=True needs candidates=None, got {type(candidates).__name__}")
    if estimate_full and not (row.include_positive and log_q_correction):
        raise ValueError(
            "estimate_full=True needs include_positive=True and log_q_correction=True, got "
            f"include_positive={row.include_positive} and log_q_correction={log_q_correction}"
        )
    for name in ("confidence_temperature", "positive_temperature"):
        value = getattr(row, name)
        if estimate_full and value is not None:
            raise ValueError(f"estimate_full=True needs {name}=None, got {value}")
    if estimate_full and options.score_curve is not None:
        raise ValueError(f"estimate_full=True needs score_curve=None, got {options.score_curve}")
    if estimate_full and row.return_above:
        raise ValueError("estimate_full=True needs return_above=False, got True")


def without_positive(batch: EmbeddingBatch) -> EmbeddingBatch:
    """The batch whose rows :func:`loss_over_all_items` takes."""
    # The kernels count the negatives that score above a threshold. Above −∞ that is all of them.
    row = batch.options.row._replace(include_positive=False, return_above=True)
    return batch._replace(
        options=batch.options._replace(row=row, reduction="none"),
        row_values=batch.row_values._replace(threshold=-math.inf),
    )


def loss_over_all_items(batch: EmbeddingBatch, rows: Losses, left: Tensor) -> Tensor:
    """log(1 + I′·G) per row, reduced; see `estimate_full` of :func:`cw_ext.cw_loss_in_batch`.

    A row without the positive is log(N_eff·G). The wanted loss is log(1 + e^x), x = log(N_eff·G) + log(I′ / N_eff). The
    gradient of log(1 + e^x) is the weight 1 − P(positive).

    Args:
        batch: the batch with the user's settings.
        rows: the rows of :func:`without_positive`.
        left: [B], I′.
    """
    loss, live, above = rows
    assert above is not None  # as return_above asks
    num_negatives = above.to(loss.dtype)
    scale = torch.where(live, left / torch.where(live, num_negatives, 1), 1).log()
    loss = torch.where(live, torch.logaddexp(torch.zeros_like(loss), loss + scale), 0.0)
    return batch.reduced(loss, live)


def count_items_left(
    positives: Tensor, num_items: int, history: History | None, interactions: Interactions | None
) -> Tensor:
    """I′ [B]: the items that are not the row's positive and not known positives of its query."""
    if history is None or interactions is None:
        return torch.full_like(positives, num_items - 1)
    queries = history.query_ids.long()
    first, end = history.starts[queries], history.starts[queries + 1]
    left, place = num_items - (end - first), first
    last = history.known.shape[0] - 1
    if last < 0:
        return left - 1
    for step in reversed(range(interactions.most_per_query.bit_length())):  # binary search in all rows together
        ahead = place + (1 << step)
        smaller = (ahead <= end) & (history.known[(ahead - 1).clamp(max=last)] < positives)
        place = torch.where(smaller, ahead, place)
    is_known = (place < end) & (history.known[place.clamp(max=last)] == positives)
    return left - (~is_known).long()

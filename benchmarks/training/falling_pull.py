"""A pull on the positive that falls with its row's loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.training.negatives import Batch


def with_falling_pull(loss: Callable[..., Any], strength: float, temperature: float) -> Callable[..., Any]:
    """Multiply the pull on each row's positive by 1 − κ·L_b/L̄, with L_b the row's loss and L̄ the batch's mean.

    It is the gradient of L_b + κ·(L_b/L̄)·s⁺_b/τ with L_b/L̄ a constant in it: rows with a high loss, whose positives
    may be unusual for their users, get less of it, and where L_b > L̄/κ they are pushed away. A row whose loss is
    below 0 counts as 0 in L_b/L̄, so that the mean factor is 1 − κ always. It is a factor of the pull where that is 1/τ.
    Where a confidence or a temperature of the positive's own changes the pull, κ·L_b/(L̄·τ) is still what is taken off.

    Args:
        loss: called with a batch, reduction="none" and other keyword arguments, returns the rows' losses [B], with
            return_above=True and the counts [B].
        strength: κ in (0, 1).
        temperature: τ on the half cosine.

    Returns:
        The loss with that pull, which returns the mean over the rows.
    """

    def falling(batch: Batch, **given: Any) -> Any:
        found = loss(batch, reduction="none", **given)
        rows, *above = found if isinstance(found, tuple) else (found,)
        height = rows.detach().clamp(min=0)
        # Where no row is above 0 there is nothing to tell rows apart by, and the pull stays.
        share = height / height.mean().clamp(min=torch.finfo(height.dtype).tiny)
        total = (rows + strength * share * batch.positive_scores / temperature).mean()
        return (total, *above) if above else total

    return falling

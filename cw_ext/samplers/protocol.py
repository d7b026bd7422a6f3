"""The common interface of all samplers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class Negatives(NamedTuple):
    """The negatives of a batch, without gradient.

    Attributes:
        ids: int64 [B, N]; −1 is padding.
        log_weights: [B, N], for the `neg_log_weights` argument of the loss; None if all negatives count equally.
    """

    ids: Tensor
    log_weights: Tensor | None


@runtime_checkable
class Sampler(Protocol):
    """Draws the negatives of each batch. Your own class with these methods works wherever a sampler is expected."""

    num_negatives: int

    def draw(
        self,
        queries: Tensor,
        items: Tensor | nn.Embedding,
        query_ids: Tensor,
        pos_ids: Tensor,
        *,
        seed: int | Tensor | None = None,
    ) -> Negatives:
        """Draw the negatives of a batch. It changes no state: the same arguments draw the same negatives.

        Args:
            queries: [B, D], one row per positive; fp16, bf16, fp32 or fp64.
            items: [I, D], the table as it is now, in the dtype of `queries`, or the nn.Embedding that holds it.
            query_ids: [B], int32 or int64, rows of the interactions. −1 is padding.
            pos_ids: [B], int32 or int64, rows of `items`. −1 is padding: all ids drawn for the row are −1.
            seed: as for :func:`cw_ext.draw_negatives`.
        """
        ...

    def update(
        self,
        queries: Tensor,
        items: Tensor | nn.Embedding,
        query_ids: Tensor,
        pos_ids: Tensor,
        *,
        epoch: int = 0,
        seed: int | Tensor | None = None,
    ) -> None:
        """Update the sampler's state after a training step. Does nothing if there is no state.

        Args:
            queries, items, query_ids, pos_ids, seed: as for `draw`. The queries may be from before the step.
            epoch: ≥ 0, the number of completed passes over the data.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...

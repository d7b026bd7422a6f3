"""What training may rely on, whichever sampler it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn


class Negatives(NamedTuple):
    """The negatives of a batch, without gradient.

    Attributes:
        ids: int64 [B, N]; −1 is padding.
        log_weights: [B, N], to be given as `neg_log_weights`, or None where all count alike.
    """

    ids: Tensor
    log_weights: Tensor | None


@runtime_checkable
class Sampler(Protocol):
    """Draws the negatives of each batch; what you write yourself with these names works wherever these samplers do."""

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
        """The negatives of a batch. It changes no state: the same arguments draw the same.

        Args:
            queries: [B, D], one row per positive; fp16, bf16, fp32 or fp64.
            items: [I, D], the table as it is now, in the dtype of `queries`, or the nn.Embedding that holds it.
            query_ids: [B], int32 or int64, rows of the interactions. −1 is padding.
            pos_ids: [B], int32 or int64, rows of `items`. −1 is padding: the row's ids are −1.
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
        """Take note of a batch after its step. Without a state, nothing.

        Args:
            epoch: ≥ 0, passes over the data before this one. The rest is as for `draw`.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...

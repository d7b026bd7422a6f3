"""CW as a loss for RePlay's neural models (SasRec, TwoTower). For ``replay-rec[torch]`` 0.22."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Unpack

import torch
from replay.data.nn import TensorMap
from torch import Tensor, nn

from cw_ext.functional import cw_loss, cw_loss_from_embeddings
from cw_ext.parameters import LossArguments, documents_loss_arguments, resolve


class CWSampled(nn.Module):
    """The CW loss as a replacement for RePlay's CESampled and CESampledWeighted (LossProto).

    >>> from cw_ext import presets
    >>> from cw_ext.integrations.replay import CWSampled
    >>> from replay.nn.sequential import SasRec
    >>> loss = CWSampled(body.embedder.get_item_weights, **presets.cw(temperature=1.0))
    >>> model = SasRec(body=body, loss=loss)

    With the item table it uses :func:`cw_ext.cw_loss_from_embeddings`. The embeddings of negatives, [R, N, D] for R
    targets, are not gathered. Without it, as in CWSampled(temperature=1.0), it uses :func:`cw_ext.cw_loss` on the
    logits of the model's `logits_callback`. That is for models that cannot compute all items in each step (TwoTower's
    item tower), or whose score is not a dot product.

    The rows are the same as in RePlay: one per target that `target_padding_mask` keeps. Negatives that are a positive
    of the position or equal `negative_labels_ignore_index` are left out. So presets.infonce(temperature=1.0) is
    CESampled, and CESampledWeighted with `feature_name`. The exception are rows without any negative, which CW leaves
    out of the mean. If a position has several positives, the others are extra positives of the row, for the correction.
    """

    logits_callback: Callable[[Tensor, Tensor], Tensor]  # set by the model

    @documents_loss_arguments
    def __init__(
        self,
        item_weights: Callable[[None], Tensor] | None = None,
        *,
        feature_name: str | None = None,
        negative_labels_ignore_index: int = -100,
        **loss: Unpack[LossArguments],
    ) -> None:
        """Set the source of the item table, how to read batches, and the loss arguments.

        Args:
            item_weights: a function that returns, for None, the table [I, D] with a row per item id: `get_item_weights`
                of SasRec's embedder, with the padding id after all others (RePlay's convention), or TwoTower's
                `body.item_tower`. If None, the model computes the scores.
            feature_name: the name of a feature [B, L, P] with the targets' weights. None means equal weights.
            negative_labels_ignore_index: the padding id among negatives.
            **loss: see below.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
        """
        super().__init__()
        resolve(loss)
        self.item_weights = item_weights
        self.feature_name = feature_name
        self.negative_labels_ignore_index = negative_labels_ignore_index
        self.loss: LossArguments = loss

    def forward(
        self,
        model_embeddings: Tensor,
        feature_tensors: TensorMap,
        positive_labels: Tensor,
        negative_labels: Tensor,
        padding_mask: Tensor,
        target_padding_mask: Tensor,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            model_embeddings: [B, L, D].
            feature_tensors: the batch's features. Only `feature_name` is read.
            positive_labels: item ids [B, L, P].
            negative_labels: item ids, shared [N], per session [B, N] or per position [B, L, N].
            padding_mask: not used.
            target_padding_mask: [B, L, P], True where a positive counts.

        Raises:
            ValueError: `negative_labels` has any other shape.
        """
        if negative_labels.shape[:-1] not in ((), positive_labels.shape[:1], positive_labels.shape[:2]):
            raise ValueError(
                f"negative_labels must have shape [N], [B, N] or [B, L, N] with positive_labels' [B, L] = "
                f"{list(positive_labels.shape[:2])}, got {tuple(negative_labels.shape)}"
            )
        weights = None if self.feature_name is None else feature_tensors[self.feature_name]
        return self._loss(
            model_embeddings, positive_labels, negative_labels, target_padding_mask, weights, self._item_table()
        )

    def _item_table(self) -> Tensor | None:
        return None if self.item_weights is None else self.item_weights(None)

    def _loss(
        self,
        model_embeddings: Tensor,
        positive_labels: Tensor,
        negative_labels: Tensor,
        target_padding_mask: Tensor,
        weights: Tensor | None,
        item_table: Tensor | None,
    ) -> Tensor:
        session, position, place = target_padding_mask.nonzero(as_tuple=True)  # of each of R targets
        at = (session, position)[: negative_labels.dim() - 1]
        neg_ids = negative_labels[at] if at else negative_labels  # [R, N] or [N]
        positives = positive_labels[session, position]  # [R, P]
        is_padding = neg_ids == self.negative_labels_ignore_index
        masked = (positives.unsqueeze(-1) == neg_ids.unsqueeze(-2)).any(-2) | is_padding  # [R, N]

        extra = None
        if positives.shape[1] > 1:
            others = target_padding_mask[session, position].scatter(1, place.unsqueeze(1), False)
            extra = positives.masked_fill(~others, -1)  # [R, P]
        queries = model_embeddings[session, position]  # [R, D]
        pos_ids = positive_labels[target_padding_mask]
        neg_ids = neg_ids.masked_fill(is_padding, 0)  # any valid id, as it is masked out
        neg_log_weights = torch.zeros(masked.shape, device=masked.device).masked_fill(masked, -math.inf)
        row_weights = None if weights is None else weights[target_padding_mask]
        if item_table is not None:
            return cw_loss_from_embeddings(
                queries,
                item_table,
                pos_ids,
                neg_ids,
                extra_pos_ids=extra,
                neg_log_weights=neg_log_weights,
                row_weights=row_weights,
                similarity="dot",
                **self.loss,
            )
        extra_scores = None
        if extra is not None:
            extra_scores = self.logits_callback(queries, extra.clamp(min=0)).masked_fill(extra < 0, -math.inf)
        return cw_loss(
            self.logits_callback(queries, pos_ids.unsqueeze(1)).squeeze(1),
            self.logits_callback(queries, neg_ids),
            extra_pos_scores=extra_scores,
            neg_log_weights=neg_log_weights,
            row_weights=row_weights,
            **self.loss,
        )


class GroupedCWSampled(CWSampled):
    """The CW loss as a replacement for RePlay's GroupedCESampled: each group of sessions shares a pool of negatives.

    Use it as :class:`CWSampled`, with the size of a group as the first argument. The loss is the mean over the groups
    of the loss of :class:`CWSampled` with the group's pool. The pool's embeddings are not gathered for each target
    either. So presets.infonce(temperature=1.0) is GroupedCESampled, with the same exception for rows without any
    negative as in :class:`CWSampled`. A group without targets is left out of the mean, while GroupedCESampled raises an
    error. A position may have several positives.
    """

    @documents_loss_arguments
    def __init__(
        self,
        logical_batch_size: int,
        item_weights: Callable[[None], Tensor] | None = None,
        *,
        feature_name: str | None = None,
        negative_labels_ignore_index: int = -100,
        **loss: Unpack[LossArguments],
    ) -> None:
        """Set the size of a group, and the arguments of :class:`CWSampled`.

        Args:
            logical_batch_size: the number of sessions that share a pool, which is the `group_size` of
                GroupedUniformNegativeSamplingTransform.
            item_weights, feature_name, negative_labels_ignore_index: as for :class:`CWSampled`.
            **loss: see below. `reduction` is "mean" in each group.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
        """
        super().__init__(
            item_weights,
            feature_name=feature_name,
            negative_labels_ignore_index=negative_labels_ignore_index,
            **loss,
        )
        if logical_batch_size < 1:
            raise ValueError(f"logical_batch_size must be at least 1, got {logical_batch_size}")
        if loss.get("reduction", "mean") != "mean":
            raise ValueError(f"reduction must be 'mean', as the loss is a mean over groups, got {loss['reduction']!r}")
        self.logical_batch_size = logical_batch_size

    def forward(
        self,
        model_embeddings: Tensor,
        feature_tensors: TensorMap,
        positive_labels: Tensor,
        negative_labels: Tensor,
        padding_mask: Tensor,
        target_padding_mask: Tensor,
    ) -> Tensor:
        """The loss of a batch of B sessions. The last group may be smaller.

        Args:
            model_embeddings, feature_tensors, positive_labels, padding_mask, target_padding_mask: as for
                :meth:`CWSampled.forward`.
            negative_labels: item ids [G, N], a pool for each of the G = ⌈B / logical_batch_size⌉ groups.

        Raises:
            ValueError: `negative_labels` has any other shape.
        """
        size = self.logical_batch_size
        groups = -(-positive_labels.shape[0] // size)
        if negative_labels.dim() != 2 or negative_labels.shape[0] != groups:
            raise ValueError(
                f"negative_labels must have shape [{groups}, N], a pool for each group of {size} of the "
                f"{positive_labels.shape[0]} sessions, got {tuple(negative_labels.shape)}"
            )
        weights = None if self.feature_name is None else feature_tensors[self.feature_name]
        items = self._item_table()
        losses = []
        for group, pool in enumerate(negative_labels):
            rows = slice(group * size, (group + 1) * size)
            here = target_padding_mask[rows]
            if here.any():
                group_weights = None if weights is None else weights[rows]
                losses.append(
                    self._loss(model_embeddings[rows], positive_labels[rows], pool, here, group_weights, items)
                )
        return torch.stack(losses).mean() if losses else model_embeddings.sum() * 0.0

"""The nn.Module forms of the loss."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from cw_ext.functional import Similarity, cw_loss, cw_loss_from_embeddings
from cw_ext.parameters import LossArguments, documents_loss_arguments, resolve


class _Loss(nn.Module):
    """Holds the loss arguments, checked when the module is made."""

    @documents_loss_arguments
    def __init__(self, **loss: Unpack[LossArguments]) -> None:
        """Takes the loss arguments."""
        super().__init__()
        resolve(loss)
        self.loss: LossArguments = loss

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.loss.items())

    def _arguments(self, prior: float | Tensor | None, confidence_threshold: float | Tensor | None) -> LossArguments:
        """The module's arguments, with those that change from batch to batch replaced."""
        arguments = self.loss.copy()
        if prior is not None:
            arguments["prior"] = prior
        if confidence_threshold is not None:
            arguments["confidence_threshold"] = confidence_threshold
        return arguments


class CWLoss(_Loss):
    """:func:`cw_ext.cw_loss` as a module.

    >>> criterion = CWLoss(temperature=0.1, prior=0.05)
    >>> criterion(pos_scores, neg_scores).backward()  # [B], [B, N]
    """

    def forward(
        self,
        pos_scores: Tensor,
        neg_scores: Tensor,
        *,
        extra_pos_scores: Tensor | None = None,
        neg_log_weights: Tensor | None = None,
        row_weights: Tensor | None = None,
        prior: float | Tensor | None = None,
        confidence_threshold: float | Tensor | None = None,
    ) -> Tensor:
        """See :func:`cw_ext.cw_loss`. `prior` and `confidence_threshold` replace the module's for this call."""
        return cw_loss(
            pos_scores,
            neg_scores,
            extra_pos_scores=extra_pos_scores,
            neg_log_weights=neg_log_weights,
            row_weights=row_weights,
            **self._arguments(prior, confidence_threshold),
        )


class CWEmbeddingLoss(_Loss):
    """:func:`cw_ext.cw_loss_from_embeddings` as a module.

    >>> criterion = CWEmbeddingLoss(temperature=0.1, similarity="half_cosine")
    >>> criterion(users.weight[user_ids], items.weight, pos_ids, neg_ids).backward()
    """

    @documents_loss_arguments
    def __init__(
        self,
        *,
        similarity: Similarity = "half_cosine",
        sparse_grad: bool = False,
        **loss: Unpack[LossArguments],
    ) -> None:
        """Takes the similarity, the kind of gradient and the loss arguments."""
        super().__init__(**loss)
        self.similarity = similarity
        self.sparse_grad = sparse_grad

    def extra_repr(self) -> str:
        own = f"similarity={self.similarity!r}, sparse_grad={self.sparse_grad}"
        return ", ".join(filter(None, (own, super().extra_repr())))

    def forward(
        self,
        queries: Tensor,
        items: Tensor,
        pos_ids: Tensor,
        neg_ids: Tensor,
        *,
        extra_pos_ids: Tensor | None = None,
        neg_log_weights: Tensor | None = None,
        row_weights: Tensor | None = None,
        prior: float | Tensor | None = None,
        confidence_threshold: float | Tensor | None = None,
    ) -> Tensor:
        """See :func:`cw_ext.cw_loss_from_embeddings`. `prior` and `confidence_threshold` replace the module's for
        this call."""
        return cw_loss_from_embeddings(
            queries,
            items,
            pos_ids,
            neg_ids,
            extra_pos_ids=extra_pos_ids,
            neg_log_weights=neg_log_weights,
            row_weights=row_weights,
            similarity=self.similarity,
            sparse_grad=self.sparse_grad,
            **self._arguments(prior, confidence_threshold),
        )

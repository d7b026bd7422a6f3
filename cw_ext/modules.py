"""The nn.Module forms of the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack, cast

from torch import Tensor, nn

from cw_ext import checks
from cw_ext.collectives import ProcessGroup
from cw_ext.embedding_batch import Similarity, check_similarity
from cw_ext.estimate_full import check_estimate_full
from cw_ext.functional import cw_loss, cw_loss_from_embeddings
from cw_ext.in_batch import cw_loss_in_batch
from cw_ext.interactions import Candidates, Interactions
from cw_ext.negative_sampling import Distribution, check_draws, check_interactions
from cw_ext.parameters import LossArguments, documents_loss_arguments, resolve
from cw_ext.sampled_losses import cw_loss_full, sampled_cw_loss


def _shown(value: object) -> str:
    """A value for the module's repr, which has no room for a thousand rows."""
    if not isinstance(value, Tensor):
        return repr(value)
    return f"tensor of shape {tuple(value.shape)}" if value.dim() else repr(value.detach())


class _Loss(nn.Module):
    """Stores the loss arguments. Numbers, and the settings of a subclass, are checked when the module is made, the
    values of tensors at each call.

    A tensor among them is not registered as a parameter: a learned temperature belongs to the model, which passes it
    with each batch.
    """

    @documents_loss_arguments
    def __init__(self, **loss: Unpack[LossArguments]) -> None:
        """Checks and stores the loss arguments."""
        super().__init__()
        resolve(loss)
        self.loss: LossArguments = loss

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={_shown(value)}" for name, value in self.loss.items())

    def _arguments(self, **changed: float | Tensor | None) -> LossArguments:
        """The module's arguments, with those that change from batch to batch replaced."""
        given = {name: value for name, value in changed.items() if value is not None}
        return cast(LossArguments, {**self.loss, **given})


class CWLoss(_Loss):
    """:func:`cw_ext.cw_loss` as a module.

    Example:
        >>> import torch
        >>> from cw_ext import CWLoss
        >>> criterion = CWLoss(temperature=0.1, weighting="none")
        >>> pos_scores = torch.tensor([0.5])
        >>> neg_scores = torch.tensor([[0.3, 0.4]])
        >>> print(f"{criterion(pos_scores, neg_scores).item():.3f}")
        -0.687
    """

    def forward(
        self,
        pos_scores: Tensor,
        neg_scores: Tensor,
        *,
        extra_pos_scores: Tensor | None = None,
        neg_log_weights: Tensor | None = None,
        row_weights: Tensor | None = None,
        temperature: float | Tensor | None = None,
        prior: float | Tensor | None = None,
        confidence_threshold: float | Tensor | None = None,
    ) -> Tensor:
        """See :func:`cw_ext.cw_loss`. If you give `temperature`, `prior` or `confidence_threshold`, they replace the
        module's for this call."""
        return cw_loss(
            pos_scores,
            neg_scores,
            extra_pos_scores=extra_pos_scores,
            neg_log_weights=neg_log_weights,
            row_weights=row_weights,
            **self._arguments(temperature=temperature, prior=prior, confidence_threshold=confidence_threshold),
        )

    if TYPE_CHECKING:  # nn.Module's own takes anything, and returns anything
        __call__ = forward


class CWEmbeddingLoss(_Loss):
    """:func:`cw_ext.cw_loss_from_embeddings` as a module.

    Example:
        >>> import torch
        >>> from cw_ext import CWEmbeddingLoss
        >>> criterion = CWEmbeddingLoss(temperature=0.2, similarity="cosine")
        >>> users = torch.nn.Embedding(100, 16)
        >>> items = torch.nn.Embedding(500, 16)
        >>> user_ids, pos_ids = torch.tensor([[3, 8], [41, 7]])
        >>> neg_ids = torch.randint(500, (2, 20))
        >>> criterion(users(user_ids), items, pos_ids, neg_ids).backward()
    """

    @documents_loss_arguments
    def __init__(
        self,
        *,
        similarity: Similarity = "half_cosine",
        sparse_grad: bool = False,
        **loss: Unpack[LossArguments],
    ) -> None:
        """Checks and stores the settings. See :func:`cw_ext.cw_loss_from_embeddings`."""
        super().__init__(**loss)
        check_similarity(similarity)
        checks.flag("sparse_grad", sparse_grad)
        self.similarity = similarity
        self.sparse_grad = sparse_grad

    def extra_repr(self) -> str:
        own = f"similarity={self.similarity!r}, sparse_grad={self.sparse_grad}"
        return ", ".join(filter(None, (own, super().extra_repr())))

    def forward(
        self,
        queries: Tensor,
        items: Tensor | nn.Embedding,
        pos_ids: Tensor,
        neg_ids: Tensor,
        *,
        extra_pos_ids: Tensor | None = None,
        neg_log_weights: Tensor | None = None,
        row_weights: Tensor | None = None,
        temperature: float | Tensor | None = None,
        prior: float | Tensor | None = None,
        confidence_threshold: float | Tensor | None = None,
    ) -> Tensor:
        """See :func:`cw_ext.cw_loss_from_embeddings`. If you give `temperature`, `prior` or `confidence_threshold`,
        they replace the module's for this call."""
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
            **self._arguments(temperature=temperature, prior=prior, confidence_threshold=confidence_threshold),
        )

    if TYPE_CHECKING:
        __call__ = forward


class _InteractionsLoss(_Loss):
    """Stores the known positives, and moves them to the device of the batch."""

    def __init__(self, interactions: Interactions | None, **loss: Unpack[LossArguments]) -> None:
        super().__init__(**loss)
        if interactions is not None:
            check_interactions(interactions, "interactions", None)
        self.interactions = interactions
        self.settings: dict[str, Any] = {}

    def extra_repr(self) -> str:
        own = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return ", ".join(filter(None, (repr(self.interactions), own, super().extra_repr())))

    def _interactions(self, queries: Tensor) -> Interactions | None:
        if self.interactions is None or not isinstance(queries, Tensor):
            return self.interactions
        moved = self.interactions.to(queries.device)
        if queries.device.type != "meta":  # from which tensors cannot be moved back
            if moved is not self.interactions and self.settings.get("candidates") is not None:
                self.settings["candidates"] = moved.candidates(self.settings["candidates"].ids.to(moved.device))
            self.interactions = moved
        return moved


class CWSampledLoss(_InteractionsLoss):
    """:func:`cw_ext.sampled_cw_loss` as a module.

    Example:
        >>> import torch
        >>> from cw_ext import CWSampledLoss, Interactions
        >>> users = torch.nn.Embedding(3, 16)
        >>> items = torch.nn.Embedding(50, 16)
        >>> user_ids = torch.tensor([0, 0, 1, 2])
        >>> item_ids = torch.tensor([10, 11, 11, 42])
        >>> known = Interactions(user_ids, item_ids, num_queries=3, num_items=50)
        >>> criterion = CWSampledLoss(known, num_negatives=20, temperature=0.1)
        >>> criterion(users(user_ids), items, user_ids, item_ids).backward()
    """

    @documents_loss_arguments
    def __init__(
        self,
        interactions: Interactions,
        num_negatives: int,
        *,
        distribution: Distribution = "uniform",
        popularity_exponent: float = 0.75,
        popularity_smoothing: float = 0.0,
        candidates: Tensor | Candidates | None = None,
        log_q_correction: bool = True,
        shared: bool = False,
        similarity: Similarity = "half_cosine",
        sparse_grad: bool = False,
        recompute: bool = False,
        **loss: Unpack[LossArguments],
    ) -> None:
        """Checks and stores the known positives and the settings. See :func:`cw_ext.sampled_cw_loss`."""
        super().__init__(interactions, **loss)
        check_interactions(interactions, "interactions", None)
        check_draws(num_negatives, distribution, popularity_exponent, popularity_smoothing)
        check_similarity(similarity)
        checks.flags(log_q_correction=log_q_correction, shared=shared, sparse_grad=sparse_grad, recompute=recompute)
        prepared = None if candidates is None else interactions.candidates(candidates)
        if distribution == "popularity":  # torch.compile cannot trace how its table is made
            (interactions if prepared is None else prepared).popularity(popularity_exponent, popularity_smoothing)
        self.num_negatives = num_negatives
        self.settings = {
            "distribution": distribution,
            "popularity_exponent": popularity_exponent,
            "popularity_smoothing": popularity_smoothing,
            "candidates": prepared,
            "log_q_correction": log_q_correction,
            "shared": shared,
            "similarity": similarity,
            "sparse_grad": sparse_grad,
            "recompute": recompute,
        }

    def forward(
        self,
        queries: Tensor,
        items: Tensor | nn.Embedding,
        query_ids: Tensor,
        pos_ids: Tensor,
        *,
        seed: int | Tensor | None = None,
        first_row: int = 0,
        extra_pos_ids: Tensor | None = None,
        row_weights: Tensor | None = None,
        temperature: float | Tensor | None = None,
        prior: float | Tensor | None = None,
        confidence_threshold: float | Tensor | None = None,
    ) -> Tensor:
        """See :func:`cw_ext.sampled_cw_loss`. If you give `temperature`, `prior` or `confidence_threshold`, they
        replace the module's for this call."""
        return sampled_cw_loss(
            queries,
            items,
            query_ids,
            pos_ids,
            self._interactions(queries),  # type: ignore[arg-type]  # which refuses None
            self.num_negatives,
            seed=seed,
            first_row=first_row,
            extra_pos_ids=extra_pos_ids,
            row_weights=row_weights,
            **self.settings,
            **self._arguments(temperature=temperature, prior=prior, confidence_threshold=confidence_threshold),
        )

    if TYPE_CHECKING:
        __call__ = forward


class CWInBatchLoss(_InteractionsLoss):
    """:func:`cw_ext.cw_loss_in_batch` as a module.

    Example:
        >>> import torch
        >>> from cw_ext import CWInBatchLoss, Interactions
        >>> users = torch.nn.Embedding(3, 16)
        >>> items = torch.nn.Embedding(50, 16)
        >>> user_ids = torch.tensor([0, 0, 1, 2])
        >>> item_ids = torch.tensor([10, 11, 11, 42])
        >>> known = Interactions(user_ids, item_ids, num_queries=3, num_items=50)
        >>> criterion = CWInBatchLoss(known, num_negatives=20, temperature=0.1)
        >>> loss = criterion(users(user_ids), items, item_ids, query_ids=user_ids)
        >>> loss.backward()
    """

    @documents_loss_arguments
    def __init__(
        self,
        interactions: Interactions | None = None,
        *,
        log_q_correction: bool = True,
        estimate_full: bool = False,
        num_negatives: int = 0,
        candidates: Tensor | Candidates | None = None,
        symmetric: bool = False,
        gather_gradients: bool = True,
        ring: bool = False,
        similarity: Similarity = "half_cosine",
        sparse_grad: bool = False,
        **loss: Unpack[LossArguments],
    ) -> None:
        """Checks and stores the known positives and the settings. See :func:`cw_ext.cw_loss_in_batch`."""
        super().__init__(interactions, **loss)
        checks.num_negatives(num_negatives, 0)
        check_similarity(similarity)
        checks.flags(
            log_q_correction=log_q_correction,
            estimate_full=estimate_full,
            symmetric=symmetric,
            gather_gradients=gather_gradients,
            ring=ring,
            sparse_grad=sparse_grad,
        )
        check_estimate_full(estimate_full, resolve(loss), log_q_correction, candidates)
        if candidates is not None:
            if interactions is None:
                raise ValueError("interactions must be given with candidates, which they prepare, got None")
            candidates = interactions.candidates(candidates)
        self.settings = {
            "log_q_correction": log_q_correction,
            "estimate_full": estimate_full,
            "num_negatives": num_negatives,
            "candidates": candidates,
            "symmetric": symmetric,
            "gather_gradients": gather_gradients,
            "ring": ring,
            "similarity": similarity,
            "sparse_grad": sparse_grad,
        }

    def forward(
        self,
        queries: Tensor,
        items: Tensor | nn.Embedding,
        pos_ids: Tensor,
        *,
        item_ids: Tensor | None = None,
        query_ids: Tensor | None = None,
        item_counts: Tensor | None = None,
        seed: int | Tensor | None = None,
        extra_pos_ids: Tensor | None = None,
        row_weights: Tensor | None = None,
        process_group: ProcessGroup | None = None,
        temperature: float | Tensor | None = None,
        prior: float | Tensor | None = None,
        confidence_threshold: float | Tensor | None = None,
    ) -> Tensor:
        """See :func:`cw_ext.cw_loss_in_batch`. If you give `temperature`, `prior` or `confidence_threshold`, they
        replace the module's for this call."""
        return cw_loss_in_batch(
            queries,
            items,
            pos_ids,
            item_ids=item_ids,
            query_ids=query_ids,
            interactions=self._interactions(queries),
            item_counts=item_counts,
            seed=seed,
            extra_pos_ids=extra_pos_ids,
            row_weights=row_weights,
            process_group=process_group,
            **self.settings,
            **self._arguments(temperature=temperature, prior=prior, confidence_threshold=confidence_threshold),
        )

    if TYPE_CHECKING:
        __call__ = forward


class CWFullLoss(_InteractionsLoss):
    """:func:`cw_ext.cw_loss_full` as a module.

    Example:
        >>> import torch
        >>> from cw_ext import CWFullLoss, Interactions
        >>> users = torch.nn.Embedding(3, 16)
        >>> items = torch.nn.Embedding(50, 16)
        >>> user_ids = torch.tensor([0, 0, 1, 2])
        >>> item_ids = torch.tensor([10, 11, 11, 42])
        >>> known = Interactions(user_ids, item_ids, num_queries=3, num_items=50)
        >>> criterion = CWFullLoss(known, temperature=0.1)
        >>> loss = criterion(users(user_ids), items, item_ids, query_ids=user_ids)
        >>> loss.backward()
    """

    @documents_loss_arguments
    def __init__(
        self,
        interactions: Interactions | None = None,
        *,
        similarity: Similarity = "half_cosine",
        **loss: Unpack[LossArguments],
    ) -> None:
        """Checks and stores the known positives and the settings. See :func:`cw_ext.cw_loss_full`."""
        super().__init__(interactions, **loss)
        check_similarity(similarity)
        self.settings = {"similarity": similarity}

    def forward(
        self,
        queries: Tensor,
        items: Tensor | nn.Embedding,
        pos_ids: Tensor,
        *,
        query_ids: Tensor | None = None,
        extra_pos_ids: Tensor | None = None,
        row_weights: Tensor | None = None,
        temperature: float | Tensor | None = None,
        prior: float | Tensor | None = None,
        confidence_threshold: float | Tensor | None = None,
    ) -> Tensor:
        """See :func:`cw_ext.cw_loss_full`. If you give `temperature`, `prior` or `confidence_threshold`, they replace
        the module's for this call."""
        return cw_loss_full(
            queries,
            items,
            pos_ids,
            query_ids=query_ids,
            interactions=self._interactions(queries),
            extra_pos_ids=extra_pos_ids,
            row_weights=row_weights,
            **self.settings,
            **self._arguments(temperature=temperature, prior=prior, confidence_threshold=confidence_threshold),
        )

    if TYPE_CHECKING:
        __call__ = forward

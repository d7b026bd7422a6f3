"""CW for Meta's generative-recommenders (HSTU, SASRec). It follows their interfaces and does not import them."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from cw_ext.functional import cw_loss
from cw_ext.integrations.hstu_candidates import draw, draw_from_batch, loss_of_places
from cw_ext.parameters import LossArguments, documents_loss_arguments, resolve


class CWSampledLoss(nn.Module):
    """The CW loss as a replacement for SampledSoftmaxLoss (arXiv 2402.17152).

    Make it in ``train_fn``, where the loss is chosen. Training then calls it as before, with either of its samplers.

    >>> from cw_ext import presets
    >>> from cw_ext.integrations.generative_recommenders import CWSampledLoss
    >>> ar_loss = CWSampledLoss(num_to_sample=num_negatives, model=model, **presets.cw(temperature))

    presets.infonce(τ) is SampledSoftmaxLoss with softmax_temperature τ. With the same seed it draws the same negatives,
    and leaves out those that equal the row's own positive. Rows without any negative left do not count in the mean (in
    SampledSoftmaxLoss they count with loss 0). Ids are compared exactly. SampledSoftmaxLoss converts them to fp32, and
    so rounds ids above 2^24 (findings/generative-recommenders-ids.sh).

    With the dot product (`interaction_module_type = "DotProduct"`) it uses :func:`cw_ext.cw_loss_from_embeddings`. The
    embeddings of negatives, [N', R, D] for N' targets, are not gathered, so activation checkpointing has nothing to
    save. With a learned similarity (MoL) or another kind of sampler they are gathered, and it uses
    :func:`cw_ext.cw_loss` on the scores of the model's `similarity_fn`.
    """

    @documents_loss_arguments
    def __init__(self, num_to_sample: int, model: nn.Module, **loss: Unpack[LossArguments]) -> None:
        """Set the number of negatives, the model and the loss arguments.

        Args:
            num_to_sample: R ≥ 1, negatives per target.
            model: the sequential encoder (not its DDP wrapper). Its similarity scores the items.
            **loss: see below. `temperature` is softmax_temperature.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
        """
        super().__init__()
        if num_to_sample < 1:
            raise ValueError(f"num_to_sample must be at least 1, got {num_to_sample}")
        resolve(loss)
        self.num_to_sample = num_to_sample
        self._model: Any = model
        self.loss: LossArguments = loss

    def forward(
        self,
        lengths: Tensor,
        output_embeddings: Tensor,
        supervision_ids: Tensor,
        supervision_embeddings: Tensor,
        supervision_weights: Tensor,
        negatives_sampler: nn.Module,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of padded sequences.

        Args:
            lengths: [B], the number of valid positions of each sequence.
            output_embeddings: [B, N, D], from the encoder.
            supervision_ids: [B, N], the positives.
            supervision_embeddings: [B, N, D], the positives' embeddings.
            supervision_weights: [B, N], the targets' weights.
            negatives_sampler: LocalNegativesSampler, InBatchNegativesSampler after its process_batch, or a similar one.
            **kwargs: passed to the model's `similarity_fn`. user_ids [B] are repeated for each position.

        Returns:
            The weighted mean over the targets (0 if all weights are 0), and the auxiliary losses of the similarity.

        Raises:
            ValueError: a shape is wrong.
        """
        shape = tuple(supervision_ids.shape)
        if tuple(lengths.shape) != shape[:1]:
            raise ValueError(f"lengths must have shape {shape[:1]}, one for each sequence, got {tuple(lengths.shape)}")
        _check_shapes(2, output_embeddings, supervision_ids, supervision_embeddings, supervision_weights)
        there = torch.arange(shape[1], device=lengths.device) < lengths.unsqueeze(1)  # [B, N]
        if "user_ids" in kwargs:
            kwargs["user_ids"] = kwargs["user_ids"].unsqueeze(1).expand(shape)[there]
        return self.jagged_forward(
            output_embeddings[there],
            supervision_ids[there],
            supervision_embeddings[there],
            supervision_weights[there],
            negatives_sampler,
            **kwargs,
        )

    def jagged_forward(
        self,
        output_embeddings: Tensor,
        supervision_ids: Tensor,
        supervision_embeddings: Tensor,
        supervision_weights: Tensor,
        negatives_sampler: nn.Module,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of N' targets, [N', D] and [N']. Otherwise as :meth:`forward`."""
        _check_shapes(1, output_embeddings, supervision_ids, supervision_embeddings, supervision_weights)
        sampler: Any = negatives_sampler
        positives = sampler.normalize_embeddings(supervision_embeddings)
        draws = _draws(sampler, supervision_ids, self.num_to_sample) if _is_dot_product(self._model) else None
        if draws is not None:
            loss = loss_of_places(output_embeddings, positives, *draws, supervision_weights, **self.loss)
            return loss, {}

        own = supervision_ids.unsqueeze(1)  # [N', 1]
        neg_ids, negatives = sampler(positive_ids=supervision_ids, num_to_sample=self.num_to_sample)

        def scores(ids: Tensor, embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            found: tuple[Tensor, dict[str, Tensor]] = self._model.similarity_fn(
                query_embeddings=output_embeddings, item_ids=ids, item_embeddings=embeddings, **kwargs
            )
            return found

        pos_scores, auxiliary = scores(own, positives.unsqueeze(1))
        neg_scores, _ = scores(neg_ids, negatives)
        loss = cw_loss(
            pos_scores.squeeze(1),
            neg_scores,
            neg_log_weights=torch.zeros_like(neg_scores).masked_fill(neg_ids == own, -torch.inf),
            row_weights=supervision_weights,
            **self.loss,
        )
        return loss, auxiliary


def _check_shapes(dims: int, outputs: Tensor, ids: Tensor, embeddings: Tensor, weights: Tensor) -> None:
    if ids.dim() != dims:
        expected = "[B, N]" if dims == 2 else "[N']"
        raise ValueError(f"supervision_ids must have shape {expected}, got {tuple(ids.shape)}")
    shape = tuple(ids.shape)
    if outputs.shape[:-1] != shape:
        raise ValueError(f"output_embeddings must have shape {[*shape, 'D']}, got {tuple(outputs.shape)}")
    if embeddings.shape != outputs.shape:
        raise ValueError(
            f"supervision_embeddings must have output_embeddings' shape {tuple(outputs.shape)}, "
            f"got {tuple(embeddings.shape)}"
        )
    if weights.shape != shape:
        raise ValueError(f"supervision_weights must have supervision_ids' shape {shape}, got {tuple(weights.shape)}")


def _is_dot_product(model: Any) -> bool:
    """Recognised by the name of the class, as the package is not imported."""
    return type(getattr(model, "_ndp_module", None)).__name__ == "DotProductSimilarity"


def _draws(sampler: Any, pos_ids: Tensor, number: int) -> tuple[Tensor, Tensor] | None:
    """Draw as one of the package's samplers: a table [C, D] and places in it [N', R], −1 for a row's own positive.

    Returns None for any other sampler.
    """
    match type(sampler).__name__:
        case "InBatchNegativesSampler":
            ids, table = sampler.get_all_ids_and_embeddings()
            return table, draw_from_batch(pos_ids, ids, number)
        case "LocalNegativesSampler":
            ids = sampler._all_item_ids
            drawn = ids[draw(pos_ids, ids.shape[0], number)]
            own = drawn == pos_ids.unsqueeze(1)
            return sampler.normalize_embeddings(sampler._item_emb.weight), drawn.masked_fill_(own, -1)
    return None

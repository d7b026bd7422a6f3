"""CW for NVIDIA's recsys-examples (HSTU retrieval). It follows their interfaces and does not import them."""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor, nn

from cw_ext.integrations.hstu_candidates import draw_from_batch, loss_of_places
from cw_ext.parameters import LossArguments, documents_loss_arguments, resolve


class CWSampledLoss(nn.Module):
    """The CW loss as a replacement for SampledSoftmaxLoss (arXiv 2402.17152), on the targets of RetrievalGR.

    Set it in the main() of pretrain_gr_retrieval, after the model is made. Training then calls it as before.

    >>> from cw_ext import presets
    >>> from cw_ext.integrations.recsys_examples import CWSampledLoss
    >>> sampler = model._loss_module._negatives_sampler
    >>> model._loss_module = CWSampledLoss(num_negatives, sampler, **presets.cw(0.05))

    presets.infonce(τ) is SampledSoftmaxLoss with softmax_temperature τ. With the same seed it draws the same negatives,
    and leaves out those that equal the row's own positive.

    It uses :func:`cw_ext.cw_loss_from_embeddings`, so the embeddings of negatives, [T, R, D] for T targets, are not
    gathered. Scores are computed in fp32, as the model's embeddings are fp32. SampledSoftmaxLoss on a GPU rounds its
    scores to bf16 or fp16, in DotProductSimilarity.
    """

    @documents_loss_arguments
    def __init__(self, num_to_sample: int, negatives_sampler: nn.Module, **loss: Unpack[LossArguments]) -> None:
        """Set the number of negatives, their sampler and the loss arguments.

        Args:
            num_to_sample: R, negatives per target. If it is 0 or less, as many as there are targets.
            negatives_sampler: InBatchNegativesSampler.
            **loss: see below. `temperature` is softmax_temperature. The default of `reduction` is "none", since the
                training pipeline sums over the targets.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
        """
        super().__init__()
        if not hasattr(negatives_sampler, "gen_sampled_candidates"):
            raise TypeError(
                "negatives_sampler must have gen_sampled_candidates(), as InBatchNegativesSampler has, "
                f"got {type(negatives_sampler).__name__}"
            )
        resolve(loss)
        self.num_to_sample = num_to_sample
        self._negatives_sampler: Any = negatives_sampler
        self.loss: LossArguments = {"reduction": "none", **loss}

    def forward(self, output_embeddings: Tensor, supervision_ids: Tensor, supervision_embeddings: Tensor) -> Tensor:
        """The losses of the targets.

        Args:
            output_embeddings: [T, D], from the model.
            supervision_ids: [T], the positives.
            supervision_embeddings: [T, D], the positives' embeddings.

        Returns:
            [T], or a scalar, depending on `reduction`.

        Raises:
            ValueError: a shape is wrong.
        """
        if output_embeddings.shape != supervision_embeddings.shape:
            raise ValueError(
                f"supervision_embeddings must have output_embeddings' shape {tuple(output_embeddings.shape)}, "
                f"got {tuple(supervision_embeddings.shape)}"
            )
        if supervision_ids.shape != output_embeddings.shape[:1]:
            raise ValueError(
                f"supervision_ids must have shape {tuple(output_embeddings.shape[:1])}, one for each target, "
                f"got {tuple(supervision_ids.shape)}"
            )
        sampler = self._negatives_sampler
        candidate_ids, candidates = sampler.gen_sampled_candidates(supervision_ids, supervision_embeddings)
        number = self.num_to_sample if self.num_to_sample > 0 else supervision_ids.numel()
        places = draw_from_batch(supervision_ids, candidate_ids, number)
        positives = sampler.normalize_embeddings(supervision_embeddings)
        return loss_of_places(output_embeddings, positives, candidates, places, **self.loss)

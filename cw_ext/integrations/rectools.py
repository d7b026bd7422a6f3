"""CW for RecTools' transformers (SASRec, BERT4Rec, HSTU). For ``rectools[torch]`` 0.19."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.similarity import DistanceSimilarityModule
from torch import Tensor

from cw_ext.functional import cw_loss
from cw_ext.modules import CWEmbeddingLoss

LOSS = "CW"


class CWLightningModule(TransformerLightningModule):
    """Trains a RecTools transformer with the CW loss, on RecTools' own batches and negatives.

    Use it with SASRecModel, BERT4RecModel or HSTUModel.

    >>> from cw_ext import presets
    >>> from cw_ext.integrations.rectools import CWLightningModule
    >>> from rectools.models import SASRecModel
    >>> model = SASRecModel(
    ...     loss="CW",
    ...     n_negatives=256,
    ...     lightning_module_type=CWLightningModule,
    ...     lightning_module_kwargs=presets.cw(temperature=0.2),
    ...     similarity_module_kwargs={"distance": "cosine"},
    ... )

    Training uses :func:`cw_ext.cw_loss_from_embeddings` on the encoded sessions and the item table. So the embeddings
    of negatives, [B, L, N, D], are not gathered, and positions without a target are not scored. Validation scores one
    position per session, with :func:`cw_ext.cw_loss` on RecTools' logits.

    The targets are the same as in RecTools: y other than 0, which is the padding id, with the weight yw. The sum is
    divided by the number of targets with a weight above 0. So presets.infonce(temperature=1.0) is the "sampled_softmax"
    of RecTools, except that the latter does not count rows whose loss rounds to 0. As in RecTools, a negative that
    equals the target, or another item of the session, stays a negative.

    The score is the one of the similarity module, "dot" (RecTools' default) or "cosine", and not ½·cosine. For
    "cosine", use twice the temperature, and twice a preset's `min_margin`, of the half cosine.

    Args:
        **kwargs: what RecTools passes. The entries of `lightning_module_kwargs` are the loss arguments of
            :func:`cw_ext.cw_loss` except `reduction`, as plain numbers, strings and None.

    Raises:
        TypeError: a loss argument is unknown, or the similarity module is not a DistanceSimilarityModule.
        ValueError: a loss argument is out of range, `loss` is not "CW", or `logits_t` is not 1.
    """

    def __init__(self, **kwargs: Any) -> None:
        known = inspect.signature(TransformerLightningModule.__init__).parameters
        super().__init__(**{name: value for name, value in kwargs.items() if name in known})
        similarity = self.torch_model.similarity_module
        if not isinstance(similarity, DistanceSimilarityModule):
            raise TypeError(f"similarity_module_type must be DistanceSimilarityModule, got {type(similarity).__name__}")
        if self.loss != LOSS:
            raise ValueError(f"loss must be {LOSS!r} with CWLightningModule, got {self.loss!r}")
        if self.logits_t != 1:
            raise ValueError(f"logits_t must be 1 (use temperature instead), got {self.logits_t}")
        loss = {name: value for name, value in kwargs.items() if name not in known}
        self.criterion = CWEmbeddingLoss(similarity=similarity.distance.value, reduction="sum", **loss)

    @staticmethod
    def requires_negatives(loss: str) -> bool:
        """Tell RecTools to draw negatives."""
        return True

    def _calc_custom_loss(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        items = self.torch_model.item_model.get_all_embeddings()  # [I, D]
        sessions = self.torch_model.encode_sessions(batch, items)  # [B, L, D]
        target = batch["y"] != 0  # [B, L]
        weights = batch["yw"][target]
        ids = batch["y"][target], batch["negatives"][target]
        total = self.criterion(sessions[target], items, *ids, row_weights=weights)
        return _mean(total, weights)

    def _calc_custom_loss_outputs(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        logits = self.get_batch_logits(batch)[:, -1:, :]  # [B, 1, 1 + N], the target's first
        weights = batch["yw"]
        total = cw_loss(logits[..., 0], logits[..., 1:], row_weights=weights, **self.criterion.loss)
        return {"loss": _mean(total, weights), "pos_neg_logits": logits.squeeze()}


def _mean(total: Tensor, weights: Tensor) -> Tensor:
    return total / torch.count_nonzero(weights > 0).clamp(min=1)

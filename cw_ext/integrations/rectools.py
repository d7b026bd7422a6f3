"""RecTools' transformers (SASRec, BERT4Rec, HSTU) trained with CW. For ``rectools[torch]`` 0.19."""

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
    """Trains a RecTools transformer with the CW loss on the package's own batches and negatives.

    >>> model = SASRecModel(  # or BERT4RecModel, HSTUModel
    ...     loss="CW",
    ...     n_negatives=256,
    ...     lightning_module_type=CWLightningModule,
    ...     lightning_module_kwargs=presets.cw(temperature=0.2),
    ...     similarity_module_kwargs={"distance": "cosine"},
    ... )

    Training goes through :func:`cw_ext.cw_loss_from_embeddings`, from the encoded sessions and the item table: the
    embeddings of negatives, [B, L, N, D], are not gathered, and positions without a target are not scored. Validation
    scores one position per session, by :func:`cw_ext.cw_loss` on the package's logits.

    The targets are those of the package: y is not 0, the padding id. The weight of one is yw, and the sum is divided by
    the number of targets with a weight above 0. So presets.infonce(temperature=1.0) is the package's
    "sampled_softmax", except that the latter does not count rows whose loss rounds to 0. As in the package, a negative
    that is the target, or another item of the session, stays a negative.

    The score is the similarity module's, "dot" (the package's default) or "cosine", and not ½·cosine: for "cosine" a
    temperature, and a preset's `min_margin`, are twice those of the half cosine.

    Args:
        **kwargs: what RecTools passes, and from its `lightning_module_kwargs` the loss arguments of
            :func:`cw_ext.cw_loss` except `reduction`, as plain numbers, strings and None.

    Raises:
        TypeError: an unknown loss argument, or a similarity module other than DistanceSimilarityModule.
        ValueError: a loss argument out of its range; `loss` is not "CW"; `logits_t` is not 1.
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
            raise ValueError(f"logits_t must be 1, give temperature in its place; got {self.logits_t}")
        loss = {name: value for name, value in kwargs.items() if name not in known}
        self.criterion = CWEmbeddingLoss(similarity=similarity.distance.value, reduction="sum", **loss)

    @staticmethod
    def requires_negatives(loss: str) -> bool:
        """Has the package draw negatives."""
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

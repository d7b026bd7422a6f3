"""CW for IR-Benchmark ("itemrec"), where a loss is an optimizer. By its conventions: itemrec is not imported."""

from __future__ import annotations

from typing import Any, Protocol, Unpack

import torch
from torch import Tensor, nn

from cw_ext.embedding_batch import Similarity
from cw_ext.modules import CWEmbeddingLoss
from cw_ext.parameters import LossArguments, documents_loss_arguments


class Batch(Protocol):
    """What the benchmark's loader returns (its IRDataBatch)."""

    user: Tensor  # [B], int64
    pos_item: Tensor  # [B]
    neg_items: Tensor  # [B, N]


class CWOptimizer:
    """Adam on the CW loss, in place of the benchmark's SoftmaxOptimizer and similar ones.

    In ``set_experiments_per_fold``, where the optimizer is chosen:

    >>> from cw_ext import presets
    >>> from cw_ext.integrations.ir_benchmark import CWOptimizer
    >>> optimizer = CWOptimizer(model, args.lr, args.weight_decay, **presets.cw(args.tau))

    and training calls ``optimizer.step(batch, epoch)`` as before. It works with every model that has the benchmark's
    ``embed(norm=)``, which returns the tables of users [U, D] and items [I, D], and ``additional_loss``.

    The loss goes through :func:`cw_ext.cw_loss_from_embeddings`: the embeddings of the batch's negatives, [B, N, D],
    are not gathered. The score is the cosine, as in the benchmark, so that its τ can be kept: presets.sl(τ) is
    its SoftmaxOptimizer.
    """

    @documents_loss_arguments
    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.001,
        weight_decay: float = 0.0,
        *,
        similarity: Similarity = "cosine",
        **loss: Unpack[LossArguments],
    ) -> None:
        """Takes the model, Adam's settings, the score and the loss arguments.

        Args:
            model: one of the benchmark's.
            lr, weight_decay: Adam's.
            similarity: "cosine", or as of :func:`cw_ext.cw_loss_from_embeddings`.
            **loss: see below.

        Raises:
            TypeError, ValueError: the message contains the argument, what was expected and what came.
        """
        self.model: Any = model
        self.criterion = CWEmbeddingLoss(similarity=similarity, **loss)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)

    def step(self, batch: Batch, epoch: int) -> float:
        """Take a step on the batch and return its loss."""
        self.zero_grad()
        loss = self.cal_loss(batch)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def zero_grad(self) -> None:
        """Zero the gradients of the model."""
        self.optimizer.zero_grad()

    def cal_loss(self, batch: Batch) -> Tensor:
        """The loss of the batch, a scalar, with what the model adds to it."""
        users, items, *further = self.model.embed(norm=self.model.norm)
        loss: Tensor = self.criterion(users[batch.user], items, batch.pos_item, batch.neg_items)
        loss += self.model.additional_loss(batch, users, items, *further)
        return loss

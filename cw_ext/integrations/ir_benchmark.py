"""CW for IR-Benchmark ("itemrec"), where a loss is an optimizer. It follows its interfaces and does not import it."""

from __future__ import annotations

from typing import Any, Protocol, Unpack

import torch
from torch import Tensor, nn

from cw_ext.embedding_batch import Similarity
from cw_ext.modules import CWEmbeddingLoss
from cw_ext.parameters import LossArguments, documents_loss_arguments


class Batch(Protocol):
    """A batch of the benchmark's loader (IRDataBatch)."""

    user: Tensor  # [B], int64
    pos_item: Tensor  # [B]
    neg_items: Tensor  # [B, N]


class CWOptimizer:
    """Adam on the CW loss, as a replacement for the benchmark's SoftmaxOptimizer and similar ones.

    Make it in ``set_experiments_per_fold``, where the optimizer is chosen. Training then calls
    ``optimizer.step(batch, epoch)`` as before.

    >>> from cw_ext import presets
    >>> from cw_ext.integrations.ir_benchmark import CWOptimizer
    >>> optimizer = CWOptimizer(model, args.lr, args.weight_decay, **presets.cw(args.tau))

    It works with every model of the benchmark, as they all have ``embed(norm=)``, which returns the tables of users
    [U, D] and items [I, D], and ``additional_loss``.

    It uses :func:`cw_ext.cw_loss_from_embeddings`, so the embeddings of the batch's negatives, [B, N, D], are not
    gathered. The score is the cosine, as in the benchmark, so you can keep its τ: presets.sl(τ) is SoftmaxOptimizer.
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
        """Set the model, the score, and the arguments of Adam and of the loss.

        Args:
            model: a model of the benchmark.
            lr, weight_decay: for Adam.
            similarity: "cosine", or as for :func:`cw_ext.cw_loss_from_embeddings`.
            **loss: see below.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
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
        """The loss of the batch, a scalar, including the model's additional loss."""
        users, items, *rest = self.model.embed(norm=self.model.norm)
        loss: Tensor = self.criterion(users[batch.user], items, batch.pos_item, batch.neg_items)
        loss += self.model.additional_loss(batch, users, items, *rest)
        return loss

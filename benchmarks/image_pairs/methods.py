"""How an encoder is trained on pairs: the loss of a batch, and what a method learns between epochs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.image_pairs.pairs import BATCH, make_encoder, same_digit
from cw_ext import Interactions, cw_loss_in_batch
from cw_ext.parameters import LossArguments

LEARNING_RATE = 3e-3
# Batches; so many show each training image about once.
EPOCH = 8
# Epochs that train on all negatives alike, before a first estimate from held-out pairs.
WARM_UP = 4


class Scores(NamedTuple):
    """Half cosines of a batch: what the loss sees, and the pairs that only the labels tell."""

    positives: Tensor  # [BATCH], of the two views of an image
    negatives: Tensor  # [BATCH, N]
    same_digit: Tensor  # [BATCH, PER_DIGIT − 1], of different images of one digit: true pairs that are in no row


class Setting(NamedTuple):
    """What a method is given."""

    temperature: float
    prior: float  # the true share of false negatives
    negatives: Tensor  # [BATCH, N], positions in the batch, of plant_negatives
    held_out: Tensor  # [steps, 2·BATCH, 8, 8], views of images that are not for training

    def scores(self, queries: Tensor, items: Tensor) -> Scores:
        """Of the embeddings [BATCH, DIM] of the first and of the second views."""
        cosines = F.normalize(queries, dim=1) @ F.normalize(items, dim=1).T
        scores = cosines / 2
        others = scores[same_digit()].view(BATCH, -1)
        return Scores(scores.diagonal(), scores.gather(1, self.negatives), others)

    @torch.no_grad()
    def held_out_scores(self, encoder: nn.Module) -> Scores:
        """Of all pairs that are held out; negatives stand as in training, and have the same share of false ones."""
        batches = [self.scores(*encoder(views).split(BATCH)) for views in self.held_out]
        return Scores(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


class Method:
    """A loss of pairs, which may change from epoch to epoch."""

    # The share of false negatives that the method has found, if it looks for one.
    estimated_prior: float | None = None

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def start_epoch(self, epoch: int, encoder: nn.Module) -> None:
        """Called before each epoch, from 0."""

    def loss(self, queries: Tensor, items: Tensor) -> Tensor:
        """The loss of a batch, from the embeddings [BATCH, DIM] of its first and of its second views."""
        raise NotImplementedError


class InBatch(Method):
    """A loss that some arguments of cw_loss_in_batch make."""

    def __init__(self, setting: Setting, arguments: LossArguments) -> None:
        super().__init__(setting)
        left_out = torch.ones(BATCH, BATCH, dtype=torch.bool).scatter_(1, setting.negatives, False)
        left_out.fill_diagonal_(False)  # the loss leaves it out by itself
        rows, positions = torch.nonzero(left_out, as_tuple=True)
        self.known = Interactions(rows, positions, num_queries=BATCH, num_items=BATCH)
        self.arguments = arguments

    def loss(self, queries: Tensor, items: Tensor) -> Tensor:
        """See :meth:`Method.loss`."""
        positions = torch.arange(BATCH)
        # Each image is a positive once: all are equally popular, and there is nothing to correct.
        known = {"query_ids": positions, "interactions": self.known, "log_q_correction": False}
        return cw_loss_in_batch(queries, items, positions, **known, **self.arguments)


def train(views: Tensor, method: Method, seed: int) -> nn.Module:
    """Train an encoder on pairs of views, a step per batch.

    Args:
        views: of :func:`benchmarks.image_pairs.pairs.make_views`.
        method: makes the loss; it is called in the order of the batches, and keeps what it has learnt.
        seed: of the first weights.
    """
    encoder = make_encoder(seed)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=LEARNING_RATE, fused=True)
    for step, pairs in enumerate(views):
        if step % EPOCH == 0:
            method.start_epoch(step // EPOCH, encoder)
        value = method.loss(*encoder(pairs).split(BATCH))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return encoder

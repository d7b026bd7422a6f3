"""A training step whose batch is encoded at once, or in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cw_ext import cw_loss_in_batch, encode_in_micro_batches, presets

VOCABULARY, HEADS, LAYERS = 1000, 4, 4


class Sizes(NamedTuple):
    """Of a batch and of the encoders."""

    rows: int = 512
    length: int = 32
    dim: int = 64


class Encoder(nn.Module):
    """Token sequences [B, L] to embeddings [B, D]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, dim)
        layer = nn.TransformerEncoderLayer(dim, HEADS, 4 * dim, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The mean of the last layer's states."""
        return self.layers(self.tokens(tokens)).mean(1)


def make_step(sizes: Sizes, part: int | None) -> Callable[[], object]:
    """A step without the optimizer's: the loss of a batch and all gradients.

    Args:
        sizes: of the batch and of the encoders.
        part: rows to encode at a time; None for the plain way, all at once and nothing encoded twice.
    """
    torch.manual_seed(0)
    towers = [Encoder(sizes.dim) for _ in range(2)]
    texts = torch.randint(VOCABULARY, (2, sizes.rows, sizes.length))
    ids = torch.arange(sizes.rows)

    def step() -> None:
        for tower in towers:
            tower.zero_grad()
        queries, items = (
            tower(text) if part is None else encode_in_micro_batches(tower, text, part)
            for tower, text in zip(towers, texts, strict=True)
        )
        cw_loss_in_batch(
            queries, items, ids, item_ids=ids, symmetric=True, log_q_correction=False, **presets.cw()
        ).backward()

    return step

"""The inputs of a step of the throughput benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.throughput.interactions import history
from benchmarks.throughput.shapes import Shape
from cw_ext import Interactions


@dataclass(frozen=True)
class Inputs:
    """Positive and negative scores, or queries and items with ids.

    Attributes:
        leaves: tensors that get a gradient.
        ids: the others: pos_ids and neg_ids, or where there is a history pos_ids and query_ids.
        interactions: the history.
    """

    leaves: tuple[Tensor, ...]
    ids: tuple[Tensor, ...] = ()
    interactions: Interactions | None = None


def make_inputs(shape: Shape, device: str = "cpu") -> Inputs:
    """Return random inputs, the same in every call: scores in the half cosine's range, or normal embeddings.

    For sampled softmax the embeddings are so small that their inner products have variance 1. Where there is a history
    the rows are interactions drawn from it, as in training.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = (shape.batch_size, shape.negatives)

    def leaf(values: Tensor) -> Tensor:
        return values.to(device, shape.torch_dtype).requires_grad_()

    if shape.kind == "scores":
        pos, neg = (torch.rand(size, generator=generator) - 0.5 for size in (sizes[:1], sizes))
        return Inputs((leaf(pos), leaf(neg)))
    scale = shape.dim**-0.25 if shape.loss == "sampled_softmax" else 1.0
    tables = (scale * torch.randn(rows, shape.dim, generator=generator) for rows in (shape.batch_size, shape.items))
    if shape.kind == "ids":
        leaves = tuple(map(leaf, tables))
        ids = (
            torch.randint(shape.items, size, generator=generator).to(device)
            for size in (sizes[:1], sizes[1:] if shape.shared else sizes)
        )
        return Inputs(leaves, tuple(ids))
    known = history(shape.history, shape.users, shape.items)
    chosen = torch.randint(len(known), sizes[:1], generator=generator)
    query_ids = torch.searchsorted(known.starts, chosen, right=True) - 1
    ids = (known.items[chosen].long().to(device), query_ids.to(device))
    return Inputs(tuple(map(leaf, tables)), ids, known.to(device))

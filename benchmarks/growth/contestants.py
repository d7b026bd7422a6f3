"""The steps whose cost is measured against the number of items: losses with dense and sparse gradients of the table.

- drawn, shared: sampled_cw_loss, with N negatives for each row or one set of N for all. Its sparse gradients are
  coalesced.
- eager CW, eager softmax: plain PyTorch, with look-ups like nn.Embedding(sparse=True) and negatives by torch.randint,
  which does not leave known positives out. softmax is cross-entropy over the positive and the negatives. The gradient
  has a row per look-up. Coalescing it is the optimizer's work, and not part of the step.

Every step draws new negatives, so that it finds only those rows in the caches that a training step would find there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cw_ext import Interactions, cw_loss, sampled_cw_loss

Step = Callable[[], object]

CONTESTANTS = ("drawn, dense", "drawn, sparse", "shared, dense", "shared, sparse", "eager CW", "eager softmax")
TEMPERATURE = 0.1
SEED = 1


@dataclass(frozen=True)
class Sizes:
    """Of a step."""

    items: int
    rows: int = 1024
    negatives: int = 1000
    dim: int = 64
    known: int = 40  # positives per query

    @property
    def table_bytes(self) -> int:
        """The table in fp32, and its dense gradient."""
        return 4 * self.items * self.dim

    @property
    def looked_up_bytes(self) -> int:
        """The negatives' rows, as eager PyTorch makes a tensor of them."""
        return 4 * self.rows * self.negatives * self.dim


@dataclass(frozen=True)
class Inputs:
    """Of the steps with one table, which all use it in turns."""

    queries: Tensor  # [B, D]
    items: Tensor  # [I, D]
    query_ids: Tensor  # [B]
    pos_ids: Tensor  # [B]
    interactions: Interactions


def make_inputs(sizes: Sizes) -> Inputs:
    """Make a table, a query for each row, and its known positives, drawn uniformly."""
    generator = torch.Generator().manual_seed(0)

    def values(rows: int) -> Tensor:
        return torch.empty(rows, sizes.dim).uniform_(-1, 1, generator=generator).requires_grad_()

    query_ids = torch.arange(sizes.rows)
    known = torch.randint(sizes.items, (sizes.rows, sizes.known), generator=generator)
    interactions = Interactions(
        query_ids.repeat_interleave(sizes.known), known.flatten(), num_queries=sizes.rows, num_items=sizes.items
    )
    return Inputs(values(sizes.rows), values(sizes.items), query_ids, known[:, 0].contiguous(), interactions)


def is_dense(name: str) -> bool:
    """Whether the contestant makes a gradient as large as the table."""
    return name.endswith("dense")


def needed_bytes(name: str, sizes: Sizes) -> int:
    """Return about how much memory the table and a step take, rather too much."""
    eager = name.startswith("eager")
    return sizes.table_bytes * (2 if is_dense(name) else 1) + sizes.looked_up_bytes * (8 if eager else 3) + 2**29


def make_loss(name: str, sizes: Sizes, inputs: Inputs) -> Callable[[], Tensor]:
    """Return the contestant's loss, which draws whenever it is called."""
    if name.startswith("eager"):
        generator = torch.Generator().manual_seed(SEED)
        of_scores = _softmax if name == "eager softmax" else _cw
        return lambda: of_scores(*_eager_scores(sizes, inputs, generator))
    seeds = itertools.count(SEED)
    return lambda: sampled_cw_loss(
        inputs.queries,
        inputs.items,
        inputs.query_ids,
        inputs.pos_ids,
        inputs.interactions,
        sizes.negatives,
        seed=next(seeds),
        shared=name.startswith("shared"),
        sparse_grad=not is_dense(name),
        temperature=TEMPERATURE,
        backend="fused",
    )


def make_step(name: str, sizes: Sizes, inputs: Inputs | None = None) -> Step:
    """Return the contestant's step, forward and backward, which leaves no gradient behind."""
    inputs = inputs or make_inputs(sizes)
    loss = make_loss(name, sizes, inputs)

    def step() -> None:
        loss().backward()
        inputs.queries.grad = inputs.items.grad = None

    return step


def _eager_scores(sizes: Sizes, inputs: Inputs, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    neg_ids = torch.randint(sizes.items, (sizes.rows, sizes.negatives), generator=generator)
    queries = 0.5 * F.normalize(inputs.queries, dim=-1)
    pos = (queries * F.normalize(F.embedding(inputs.pos_ids, inputs.items, sparse=True), dim=-1)).sum(-1)
    neg = torch.einsum("bd,bnd->bn", queries, F.normalize(F.embedding(neg_ids, inputs.items, sparse=True), dim=-1))
    return pos, neg


def _cw(pos: Tensor, neg: Tensor) -> Tensor:
    return cw_loss(pos, neg, temperature=TEMPERATURE, backend="reference")


def _softmax(pos: Tensor, neg: Tensor) -> Tensor:
    scores = torch.cat([pos.unsqueeze(1), neg], 1) / TEMPERATURE
    return F.cross_entropy(scores, torch.zeros(len(pos), dtype=torch.int64))

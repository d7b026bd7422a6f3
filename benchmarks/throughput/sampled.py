"""The throughput benchmark's contestants with negatives drawn for each row: inside the op, before it, or not at all.

- cw_ext, recompute: sampled_cw_loss draws; recompute draws again in backward instead of keeping anything of size B·N.
- ready-ids: cw_loss_from_embeddings with ids (and log weights) that exist already, which no training step has.
- torch-search, torch-isin, numpy-sets, numpy-choice, bit-table: benchmarks/throughput/samplers.py draws, then
  cw_loss_from_embeddings.

The first three use the same negatives. The others draw from a seed, so that the expected result of a step can be
computed by drawing again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.throughput.eager import TEMPERATURE
from benchmarks.throughput.inputs import Inputs
from benchmarks.throughput.samplers import SAMPLERS, count_known
from benchmarks.throughput.shapes import Shape
from cw_ext import cw_loss_from_embeddings, draw_negatives, sampled_cw_loss

CONTESTANTS = ("cw_ext", "recompute", "ready-ids", *SAMPLERS)
POPULARITY_EXPONENT = 0.75
SEED = 1


def loss_function(name: str, shape: Shape, inputs: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the contestant's loss of (queries, items), which draws whenever it is called."""
    pos_ids, query_ids = inputs.ids
    if name in ("cw_ext", "recompute"):
        ids = (query_ids, pos_ids, inputs.interactions, shape.negatives)
        draws = {"seed": SEED, **_distribution(shape), "recompute": name == "recompute"}
        return lambda queries, items: sampled_cw_loss(
            queries, items, *ids, **draws, temperature=TEMPERATURE, backend="fused"
        )

    log_weights = _log_weights(shape, inputs)
    log_weights = None if log_weights is None else log_weights.to(torch.float32)
    draw = _sampler(name, shape, inputs)

    def weighted(neg_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        return neg_ids, None if log_weights is None else log_weights[neg_ids]

    ready = weighted(draw()) if name == "ready-ids" else None

    def loss(queries: Tensor, items: Tensor) -> Tensor:
        neg_ids, log_q = ready or weighted(draw())
        return cw_loss_from_embeddings(
            queries, items, pos_ids, neg_ids, neg_log_weights=log_q, temperature=TEMPERATURE, backend="fused"
        )

    return loss


def first_draws(name: str, shape: Shape, inputs: Inputs) -> tuple[Tensor, Tensor | None]:
    """Return the negatives int64 [B, N] of the contestant's first step, and their log weights [B, N] or None, in fp64.

    Raises:
        ValueError: one of them is a known positive of its row's query, or no item.
    """
    neg_ids = _sampler(name, shape, inputs)().long()
    _, query_ids = inputs.ids
    sizes = (shape.batch_size, shape.negatives)
    if neg_ids.shape != sizes or not 0 <= neg_ids.min() <= neg_ids.max() < shape.items:
        raise ValueError(f"expected {sizes} ids of {shape.items} items, got {tuple(neg_ids.shape)}")
    known = count_known(query_ids, neg_ids, inputs.interactions)
    if known:
        raise ValueError(f"expected no known positive among the negatives, got {known}")
    log_weights = _log_weights(shape, inputs)
    return neg_ids, None if log_weights is None else log_weights[neg_ids]


def _sampler(name: str, shape: Shape, inputs: Inputs) -> Callable[[], Tensor]:
    """Return a function that draws for the inputs' rows, from the start."""
    _, query_ids = inputs.ids
    interactions = inputs.interactions
    if name not in SAMPLERS:
        return lambda: draw_negatives(query_ids, interactions, shape.negatives, seed=SEED, **_distribution(shape))
    weights = interactions.item_counts.double() ** POPULARITY_EXPONENT if shape.popularity else None
    sampler = SAMPLERS[name](interactions, weights, SEED)
    return lambda: sampler(query_ids, shape.negatives)


def _distribution(shape: Shape) -> dict[str, str | float]:
    if not shape.popularity:
        return {"distribution": "uniform"}
    return {"distribution": "popularity", "popularity_exponent": POPULARITY_EXPONENT}


def _log_weights(shape: Shape, inputs: Inputs) -> Tensor | None:
    """Return log(1 / probability) up to a constant, fp64 [I], for draws by popularity; else None."""
    return inputs.interactions.item_counts.double().log() * -POPULARITY_EXPONENT if shape.popularity else None

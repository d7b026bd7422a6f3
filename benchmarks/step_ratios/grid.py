"""Steps on many shapes: those of benchmarks.throughput, and others that a faster kernel could have made slower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.step_ratios.inputs import Step, forward_and_backward, make_generator
from cw_ext import (
    Interactions,
    cw_loss,
    cw_loss_from_embeddings,
    cw_loss_full,
    cw_loss_in_batch,
    sampled_cw_loss,
)

# Known positives of a query, where rows leave them out.
KNOWN = 40
SEED = 0
GOWALLAS_ITEMS = 40_988


@dataclass(frozen=True)
class Shape:
    """Sizes of a step.

    Attributes:
        kind: "scores"; "ids", given for each row; "ids for all", one set of them; "drawn" for each row; "drawn for
            all"; "in-batch"; or "full", all items. From "drawn" on a row leaves out known positives.
        rows: B.
        negatives: N; 0 where none are given or drawn.
        items: I; 0 for scores.
        dim: D; 0 for scores.
        dtype: of scores or tables.
        precision: of torch.set_float32_matmul_precision().
        sparse: sparse gradients of the items.
        popularity: drawn by popularity.
    """

    kind: Literal["scores", "ids", "ids for all", "drawn", "drawn for all", "in-batch", "full"]
    rows: int = 1024
    negatives: int = 1000
    items: int = 41_000
    dim: int = 64
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    precision: Literal["highest", "medium"] = "highest"
    sparse: bool = False
    popularity: bool = False

    @property
    def label(self) -> str:
        """All of it as text."""
        words = [f"{self.kind} B={self.rows}"]
        if self.negatives:
            words.append(f"N={self.negatives}")
        if self.items:
            words.append(f"I={self.items} D={self.dim}")
        if self.dtype != "float32":
            words.append(self.dtype)
        if self.precision != "highest":
            words.append(self.precision)
        return " ".join(words + ["sparse"] * self.sparse + ["popularity"] * self.popularity)


def _scores(rows: int, negatives: int, **more: Any) -> Shape:
    return Shape("scores", rows, negatives, items=0, dim=0, **more)


def _full(**more: Any) -> Shape:
    return Shape("full", negatives=0, **more)


# Of dictionaries, as sweeps have shapes in common.
FULL = tuple(
    dict.fromkeys(
        chain(
            (_scores(*sizes) for sizes in ((64, 64), (256, 100), (1024, 1024), (2048, 8192))),
            (_scores(1024, negatives) for negatives in (64, 256, 1024, 4096)),
            (_scores(*sizes, dtype="bfloat16") for sizes in ((1024, 1024), (2048, 8192))),
            (Shape("ids", items=items) for items in (1_200, 2_000, 5_000, 8_360, 41_000, 300_000)),
            (Shape("ids", 2048, items=115_000, dtype=dtype) for dtype in ("float32", "bfloat16")),
            (Shape("ids", dim=dim) for dim in (32, 48, 63, 96, 128, 200, 256)),
            (Shape("ids", dim=dim, items=1_200) for dim in (48, 96, 200, 256)),
            (Shape("ids", negatives=negatives) for negatives in (100, 300, 500, 2000, 3000)),
            (Shape("ids", negatives=negatives, items=1_200) for negatives in (100, 300, 500, 2000)),
            (Shape("ids", items=items, dtype=dtype) for dtype in ("bfloat16", "float64") for items in (1_200, 41_000)),
            (Shape("ids for all", negatives=negatives) for negatives in (1000, 4096)),
            (
                Shape("drawn", items=items, negatives=negatives)
                for items in (1_200, GOWALLAS_ITEMS)
                for negatives in (100, 1000)
            ),
            (Shape("drawn", items=items, popularity=True) for items in (1_200, GOWALLAS_ITEMS)),
            (Shape("drawn for all", items=GOWALLAS_ITEMS, negatives=negatives) for negatives in (1000, 4096)),
            (Shape("in-batch", rows, 0, GOWALLAS_ITEMS) for rows in (1024, 4096)),
            (_full(items=items) for items in (1_200, 8_360, GOWALLAS_ITEMS)),
            (_full(items=items, dtype="bfloat16") for items in (1_200, 8_360, GOWALLAS_ITEMS)),
            (_full(items=items, precision="medium") for items in (8_360, GOWALLAS_ITEMS)),
            (
                Shape(kind, items=items, sparse=True)
                for kind in ("drawn", "drawn for all")
                for items in (10_000, 100_000, 1_000_000)
            ),
            (Shape(kind, items=10_000) for kind in ("drawn", "drawn for all")),
        )
    )
)
QUICK = (
    _scores(4, 4),
    Shape("ids", 8, 6, 50, 4, dtype="bfloat16"),
    Shape("ids for all", 8, 6, 50, 4),
    Shape("drawn", 8, 6, 50, 4, sparse=True),
    Shape("drawn for all", 8, 6, 50, 4),
    Shape("in-batch", 8, 0, 50, 4),
    _full(rows=8, items=50, dim=4, precision="medium"),
)


def make_steps(shapes: tuple[Shape, ...]) -> dict[str, Callable[[], Step]]:
    """Return by label what makes a step."""
    return {shape.label: partial(make_step, shape) for shape in shapes}


def make_step(shape: Shape) -> Step:
    """Return a step, by functions that every version of cw_ext has, whichever the caller has imported."""
    torch.set_float32_matmul_precision(shape.precision)
    generator, dtype = make_generator(), getattr(torch, shape.dtype)

    def leaf(values: Tensor) -> Tensor:
        return values.to(dtype).requires_grad_()

    if shape.kind == "scores":
        sizes = ((shape.rows,), (shape.rows, shape.negatives))
        leaves = [leaf(torch.rand(size, generator=generator) - 0.5) for size in sizes]
        return forward_and_backward(partial(cw_loss, *leaves, backend="fused"), leaves)
    leaves = [leaf(torch.randn(rows, shape.dim, generator=generator)) for rows in (shape.rows, shape.items)]
    known = torch.randint(shape.items, (shape.rows, KNOWN), generator=generator)
    loss = _loss_of(shape, leaves, known, generator)
    return forward_and_backward(partial(loss, backend="fused"), leaves)


def _loss_of(
    shape: Shape, leaves: list[Tensor], known: Tensor, generator: torch.Generator
) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    """The loss of embeddings; row b is an interaction of query b, which knows known[b]."""
    pos_ids = known[:, 0].contiguous()
    sparse = {"sparse_grad": True} if shape.sparse else {}
    if shape.kind in ("ids", "ids for all"):
        size = (shape.rows, shape.negatives) if shape.kind == "ids" else (shape.negatives,)
        neg_ids = torch.randint(shape.items, size, generator=generator)
        return partial(cw_loss_from_embeddings, *leaves, pos_ids, neg_ids, **sparse)
    query_ids = torch.arange(shape.rows)
    pairs = torch.stack((query_ids.repeat_interleave(KNOWN), known.flatten())).unique(dim=1)
    history = Interactions(*pairs, num_queries=shape.rows, num_items=shape.items)
    if shape.kind in ("in-batch", "full"):
        loss = cw_loss_in_batch if shape.kind == "in-batch" else cw_loss_full
        return partial(loss, *leaves, pos_ids, query_ids=query_ids, interactions=history, **sparse)
    return partial(
        sampled_cw_loss,
        *leaves,
        query_ids,
        pos_ids,
        history,
        shape.negatives,
        seed=SEED,
        shared=shape.kind == "drawn for all",
        distribution="popularity" if shape.popularity else "uniform",
        **sparse,
    )

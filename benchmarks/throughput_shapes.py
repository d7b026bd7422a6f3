"""The shapes that the throughput benchmark measures, and the bytes that a step of each must move."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch

ID_BYTES = 8


@dataclass(frozen=True)
class Shape:
    """Sizes of one training step.

    Attributes:
        level: 1 for scores that the model computed, 2 for embedding tables and ids.
        batch_size: rows, B.
        negatives: per row, N.
        dim: length of an embedding, D; 0 at level 1.
        items: rows of the item table, I; 0 at level 1.
        dtype: of scores and tables.
        shared: all rows have the same negatives (level 2).
        loss: "cw" with its defaults, or "sampled_softmax" (level 2, negatives per row), for which there is another
            fused rival: benchmarks/sampled_softmax.py.
    """

    level: Literal[1, 2]
    batch_size: int
    negatives: int
    dim: int = 0
    items: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shared: bool = False
    loss: Literal["cw", "sampled_softmax"] = "cw"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)

    @property
    def group(self) -> str:
        """All but N, in words: what a curve over N holds fixed."""
        sizes = f" D={self.dim} I={self.items}" if self.level == 2 else ""
        softmax = " softmax" if self.loss == "sampled_softmax" else ""
        return f"B={self.batch_size}{sizes} {self.short_dtype}{' shared' if self.shared else ''}{softmax}"

    @property
    def label(self) -> str:
        """All sizes, short enough for a column of a table."""
        batch, _, rest = self.group.partition(" ")
        return f"{batch} N={self.negatives} {rest}"

    @property
    def short_dtype(self) -> str:
        """fp32, bf16 or fp16."""
        return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[self.dtype]


def least_bytes(shape: Shape) -> int:
    """Bytes that any implementation of the step moves between memory and processor, each counted once.

    Level 1 reads the scores of the negatives and writes their gradient. Level 2 reads a row of the table per
    negative (shared negatives: per negative of the batch), reads the ids, reads the table once more and writes its
    gradient. What belongs to queries and positives is left out, being N times less. Repeated rows that a cache
    serves are counted all the same, so that with a small table the rate can exceed that of the memory; shared
    negatives are bound by arithmetic, so that there it says little.
    """
    size = shape.torch_dtype.itemsize
    if shape.level == 1:
        return 2 * shape.batch_size * shape.negatives * size
    ids = shape.negatives * (1 if shape.shared else shape.batch_size)
    return ids * shape.dim * size + ids * ID_BYTES + 2 * shape.items * shape.dim * size


def gradient_bytes(shape: Shape) -> int:
    """Bytes of the gradients of all inputs, which every implementation has to return."""
    size = shape.torch_dtype.itemsize
    if shape.level == 1:
        return (shape.negatives + 1) * shape.batch_size * size
    return (shape.batch_size + shape.items) * shape.dim * size


def _level_1(batch_size: int, negatives: int, **more) -> Shape:
    return Shape(1, batch_size, negatives, **more)


def _level_2(batch_size: int = 1024, negatives: int = 1000, dim: int = 64, items: int = 41_000, **more) -> Shape:
    return Shape(2, batch_size, negatives, dim, items, **more)


# Tables of 1,200, 41,000 and 115,000 items: one that stays in a core's cache, and two usual data sets. D=63 takes
# the kernels off whole vectors. The dictionaries drop what two sweeps have in common.
FULL = tuple(
    dict.fromkeys(
        chain(
            (_level_1(*sizes) for sizes in ((64, 64), (256, 100), (1024, 1024), (2048, 8192))),
            (_level_1(1024, negatives) for negatives in (64, 256, 1024, 4096)),
            (_level_1(*sizes, dtype="bfloat16") for sizes in ((1024, 1024), (2048, 8192))),
            (_level_2(items=1200), _level_2(), _level_2(2048, items=115_000)),
            (_level_2(dim=dim) for dim in (32, 63, 128, 256)),
            (_level_2(negatives=negatives) for negatives in (100, 300, 1000, 3000)),
            (_level_2(dtype="bfloat16"), _level_2(2048, items=115_000, dtype="bfloat16")),
            (_level_2(negatives=negatives, shared=True) for negatives in (1000, 4096)),
        )
    )
)
# Where the time with one thread is compared to that with all.
FULL_SCALING = (_level_2(), _level_2(2048, items=115_000))

# For a GPU, the most telling first, should time run out. A table of 41,000 items stays in the second-level cache of a
# data-centre GPU, one of a million does not.
FULL_CUDA = (
    *(_level_1(4096, n, dtype=dtype) for n in (1024, 4096, 16384) for dtype in ("float32", "bfloat16")),
    *(_level_2(batch_size, dim=dim) for dim in (64, 128) for batch_size in (1024, 4096, 8192)),
    _level_2(4096, items=1_000_000),
    *(_level_2(8192, 4096, shared=True, dtype=dtype) for dtype in ("float32", "bfloat16")),
    _level_2(8192, 4096, dim=128, shared=True, dtype="bfloat16"),
    *(_level_2(4096, dim=dim, dtype="bfloat16") for dim in (64, 128)),
    _level_2(dim=256),
    _level_1(256, 100),
    _level_1(1024, 65536),
)
# In fp16, in which CCE⁻'s authors train with it; it has no gradients in fp32.
FULL_CCE = tuple(
    _level_2(batch_size, dim=dim, dtype="float16", loss="sampled_softmax")
    for batch_size, dim in ((4096, 64), (4096, 128), (1024, 64))
)

QUICK = (_level_1(256, 100), _level_2(256, 100, items=1200), _level_2(256, 256, items=1200, shared=True))
QUICK_SCALING = (_level_2(256, 100, items=1200), _level_2(256, 300, items=1200))
QUICK_CUDA = (*QUICK, _level_1(256, 1000, dtype="bfloat16"), _level_2(256, 100, dim=128, items=1200, dtype="bfloat16"))
QUICK_CCE = (_level_2(256, 100, items=1200, dtype="float16", loss="sampled_softmax"),)

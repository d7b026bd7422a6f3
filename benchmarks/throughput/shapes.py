"""The shapes that the throughput benchmark measures, and the bytes that a step of each must move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import torch

from benchmarks.common import data

ID_BYTES = 8
Kind = Literal["scores", "ids", "sampled", "shared", "in-batch", "mixed", "full"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# All rows share the same negatives, except those that each leaves out.
ONE_SET = ("shared", "in-batch", "mixed", "full")
# The tables of the report, a panel each in the plots.
TABLES = {"scores": "scores", "ids": "embeddings", "sampled": "sampled", **dict.fromkeys(ONE_SET, "one set")}


@dataclass(frozen=True)
class Shape:
    """Sizes of one training step.

    Attributes:
        kind: where the negatives come from. "scores": the model has computed their scores; "ids": their ids are
            given, and the loss is computed from embeddings; "sampled": drawn for each row. The others are one set for
            all rows: "shared", drawn; "in-batch", the batch's positives; "mixed", both; "full", all items. From
            "sampled" on, a row leaves out the known positives of its query, and popular negatives are corrected by
            log Q.
        batch_size: rows, B.
        negatives: that are given or drawn, N: per row, or for all where they are one set; 0 where none are.
        dim: length of an embedding, D; 0 for scores.
        items: rows of the item table, I; 0 for scores.
        dtype: of scores and tables.
        shared: the ids are the same for all rows ("ids").
        loss: "cw" with its defaults, or "sampled_softmax" ("ids", of each row's own), for which there is another
            fused rival: benchmarks/throughput/cce.py.
        users: queries of the history; 0 where there is none.
        popularity: drawn by popularity, not uniformly ("sampled").
        history: data set that the history is of, as for benchmarks.training; None for a made-up one.
    """

    kind: Kind
    batch_size: int
    negatives: int = 0
    dim: int = 0
    items: int = 0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shared: bool = False
    loss: Literal["cw", "sampled_softmax"] = "cw"
    users: int = 0
    popularity: bool = False
    history: str | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return getattr(torch, self.dtype)

    @property
    def table(self) -> str:
        """The table of the report that it is in."""
        return TABLES[self.kind]

    @property
    def columns(self) -> int:
        """How many negatives a row has, including those that it leaves out."""
        batch = self.batch_size if self.kind in ("in-batch", "mixed") else 0
        return self.items if self.kind == "full" else batch + self.negatives

    @property
    def group(self) -> str:
        """All but N, as text: what is fixed in a curve over N."""
        words = [f"B={self.batch_size}"]
        if self.kind != "scores":
            words += [f"D={self.dim}", f"I={self.items}"]
        words.append(self.short_dtype)
        if self.kind in ONE_SET:
            words.append(self.kind)
        words += ["shared"] * self.shared + ["popularity"] * self.popularity
        words += ["softmax"] * (self.loss == "sampled_softmax")
        return " ".join(words + ([Path(self.history).stem] if self.history else []))

    @property
    def label(self) -> str:
        """All sizes, short enough for a column of a table."""
        batch, _, rest = self.group.partition(" ")
        return f"{batch} N={self.negatives} {rest}" if self.negatives else self.group

    @property
    def short_dtype(self) -> str:
        """fp32, bf16 or fp16."""
        return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[self.dtype]


def least_bytes(shape: Shape) -> int:
    """Bytes that any implementation of the step moves between memory and processor, each counted once.

    From scores: the negatives' scores are read, and their gradient is written. Otherwise a row of the table is read per
    negative (one set: per negative of the batch), and its id if ids are given. The table is read once more, and its
    gradient is written. Queries, positives and history are left out, since they are N times less. Repeated rows count
    even if a cache serves them, so with a small table the rate can exceed that of the memory. One set is bound by
    arithmetic, so the rate says little there.
    """
    size = shape.torch_dtype.itemsize
    if shape.kind == "scores":
        return 2 * shape.batch_size * shape.negatives * size
    rows = shape.columns * (1 if shape.shared or shape.kind in ONE_SET else shape.batch_size)
    ids = rows * ID_BYTES if shape.kind == "ids" else 0
    return rows * shape.dim * size + ids + 2 * shape.items * shape.dim * size


def gradient_bytes(shape: Shape) -> int:
    """Bytes of the gradients of all inputs, which every implementation has to return."""
    size = shape.torch_dtype.itemsize
    if shape.kind == "scores":
        return (shape.negatives + 1) * shape.batch_size * size
    return (shape.batch_size + shape.items) * shape.dim * size


def with_history(shapes: Iterable[Shape], path: str | None) -> list[Shape]:
    """Give the shapes that have a history that of a data set; those that then are the same come once.

    Args:
        shapes: of any kind; those without a history stay as they are.
        path: as for :func:`benchmarks.common.data.load`; None for the made-up history that they have.

    Raises:
        DataError: the data set cannot be loaded.
    """
    shapes = list(shapes)
    if path is None or not any(shape.users for shape in shapes):
        return shapes
    dataset = data.load(path)
    of_history = {"users": dataset.num_users, "items": dataset.num_items, "history": path}
    return list(dict.fromkeys(replace(shape, **of_history) if shape.users else shape for shape in shapes))


def _scores(batch_size: int, negatives: int, **more) -> Shape:
    return Shape("scores", batch_size, negatives, **more)


def _ids(batch_size: int = 1024, negatives: int = 1000, dim: int = 64, items: int = 41_000, **more) -> Shape:
    return Shape("ids", batch_size, negatives, dim, items, **more)


# A history as large as gowalla's.
USERS, ITEMS = 29_858, 40_988


def _history(kind: Kind, batch_size: int = 1024, negatives: int = 0, items: int = ITEMS, **more) -> Shape:
    return Shape(kind, batch_size, negatives, 64, items, users=USERS, **more)


# Each kind as it is usually trained with.
KINDS_AT_GOWALLAS_SIZE = (
    _history("sampled", negatives=1000),
    _history("sampled", negatives=1000, popularity=True),
    _history("shared", negatives=1000),
    _history("in-batch"),
    _history("mixed", negatives=1000),
    _history("full"),
)

# Tables of 1,200, 41,000 and 115,000 items: one that stays in a core's cache, and two usual data sets. D=63 takes
# the kernels off whole vectors. The dictionaries drop what two sweeps have in common.
FULL = tuple(
    dict.fromkeys(
        chain(
            (_scores(*sizes) for sizes in ((64, 64), (256, 100), (1024, 1024), (2048, 8192))),
            (_scores(1024, negatives) for negatives in (64, 256, 1024, 4096)),
            (_scores(*sizes, dtype="bfloat16") for sizes in ((1024, 1024), (2048, 8192))),
            (_ids(items=1200), _ids(), _ids(2048, items=115_000)),
            (_ids(dim=dim) for dim in (32, 63, 128, 256)),
            (_ids(negatives=negatives) for negatives in (100, 300, 1000, 3000)),
            (_ids(dtype="bfloat16"), _ids(2048, items=115_000, dtype="bfloat16")),
            (_ids(negatives=negatives, shared=True) for negatives in (1000, 4096)),
            (_history("sampled", negatives=negatives) for negatives in (100, 1000)),
            KINDS_AT_GOWALLAS_SIZE,
            (_history("shared", negatives=4096), _history("full", items=1200)),
        )
    )
)
# Where the time with one thread is compared to that with all.
FULL_SCALING = (_ids(), _ids(2048, items=115_000), _history("sampled", negatives=1000), _history("full"))

# For a GPU, the most telling first, should time run out: of each kind of call one that eager PyTorch can do too. A
# table of 41,000 items stays in the second-level cache of a data-centre GPU, one of a million does not.
MAIN_CUDA = (
    _scores(4096, 4096),
    _ids(4096),
    _ids(8192, 4096, shared=True, dtype="bfloat16"),
    _history("full", 4096, dtype="bfloat16"),
)
FULL_CUDA = tuple(
    dict.fromkeys(
        chain(
            MAIN_CUDA,
            (_scores(4096, n, dtype=dtype) for n in (1024, 4096, 16384) for dtype in ("float32", "bfloat16")),
            (_ids(batch_size, dim=dim) for dim in (64, 128) for batch_size in (1024, 4096, 8192)),
            KINDS_AT_GOWALLAS_SIZE,
            (_ids(4096, items=1_000_000),),
            (_ids(8192, 4096, shared=True),),
            (_ids(8192, 4096, dim=128, shared=True, dtype="bfloat16"),),
            (_ids(4096, dim=dim, dtype="bfloat16") for dim in (64, 128)),
            (_history("sampled", 4096, 1000),),
            (_history("shared", 8192, 4096, dtype="bfloat16"),),
            (_history("in-batch", 8192),),
            (_ids(dim=256),),
            (_scores(256, 100), _scores(1024, 65536)),
        )
    )
)
# In fp16, in which CCE⁻'s authors train with it; it has no gradients in fp32.
FULL_CCE = tuple(
    _ids(batch_size, dim=dim, dtype="float16", loss="sampled_softmax")
    for batch_size, dim in ((4096, 64), (4096, 128), (1024, 64))
)


def _small(kind: Kind, negatives: int = 0, **more) -> Shape:
    return Shape(kind, 256, negatives, 64, 1200, users=1000, **more)


KINDS_SMALL = (
    _small("sampled", 100),
    _small("sampled", 100, popularity=True),
    _small("shared", 256),
    _small("in-batch"),
    _small("mixed", 256),
    _small("full"),
)
QUICK = (_scores(256, 100), _ids(256, 100, items=1200), _ids(256, 256, items=1200, shared=True), *KINDS_SMALL)
QUICK_SCALING = (_ids(256, 100, items=1200), _ids(256, 300, items=1200))
QUICK_CUDA = (*QUICK, _scores(256, 1000, dtype="bfloat16"), _ids(256, 100, dim=128, items=1200, dtype="bfloat16"))
QUICK_CCE = (_ids(256, 100, items=1200, dtype="float16", loss="sampled_softmax"),)

"""Read the interactions from a file of any known kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cw_ext.files import columns, plain
from cw_ext.files.blocks import blocks
from cw_ext.files.errors import fail, shown
from cw_ext.files.ids import IdColumn, Ids
from cw_ext.files.layout import MOVIELENS, Layout, recognise
from cw_ext.files.options import Reading, option
from cw_ext.files.separators import name_of

if TYPE_CHECKING:
    import polars as pl

SPLITS = ("train", "valid", "test")
_SPLIT_WORDS = {
    "train": 0,
    "training": 0,
    "valid": 1,
    "validation": 1,
    "val": 1,
    "dev": 1,
    "test": 2,
    "testing": 2,
}


@dataclass(frozen=True)
class InteractionTable:
    """The positives of a file, in its order. Repeated pairs stay repeated.

    Attributes:
        users, items: of each of the P interactions.
        split: int8 [P], the place in SPLITS; None without such a column.
        lines: int64 [P], the line of each, from 1.
        summary: one line about what was read and what was left out.
        has_header: whether the columns have names.
        unit: what `lines` counts, "line" or "row".
    """

    users: Ids
    items: Ids
    split: np.ndarray | None
    lines: np.ndarray
    summary: str
    has_header: bool = False
    unit: str = "line"

    def training_part(self) -> InteractionTable:
        """Only the interactions of the training split; all interactions without a split column."""
        if self.split is None:
            return self
        train = self.split == 0
        users, items = (replace(ids, codes=ids.codes[train]) for ids in (self.users, self.items))
        summary = f"{self.summary}; split train kept, {np.count_nonzero(~train)} rows left out"
        return replace(self, users=users, items=items, split=None, lines=self.lines[train], summary=summary)


def read_interactions(
    path: Path, reading: Reading | None = None, *, default_min_rating: float | None = None
) -> InteractionTable:
    """Read the positives of a file.

    Args:
        path: a table (with a header or without), RecBole's .inter, LightGCN's lists, MIND's behaviors.tsv, SNAP's
            check-ins, JSON lines or parquet; text may be compressed by gzip, bzip2 or xz.
        reading: what the caller specifies.
        default_min_rating: the lowest rating of a positive, if the file has ratings and `reading` has no min_rating.

    Raises:
        OSError: the file cannot be read.
        ValueError: it cannot be understood, or a switch does not apply to it. The message names the file, and the line
            or the columns.
        ImportError: it needs polars, which is not installed.
    """
    reading = Reading() if reading is None else reading
    if not _has_polars():
        return _read_plain(path, reading)
    layout = recognise(path, reading)
    if layout is None:
        return _nothing()
    min_rating = reading.min_rating
    if min_rating is not None and "rating" not in layout.columns:
        names = f"columns {', '.join(layout.names)}" if layout.names else f"{layout.num_columns} columns"
        fail(path, None, f"a column of ratings for {option('min_rating')}", names)
    if min_rating is None:
        min_rating = default_min_rating
    if min_rating is None and reading.rating_column is not None:
        raise ValueError(f"{path}: {option('rating_column')} has no effect without {option('min_rating')}")
    read = layout
    if min_rating is None:  # its values are not read
        read = replace(layout, columns={role: index for role, index in layout.columns.items() if role != "rating"})
    users, items = IdColumn(path, layout, "user"), IdColumn(path, layout, "item")
    lines, splits, counts = [], [], _Counts()
    for block in blocks(path, read, reading.encoding):
        if layout.kind == "lightgcn" and block["item"].null_count():
            users.add_alone(block["user"], block["line"])
            continue
        block = _positives(path, layout, block, min_rating, counts)
        users.add(block["user"], block["line"])
        items.add(block["item"], block["line"])
        lines.append(block["line"].to_numpy())
        if "split" in block.columns:
            splits.append(_split(path, layout, block))
    places = np.concatenate(lines) if lines else np.empty(0, np.int64)
    own = (users.finish(places), items.finish(places))
    return InteractionTable(
        *own,
        np.concatenate(splits) if splits else None,
        places,
        _summary(layout, own, min_rating, counts),
        layout.names is not None,
        layout.unit,
    )


def _has_polars() -> bool:
    try:
        import polars  # noqa: F401
    except ImportError:
        return False
    return True


def _read_plain(path: Path, reading: Reading) -> InteractionTable:
    query_ids, item_ids, lines, source = plain.read_pairs(path, reading)
    if not len(lines):
        return _nothing()
    own = []
    for ids in (query_ids, item_ids):
        values, codes = np.unique(ids, return_inverse=True)
        own.append(Ids(codes, values, None, len(ids), True))
    summary = f"{len(lines)} positives of {len(own[0].values)} users and {len(own[1].values)} items: {source}"
    return InteractionTable(own[0], own[1], None, lines, summary)


def _nothing() -> InteractionTable:
    nothing = Ids(np.empty(0, np.int64), np.empty(0, np.int64), None, 0, False)
    return InteractionTable(nothing, nothing, None, np.empty(0, np.int64), "an empty file")


@dataclass
class _Counts:
    """Counts of what was left out, and whether the label of every positive is 1."""

    low: int = 0
    negative: int = 0
    nowhere: int = 0
    ones: bool = True


def _positives(
    path: Path, layout: Layout, block: pl.DataFrame, min_rating: float | None, counts: _Counts
) -> pl.DataFrame:
    """The rows of the block that are positives. The others are counted."""
    import polars as pl

    if layout.may_lack_item:
        height = block.height
        block = block.filter(pl.col("item").fill_null("").str.strip_chars() != "")
        counts.nowhere += height - block.height
    if min_rating is not None and "rating" in block.columns:
        ratings = _numbers(path, layout, block, "rating")
        if layout.known_as == MOVIELENS and not ratings.is_between(0, 5).all():
            place = int((~ratings.is_between(0, 5)).arg_true()[0])
            expected = f"a MovieLens rating of at most 5; for any other file give {option('user_column')} and so on"
            fail(path, block["line"][place], expected, shown(block["rating"][place]))
        enough = ratings >= min_rating
        counts.low += int((~enough).sum())
        block = block.filter(enough)
    if "label" in block.columns:
        labels = _numbers(path, layout, block, "label")
        positive = labels > 0
        counts.ones &= bool((labels.filter(positive) == 1).all())
        counts.negative += int((~positive).sum())
        block = block.filter(positive)
    return block


def _numbers(path: Path, layout: Layout, block: pl.DataFrame, role: str) -> pl.Series:
    """A column of numbers. True is 1, and nan is below all numbers."""
    import polars as pl

    values = block[role]
    if values.dtype == pl.String:
        words = values.str.strip_chars()
        if role == "label":
            words = words.str.replace("(?i)^true$", "1").str.replace("(?i)^false$", "0")
        numbers = words.cast(pl.Float64, strict=False)
    else:
        try:
            numbers = values.cast(pl.Float64, strict=False)
        except pl.exceptions.PolarsError:
            fail(path, None, f"numbers as {role}", f"the column type {values.dtype}")
    wrong = numbers.is_null()
    if wrong.any():
        place = int(wrong.arg_true()[0])
        got = values[place]
        fail(path, block["line"][place], f"a number as {role}", shown("" if got is None else str(got)), layout.unit)
    return numbers.fill_nan(float("-inf"))


def _split(path: Path, layout: Layout, block: pl.DataFrame) -> np.ndarray:
    import polars as pl

    words = block["split"].cast(pl.String).fill_null("").str.strip_chars().str.to_lowercase()
    splits = words.replace_strict(_SPLIT_WORDS, default=None, return_dtype=pl.Int8)
    wrong = splits.is_null()
    if wrong.any():
        place = int(wrong.arg_true()[0])
        fail(path, block["line"][place], "train, valid or test as split", shown(words[place]), layout.unit)
    numbers: np.ndarray = splits.to_numpy()
    return numbers


def _summary(layout: Layout, own: Sequence[Ids], min_rating: float | None, counts: _Counts) -> str:
    users, items = (np.count_nonzero(np.bincount(ids.codes)) for ids in own)
    total = len(own[0].codes)
    parts = [f"{total} positives of {users} users and {items} items: {_source(layout)}"]
    if layout.kind == "mind" or "label" in layout.columns:
        parts.append(f"label {'= 1' if counts.ones else '> 0'} kept, {counts.negative} rows left out")
    if "rating" in layout.columns and min_rating is None:
        parts.append("every rating kept")
    elif "rating" in layout.columns:
        lower = "" if total else f"; lower {option('min_rating')}"
        parts.append(f"rating ≥ {min_rating:g} kept, {counts.low} rows left out{lower if counts.low else ''}")
    if counts.nowhere:
        parts.append(f"{counts.nowhere} rows without an item left out")
    return "; ".join(parts)


def _source(layout: Layout) -> str:
    if layout.kind == "lightgcn":
        return "lists of a user and its items (LightGCN)"
    if layout.kind == "mind":
        return "clicks in impressions and histories (MIND)"
    named = ", ".join(columns.describe(layout.names, layout.columns[role]) for role in ("user", "item"))
    if layout.names:
        return f"columns {named}"
    kind = layout.known_as or f"a table without header, separated by {name_of(layout.separator)}"
    return f"columns {named} of {kind}"

"""Assign the ids of a file to rows of an embedding table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cw_ext.files.errors import fail, shown
from cw_ext.files.ids import Ids
from cw_ext.files.options import option
from cw_ext.files.reader import InteractionTable

# An integer id is a row number, unless most rows of the table would be unused: the largest id is above the first
# number, and there are more rows per id than the second number.
_LARGEST_UNQUESTIONED = 2**20
_MOST_ROWS_PER_ID = 100
_LARGEST = 2**31 - 2
# Some tools write integers in a column with gaps as such numbers.
_DECIMAL = re.compile(r"-?\d+\.\d*")
_LIST = re.compile(r"\d+(\s+\d+)+")


class Rows(NamedTuple):
    """The rows of one side of the interactions.

    Attributes:
        rows: int64 [P], of each interaction.
        size: the number of rows.
        labels: the id of each row, sorted; None if the ids are the row numbers.
    """

    rows: np.ndarray
    size: int
    labels: np.ndarray | None


def _is_sparse(ids: np.ndarray) -> bool:
    """Whether distinct integers have so many gaps that they should be renumbered."""
    if not len(ids):
        return False
    spread = int(ids.max()) - min(int(ids.min()), 0) + 1
    return spread - 1 > _LARGEST_UNQUESTIONED and spread > _MOST_ROWS_PER_ID * len(ids)


def number(path: Path, table: InteractionTable, ids: Ids, kind: str, size: int | None, renumber: bool | None) -> Rows:
    """Number the queries or the items of a file.

    Args:
        path: the file, for messages.
        table: its contents.
        ids: table.users or table.items.
        kind: "query" or "item".
        size: the number of rows, or None. If it is given, or with renumber=False, an integer is a row number.
        renumber: True renumbers the ids. None does so for strings, and for integers with large gaps.

    Raises:
        ValueError: an id cannot be a row, or it is not clear whether ids are integers.
        IndexError: a row is not below the size.
    """
    sizes = "num_queries" if kind == "query" else "num_items"
    if renumber is True and size is not None:
        raise ValueError(f"{sizes} must not be given with renumber=True, as it is the number of distinct ids")
    if ids.odd is None:
        as_they_are = renumber is False or size is not None or (renumber is None and not _is_sparse(ids.values))
    else:
        as_they_are = renumber is False or size is not None
        doubtful = (ids.begins_with_integer and not table.has_header) or ids.integers * 2 > len(ids.codes)
        doubtful |= _DECIMAL.fullmatch(ids.odd[1]) is not None
        if as_they_are or (doubtful and renumber is None):
            line, got = ids.odd
            why = "" if as_they_are else "; for ids of any kind give renumber=True"
            if kind == "item" and _LIST.fullmatch(got):
                why = f"; for a user's list of items give {option('format')} lightgcn"
            where = f"{path}, {table.unit} {line}"
            raise ValueError(f"{where}: expected an integer from 0 as {kind} id{why}, got {shown(got)}")
    if not as_they_are:
        labels, rows = np.unique(ids.values, return_inverse=True)
        return Rows(rows.reshape(-1)[ids.codes], len(labels), labels)

    rows = ids.of_rows
    limit = _LARGEST + 1 if size is None else size
    outside = np.flatnonzero((rows < 0) | (rows >= limit))
    if outside.size:
        _fail_outside(path, table, kind, sizes, rows, int(outside[0]), size)
    return Rows(rows, int(ids.values.max(initial=-1)) + 1 if size is None else size, None)


def _fail_outside(
    path: Path, table: InteractionTable, kind: str, sizes: str, rows: np.ndarray, position: int, size: int | None
) -> None:
    name = "query_ids" if kind == "query" else "item_ids"
    line, got = int(table.lines[position]), f"{rows[position]} at position {position}"
    if size is not None:
        where = f"{path}, {table.unit} {line}"
        raise IndexError(f"{where}: {name} must be in [0, {size}), got {got}")
    if rows[position] < 0:
        expected = f"an integer from 0 as {kind} id; for ids of any kind give renumber=True"
        fail(path, line, expected, str(rows[position]), table.unit)
    fail(path, line, f"{name} below 2**31 - 1 if {sizes} is not given and renumber is False", got, table.unit)

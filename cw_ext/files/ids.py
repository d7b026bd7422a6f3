"""Ids of any kind as numbers from 0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cw_ext.files.errors import fail
from cw_ext.files.layout import Layout

if TYPE_CHECKING:
    import polars as pl

# As Python writes integers: 007 and 7 are different ids. Integers beyond int64 are strings.
_WHOLE_DECIMAL = r"^-?[0-9]+\.0*$"
_INTEGER = r"^(0|-?[1-9][0-9]{0,18})$"


@dataclass(frozen=True)
class Ids:
    """The users or the items of a file's interactions.

    Attributes:
        codes: int64 [P], the position in `values` of each interaction's id.
        values: the file's ids, each once, in the order of their first occurrence. int64 if all are integers, else
            strings (an object array). Ids without an interaction may follow at the end.
        odd: (line, id) of the first that is not an integer; None if all are integers.
        integers: the number of interactions whose id is an integer.
        begins_with_integer: whether the first id is one.
    """

    codes: np.ndarray
    values: np.ndarray
    odd: tuple[int, str] | None
    integers: int
    begins_with_integer: bool

    @property
    def of_rows(self) -> np.ndarray:
        """The file's id of every interaction, [P]."""
        chosen: np.ndarray = self.values[self.codes]
        return chosen


class IdColumn:
    """Collects a column of ids block by block. Integers are stored as integers, which takes less memory."""

    def __init__(self, path: Path, layout: Layout, role: str) -> None:
        self._path, self._layout, self._role = path, layout, role
        self._parts: list[pl.Series] = []
        self._alone: list[pl.Series] = []
        self._odd: tuple[int, str] | None = None
        self._integers = 0
        self._begins_with_integer: bool | None = None

    def add(self, ids: pl.Series, lines: pl.Series) -> None:
        """Append the ids of some interactions, from these lines.

        Raises:
            ValueError: an id is empty, or the column holds something other than integers and strings.
        """
        import polars as pl

        unit = self._layout.unit
        if ids.dtype.is_integer():
            whole = ids.cast(pl.Int64, strict=False)
            ids = whole if whole.null_count() == ids.null_count() else ids.cast(pl.String)
        elif ids.dtype in (pl.String, pl.Categorical, pl.Enum):
            ids = ids.cast(pl.String)
            if self._layout.kind != "parquet":  # where blanks cannot be layout
                ids = ids.str.strip_chars()
        elif ids.dtype != pl.Null:
            fail(self._path, None, f"integers or strings as {self._role} ids", f"the column type {ids.dtype}")
        empty = ids.is_null() if ids.dtype != pl.String else (ids.fill_null("").str.strip_chars() == "")
        if empty.any():
            place = lines[int(empty.arg_true()[0])]
            fail(self._path, place, "a user id and an item id that are not empty", f"no {self._role} id", unit)
        self._parts.append(self._as_integers(ids, lines))

    def add_alone(self, ids: pl.Series, lines: pl.Series) -> None:
        """Add ids without an interaction."""
        integers = self._integers
        self._alone.append(self._as_integers(ids, lines))
        self._integers = integers

    def _as_integers(self, ids: pl.Series, lines: pl.Series) -> pl.Series:
        """The ids as int64 if all are integers. Counts the integers."""
        import polars as pl

        integer = ids.is_not_null()
        if ids.dtype != pl.Int64:
            integer = ids.str.contains(_INTEGER)
            if integer.all():
                whole = ids.cast(pl.Int64, strict=False)
                integer = whole.is_not_null()
                ids = whole if integer.all() else ids
        self._integers += int(integer.sum())
        if len(ids) and self._begins_with_integer is None:
            self._begins_with_integer = bool(integer[0])
        if self._odd is None and not integer.all():
            place = int((~integer).arg_true()[0])
            self._odd = (int(lines[place]), str(ids[place]))
        return ids

    def finish(self, lines: np.ndarray) -> Ids:
        """Number the ids that were added.

        Args:
            lines: int64 [P], the line of each interaction.

        Raises:
            ValueError: the same id occurs as an integer and as a decimal, such as 1 and 1.0.
        """
        import polars as pl

        dtype = pl.Int64 if self._odd is None else pl.String
        ids, alone = (
            pl.concat([pl.Series([], dtype=dtype), *(part.cast(dtype) for part in parts)])
            for parts in (self._parts, self._alone)
        )
        self._parts = []
        values = pl.concat([ids, alone]).unique(maintain_order=True)
        if dtype == pl.String:
            whole = values.filter(values.str.contains(_WHOLE_DECIMAL))
            both = whole.filter(whole.str.replace(r"\..*", "").is_in(values.implode()))
            if len(both):
                decimal = both[0]
                found = (ids == decimal).arg_true()
                place = int(lines[int(found[0])]) if len(found) else None  # none: a user without items
                expected = f"{self._role} ids of one form, integers or decimals"
                got = f"both '{decimal.partition('.')[0]}' and '{decimal}'"
                fail(self._path, place, expected, got, self._layout.unit)
        return Ids(places(ids, values), _array(values), self._odd, self._integers, bool(self._begins_with_integer))


def places(ids: Any, values: Any) -> np.ndarray:
    """The position of each id among distinct values: int64, −1 if it is not among them.

    Args:
        ids, values: series or arrays of integers, or of strings.
    """
    import polars as pl

    values = pl.Series("id", values)
    ids = pl.Series("id", ids, dtype=values.dtype)
    table = pl.DataFrame(values).with_columns(place=pl.int_range(len(values)))
    found = pl.DataFrame(ids).join(table, on="id", how="left", maintain_order="left")
    numbers: np.ndarray = found["place"].fill_null(-1).to_numpy(writable=True)
    return numbers


def _array(values: pl.Series) -> np.ndarray:
    array: np.ndarray = values.to_numpy(writable=True)
    return array

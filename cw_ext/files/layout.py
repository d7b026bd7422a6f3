"""Recognise the kind of a file of interactions from its first lines."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Literal

from cw_ext.files import columns, separators, text
from cw_ext.files.errors import fail, shown
from cw_ext.files.options import COLUMN_OPTIONS, ROLES, Reading, option

Kind = Literal["table", "lightgcn", "mind", "json", "parquet"]
_KINDS = {"lightgcn": "LightGCN lists", "mind": "MIND's behaviors.tsv"}
MOVIELENS = "MovieLens ratings"
_SNAP = "SNAP check-ins"

_JSON_HEAD = 1000  # lines whose keys are read
_INTEGER = re.compile(r"\d+")
_INTEGERS = re.compile(r"\d+(\s+\d+)+")
_INTEGER_LIST = re.compile(r"\[?\d+([\s,;|]+\d+)+\]?")
_LIST_WITH_SEPARATOR = re.compile(r"\s*\d+\s*(::|[,;|])\s*(?:\d+(?:\s+\d+)*)?\s*")
_UNIX_TIME = re.compile(r"\d{9,10}")
_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MIND_TIME = re.compile(r"\d{1,2}/\d{1,2}/\d{4} .*")
_IMPRESSIONS = re.compile(r"\S+-[01]( +\S+-[01])* *")


@dataclass(frozen=True)
class Layout:
    """How to read a file.

    Attributes:
        kind: the reader.
        columns: the number of the column of each role.
        names: of the columns; None without a header.
        num_columns: of a table.
        separator: of a table's columns; None for blanks. In LightGCN lists, the separator after the user: " " for
            blanks that the caller asked for, None for blanks that are assumed.
        first_line: the first line of interactions, after comments and the header.
        known_as: the data set whose format it has.
        may_lack_item: whether the format has rows without an item.
        quotes: whether a quote at the start of a field is a quote. With tabs and bars it is one only if the first line
            has one: names such as "Weird Al" Yankovic are not quoted.
    """

    kind: Kind
    columns: dict[str, int] = field(default_factory=dict)
    names: list[str] | None = None
    num_columns: int = 0
    separator: str | None = None
    first_line: int = 1
    known_as: str | None = None
    may_lack_item: bool = False
    quotes: bool = False

    @property
    def unit(self) -> str:
        """The unit in which places in the file are counted."""
        return "row" if self.kind == "parquet" else "line"


def recognise(path: Path, reading: Reading) -> Layout | None:
    """Decide how to read the file. None for an empty file.

    Raises:
        OSError: it cannot be read.
        ValueError: its kind is unknown, or it is not clear which columns to use.
    """
    if text.first_bytes(path, 4) == b"PAR1":
        return _parquet(path, reading)
    whole = text.head(path, reading.encoding)
    head = [(number, line) for number, line in whole if not _is_comment(line)]
    comments = [line for _, line in takewhile(lambda row: _is_comment(row[1]), whole)]
    if not head:
        return None
    # A quoted field in the first line rarely contains the end of a line.
    if "\r" in re.sub(r'"[^"]*"', "", head[0][1]).rstrip():
        fail(path, head[0][0], r"lines that end with \n or \r\n", rf"line ends \r: {shown(head[0][1])}")
    if head[0][1].lstrip()[0] in "{[":
        return _json(path, reading)
    if reading.format == "lightgcn":
        return _lists(path, head, reading)
    return _table(path, head, reading, comments)


def _is_comment(line: str) -> bool:
    return re.match(r"#(\s|$)", line) is not None


def _parquet(path: Path, reading: Reading) -> Layout:
    import polars as pl

    reading.refuse(path, "a parquet file", "encoding", "format", "separator")
    try:
        names = list(pl.read_parquet_schema(path))
    except pl.exceptions.PolarsError as error:
        fail(path, None, "a whole parquet file", str(error).splitlines()[0])
    chosen = columns.choose(path, None, names, len(names), reading)
    return Layout("parquet", chosen, names, len(names))


def _json(path: Path, reading: Reading) -> Layout:
    reading.refuse(path, "JSON lines", "format", "separator")
    keys: dict[str, None] = {}  # a record may lack some
    head = [(number, line) for number, line in text.head(path, reading.encoding, _JSON_HEAD) if not _is_comment(line)]
    for number, line in head:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            fail(path, number, "a JSON object per line", shown(line))
        keys |= dict.fromkeys(record)
    names = list(keys)
    number = head[0][0]
    return Layout(
        "json", columns.choose(path, number, names, len(names), reading), names, len(names), first_line=number
    )


def _lists(path: Path, head: Sequence[tuple[int, str]], reading: Reading) -> Layout:
    reading.refuse(path, _KINDS["lightgcn"], *COLUMN_OPTIONS, "min_rating")
    number = head[0][0]
    if reading.separator is not None:
        separator = separators.given(reading.separator)
        return Layout("lightgcn", first_line=number, separator=" " if separator in (None, "\t") else separator)
    users = [_LIST_WITH_SEPARATOR.fullmatch(line) for _, line in head]
    first = users[0]
    if first and all(user and user[1] == first[1] for user in users):
        return Layout("lightgcn", first_line=number, separator=first[1])
    return Layout("lightgcn", first_line=number)


def _table(path: Path, head: Sequence[tuple[int, str]], reading: Reading, comments: Sequence[str]) -> Layout:
    number, line = head[0]
    separator = separators.choose(path, head[:20], reading)
    quotes = separator in (",", ";") or (separator != "::" and separators.starts_quoted(line, separator))
    first, *rows = [separators.fields_or_line(line, separator, quotes) for _, line in head]
    if len(first) < 2:
        if separator is None and _holds_lists(path, number, reading):  # the first user has no items
            return _lists(path, head, reading)
        usual = "a tab, a comma, a semicolon, a bar, '::' or blanks"
        by = usual if reading.separator is None else separators.name_of(separator)
        fail(path, number, f"a user and an item, separated by {by}", shown(line))
    names = columns.header_names(first, rows, reading)
    first_line = number if names is None else number + 1
    if names is None and comments and _known_form([first, *rows], separator)[0] is None:
        names = columns.commented_names(comments, separator, len(first))
    if names is not None:
        chosen = columns.choose(path, number, names, len(names), reading)
        if reading.item_column is None:
            _check_no_lists(path, head[1:], rows, chosen["item"])
        return Layout("table", chosen, names, len(names), separator, first_line, quotes=quotes)
    rows = [first, *rows]
    if separator == "\t" and _are_behaviors(rows):
        reading.refuse(path, _KINDS["mind"], *COLUMN_OPTIONS, "min_rating", "format")
        return Layout("mind", num_columns=5, separator=separator, first_line=number, known_as=_KINDS["mind"])
    if len(first) == 2 and reading.format is None:
        _check_single_ids(path, head, rows, reading)
    given = {role for role in ROLES if reading.column(role) is not None}
    known_as, preset = (None, {}) if given >= {"user", "item"} else _known_form(rows, separator)
    if not given >= {"user", "item"} and not preset:
        if separator is None and _holds_lists(path, number, reading):
            return _lists(path, head, reading)
        if len(first) == 2:
            preset = {"user": 0, "item": 1}
    chosen = dict(preset)
    if given or not preset:
        filled = {f"{role}_column": index for role, index in preset.items() if role not in given}
        own = {f"{role}_column": reading.column(role) for role in given}
        by = separators.name_of(separator)
        chosen = columns.choose(path, number, None, len(first), Reading(**(filled | own)), by)  # type: ignore[arg-type]
    return Layout("table", chosen, None, len(first), separator, number, known_as, known_as == _SNAP, quotes)


def _are_behaviors(rows: Sequence[Sequence[str]]) -> bool:
    """Impression, user, time, history, impressions."""
    return all(len(row) == 5 and _MIND_TIME.fullmatch(row[2]) and _IMPRESSIONS.fullmatch(row[4]) for row in rows)


def _known_form(rows: Sequence[Sequence[str]], separator: str | None) -> tuple[str | None, dict[str, int]]:
    """The data set whose format a table without a header certainly has, and its columns."""

    def all_match(index: int, pattern: re.Pattern[str]) -> bool:
        return all(pattern.fullmatch(row[index].strip()) for row in rows)

    def all_within(index: int, low: float, high: float) -> bool:
        return all(columns.is_number(row[index]) and low <= float(row[index]) <= high for row in rows)

    widths = {len(row) for row in rows}
    if widths == {4} and all_match(3, _INTEGER):
        ratings = {"user": 0, "item": 1, "rating": 2}
        if separator == "::" and all_within(2, 0, 5):
            return MOVIELENS, ratings
        whole = all(all_match(index, _INTEGER) for index in range(3)) and all_within(2, 1, 5)
        if separator == "\t" and whole and all_match(3, _UNIX_TIME):
            return MOVIELENS, ratings
    # Unknown places are left empty.
    if separator == "\t" and widths == {5} and all_match(1, _ISO_TIME):
        if all_within(2, -90, 90) and all_within(3, -180, 180):
            return _SNAP, {"user": 0, "item": 4}
    return None, {}


def _check_no_lists(path: Path, head: Sequence[tuple[int, str]], rows: Sequence[Sequence[str]], column: int) -> None:
    """Refuse a column of items in which all lines have integers, and some have several."""
    items = [row[column].strip() if column < len(row) else "" for row in rows]
    several = [place for place, item in enumerate(items) if _INTEGER_LIST.fullmatch(item)]
    if several and all(_INTEGER_LIST.fullmatch(item) or _INTEGER.fullmatch(item) for item in items):
        fail(path, head[several[0]][0], "one item per line, not a list of them", shown(items[several[0]]))


def _check_single_ids(
    path: Path, head: Sequence[tuple[int, str]], rows: Sequence[Sequence[str]], reading: Reading
) -> None:
    """Refuse several integers as one id in a table of two columns."""
    for (number, _), (user, *items) in zip(head, rows, strict=True):
        if len(items) == 1 and _INTEGERS.fullmatch(items[0].strip()):
            expected = f"one item per line; for a user's list of items give {option('format')} lightgcn"
            fail(path, number, expected, shown(items[0].strip()))
        if reading.separator is None and len(items) == 1 and _INTEGERS.fullmatch(user.strip()):
            expected = f"one user per line; for columns separated by blanks give {option('separator')} blanks"
            fail(path, number, expected, shown(user))


def _holds_lists(path: Path, number: int, reading: Reading) -> bool:
    """Whether lines separated by blanks are lists of a user and its items, and not a table.

    They are lists if all lines have only integers, no two begin with the same user, and their lengths differ.

    Raises:
        ValueError: they could be either.
    """
    import polars as pl

    if reading.format == "table":
        return False
    users: list[pl.Series] = []
    widths: set[int] = set()
    for block in text.lines(path, reading.encoding):
        lines = block.filter(pl.col("number") >= number)["text"]
        if not lines.str.contains(r"^\s*\d+(\s+\d+)*\s*$").all():
            return False
        users.append(lines.str.extract(r"^\s*(\d+)"))
        if users[-1].is_duplicated().any():
            return False
        widths.update(lines.str.count_matches(r"\d+").unique())
    if widths in ({1}, {2}) or pl.concat(users).is_duplicated().any():
        return False
    if len(widths) == 1 or widths == {1, 2}:
        got = f"{min(widths)} to {max(widths)} integers per line, which could be either"
        fail(path, None, f"a table or LightGCN lists; choose with {option('format')} table or lightgcn", got)
    return True

"""What kind of file of interactions it is, from its first lines."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cw_ext.files import columns, text
from cw_ext.files.errors import fail, shown
from cw_ext.files.options import COLUMN_OPTIONS, ROLES, Reading, option

SEPARATORS: dict[str | None, str] = {
    "::": "'::'",
    "\t": "tabs",
    ";": "semicolons",
    ",": "commas",
    "|": "bars",
    None: "blanks",
}
Kind = Literal["table", "lightgcn", "mind", "json", "parquet"]
_KINDS = {"lightgcn": "LightGCN lists", "mind": "MIND's behaviors.tsv"}
MOVIELENS = "MovieLens ratings"
_SNAP = "SNAP check-ins"

_JSON_HEAD = 1000  # lines whose keys are looked at
_INTEGER = re.compile(r"\d+")
_UNIX_TIME = re.compile(r"\d{9,10}")
_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MIND_TIME = re.compile(r"\d{1,2}/\d{1,2}/\d{4} .*")
_IMPRESSIONS = re.compile(r"\S+-[01]( +\S+-[01])* *")


@dataclass(frozen=True)
class Layout:
    """How a file is to be read.

    Attributes:
        kind: which reader it takes.
        columns: the number of the column of each role.
        names: those of the columns; None without a header.
        num_columns: of a table.
        separator: of a table's columns; None for blanks.
        first_line: where the interactions begin, past comments and the header.
        known_as: the data set whose own form it has.
        may_lack_item: whether rows without an item are part of the form.
        quotes: whether a quote at the beginning of a field means something. Between tabs and bars it does only if the
            first line has one: names such as "Weird Al" Yankovic stand there as they are.
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
        """What a place in the file is counted in."""
        return "row" if self.kind == "parquet" else "line"


def recognise(path: Path, reading: Reading) -> Layout | None:
    """Tell how the file is to be read; None for an empty one.

    Raises:
        OSError: it cannot be read.
        ValueError: it is of no known kind, or does not tell which columns to take.
    """
    if text.first_bytes(path, 4) == b"PAR1":
        return _parquet(path, reading)
    head = [(number, line) for number, line in text.head(path, reading.encoding) if not _is_comment(line)]
    if not head:
        return None
    if head[0][1].lstrip()[0] in "{[":
        return _json(path, reading)
    if reading.format == "lightgcn":
        return _lists(path, head[0][0], reading)
    return _table(path, head, reading)


def _is_comment(line: str) -> bool:
    return re.match(r"#(\s|$)", line) is not None


def fields(line: str, separator: str | None, quotes: bool) -> list[str]:
    """The fields of one line of a table."""
    if separator is None or not quotes or not starts_quoted(line, separator):
        return line.split(separator)
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True))


def starts_quoted(line: str, separator: str | None) -> bool:
    """Whether a field begins with a quote, as only there quotes mean something."""
    return separator is not None and re.search(quote_pattern(separator), line) is not None


def quote_pattern(separator: str) -> str:
    """A regular expression for a field that begins with a quote."""
    return rf'(?:^|{re.escape(separator)}) *"'


def _parquet(path: Path, reading: Reading) -> Layout:
    import polars as pl

    reading.refuse(path, "a parquet file", "encoding", "format")
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
    return Layout("json", columns.choose(path, head[0][0], names, len(names), reading), names, len(names))


def _lists(path: Path, number: int, reading: Reading) -> Layout:
    reading.refuse(path, _KINDS["lightgcn"], *COLUMN_OPTIONS, "min_rating")
    return Layout("lightgcn", first_line=number)


def _table(path: Path, head: Sequence[tuple[int, str]], reading: Reading) -> Layout:
    number, line = head[0]
    separator = _separator([line for _, line in head[:20]])
    quotes = separator in (",", ";") or (separator in ("\t", "|") and starts_quoted(line, separator))
    first, *rows = [fields(line, separator, quotes) for _, line in head]
    if len(first) < 2:
        if _holds_lists(path, number, reading):  # the first user has no items
            return _lists(path, number, reading)
        expected = "a user and an item, separated by a tab, a comma, a semicolon, a bar, '::' or blanks"
        fail(path, number, expected, shown(line))
    names = columns.header_names(first, rows, reading)
    if names is not None:
        chosen = columns.choose(path, number, names, len(names), reading)
        return Layout("table", chosen, names, len(names), separator, number + 1, quotes=quotes)
    rows = [first, *rows]
    if separator == "\t" and _are_behaviors(rows):
        reading.refuse(path, _KINDS["mind"], *COLUMN_OPTIONS, "min_rating", "format")
        return Layout("mind", num_columns=5, separator=separator, first_line=number, known_as=_KINDS["mind"])
    given = {role for role in ROLES if reading.column(role) is not None}
    known_as, preset = (None, {}) if given >= {"user", "item"} else _known_form(rows, separator)
    if not given >= {"user", "item"} and not preset:
        if separator is None and _holds_lists(path, number, reading):
            return _lists(path, number, reading)
        if len(first) == 2:
            _check_single_item(path, number, first)
            preset = {"user": 0, "item": 1}
    chosen = dict(preset)
    if given or not preset:
        filled = {f"{role}_column": index for role, index in preset.items() if role not in given}
        own = {f"{role}_column": reading.column(role) for role in given}
        chosen = columns.choose(path, number, None, len(first), Reading(**(filled | own)))  # type: ignore[arg-type]
    return Layout("table", chosen, None, len(first), separator, number, known_as, known_as == _SNAP, quotes)


def _separator(lines: Sequence[str]) -> str | None:
    """The first in SEPARATORS by which all lines have as many fields, else the first that divides the first line.

    Blanks separate only where nothing else does.
    """

    def count(line: str, separator: str) -> int:
        return len(fields(line, separator, quotes=separator != "::"))

    dividing = [separator for separator in SEPARATORS if separator and count(lines[0], separator) > 1]
    for separator in dividing:
        if len({count(line, separator) for line in lines}) == 1:
            return separator
    return dividing[0] if dividing else None


def _are_behaviors(rows: Sequence[Sequence[str]]) -> bool:
    """Impression, user, time, history, impressions."""
    return all(len(row) == 5 and _MIND_TIME.fullmatch(row[2]) and _IMPRESSIONS.fullmatch(row[4]) for row in rows)


def _known_form(rows: Sequence[Sequence[str]], separator: str | None) -> tuple[str | None, dict[str, int]]:
    """The data set whose form a table without header has for certain, and its columns."""

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
    # Some places are unknown: nothing stands there.
    if separator == "\t" and widths == {5} and all_match(1, _ISO_TIME):
        if all_within(2, -90, 90) and all_within(3, -180, 180):
            return _SNAP, {"user": 0, "item": 4}
    return None, {}


def _check_single_item(path: Path, number: int, first: Sequence[str]) -> None:
    if re.fullmatch(r"\d+( +\d+)+", first[1].strip()):
        fail(
            path,
            number,
            f"one item per line; for a user's list of items give {option('format')} lightgcn",
            shown(first[1]),
        )


def _holds_lists(path: Path, number: int, reading: Reading) -> bool:
    """Whether lines separated by blanks are lists of a user and all of its items, and not a table.

    They are if all hold integers, no two begin with the same user, and their lengths differ.

    Raises:
        ValueError: they may be both.
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
        got = f"{min(widths)} to {max(widths)} integers per line, which may be both"
        fail(path, None, f"a table or LightGCN lists, told by {option('format')} table or lightgcn", got)
    return True

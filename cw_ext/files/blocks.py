"""The raw interactions of a file, one block at a time, for every kind of file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from cw_ext.files import text
from cw_ext.files.errors import fail, shown
from cw_ext.files.layout import Layout
from cw_ext.files.options import option
from cw_ext.files.separators import long_fields, name_of, quote_pattern

if TYPE_CHECKING:
    import polars as pl

# It occurs in no text, so it can replace separators that are longer than one character.
_UNIT_SEPARATOR = "\x1f"
_QUOTED_ROWS = 200_000


def blocks(path: Path, layout: Layout, encoding: str | None) -> Iterator[pl.DataFrame]:
    """The rows of the file, in order.

    Yields:
        Frames with the column "line" (the number of the line or row, from 1) and a column for each role in
        layout.columns, as strings (for parquet, with their own types). In LightGCN lists, the item of a user without
        items is null.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line does not fit the layout.
    """
    readers: dict[str, Callable[[Path, Layout, str | None], Iterator[pl.DataFrame]]] = {
        "table": _table,
        "lightgcn": _lists,
        "mind": _behaviors,
        "json": _json,
        "parquet": _parquet,
    }
    return readers[layout.kind](path, layout, encoding)


def _lines(path: Path, layout: Layout, encoding: str | None) -> Iterator[pl.DataFrame]:
    import polars as pl

    for block in text.lines(path, encoding):
        block = block.filter(pl.col("number") >= layout.first_line)
        if block.height:
            yield block


def _table(path: Path, layout: Layout, encoding: str | None) -> Iterator[pl.DataFrame]:
    remaining = _lines(path, layout, encoding)
    for block in remaining:
        if layout.quotes:
            quotes = block["text"].str.contains('"', literal=True)
            if quotes.any() and block["text"].filter(quotes).str.contains(quote_pattern(str(layout.separator))).any():
                # A quoted field may continue after the end of the line, and of the block.
                yield from _quoted(path, layout, chain([block], remaining))
                return
        yield _split(path, layout, block).rename({str(index): role for role, index in layout.columns.items()})


def _split(path: Path, layout: Layout, block: pl.DataFrame) -> pl.DataFrame:
    """The wanted columns, by number, of lines without quotes."""
    import polars as pl

    lines, separator = block["text"], layout.separator
    if separator is None:
        lines = lines.str.strip_chars().str.replace_all(r"\s+", _UNIT_SEPARATOR)
    elif len(separator) > 1:
        lines = lines.str.replace_all(separator, _UNIT_SEPARATOR, literal=True)
    if separator is None or len(separator) > 1:
        separator = _UNIT_SEPARATOR
    # polars itself silently accepts a line with too few fields.
    wrong = lines.str.count_matches(separator, literal=True) != layout.num_columns - 1
    if wrong.any():
        number, line = block.row(wrong.arg_true()[0])
        _fail_width(path, layout, number, lines[int(wrong.arg_true()[0])].count(separator) + 1, line)
    # The first line is not an interaction. It prevents polars from reading the text as compressed, as for "x^".
    before = separator * (layout.num_columns - 1) + "\n"
    table = pl.read_csv(
        (before + lines.str.join("\n").item()).encode(),
        has_header=False,
        separator=separator,
        quote_char=None,
        schema={str(index): pl.String for index in range(layout.num_columns)},
        columns=sorted(layout.columns.values()),
    )
    return table[1:].with_columns(line=block["number"])


def _quoted(path: Path, layout: Layout, remaining: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same for lines with quotes, for which polars does not follow the rules of RFC 4180."""
    import polars as pl

    number = 0

    def feed() -> Iterator[str]:
        nonlocal number
        for block in remaining:
            for number, line in block.iter_rows():  # noqa: B007
                yield line + "\n"

    wanted = [*layout.columns.items()]
    rows = csv.reader(feed(), delimiter=str(layout.separator), skipinitialspace=True, strict=True)
    columns: dict[str, list[str | int]] = {"line": [0]}
    while columns["line"]:
        columns = {role: [] for role in ("line", *layout.columns)}
        try:
            with long_fields():
                for row in islice(rows, _QUOTED_ROWS):
                    if len(row) != layout.num_columns:
                        _fail_width(path, layout, number, len(row), str(layout.separator).join(row))
                    columns["line"].append(number)
                    for role, index in wanted:
                        columns[role].append(row[index])
        except csv.Error as error:
            fail(path, number, f"fields separated by {name_of(layout.separator)}, quoted or not", str(error))
        if columns["line"]:
            yield pl.DataFrame(columns)


def _fail_width(path: Path, layout: Layout, number: int, width: int, line: str) -> None:
    separated = f"separated by {name_of(layout.separator)}, as in the first line"
    fail(path, number, f"{layout.num_columns} columns {separated} (this line has {width})", shown(line))


def _lists(path: Path, layout: Layout, encoding: str | None) -> Iterator[pl.DataFrame]:
    import polars as pl

    for block in _lines(path, layout, encoding):
        lines = block["text"] if layout.separator in (None, " ") else _first_separated(path, layout, block)
        wrong = lines.str.contains(r"[,;|]|::")
        if layout.separator is None and wrong.any():
            number, line = block.row(wrong.arg_true()[0])
            expected = f"a user and its items, separated by blanks; if they are so, give {option('separator')} blanks"
            fail(path, number, expected, shown(line))
        words = lines.str.strip_chars().str.replace_all(r"\s+", " ").str.split(" ")
        lists = pl.DataFrame({"line": block["number"], "user": words.list.first(), "item": words.list.slice(1)})
        empty = pl.col("item").list.len() == 0
        yield lists.filter(~empty).explode("item")
        yield lists.filter(empty).with_columns(item=pl.lit(None, pl.String))


def _first_separated(path: Path, layout: Layout, block: pl.DataFrame) -> pl.Series:
    """The lines with a blank instead of the separator between a user and its items."""
    separator = str(layout.separator)
    wrong = block["text"].str.count_matches(separator, literal=True) != 1
    if wrong.any():
        number, line = block.row(wrong.arg_true()[0])
        fail(path, number, f"a user, {separator!r} and its items, separated by blanks", shown(line))
    return block["text"].str.replace(separator, " ", literal=True)


def _behaviors(path: Path, layout: Layout, encoding: str | None) -> Iterator[pl.DataFrame]:
    """The clicks of each user's history, and the impressions with their labels.

    A history that is repeated with the user's next impression counts once.
    """
    import polars as pl

    seen = pl.Series([], dtype=pl.UInt64)

    fields = Layout("table", {"user": 1, "history": 3, "shown": 4}, None, 5, "\t", layout.first_line)
    for block in _lines(path, fields, encoding):
        table = _split(path, fields, block).rename({str(index): name for name, index in fields.columns.items()})

        histories = table.select(pl.struct("user", "history").hash()).to_series()
        new = histories.is_first_distinct() & ~histories.is_in(seen.implode())
        seen = pl.concat([seen, histories.filter(new)])
        yield _words(table.filter(new), "history").with_columns(label=pl.lit("1"))
        impressions = _words(table, "shown")
        parts = impressions["item"].str.extract_groups(r"^(?<item>.+)-(?<label>[01])$").struct.unnest()
        wrong = parts["item"].is_null()
        if wrong.any():
            line, _, impression = impressions.row(wrong.arg_true()[0])
            fail(path, line, "impressions with a label, such as N1-0 or N2-1", shown(impression))
        yield impressions.with_columns(parts)


def _words(table: pl.DataFrame, column: str) -> pl.DataFrame:
    """One row per word of the column. The word becomes the item."""
    import polars as pl

    words = pl.col(column).fill_null("").str.strip_chars().str.split(" ")
    return table.select("line", "user", item=words).explode("item").filter(pl.col("item") != "")


def _json(path: Path, layout: Layout, encoding: str | None) -> Iterator[pl.DataFrame]:
    import polars as pl

    assert layout.names is not None
    names = {role: layout.names[index] for role, index in layout.columns.items()}
    schema = {name: pl.String for name in names.values()}
    for block in _lines(path, layout, encoding):
        try:
            table = pl.read_ndjson(io.BytesIO(block["text"].str.join("\n").item().encode()), schema=schema)
        except pl.exceptions.PolarsError as error:
            table, reason = None, str(error).splitlines()[0]
        if table is None or table.height != block.height:
            for number, line in block.iter_rows():
                if not _is_object(line):
                    fail(path, number, "a JSON object per line", shown(line))
            fail(path, None, f"strings or numbers in {' and '.join(schema)}", reason)
        for role in ("user", "item"):
            _check_json_ids(path, block, table[names[role]], role)
        yield table.select(**{role: pl.col(name) for role, name in names.items()}).with_columns(line=block["number"])


def _check_json_ids(path: Path, block: pl.DataFrame, ids: pl.Series, role: str) -> None:
    """Refuse objects, lists and booleans, which polars converts to text. Only what looks like one is parsed again."""
    for place in ids.str.contains(r"^\s*[\[{]|^(true|false)$").fill_null(value=False).arg_true():
        number, line = block.row(place)
        value = json.loads(line)[ids.name]
        if isinstance(value, (dict, list, bool)):
            fail(path, number, f"a string or a number as {role} id", shown(json.dumps(value)))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _parquet(path: Path, layout: Layout, encoding: str | None) -> Iterator[pl.DataFrame]:
    import polars as pl

    assert layout.names is not None
    names = {role: layout.names[index] for role, index in layout.columns.items()}
    try:
        table = pl.read_parquet(path, columns=[*names.values()])
    except pl.exceptions.PolarsError as error:
        fail(path, None, "a whole parquet file", str(error).splitlines()[0])
    table = table.select(**{role: pl.col(name) for role, name in names.items()})
    yield table.with_columns(line=pl.int_range(1, table.height + 1))

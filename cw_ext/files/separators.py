"""The separator of the columns of a text, and the fields of its lines."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cw_ext.files import columns
from cw_ext.files.errors import fail
from cw_ext.files.options import Reading, option

NAMES: dict[str | None, str] = {
    "::": "'::'",
    "\t": "tabs",
    ";": "semicolons",
    ",": "commas",
    "|": "bars",
    None: "blanks",
}
_WORDS = {"tab": "\t", "blanks": None, " ": None}


def given(word: str) -> str | None:
    """The separator that the argument `separator` means; None for blanks."""
    return _WORDS.get(word, word)


def choose(path: Path, head: Sequence[tuple[int, str]], reading: Reading) -> str | None:
    """The separator of a table.

    The given one, if any. Otherwise a separator that gives all lines the same number of fields. Among several of these,
    in this order: a tab or '::'; one that makes the first line a header with known names; one that leaves no other
    separator in the users and items; the one with the most fields. If no separator gives all lines the same number of
    fields, one that divides the first line. Blanks are chosen only if there is no other separator, or if only blanks
    leave no other separator in the users and items.

    Raises:
        ValueError: two separators are equally likely.
    """
    if reading.separator is not None:
        return given(reading.separator)
    number, lines = head[0][0], [line for _, line in head]

    def widths(separator: str) -> list[int]:
        return [len(fields_or_line(line, separator, quotes=separator != "::")) for line in lines]

    found = {separator: widths(separator) for separator in NAMES if separator}
    found = {separator: counts for separator, counts in found.items() if counts[0] > 1}
    equal = {separator: counts for separator, counts in found.items() if len({*counts}) == 1}
    found = equal or found
    if not found:
        return None
    for separator in ("::", "\t"):  # these are rarely part of an id
        if separator in equal:
            return separator
    known = [
        separator
        for separator in found
        if columns.header_names(fields_or_line(lines[0], separator, quotes=separator != "::"), [], reading)
    ]
    if not known and equal:
        clean = _that_leave_no_other(lines, equal, reading)
        if len(clean) == 1:
            return clean[0]
    most = max(found[separator][0] for separator in known or found)
    best = [separator for separator in known or found if found[separator][0] == most]
    if len(best) > 1:
        expected = f"columns separated in one way; choose it with {option('separator')}"
        fail(path, number, expected, f"{most} columns by {' or '.join(map(name_of, best))}")
    return best[0]


def _that_leave_no_other(lines: Sequence[str], equal: dict[str, list[int]], reading: Reading) -> list[str | None]:
    """The possible separators that leave no other possible separator in the users and items."""
    by_blanks = {len(line.split()) for line in lines}
    candidates: list[str | None] = [*equal]
    if len(by_blanks) == 1 and by_blanks != {1}:
        candidates.append(None)
    places = [reading.column(role) for role in ("user", "item")]
    ids = [place if isinstance(place, int) else index for index, place in enumerate(places)]

    def is_clean(separator: str | None) -> bool:
        rows = [fields_or_line(line, separator, quotes=True) for line in lines]
        others = [other for other in candidates if other != separator]
        return all(
            max(ids) < len(row) and not any(_holds(row[index].strip(), other) for index in ids for other in others)
            for row in rows
        )

    return [separator for separator in candidates if is_clean(separator)]


def _holds(field: str, separator: str | None) -> bool:
    return len(field.split()) > 1 if separator is None else separator in field


def name_of(separator: str | None) -> str:
    """A separator in messages."""
    return NAMES.get(separator) or repr(separator)


@contextmanager
def long_fields() -> Iterator[None]:
    """Let csv read fields of any length. By default it refuses more than 131,072 characters."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _fields(line: str, separator: str | None, quotes: bool) -> list[str]:
    """The fields of one line of a table. Raises csv.Error if the quotes are incomplete."""
    if separator is None or not quotes or not starts_quoted(line, separator):
        return line.split(separator)
    with long_fields():
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True))


def fields_or_line(line: str, separator: str | None, quotes: bool) -> list[str]:
    """The fields, or the whole line as one field, as it may be a part of a field that spans several lines."""
    try:
        return _fields(line, separator, quotes)
    except csv.Error:
        return [line]


def starts_quoted(line: str, separator: str | None) -> bool:
    """Whether a field begins with a quote. Quotes have no meaning anywhere else."""
    return separator is not None and re.search(quote_pattern(separator), line) is not None


def quote_pattern(separator: str) -> str:
    """A regular expression for a field that begins with a quote."""
    return rf'(?:^|{re.escape(separator)}) *"'

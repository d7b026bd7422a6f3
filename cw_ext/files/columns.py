"""Which column of a table holds users, items and so on, by the names that public data sets use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from cw_ext.files.errors import fail, shown
from cw_ext.files.options import ROLES, Reading, option


def _with_ids(*nouns: str) -> set[str]:
    return {form for noun in nouns for form in (noun, f"{noun}s", f"{noun}id", f"{noun}ids")}


# In lower case, without punctuation. Names of an earlier set are preferred. Two names of one set are ambiguous.
_NAMES: dict[str, tuple[set[str], ...]] = {
    "user": (
        _with_ids("user") | {"uid", "userprocid", "useridx", "userindex", "userno"},
        _with_ids("customer", "client", "reviewer", "visitor", "member", "account", "buyer", "reader", "listener")
        | _with_ids("person", "query"),
        _with_ids("session", "playlist"),
    ),
    "item": (
        _with_ids("item") | {"iid", "itemprocid", "itemidx", "itemindex", "itemno"},
        {"parentasin"},  # the product's id; asin is the id of its variant
        _with_ids("product", "sku", "article", "movie", "film", "business", "track", "song", "artist", "book", "news")
        | _with_ids("place", "poi", "location", "venue", "video", "game", "recipe", "listing", "restaurant", "beer")
        | _with_ids("anime", "app", "goods", "hotel", "photo", "document", "content")
        | {"asin", "isbn", "stockcode", "productcode"},
    ),
    "rating": (_with_ids("rating", "star", "score") | {"overall", "bookrating", "starrating"},),
    "label": ({"label", "click", "clicked", "isclick", "isclicked", "like", "liked", "islike"},),
    "split": ({"split"},),
}
_RECBOLE_TYPES = {"token", "token_seq", "float", "float_seq"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def is_number(text: str) -> bool:
    """Whether a field of a table is a number."""
    return _NUMBER.fullmatch(text.strip()) is not None


def header_names(first: Sequence[str], rows: Sequence[Sequence[str]], reading: Reading) -> list[str] | None:
    """The names of the columns if the first line is a header, else None.

    It is a header if one of these holds:

    - it is typed (`user_id:token`);
    - it has a common name for users, or a name that the caller gave;
    - it has a common name for items, in the column that the caller gave by number;
    - the columns of users and items that the caller gave have numbers in all lines, but not in the first;
    - the caller gave no column by number, the first line has no number, and some column below it has only numbers, or
      only ids with digits.

    Args:
        first: the fields of the first line.
        rows: the fields of some lines below it.
        reading: may give columns.
    """
    names = [field.strip() for field in first]
    if all(name.rpartition(":")[2] in _RECBOLE_TYPES and ":" in name for name in names):
        return [name.rpartition(":")[0] for name in names]
    if any(_is_known(name, "user") for name in names):
        return names
    if any(isinstance(reading.column(role), str) and _find(names, str(reading.column(role))) for role in ROLES):
        return names
    rows = [row for row in rows if len(row) == len(names)]
    if any(isinstance(reading.column(role), int) for role in ROLES):
        user, item = reading.column("user"), reading.column("item")
        if isinstance(item, int) and item < len(names) and _is_known(names[item], "item"):
            return names
        ids = [index for index in (user, item) if isinstance(index, int) and index < len(names)]
        words = rows and not any(is_number(names[index]) for index in ids)
        return names if words and all(is_number(row[index]) for row in rows for index in ids) else None
    if not rows or any(map(is_number, names)):
        return None
    columns = [[row[index] for row in rows] for index in range(len(names))]
    numeric = any(all(map(is_number, column)) for column in columns)
    worded = not any(map(_has_digit, names)) and any(all(map(_has_digit, column)) for column in columns)
    return names if numeric or worded else None


def commented_names(comments: Sequence[str], separator: str | None, num_columns: int) -> list[str] | None:
    """The names of the columns if a comment above the table is a header with common names of users and items.

    A comment can also be a sentence or a count, such as `# 943 users 1682 items`. So the names must be of ids, such as
    `user_id`. Plain `user` and `item` count only if they are separated like the columns, and not by blanks.

    Args:
        comments: the lines. The last one that is a header counts.
        separator: of the columns below; None for blanks.
        num_columns: the number of columns.
    """

    def is_header(names: Sequence[str], role: str, by: str | None) -> bool:
        known = [_normalised(name) for name in names if _is_known(name, role)]
        return any(name.endswith(("id", "ids")) or (by is not None and name == role) for name in known)

    for comment in reversed(comments):
        content = comment.lstrip("#").strip()
        for by in (separator, None):
            names = [field.strip() for field in content.split(by)]
            if len(names) == num_columns and is_header(names, "user", by) and is_header(names, "item", by):
                return names
    return None


def choose(
    path: Path, line: int | None, names: Sequence[str] | None, num_columns: int, reading: Reading, by: str = ""
) -> dict[str, int]:
    """The number of the column of each role that the table has, at least "user" and "item".

    Args:
        path, line: where the header is, for messages.
        names: of the columns; None without a header.
        num_columns: the number of columns.
        reading: columns given here take precedence over those with common names.
        by: the separator of the columns, for messages.

    Raises:
        ValueError: a given column does not exist, or the column of users or items cannot be found.
    """
    chosen = {}
    for role in ROLES:
        given = reading.column(role)
        if given is not None:
            chosen[role] = _given(path, line, names, num_columns, role, given)
        elif names is not None:
            found = _by_name(path, line, names, role)
            if found is not None:
                chosen[role] = found
    for role in ("user", "item"):
        if role not in chosen:
            _ask(path, line, names, num_columns, role, by)
    taken: dict[int, str] = {}
    for role, index in chosen.items():
        if index in taken:
            fail(path, line, f"different columns for {taken[index]} and {role}", _label(names, index))
        taken[index] = role
    return chosen


def _label(names: Sequence[str] | None, index: int) -> str:
    return f"column {index}" if names is None else shown(names[index])


def describe(names: Sequence[str] | None, index: int) -> str:
    """A column in a summary: its name, or its number."""
    return str(index) if names is None else names[index]


def _given(
    path: Path, line: int | None, names: Sequence[str] | None, num_columns: int, role: str, given: str | int
) -> int:
    name = option(f"{role}_column")
    if isinstance(given, str):
        if names is None:
            fail(path, line, f"a header with the column {given!r} of {name}", "a table without header")
        found = _find(names, given)
        if len(found) != 1:
            fail(path, line, f"one column {given!r} for {name}", f"columns {_listed(names)}")
        return found[0]
    if given >= num_columns:
        fail(path, line, f"a column with the number {given} (from 0) for {name}", f"{num_columns} columns")
    return given


def _find(names: Sequence[str], wanted: str) -> list[int]:
    exact = [index for index, name in enumerate(names) if name == wanted]
    # As in the header, type included.
    bare = wanted.rpartition(":")[0] if wanted.rpartition(":")[2] in _RECBOLE_TYPES else wanted
    return exact or [index for index, name in enumerate(names) if name.lower() == bare.lower()]


def _normalised(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _is_known(name: str, role: str) -> bool:
    return any(_normalised(name) in tier for tier in _NAMES[role])


def _by_name(path: Path, line: int | None, names: Sequence[str], role: str) -> int | None:
    for tier in _NAMES[role]:
        found = [index for index, name in enumerate(names) if _normalised(name) in tier]
        if len(found) > 1:
            candidates = " and ".join(names[index] for index in found)
            fail(path, line, f"one column of {role}s; choose it with {option(f'{role}_column')}", candidates)
        if found:
            return found[0]
    return None


def _ask(path: Path, line: int | None, names: Sequence[str] | None, num_columns: int, role: str, by: str) -> None:
    if names is not None:
        expected = f"a column of {role}s with a common name such as {role}_id; otherwise give its name as "
        fail(path, line, expected + option(f"{role}_column"), f"columns {_listed(names)}")
    fail(
        path,
        line,
        "a header, or two columns, or the numbers of the columns (from 0) as "
        f"{option('user_column')} and {option('item_column')}",
        f"{num_columns} columns{f' by {by}' if by else ''} without a header",
    )


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(names)
    return listed if len(listed) <= 300 else listed[:297] + "..."


def _has_digit(text: str) -> bool:
    return any(map(str.isdecimal, text))

"""What a caller can specify about a file of interactions."""

from __future__ import annotations

import codecs
import math
import string
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Literal, get_args

from cw_ext.files.errors import shown

Format = Literal["table", "lightgcn"]
FORMATS: tuple[str, ...] = get_args(Format)
ROLES = ("user", "item", "rating", "label", "split")


@dataclass(frozen=True)
class Reading:
    """How to read a file of interactions. None decides by the content of the file.

    Attributes:
        user_column, item_column, rating_column, label_column, split_column: the name of a column in the header, or its
            number from 0 (for a table without a header).
        separator: between the columns of a text: a character, "::", "tab", or "blanks" for any number of blanks. In
            LightGCN lists, only between a user and its items; with "blanks", ids may contain other separators.
        format: "table", or "lightgcn" for lines with a user and all of its items, separated by blanks.
        encoding: of a text file. None means UTF-8.
        min_rating: ratings below it are not positives. None keeps every rating.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
    """

    user_column: str | int | None = None
    item_column: str | int | None = None
    rating_column: str | int | None = None
    label_column: str | int | None = None
    split_column: str | int | None = None
    format: Format | None = None
    encoding: str | None = None
    min_rating: float | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        for role in ROLES:
            column = self.column(role)
            if isinstance(column, bool) or not isinstance(column, (str, int, type(None))):
                raise TypeError(f"{role}_column must be a column's name or number, got {type(column).__name__}")
            if isinstance(column, int) and column < 0:
                raise ValueError(f"{role}_column must be a column's name or a number from 0, got {column}")
        if self.format is not None and not (isinstance(self.format, str) and self.format in FORMATS):
            raise ValueError(f"format must be one of {', '.join(map(repr, FORMATS))}, got {self.format!r}")
        if self.encoding is not None:
            _check_encoding(self.encoding)
        if self.separator is not None:
            _check_separator(self.separator)
        if self.min_rating is not None:
            if isinstance(self.min_rating, bool) or not isinstance(self.min_rating, Real):
                raise TypeError(f"min_rating must be a number, got {type(self.min_rating).__name__}")
            if not math.isfinite(self.min_rating):
                raise ValueError(f"min_rating must be a finite number, got {self.min_rating}")

    def column(self, role: str) -> str | int | None:
        """The column that was given for the role, one of ROLES."""
        column: str | int | None = getattr(self, f"{role}_column")
        return column

    def refuse(self, path: Path, kind: str, *names: str) -> None:
        """Raise an error if one of these switches is given. They have no effect on this kind of file.

        Raises:
            ValueError: one is given. The message names it.
        """
        for field in fields(self):
            if field.name in names and getattr(self, field.name) is not None:
                raise ValueError(f"{path}: {option(field.name)} does not apply to {kind}")

    def refuse_all(self, path: Path, kind: str) -> None:
        """Raise an error if any switch is given."""
        self.refuse(path, kind, *(field.name for field in fields(self)))


COLUMN_OPTIONS = tuple(f"{role}_column" for role in ROLES)


def option(name: str) -> str:
    """The name of the argument and of the switch on the command line."""
    return f"{name} (--{name.replace('_', '-')})"


def _check_separator(separator: object) -> None:
    if not isinstance(separator, str):
        raise TypeError(f"separator must be a string, got {type(separator).__name__}")
    if separator in ("tab", "blanks", "::", " ", "\t"):
        return
    if len(separator) != 1 or separator not in string.punctuation or separator == '"':
        raise ValueError(
            "separator must be a punctuation mark such as ',' (no quote), '::', 'tab' or 'blanks', "
            f"got {shown(separator)}"
        )


def _check_encoding(encoding: object) -> None:
    if not isinstance(encoding, str):
        raise TypeError(f"encoding must be the name of an encoding, got {type(encoding).__name__}")
    try:
        is_text = codecs.lookup(encoding)._is_text_encoding
    except (LookupError, ValueError):  # ValueError: for null characters in it
        is_text = False
    if not is_text:
        raise ValueError(f"encoding must be the name of a text encoding, such as 'latin-1', got {encoding!r}")

"""The switches for reading a command's --data."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import data
from benchmarks.common.arguments import positive_int
from cw_ext.files import FORMATS

_ROLES = {
    "user": "users",
    "item": "items",
    "rating": "ratings",
    "label": "labels: only rows above 0 are positives",
    "split": "train, valid and test",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Add --core, --min-rating, the --…-column switches, --separator, --format and --encoding; None if not given."""
    parser.add_argument(
        "--core", type=positive_int, help=f"k of the k-core filter of a file; {data.DEFAULT_CORE} if not given"
    )
    parser.add_argument(
        "--min-rating",
        type=float,
        help=f"lowest rating of a positive; {data.DEFAULT_MIN_RATING:g} if not given and there are ratings",
    )
    for role, content in _ROLES.items():
        parser.add_argument(
            f"--{role}-column",
            type=_column,
            metavar="NAME|NUMBER",
            help=f"the column of {content}; its number from 0 without a header; by its usual name if not given",
        )
    parser.add_argument(
        "--separator", metavar="CHARACTER|::|tab|blanks", help="of columns; that which gives most if not given"
    )
    parser.add_argument("--format", choices=FORMATS, help="for a file that could be both")
    parser.add_argument("--encoding", help="of a text file, such as latin-1; UTF-8 if not given")


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given, as keyword arguments of :func:`benchmarks.common.data.load`."""
    names = ["core", "min_rating", *(f"{role}_column" for role in _ROLES), "separator", "format", "encoding"]
    return {name: getattr(arguments, name) for name in names}


def _column(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdecimal() else text

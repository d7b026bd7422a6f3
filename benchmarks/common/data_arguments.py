"""The options for reading a command's --data."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import data
from benchmarks.common.arguments import positive_int
from cw_ext.files import FORMATS

# A parser, or a group of its options.
Parser = argparse._ActionsContainer

_ROLES = {
    "user": "users",
    "item": "items",
    "rating": "ratings",
    "label": "labels (only rows above 0 are positives)",
    "split": "the words train, valid and test",
}


def add_data(parser: Parser) -> None:
    """Add --data, as benchmarks.training has it; None if not given."""
    parser.add_argument(
        "--data", metavar="DIR|FILE", help="data to use, as for benchmarks.training (default: MovieLens-100K)"
    )


def add(parser: Parser) -> None:
    """Add --core, --min-rating, the --…-column options, --separator, --format and --encoding; None if not given."""
    parser.add_argument(
        "--core",
        type=positive_int,
        metavar="K",
        help="keep users and items with at least K interactions, counting only "
        f"those that are kept; for files (default: {data.DEFAULT_CORE})",
    )
    parser.add_argument(
        "--min-rating",
        type=float,
        help=f"lowest rating that counts as a positive, where there are ratings (default: {data.DEFAULT_MIN_RATING:g})",
    )
    for role, content in _ROLES.items():
        parser.add_argument(
            f"--{role}-column",
            type=_column,
            metavar="NAME|NUMBER",
            help=f"column with {content}: its name, or its number from 0 where there is no header (default: found "
            "by its usual names)",
        )
    parser.add_argument(
        "--separator",
        metavar="CHARACTER|::|tab|blanks",
        help="what separates columns (default: the one that gives the most columns)",
    )
    parser.add_argument("--format", choices=FORMATS, help="format of a file that could be read in two ways")
    parser.add_argument("--encoding", help="encoding of a text file, such as latin-1 (default: UTF-8)")


def chosen(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given, as keyword arguments of :func:`benchmarks.common.data.load`."""
    names = ["core", "min_rating", *(f"{role}_column" for role in _ROLES), "separator", "format", "encoding"]
    return {name: getattr(arguments, name) for name in names}


def _column(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdecimal() else text

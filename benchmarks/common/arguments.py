"""Argument types of the benchmarks' command lines, and an argument that several have."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Literal


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _at_least(text, int, 1, "a whole number of at least 1")


def non_negative_int(text: str) -> int:
    """Parse a whole number of at least 0."""
    return _at_least(text, int, 0, "a whole number of at least 0")


def non_negative_float(text: str) -> float:
    """Parse a finite number of at least 0."""
    return _at_least(text, float, 0, "a finite number of at least 0")


def share(text: str) -> float:
    """Parse a number in [0, 1]."""
    value = non_negative_float(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1], got {text!r}")
    return value


def prior(text: str) -> float | Literal["auto"]:
    """Parse a class prior, or the word for one that is estimated."""
    try:
        return "auto" if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1) or auto, got {text!r}") from None


def add_out(parser: argparse._ActionsContainer) -> None:
    """Add --out, the directory for results; None if not given."""
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the results (default: a new folder under runs/)"
    )


def _at_least(text: str, parse: type, minimum: float, expected: str) -> float:
    try:
        value = parse(text)
    except ValueError:
        value = math.nan
    if not minimum <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return value

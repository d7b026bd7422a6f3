"""The form of every error about a file of interactions."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

_LONGEST_SHOWN = 60


def fail(path: Path, line: int | None, expected: str, got: str, unit: str = "line") -> NoReturn:
    """Raise ValueError: "FILE, line N: expected …, got …".

    Args:
        path: the file.
        line: number of the line, from 1; None for the whole file.
        expected: what should be there.
        got: what was found; pieces of the file are quoted by `shown`.
        unit: what `line` counts.
    """
    where = f"{path}" if line is None else f"{path}, {unit} {line}"
    raise ValueError(f"{where}: expected {expected}, got {got}")


def shown(value: str) -> str:
    """Quote a piece of a file for a message of one line. Long pieces are cut."""
    quoted = repr(value[: 2 * _LONGEST_SHOWN])
    if len(value) <= _LONGEST_SHOWN and len(quoted) <= 2 * _LONGEST_SHOWN:
        return quoted
    return f"{quoted[: _LONGEST_SHOWN - 2]}...{quoted[0]}"

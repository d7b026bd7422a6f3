"""The one form in which every file of interactions is refused."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

_LONGEST_SHOWN = 60


def fail(path: Path, line: int | None, expected: str, got: str, unit: str = "line") -> NoReturn:
    """Raise ValueError: "FILE, line N: expected …, got …".

    Args:
        path: the file.
        line: number of the line, from 1; None where the whole file is meant.
        expected: what should be there.
        got: what is there; a piece of the file as `shown` writes it.
        unit: what the number counts.
    """
    where = f"{path}" if line is None else f"{path}, {unit} {line}"
    raise ValueError(f"{where}: expected {expected}, got {got}")


def shown(value: str) -> str:
    """Quote a piece of a file for a message of one line; what is long is cut."""
    quoted = repr(value[: 2 * _LONGEST_SHOWN])
    if len(value) <= _LONGEST_SHOWN and len(quoted) <= 2 * _LONGEST_SHOWN:
        return quoted
    return f"{quoted[: _LONGEST_SHOWN - 2]}...{quoted[0]}"

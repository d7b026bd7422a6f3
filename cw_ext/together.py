"""Errors that all processes of a group raise together: one that goes on alone would wait for the others in vain."""

from __future__ import annotations

from collections.abc import Sequence

# An error travels as a negative number, in place of one that the processes tell each other anyway.
_CLASSES = (IndexError, TypeError, ValueError, FileExistsError, FileNotFoundError, OSError, RuntimeError)


def number_of(error: Exception) -> int:
    """The number < 0 that tells the other processes of an error."""
    return next((-place for place, kind in enumerate(_CLASSES, 1) if isinstance(error, kind)), -len(_CLASSES))


def raise_in_all(error: Exception | None, told: Sequence[int]) -> None:
    """Raise this process's error, or one of the same class as another process's.

    Args:
        error: this process's own, if it has one.
        told: of each process, by rank: number_of() its error, or a number ≥ 0.
    """
    if error is not None:
        raise error
    for rank, number in enumerate(told):
        if number < 0:
            kind = _CLASSES[-number - 1]
            raise kind(f"process {rank} of the group has raised {kind.__name__}; its own message says what is wrong")

"""Errors that all processes of a group raise together. A process that continued alone would wait forever."""

from __future__ import annotations

from collections.abc import Sequence

# An error is sent as a negative number, in place of a number that the processes send each other anyway.
_CLASSES = (IndexError, TypeError, ValueError, FileExistsError, FileNotFoundError, OSError, RuntimeError)


def number_of(error: Exception) -> int:
    """The number < 0 that stands for an error when it is sent to the other processes."""
    return next((-place for place, kind in enumerate(_CLASSES, 1) if isinstance(error, kind)), -len(_CLASSES))


def raise_in_all(error: Exception | None, told: Sequence[int]) -> None:
    """Raise this process's error, or an error of the same class as another process's.

    Args:
        error: this process's error, if it has one.
        told: for each process, by rank, number_of() its error, or a number ≥ 0.
    """
    if error is not None:
        raise error
    for rank, number in enumerate(told):
        if number < 0:
            kind = _CLASSES[-number - 1]
            raise kind(f"process {rank} of the group raised {kind.__name__}; see the error message of that process")

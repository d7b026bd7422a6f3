"""Write a directory of files whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# For Linux's renameat2: relative to the working directory; exchange the two directories.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield an empty directory to fill, which then replaces `path`.

    A write that fails or is interrupted leaves `path` as it was. Where the system can swap two directories in one step
    (Linux, on most file systems), this holds even if the process is killed; elsewhere there is a moment in which the
    earlier directory is at ``previous-NAME`` beside it.

    Raises:
        OSError: the directory cannot be made or put in its place.
    """
    path = path.resolve()  # a link stays a link
    unfinished = path.with_name(f"unfinished-{path.name}")
    _remove(unfinished)  # left by a process that was killed
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if path.exists() and any(path.iterdir()):
            _swap(unfinished, path)
        else:
            os.replace(unfinished, path)
    finally:
        _remove(unfinished)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _swap(first: Path, second: Path) -> None:
    if sys.platform == "linux":
        rename = getattr(ctypes.CDLL(None), "renameat2", None)  # musl before 1.2.6 lacks it
        names = os.fsencode(first), os.fsencode(second)
        if rename and rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
    previous = second.with_name(f"previous-{second.name}")
    os.replace(second, previous)
    try:
        os.replace(first, second)
    except BaseException:
        os.replace(previous, second)
        raise
    _remove(previous)

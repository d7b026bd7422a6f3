"""Files that must be refused, and what tests of bad files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKED = b"\x1f\x8b\x08\x00" + bytes(range(128, 256))  # as a .gz begins
# name: (content of a file of pairs, the line that the error names, or None where it is about the whole)
BAD_FILES: dict[str, tuple[bytes, int | None]] = {
    "a broken line": (b"0\t1\n1\n2\t0\n", 2),
    "a negative id": (b"0\t1\n-1\t1\n", 2),
    "an id beyond int64": (b"0\t1\n1\t9223372036854775808\n", 2),
    "an id of many digits": (b"0\t1\n1\t" + b"9" * 5000 + b"\n", 2),
    "a packed file": (PACKED, None),
    "no UTF-8": (b"0\t1\n1\t1\n2\t\xff\xfe\n", 3),
    "zeros": (bytes(4096), None),
    "empty": (b"", None),
    "blank": (b"\n \n", None),
}


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without the rights of root, for whom permissions do not count."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)

"""The lines of a text file with their numbers, decompressed and decoded, one block at a time."""

from __future__ import annotations

import codecs
import importlib
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

from cw_ext.files.errors import fail
from cw_ext.files.options import option

if TYPE_CHECKING:
    import polars as pl

_BLOCK = 1 << 24
# Modules of the standard library. Some builds of Python lack some of them.
_PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "lzma"}
# Other kinds that the first bytes show.
_NO_TEXT = {b"\x28\xb5\x2f\xfd": "a zstd-compressed file", b"PK\x03\x04": "a zip archive"}


def first_bytes(path: Path, count: int = 8) -> bytes:
    """The first bytes of the file, without decompression."""
    with path.open("rb") as file:
        return file.read(count)


def lines(path: Path, encoding: str | None) -> Iterator[pl.DataFrame]:
    """The lines that are not blank, in blocks: number (from 1) and text (without the end of the line).

    Args:
        path: text, or text compressed by gzip, bzip2 or xz.
        encoding: UTF-8 if None.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content cannot be decompressed or decoded.
    """
    import polars as pl

    number = 1
    for block in _blocks(path, encoding):
        try:
            decoded = block.decode()
        except UnicodeDecodeError as error:
            _fail_at_bytes(path, number, block[: error.start + 1], "utf-8")
        text = pl.Series([decoded.removesuffix("\n")]).str.split("\n").explode().str.strip_suffix("\r")
        frame = pl.DataFrame({"number": pl.int_range(number, number + len(text), eager=True), "text": text})
        number += len(text)
        frame = frame.filter(pl.col("text").str.contains(r"\S"))
        if frame.height:
            yield frame


def head(path: Path, encoding: str | None, count: int = 100) -> list[tuple[int, str]]:
    """The first lines that are not blank, as (number, text)."""
    rows = chain.from_iterable(block.iter_rows() for block in lines(path, encoding))
    return list(islice(rows, count))


def _blocks(path: Path, encoding: str | None) -> Iterator[bytes]:
    """Whole lines in UTF-8, about 16 MB at a time."""
    decoder = None if encoding is None else codecs.getincrementaldecoder(encoding)()
    number, rest, at_start, ended = 1, b"", True, False
    with _opened(path) as file:
        while not ended:
            block = _read(path, file)
            ended = not block
            if decoder is not None:
                try:
                    block = decoder.decode(block, final=ended).encode()
                except UnicodeDecodeError as error:
                    _fail_at_bytes(path, number, rest + error.object[: error.start + 1], str(encoding))
            if at_start:
                block, at_start = block.removeprefix(codecs.BOM_UTF8), False
            whole, end, beyond = (rest + block).rpartition(b"\n")
            if end:
                yield whole + end
                number += whole.count(b"\n") + 1
            rest = beyond
    if rest:
        yield rest


def _opened(path: Path) -> IO[bytes]:
    start = first_bytes(path)
    for magic, kind in _NO_TEXT.items():
        if start.startswith(magic):
            fail(path, None, "text, plain or compressed by gzip, bzip2 or xz, or parquet", kind)
    for magic, packer in _PACKERS.items():
        if start.startswith(magic):
            opened: IO[bytes] = importlib.import_module(packer).open(path, "rb")
            return opened
    return path.open("rb")


def _read(path: Path, file: IO[bytes]) -> bytes:
    try:
        return file.read(_BLOCK)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file raises many types
        if isinstance(error, OSError) and error.errno is not None:
            raise
        fail(path, None, "a whole compressed file", str(error))


def _fail_at_bytes(path: Path, number: int, block: bytes, encoding: str) -> NoReturn:
    """Refuse the line of the block's last byte. `number` is the number of its first line."""
    hint = f"; for a file in another encoding give it as {option('encoding')}, such as latin-1"
    expected = f"{encoding.upper()} text{hint if encoding == 'utf-8' else ''}"
    fail(path, number + block.count(b"\n", 0, -1), expected, f"the byte {block[-1]:#04x}")

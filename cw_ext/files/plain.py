"""Two columns of integers, read without polars."""

from __future__ import annotations

import re
from array import array
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import numpy as np

from cw_ext.files import columns, separators
from cw_ext.files.errors import shown
from cw_ext.files.options import Reading

_PAIR = re.compile(r"\s*(-?[0-9]{1,19})\s*([\t,;]|\s)\s*(-?[0-9]{1,19})\s*")
_INSTALL = 'files other than two columns of integer ids need polars; run: pip install "polars>=2"'


def read_pairs(path: Path, reading: Reading) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Read (query ids, item ids, numbers of their lines, the columns in words), int64 [P] each.

    Args:
        path: a text file in UTF-8 with two integers per line, separated by a tab, a comma, a semicolon or blanks. The
            first line may be a header with common names.
        reading: must not ask for anything else.

    Raises:
        OSError: the file cannot be read.
        ImportError: the file has any other content, which needs polars.
    """
    for field in fields(reading):
        if getattr(reading, field.name) is not None:
            raise ImportError(f"{path}: {field.name} needs polars; {_INSTALL}")
    query_ids, item_ids, numbers = array("q"), array("q"), array("q")
    user, separator, names = 0, "", None
    first, comments = True, list[str]()
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.isspace():
                    continue
                if first and re.match(r"#(\s|$)", line):
                    comments.append(line)
                    continue
                pair = _PAIR.fullmatch(line)
                if first and pair is None and not any(map(str.isdecimal, line)):
                    names = columns.header_names(re.split(r"\s*[\t,;]\s*|\s+", line.strip()), [], reading)
                    if names is None or len(names) != 2:
                        _refuse(path, number, line)
                    user = columns.choose(path, number, names, 2, reading)["user"]
                    first = False
                    continue
                if first and pair:
                    names = columns.commented_names(comments, pair[2] if pair[2] in separators.NAMES else None, 2)
                    user = 0 if names is None else columns.choose(path, number, names, 2, reading)["user"]
                first = False
                separator = separator or (pair[2] if pair else "")
                if pair is None or pair[2] != separator or max(abs(int(pair[1])), abs(int(pair[3]))) >= 2**63:
                    _refuse(path, number, line)
                query_ids.append(int(pair[1 + 2 * user]))
                item_ids.append(int(pair[3 - 2 * user]))
                numbers.append(number)
    except UnicodeDecodeError:
        raise ImportError(f"{path}: expected UTF-8 text; {_INSTALL}") from None
    ids = [np.array(column, dtype=np.int64) for column in (query_ids, item_ids, numbers)]
    source = f"columns 0, 1 of a table without header, separated by {separators.NAMES.get(separator, 'blanks')}"
    if names is not None:
        source = f"columns {names[user]}, {names[1 - user]}"
    return ids[0], ids[1], ids[2], source


def _refuse(path: Path, number: int, line: str) -> NoReturn:
    raise ImportError(f"{path}, line {number}: expected two integers, got {shown(line.rstrip())}; {_INSTALL}")

"""Read the users or items to recommend for from a file."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import torch

from benchmarks.common import reporting

_SHOWN = 5  # unknown ids in a message


def read_ids(path: Path, column: str) -> list[str]:
    """Read the ids to recommend for, as text, each once, in the file's order.

    Args:
        path: a text file with one id per line; or a .csv or .parquet file with the named column.
        column: "user" or "item".

    Raises:
        ValueError: the file has no such ids.
        OSError: it cannot be read.
    """
    try:
        if path.suffix == ".csv":
            table = pl.read_csv(path, infer_schema=False, empty_string_is_null=False)
        elif path.suffix == ".parquet":
            table = pl.read_parquet(path)
        else:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            table = pl.DataFrame({column: [line.rstrip("\r") for line in lines]}, schema={column: pl.String})
            table = table.filter(pl.col(column).str.strip_chars() != "")
    except OSError as error:
        raise OSError(f"{path}: expected a file of {column} ids, got: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected UTF-8 text, got other bytes") from None
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path}: expected a table of {column} ids, got: {reporting.first_line(error)}") from None
    if column not in table.columns:
        raise ValueError(f"{path}: expected a column {column!r}, got the columns {', '.join(table.columns)}")
    ids = table[column].cast(pl.String).drop_nulls().unique(maintain_order=True).to_list()
    if not ids:
        raise ValueError(f"{path}: expected at least one {column} id, got none")
    return ids


def rows_of(path: Path, column: str, known_ids: pl.Series) -> torch.Tensor:
    """The rows, int64, of the ids in a file as :func:`read_ids` reads them, each once.

    In text files an id that the model does not know is looked up again without the blanks around it, since data are
    read without them.

    Raises:
        ValueError: the model does not know some of the ids; the message has their number and the first ones.
    """
    rows = {name: row for row, name in enumerate(map(str, known_ids.to_list()))}
    ids = read_ids(path, column)
    if path.suffix != ".parquet":
        ids = [name if name in rows else name.strip() for name in ids]
    unknown = [name for name in ids if name not in rows]
    if unknown:
        shown = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        raise ValueError(
            f"{path}: expected ids of {column}s that the model was trained on, got {len(unknown)} unknown ones "
            f"of {len(ids)}: {shown}"
        )
    return torch.tensor([*dict.fromkeys(rows[name] for name in ids)])

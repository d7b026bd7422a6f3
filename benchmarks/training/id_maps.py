"""Write the file's own id of each row of a model's tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common.data import InteractionData
from benchmarks.common.reporting import written_whole


def id_table(ids: np.ndarray | None, count: int) -> pl.DataFrame:
    """A table of the rows from 0 (column row) and their own ids (column id), which are the rows where ids is None."""
    if ids is None:
        ids = np.arange(count)
    values = ids.astype(np.int64) if np.issubdtype(ids.dtype, np.integer) else [str(name) for name in ids]
    return pl.DataFrame({"row": np.arange(count), "id": values})


def write(dataset: InteractionData, directory: Path) -> None:
    """Write user_ids.parquet and item_ids.parquet (columns: row, id), each whole or not at all.

    Raises:
        OSError: a file cannot be written.
    """
    for kind, ids, count in (
        ("user", dataset.user_ids, dataset.num_users),
        ("item", dataset.item_ids, dataset.num_items),
    ):
        with written_whole(directory / f"{kind}_ids.parquet") as unfinished:
            id_table(ids, count).write_parquet(unfinished)

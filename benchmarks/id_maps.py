"""Write which id of a file each row of a model's tables stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.data import InteractionData
from benchmarks.reporting import written_whole


def write(dataset: InteractionData, directory: Path) -> None:
    """Write user_ids.parquet and item_ids.parquet (columns: row, id), each whole or not at all.

    Raises:
        OSError: a file cannot be written.
    """
    for kind, ids, count in (
        ("user", dataset.user_ids, dataset.num_users),
        ("item", dataset.item_ids, dataset.num_items),
    ):
        own = np.arange(count) if ids is None else ids
        with written_whole(directory / f"{kind}_ids.parquet") as unfinished:
            pl.DataFrame({"row": np.arange(count), "id": pl.Series(own)}).write_parquet(unfinished)

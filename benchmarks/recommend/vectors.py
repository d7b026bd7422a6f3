"""Export the vectors of a saved model for an index of nearest neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.common import reporting, whole_directory
from benchmarks.training.saved import SavedModel, named_errors

FILES = {"users.npy", "items.npy", "users.parquet", "items.parquet"}


def export(model: SavedModel, directory: Path) -> None:
    """Write users.npy, items.npy, users.parquet and items.parquet (row, id), whole or not at all.

    Inner products of the vectors are the model's scores, as in :class:`~benchmarks.training.saved.SavedModel`.

    Raises:
        OSError: see :func:`check_target`, or a file cannot be written; the message contains it.
    """
    check_target(directory)
    with named_errors(directory), whole_directory.written_whole(directory) as unfinished:
        for name, vectors, ids in (("users", model.users, model.user_ids), ("items", model.items, model.item_ids)):
            np.save(unfinished / f"{name}.npy", vectors.numpy())
            pl.DataFrame({"row": np.arange(len(ids)), "id": ids}).write_parquet(unfinished / f"{name}.parquet")


def check_target(directory: Path) -> None:
    """Refuse a directory that contains anything but vectors exported before.

    Raises:
        OSError: it contains something else, or the parent directory cannot be written to.
    """
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if directory.is_file() or names not in (set(), FILES):
        got = "a file" if directory.is_file() else ", ".join(sorted(names - FILES)[:3]) or "an incomplete one"
        raise OSError(f"{directory}: expected a new or empty directory or earlier vectors, got {got}")
    reporting.make_writable_directory(directory.resolve().parent)

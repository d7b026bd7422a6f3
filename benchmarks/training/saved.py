"""Keep a trained model on disk: its vectors, the data's own ids, the known pairs and the configuration."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cw_ext
from benchmarks.common import reporting, whole_directory
from benchmarks.common.data import InteractionData
from benchmarks.training.id_maps import id_table
from cw_ext import Interactions

try:
    import polars as pl
    import safetensors
    from safetensors.torch import load_file, save_file
except ModuleNotFoundError as error:
    raise RuntimeError(
        f'saved models need {error.name}, which is in the extra "benchmarks"; run: pip install polars safetensors'
    ) from None

FORMAT = "cw_ext model, version 1"
VECTORS, CONFIG, KNOWN = "model.safetensors", "config.json", "known.parquet"
USERS, ITEMS = "users.parquet", "items.parquet"
FILES = {VECTORS, CONFIG, USERS, ITEMS, KNOWN}
_SCORES = {
    "cosine": "inner product of the user's and the item's vector, which have length 1",
    "dot": "inner product of the user's and the item's vector",
}


class SavedModelError(ValueError):
    """A directory that is not a saved model, or a damaged one; the message contains the file."""


@dataclass(frozen=True)
class SavedModel:
    """What is needed to rank items for users.

    Attributes:
        users, items: float32 [num_users, D] and [num_items, D]. Their inner products are the scores; where the model
            ranks by cosine, all of them have length 1.
        user_ids, item_ids: the data's own id of each row, Int64 or String [num_users] and [num_items], no id twice.
        known: the pairs of the data that training and validation used, as rows.
        known_with_test: these and the test pairs.
        config: the content of config.json.
    """

    users: torch.Tensor
    items: torch.Tensor
    user_ids: pl.Series
    item_ids: pl.Series
    known: Interactions
    known_with_test: Interactions
    config: dict[str, Any]


def check_target(directory: Path) -> None:
    """Refuse a directory that cannot be written to, or that contains anything but a saved model.

    Creates parent directories.

    Raises:
        SavedModelError: it contains something else.
        OSError: the parent directory cannot be written to.
    """
    expected = f"{directory}: expected a new or empty directory or an earlier saved model"
    if directory.exists():
        if not directory.is_dir():
            raise SavedModelError(f"{expected}, got a file")
        names = {path.name for path in directory.iterdir()}
        if names and (names != FILES or _read_config(directory) is None):
            other = ", ".join(sorted(names - FILES)[:3]) or "a damaged or incomplete one"
            raise SavedModelError(f"{expected}, got {other}")
    reporting.make_writable_directory(directory.resolve().parent)


def save(
    directory: Path,
    dataset: InteractionData,
    tables: tuple[torch.Tensor, torch.Tensor],
    similarity: str,
    run: dict[str, Any],
) -> None:
    """Write a model, whole or not at all, replacing one that was saved to the directory before.

    Args:
        directory: see :func:`check_target`.
        dataset: the training data.
        tables: float32 vectors of the users [num_users, D] and of the items [num_items, D]; of length 1 for "cosine".
        similarity: "cosine" or "dot".
        run: the run's entry in results.json.

    Raises:
        SavedModelError: the directory contains something else.
        OSError: a file cannot be written; the message contains it.
    """
    check_target(directory)
    config = {
        "format": FORMAT,
        "scores": _SCORES[similarity],
        "similarity": similarity,
        "dim": tables[0].shape[1],
        "data": dataset.sizes(),
        "run": run,
        "versions": {
            "cw_ext": cw_ext.__version__,
            "torch": torch.__version__,
            "polars": pl.__version__,
            "safetensors": safetensors.__version__,
            "python": platform.python_version(),
        },
    }
    users, items = (table.float().cpu().contiguous() for table in tables)
    pairs = {
        "user": torch.cat([dataset.train_users, dataset.test_users]).cpu().numpy(),
        "item": torch.cat([dataset.train_items, dataset.test_items]).cpu().numpy(),
        "test": np.arange(len(dataset.train_users) + len(dataset.test_users)) >= len(dataset.train_users),
    }
    with named_errors(directory), whole_directory.written_whole(directory) as unfinished:
        reporting.write_json(unfinished / CONFIG, config)
        save_file({"users": users, "items": items}, unfinished / VECTORS)
        # safetensors creates a file that only its owner may read.
        shutil.copymode(unfinished / CONFIG, unfinished / VECTORS)
        id_table(dataset.user_ids, dataset.num_users).write_parquet(unfinished / USERS)
        id_table(dataset.item_ids, dataset.num_items).write_parquet(unfinished / ITEMS)
        pl.DataFrame(pairs).write_parquet(unfinished / KNOWN)


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn the errors of polars and safetensors for a file that cannot be written into an OSError with the path."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError, safetensors.SafetensorError) as error:
        raise OSError(f"{path}: expected a writable place, got: {reporting.first_line(error)}") from None


def run_of(directory: Path) -> dict[str, Any] | None:
    """The run in the saved model's configuration; None if there is no saved model."""
    config = _read_config(directory)
    return None if config is None else config.get("run")


def _read_config(directory: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and config.get("format") == FORMAT else None


def load(directory: Path) -> SavedModel:
    """Read a model that :func:`save` wrote.

    Raises:
        SavedModelError: a file is missing or damaged, or the files do not belong together.
    """
    config = _read_config(directory)
    if config is None:
        found = "something else" if directory.exists() else "none"
        if (directory / CONFIG).exists():
            found = f"a {CONFIG} without the format {FORMAT!r}"
        elif inside := sorted(str(path.parent) for path in directory.glob(f"*/{CONFIG}") if _read_config(path.parent)):
            more = f" and {len(inside) - 5} more" if len(inside) > 5 else ""
            found = f"a folder of such models; name one of them: {', '.join(inside[:5])}{more}"
        raise SavedModelError(f"{directory}: expected a model saved by training with --save, got {found}")
    for name in sorted(FILES):
        if not (directory / name).is_file():
            raise SavedModelError(f"{directory}: expected a saved model with the file {name}, got none")
    users, items = _load_vectors(directory / VECTORS)
    sizes = {"users": len(users), "items": len(items), "dim": users.shape[1]}
    promised = {**(config["data"] if isinstance(config.get("data"), dict) else {}), "dim": config.get("dim")}
    for name, size in sizes.items():
        if promised.get(name) != size:
            raise SavedModelError(
                f"{directory / VECTORS}: expected {name} {promised.get(name)}, as in {CONFIG}, got {size}"
            )
    known, known_with_test = _load_known(directory / KNOWN, len(users), len(items))
    return SavedModel(
        users,
        items,
        _load_ids(directory / USERS, len(users)),
        _load_ids(directory / ITEMS, len(items)),
        known,
        known_with_test,
        config,
    )


def _load_vectors(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        tables = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(path, reporting.first_line(error)) from None
    if tables.keys() != {"users", "items"}:
        raise _damaged(path, f"expected the tensors users and items, got {sorted(tables)}")
    users, items = tables["users"], tables["items"]
    for name, table in (("users", users), ("items", items)):
        if table.dtype != torch.float32 or table.dim() != 2 or table.shape[1] != users.shape[1]:
            raise _damaged(path, f"expected float32 {name} [rows, D], got {table.dtype} {list(table.shape)}")
        if not table.isfinite().all():
            raise _damaged(path, f"expected finite {name}, got infinite ones or NaN")
    return users, items


def _load_ids(path: Path, count: int) -> pl.Series:
    table = _read_table(path, {"row": (pl.Int64,), "id": (pl.Int64, pl.String)})
    if not np.array_equal(table["row"].to_numpy(), np.arange(count)):
        raise _damaged(path, f"expected the rows 0 to {count - 1} in order, got {len(table)} rows or another order")
    if table["id"].n_unique() != count:
        raise _damaged(path, f"expected {count} different ids, got {table['id'].n_unique()}")
    return table["id"]


def _load_known(path: Path, num_users: int, num_items: int) -> tuple[Interactions, Interactions]:
    table = _read_table(path, {"user": (pl.Int64,), "item": (pl.Int64,), "test": (pl.Boolean,)})

    def interactions(pairs: pl.DataFrame) -> Interactions:
        columns = (torch.from_numpy(pairs[name].to_numpy(writable=True)) for name in ("user", "item"))
        return Interactions(*columns, num_queries=num_users, num_items=num_items)

    try:
        return interactions(table.filter(~pl.col("test"))), interactions(table)
    except IndexError as error:
        raise _damaged(path, reporting.first_line(error)) from None


def _read_table(path: Path, columns: dict[str, tuple[type[pl.DataType], ...]]) -> pl.DataFrame:
    try:
        table = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise _damaged(path, reporting.first_line(error)) from None
    for name, types in columns.items():
        if name not in table.columns or table[name].dtype not in types or table[name].null_count():
            expected = " or ".join(str(dtype) for dtype in types)
            raise _damaged(path, f"expected a column {name} of {expected} without gaps, got {dict(table.schema)}")
    return table


def _damaged(path: Path, reason: str) -> SavedModelError:
    return SavedModelError(f"{path}: expected a file of a saved model, got a damaged or another one ({reason})")

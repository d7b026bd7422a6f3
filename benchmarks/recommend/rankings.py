"""Rank items with a saved model, for users or for items, and write the rankings to a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F

from benchmarks.common import reporting
from benchmarks.recommend.top_k import top_k
from benchmarks.training.saved import SavedModel, named_errors
from cw_ext import Interactions


def recommend(
    model: SavedModel, rows: torch.Tensor | None = None, k: int = 20, left_out: Interactions | None = None
) -> Iterator[pl.DataFrame]:
    """Rank items for users, a block of users at a time.

    Args:
        model: from :func:`benchmarks.training.saved.load`.
        rows: int64 rows of the users to rank for, in the order wanted; all if None.
        k: length of a ranking; shorter where there are fewer items to rank.
        left_out: pairs (user, item) that are not ranked: ``model.known``, ``model.known_with_test``, or None.

    Yields:
        A table of at least one user with the columns user, item (own ids), rank (from 1) and score, always k rows per
        user (or as many as there are items, if fewer); where nothing is left to rank, item and score are null. Of equal
        scores the item that is first in the model comes first.
    """
    blocks = top_k(model.users, model.items, min(k, len(model.items)), left_out, rows)
    yield from _tables(blocks, ("user", "item"), model.user_ids, model.item_ids)


def similar_items(model: SavedModel, rows: torch.Tensor | None = None, k: int = 20) -> Iterator[pl.DataFrame]:
    """Find the items with the highest cosine to an item, without the item itself.

    As :func:`recommend`, with the columns item, similar, rank and score.
    """
    vectors, own = F.normalize(model.items, dim=1), torch.arange(len(model.items))
    itself = Interactions(own, own, num_queries=len(own), num_items=len(own))
    blocks = top_k(vectors, vectors, min(k, len(own)), itself, rows)
    yield from _tables(blocks, ("item", "similar"), model.item_ids, model.item_ids)


def _tables(
    blocks: Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    names: tuple[str, str],
    query_ids: pl.Series,
    item_ids: pl.Series,
) -> Iterator[pl.DataFrame]:
    for rows, items, scores in blocks:
        there = pl.Series(scores.flatten().isfinite().numpy())
        columns = {
            names[0]: query_ids.gather(rows.repeat_interleave(items.shape[1]).numpy()),
            names[1]: item_ids.gather(items.flatten().numpy()),
            "rank": pl.Series(np.tile(np.arange(1, items.shape[1] + 1, dtype=np.int32), len(rows))),
            "score": pl.Series(scores.flatten().numpy()),
        }
        table = pl.DataFrame([column.alias(name) for name, column in columns.items()])
        yield table.with_columns(pl.when(there).then(pl.col(names[1], "score")))


def write(path: Path, tables: Iterator[pl.DataFrame]) -> int:
    """Write rankings to a file, whole or not at all.

    Args:
        path: ends in .csv, .parquet or .jsonl. A csv or parquet file has a row for each item found; a jsonl file has an
            object for each user, such as ``{"user": "u1", "item": ["a", "b"], "score": [0.9, 0.8]}``. A csv or jsonl
            file is written table by table, a parquet file at the end.
        tables: of :func:`recommend` or :func:`similar_items`, at least one.

    Returns:
        The number of items written.

    Raises:
        OSError: the file cannot be written; the message contains it.
    """
    count = 0
    with reporting.written_whole(path) as unfinished:
        parts = []
        with unfinished.open("wb") as file:
            for number, table in enumerate(tables):
                found = table.drop_nulls("score")
                count += len(found)
                with named_errors(path):
                    if path.suffix == ".csv":
                        found.write_csv(file, include_header=number == 0)
                    elif path.suffix == ".jsonl":
                        query, item = table.columns[:2]
                        lists = pl.col(item, "score").drop_nulls()
                        table.group_by(query, maintain_order=True).agg(lists).write_ndjson(file)
                    else:
                        parts.append(found)
            if path.suffix == ".parquet":
                with named_errors(path):
                    pl.concat(parts).write_parquet(file)
    return count

"""Recommend with a saved model: each user's top items, or each item's most similar ones; or export its vectors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks import reporting, whole_directory
from benchmarks.arguments import positive_int
from benchmarks.top_k import top_k
from cw_ext import Interactions

if TYPE_CHECKING:
    import polars as pl

    from benchmarks.saved import SavedModel

FORMATS = (".parquet", ".csv", ".jsonl")
VECTOR_FILES = {"users.npy", "items.npy", "users.parquet", "items.parquet"}
_SHOWN = 5  # unknown ids in a message


def recommend(
    model: SavedModel, rows: torch.Tensor | None = None, k: int = 20, left_out: Interactions | None = None
) -> Iterator[pl.DataFrame]:
    """Rank items for users, a block of users at a time.

    Args:
        model: from :func:`benchmarks.saved.load`.
        rows: int64 rows of the users to rank for, in the order wanted; all if None.
        k: how many items each gets; fewer where there are no more to rank.
        left_out: pairs (user, item) that are not ranked: ``model.known``, ``model.known_with_test``, or None.

    Yields:
        A table of at least one user with the columns user, item (own ids), rank (from 1) and score, always k rows for
        a user (or one for each item there is, if fewer); where nothing is left to rank, item and score are null. Of
        equal scores the item that stands first in the model comes first.
    """
    blocks = top_k(model.users, model.items, min(k, len(model.items)), left_out, rows)
    yield from _tables(blocks, ("user", "item"), model.user_ids, model.item_ids)


def similar_items(model: SavedModel, rows: torch.Tensor | None = None, k: int = 20) -> Iterator[pl.DataFrame]:
    """Find the items with the highest cosine to an item, the item itself left out.

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
    import polars as pl

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
        path: ends in one of :data:`FORMATS`. A csv or parquet file has a row for each item found; a jsonl file has an
            object for each user, such as ``{"user": "u1", "item": ["a", "b"], "score": [0.9, 0.8]}``. A csv or jsonl
            file is written table by table, a parquet file at the end.
        tables: of :func:`recommend` or :func:`similar_items`, at least one.

    Returns:
        How many items were written in all.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    import polars as pl

    from benchmarks.saved import named_errors

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


def export_vectors(model: SavedModel, directory: Path) -> None:
    """Write users.npy, items.npy, users.parquet and items.parquet (row, id), whole or not at all.

    Inner products of the vectors are the model's scores, as of :class:`~benchmarks.saved.SavedModel`.

    Raises:
        OSError: see :func:`check_vectors_target`, or a file cannot be written; the message names it.
    """
    import polars as pl

    from benchmarks.saved import named_errors

    check_vectors_target(directory)
    with named_errors(directory), whole_directory.written_whole(directory) as unfinished:
        for name, vectors, ids in (("users", model.users, model.user_ids), ("items", model.items, model.item_ids)):
            np.save(unfinished / f"{name}.npy", vectors.numpy())
            pl.DataFrame({"row": np.arange(len(ids)), "id": ids}).write_parquet(unfinished / f"{name}.parquet")


def check_vectors_target(directory: Path) -> None:
    """Refuse a directory that holds anything but vectors exported before.

    Raises:
        OSError: there is something else, or the parent directory cannot be written to.
    """
    names = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if directory.is_file() or names not in (set(), VECTOR_FILES):
        got = "a file" if directory.is_file() else ", ".join(sorted(names - VECTOR_FILES)[:3]) or "an incomplete one"
        raise OSError(f"{directory}: expected a new or empty directory or earlier vectors, got {got}")
    reporting.make_writable_directory(directory.resolve().parent)


def read_ids(path: Path, column: str) -> list[str]:
    """Read the ids to recommend for, as text, each once, in the file's order.

    Args:
        path: a text file with one id per line; or a .csv or .parquet file with the named column.
        column: "user" or "item".

    Raises:
        ValueError: there are no such ids in the file.
        OSError: it cannot be read.
    """
    import polars as pl

    try:
        if path.suffix == ".csv":
            table = pl.read_csv(path, infer_schema=False, empty_string_is_null=False)
        elif path.suffix == ".parquet":
            table = pl.read_parquet(path)
        else:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            table = pl.DataFrame({column: [line.rstrip("\r") for line in lines]}, schema={column: pl.String})
            table = table.filter(pl.col(column) != "")
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
    """The rows, int64, of the ids in a file as :func:`read_ids` reads them.

    Raises:
        ValueError: there are ids that the model does not know; the message has their number and the first ones.
    """
    rows = {name: row for row, name in enumerate(map(str, known_ids.to_list()))}
    ids = read_ids(path, column)
    unknown = [name for name in ids if name not in rows]
    if unknown:
        shown = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        raise ValueError(
            f"{path}: expected ids of {column}s that the model was trained on, got {len(unknown)} unknown ones "
            f"of {len(ids)}: {shown}"
        )
    return torch.tensor([rows[name] for name in ids])


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"expected a file that ends in {', '.join(FORMATS)}, got {text!r}")
    return path


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recommend",
        description=__doc__,
        epilog="Exit status: 0 done, 2 bad arguments or files, 130 ended by Ctrl-C. Nothing is left half-written.",
    )
    parser.add_argument(
        "--model", type=Path, metavar="DIR", required=True, help="directory that training wrote with --save"
    )
    parser.add_argument(
        "--out",
        type=_output,
        metavar="FILE",
        help="where rankings go: .csv or .parquet with the columns user, item, rank, score; .jsonl with an object per "
        'user, {"user": ..., "item": [...], "score": [...]}',
    )
    parser.add_argument("--k", type=positive_int, default=20, help="most items per user (default: 20)")
    parser.add_argument(
        "--users",
        type=Path,
        metavar="FILE",
        help="recommend for these only: one id per line, or a .csv or .parquet file with a column user",
    )
    known = parser.add_mutually_exclusive_group()
    known.add_argument(
        "--keep-known", action="store_true", help="rank all items, also those that the user has in the data"
    )
    known.add_argument(
        "--keep-test",
        action="store_true",
        help="leave out training and validation pairs only, so that rankings can be compared with the test pairs",
    )
    parser.add_argument(
        "--similar-items",
        action="store_true",
        help="for each item the items with the highest cosine (columns item, similar, rank, score)",
    )
    parser.add_argument("--items", type=Path, metavar="FILE", help="with --similar-items: for these only, as --users")
    parser.add_argument(
        "--vectors",
        type=Path,
        metavar="DIR",
        help="write users.npy and items.npy, whose inner products are the scores, and the id of each row as .parquet",
    )
    arguments = parser.parse_args(argv)
    if arguments.out is None and arguments.vectors is None:
        parser.error("give --out, --vectors or both")
    of_users = {"--users": arguments.users, "--keep-known": arguments.keep_known, "--keep-test": arguments.keep_test}
    for name, value in of_users.items():
        if value and (arguments.similar_items or arguments.out is None):
            parser.error(f"{name} is for recommendations to users: --out without --similar-items")
    if arguments.similar_items and arguments.out is None:
        parser.error("--similar-items needs --out")
    if arguments.items and not arguments.similar_items:
        parser.error("--items needs --similar-items")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        _run(_parse_arguments(argv))
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return reporting.INTERRUPTED
    except reporting.ERRORS as error:
        print(f"error: {reporting.first_line(error)}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace) -> None:
    from benchmarks import saved

    if arguments.out is not None:
        if arguments.out.is_dir():
            raise ValueError(f"--out {arguments.out}: expected a file, got a directory")
        reporting.make_writable_directory(arguments.out.parent)
    if arguments.vectors is not None:
        check_vectors_target(arguments.vectors)
    model = saved.load(arguments.model)
    if arguments.out is not None:
        _write_rankings(model, arguments)
    if arguments.vectors is not None:
        export_vectors(model, arguments.vectors)
        print(f"{arguments.vectors}: vectors of {len(model.users)} users and {len(model.items)} items")


def _write_rankings(model: SavedModel, arguments: argparse.Namespace) -> None:
    if arguments.similar_items:
        rows = rows_of(arguments.items, "item", model.item_ids) if arguments.items else None
        tables, kind, left_out = similar_items(model, rows, arguments.k), "item", "left out: the item itself"
    else:
        rows = rows_of(arguments.users, "user", model.user_ids) if arguments.users else None
        if arguments.keep_known:
            known, left_out = None, "nothing left out"
        elif arguments.keep_test:
            known, left_out = model.known, "left out: each user's training and validation items"
        else:
            known, left_out = model.known_with_test, "left out: all items that a user has in the data"
        tables, kind = recommend(model, rows, arguments.k, known), "user"
    queries = len(rows) if rows is not None else len(model.users if kind == "user" else model.items)
    with tqdm(total=queries, unit=kind, mininterval=0.5) as progress:
        count = write(arguments.out, _counted(tables, progress))
    print(f"{arguments.out}: {count} items for {queries} {kind}s, at most {arguments.k} each; {left_out}")


def _counted(tables: Iterator[pl.DataFrame], progress: tqdm) -> Iterator[pl.DataFrame]:
    for table in tables:
        yield table
        progress.update(table[:, 0].n_unique())


if __name__ == "__main__":
    sys.exit(main())

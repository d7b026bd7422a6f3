"""Recommend with a saved model: each user's top items, or each item's most similar items. Or export its vectors.

First train and save a model, for example on MovieLens-100K:

    python -m benchmarks.training --loss cw --save model
    python -m benchmarks.recommend --model model --k 10 --out recommendations.csv
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from benchmarks.common import command, reporting
from benchmarks.common.arguments import positive_int

if TYPE_CHECKING:
    import polars as pl

    from benchmarks.training.saved import SavedModel

FORMATS = (".parquet", ".csv", ".jsonl")


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in FORMATS:
        raise argparse.ArgumentTypeError(f"expected a file that ends in {', '.join(FORMATS)}, got {text!r}")
    return path


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.make_parser(
        "python -m benchmarks.recommend", __doc__, "bad arguments or files", "no file is left half-written"
    )
    parser.add_argument(
        "--model", type=Path, metavar="DIR", required=True, help="folder that benchmarks.training wrote with --save"
    )
    parser.add_argument(
        "--out",
        type=_output,
        metavar="FILE",
        help="file for the rankings: .csv or .parquet with the columns user, item, rank and score, or .jsonl with one "
        'object per user, {"user": ..., "item": [...], "score": [...]}',
    )
    parser.add_argument("--k", type=positive_int, default=20, help="items per user, at most")
    parser.add_argument(
        "--users",
        type=Path,
        metavar="FILE",
        help="recommend for these users only: a file with one id per line, or .csv or .parquet with a column user",
    )
    known = parser.add_mutually_exclusive_group()
    known.add_argument(
        "--keep-known", action="store_true", help="rank all items, including those that the user has in the data"
    )
    known.add_argument(
        "--keep-test",
        action="store_true",
        help="leave out only training and validation items, so that you can compare the rankings with the test items",
    )
    parser.add_argument(
        "--similar-items",
        action="store_true",
        help="rank, for each item, the items with the highest cosine (columns item, similar, rank, score)",
    )
    parser.add_argument(
        "--items",
        type=Path,
        metavar="FILE",
        help="with --similar-items: rank for these items only; a file as for --users",
    )
    parser.add_argument(
        "--vectors",
        type=Path,
        metavar="DIR",
        help="write users.npy and items.npy, whose inner products are the scores, and each row's id as .parquet",
    )
    arguments = parser.parse_args(argv)
    if arguments.out is None and arguments.vectors is None:
        parser.error("expected --out, --vectors or both")
    of_users = {"--users": arguments.users, "--keep-known": arguments.keep_known, "--keep-test": arguments.keep_test}
    for name, value in of_users.items():
        if value and (arguments.similar_items or arguments.out is None):
            parser.error(f"{name} only applies to recommendations for users: --out without --similar-items")
    if arguments.similar_items and arguments.out is None:
        parser.error("--similar-items needs --out")
    if arguments.items and not arguments.similar_items:
        parser.error("--items needs --similar-items")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return command.run(lambda: _run(_parse_arguments(argv)))


def _run(arguments: argparse.Namespace) -> None:
    from benchmarks.recommend import vectors  # need polars and safetensors
    from benchmarks.training import saved  # need polars and safetensors

    if arguments.out is not None:
        if arguments.out.is_dir():
            raise ValueError(f"--out {arguments.out}: expected a file, got a directory")
        reporting.make_writable_directory(arguments.out.parent)
    if arguments.vectors is not None:
        vectors.check_target(arguments.vectors)
    model = saved.load(arguments.model)
    if arguments.out is not None:
        _write_rankings(model, arguments)
    if arguments.vectors is not None:
        vectors.export(model, arguments.vectors)
        print(f"{arguments.vectors}: vectors of {len(model.users)} users and {len(model.items)} items")


def _write_rankings(model: SavedModel, arguments: argparse.Namespace) -> None:
    from benchmarks.recommend import (
        id_files,  # need polars
        rankings,  # need polars
    )

    if arguments.similar_items:
        rows = id_files.rows_of(arguments.items, "item", model.item_ids) if arguments.items else None
        tables, kind, left_out = rankings.similar_items(model, rows, arguments.k), "item", "left out: the item itself"
    else:
        rows = id_files.rows_of(arguments.users, "user", model.user_ids) if arguments.users else None
        if arguments.keep_known:
            known, left_out = None, "nothing is left out"
        elif arguments.keep_test:
            known, left_out = model.known, "left out: each user's training and validation items"
        else:
            known, left_out = model.known_with_test, "left out: all items that the user has in the data"
        tables, kind = rankings.recommend(model, rows, arguments.k, known), "user"
    queries = len(rows) if rows is not None else len(model.users if kind == "user" else model.items)
    with command.progress(total=queries, unit=kind) as progress:
        count = rankings.write(arguments.out, _counted(tables, progress))
    print(f"{arguments.out}: {count} items for {queries} {kind}s, at most {arguments.k} each; {left_out}")


def _counted(tables: Iterator[pl.DataFrame], progress: tqdm) -> Iterator[pl.DataFrame]:
    for table in tables:
        yield table
        progress.update(table[:, 0].n_unique())


if __name__ == "__main__":
    sys.exit(main())

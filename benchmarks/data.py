"""Load implicit-feedback interactions and split them into training, validation and test sets."""

from __future__ import annotations

import importlib.util
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

SPLIT_HEADER = "user_procid\titem_procid"
DEFAULT_CORE = 10
DEFAULT_MIN_RATING = 3.0
TEST_FRACTION = 0.2

# First-column names that mark the first line of a plain file as a header even if its ids are strings.
_USER_COLUMN_NAMES = {"user", "users", "user_id", "userid", "uid", "user_procid", "reviewerid", "reviewer_id"}
_RECBOLE_TYPES = {"token", "token_seq", "float", "float_seq"}
# Split files carry 0-based ids. Ids this many times more spread out than there are distinct ones are raw ids
# (hashes, catalogue numbers), and an embedding table over their range would be almost all unused rows.
_MAX_ID_SPREAD = 100


class DataError(ValueError):
    """Interactions that cannot be used; the message names the file and line, and what was expected."""


@dataclass(frozen=True)
class InteractionData:
    """User-item interactions of one data set, split into training and test.

    Attributes:
        train_users, train_items: int64 ids of the training pairs, each [num_train].
        test_users, test_items: int64 ids of the test pairs, each [num_test].
        num_users, num_items: ids lie in [0, num_users) and [0, num_items).
        name: what to call the data set in tables and plots.
        user_ids, item_ids: the file's own id of each user [num_users] and item [num_items], integers or strings; None
            where they are the numbers from 0.
    """

    train_users: torch.Tensor
    train_items: torch.Tensor
    test_users: torch.Tensor
    test_items: torch.Tensor
    num_users: int
    num_items: int
    name: str
    user_ids: np.ndarray | None = None
    item_ids: np.ndarray | None = None

    def sizes(self) -> dict[str, str | int]:
        """Return what a result file says about the data: its name, and how many users, items and interactions."""
        return {
            "name": self.name,
            "users": self.num_users,
            "items": self.num_items,
            "train": len(self.train_users),
            "test": len(self.test_users),
        }

    def to(self, device: str) -> InteractionData:
        """Return the same data with its tensors on the device."""
        pairs = ("train_users", "train_items", "test_users", "test_items")
        return replace(self, **{name: getattr(self, name).to(device) for name in pairs})


def load(
    path: str | Path | None = None,
    *,
    seed: int = 0,
    core: int = DEFAULT_CORE,
    min_rating: float = DEFAULT_MIN_RATING,
) -> InteractionData:
    """Load a split directory, an interaction file, or (``path`` None) MovieLens-100K.

    Args:
        path: directory with train.tsv and test.tsv, or one file; None for the default data set.
        seed: seed of the 80/20 split; unused for a directory, whose split is kept.
        core: k of the k-core filter; unused for a directory.
        min_rating: ratings below it are dropped; used only where a typed header names a rating column.

    Raises:
        DataError: the input is missing, malformed, or empty after filtering.
    """
    if path is None:
        return load_movielens_100k(seed=seed, core=core, min_rating=min_rating)
    path = Path(path)
    if path.is_dir():
        return load_split_directory(path)
    return load_interaction_file(path, seed=seed, core=core, min_rating=min_rating)


def load_split_directory(path: str | Path) -> InteractionData:
    """Load ``train.tsv`` and ``test.tsv`` (header ``user_procid<TAB>item_procid``, 0-based ids) as they are.

    Only repeated pairs within a file are dropped. The training file sets the number of users and items.

    Raises:
        DataError: a file is missing or malformed, or a test id lies outside the training file's range.
    """
    path = Path(path)
    train_users, train_items = _read_split_file(path / "train.tsv")
    num_users = _count_ids(train_users, path / "train.tsv", "user")
    num_items = _count_ids(train_items, path / "train.tsv", "item")
    test_users, test_items = _read_split_file(path / "test.tsv", num_users, num_items)
    return _interaction_data(
        _distinct_pairs(train_users, train_items),
        _distinct_pairs(test_users, test_items),
        num_users,
        num_items,
        path.resolve().name,
    )


def load_interaction_file(
    path: str | Path,
    *,
    seed: int = 0,
    core: int = DEFAULT_CORE,
    min_rating: float = DEFAULT_MIN_RATING,
    name: str | None = None,
) -> InteractionData:
    """Load one file of interactions, filter it to its k-core and split it 80/20 per user.

    The 20 % are rounded down, but at least one interaction, and never a user's only one.

    Two formats, told apart by the first line:

    - plain: ``user item`` and any further columns, which are ignored, separated by tabs, commas or blanks;
      a header line is recognised by its column names, or by words above a line of integers;
    - RecBole ``.inter``: tab-separated with a typed header, ``user_id:token``, ``item_id:token`` and
      optionally ``rating:float`` in any order; ratings below ``min_rating`` are dropped.

    Ids may be any strings; they are renumbered from 0. Repeated pairs count once. Every test item also
    occurs in training.

    Args:
        path: the file.
        seed: seed of the split.
        core: every user and item kept has at least this many interactions, at least 1.
        min_rating: see above.
        name: name of the data set; the file's stem if None.

    Raises:
        DataError: the file is missing or malformed, or no interaction is left after filtering.
    """
    path = Path(path)
    if core < 1:
        raise DataError(f"core must be at least 1, got {core}")
    users, items = _distinct_pairs(*_read_interactions(path, min_rating))
    users, items = _k_core(users, items, core)
    if len(users) == 0:
        raise DataError(f"{path}: expected interactions left after the {core}-core filter, got none; lower the core")
    user_ids, users = np.unique(users, return_inverse=True)
    item_ids, items = np.unique(items, return_inverse=True)

    rng = np.random.default_rng(seed)
    test = _choose_per_user(users, TEST_FRACTION, rng)
    test[_one_of_each_cold_item(items, test)] = False
    if not test.any():
        raise DataError(f"{path}: expected a user with at least 2 interactions to draw test items from, got none")
    return _interaction_data(
        (users[~test], items[~test]),
        (users[test], items[test]),
        len(user_ids),
        len(item_ids),
        path.stem if name is None else name,
    )


def load_movielens_100k(
    *, seed: int = 0, core: int = DEFAULT_CORE, min_rating: float = DEFAULT_MIN_RATING
) -> InteractionData:
    """Load MovieLens-100K from the installed ``recbole`` package.

    Raises:
        DataError: ``recbole`` or its example file is not installed.
    """
    path = movielens_100k_file()
    return load_interaction_file(path, seed=seed, core=core, min_rating=min_rating, name="ml-100k")


def movielens_100k_file() -> Path:
    """Find MovieLens-100K in the installed ``recbole`` package, which is located but not imported.

    Raises:
        DataError: ``recbole`` or its example file is not installed.
    """
    spec = importlib.util.find_spec("recbole")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    for location in locations:
        path = Path(location) / "dataset_example" / "ml-100k" / "ml-100k.inter"
        if path.is_file():
            return path
    raise DataError(
        "MovieLens-100K comes with the recbole package, "
        + ("whose installed version lacks the file" if locations else "which is not installed")
        + "; run: pip install --no-deps recbole==1.2.1 (or name your own data with --data)"
    )


def split_validation(
    data: InteractionData, fraction: float = 0.1, seed: int = 0
) -> tuple[InteractionData, torch.Tensor, torch.Tensor]:
    """Move a random share of each user's training items to a validation set.

    Each user gives ``fraction`` of the training items, rounded down, but at least one and never the only one.

    Args:
        data: the data set to split.
        fraction: share of each user's training items, in (0, 1).
        seed: seed of the draw.

    Returns:
        ``(fit, validation_users, validation_items)``: the data set with the remaining training pairs, and the
        int64 ids of the validation pairs, each [num_validation].
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be in (0, 1), got {fraction}")
    chosen = torch.from_numpy(_choose_per_user(data.train_users.numpy(), fraction, np.random.default_rng(seed)))
    fit = replace(data, train_users=data.train_users[~chosen], train_items=data.train_items[~chosen])
    return fit, data.train_users[chosen], data.train_items[chosen]


def _fail(path: Path, line_number: int, expected: str, got: str) -> NoReturn:
    shown = got if len(got) <= 60 else got[:57] + "..."
    raise DataError(f"{path}, line {line_number}: expected {expected}, got {shown!r}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (1-based line number, line without its end) of every line that is not blank."""
    line_number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line_number, line in enumerate(file, 1):
                if not line.isspace():
                    yield line_number, line.rstrip("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: expected an interaction file, got nothing there") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}, after line {line_number}: expected UTF-8 text, got other bytes") from None
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got: {error.strerror}") from None


def _read_split_file(
    path: Path, num_users: int | None = None, num_items: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read the integer ids of a split file; with the counts given, ids must lie below them."""
    columns = (array("q"), array("q"))
    limits = (("user", num_users), ("item", num_items))
    lines = _lines(path)
    header_number, header = next(lines, (1, ""))
    if header.strip() != SPLIT_HEADER:
        _fail(path, header_number, f"the header {SPLIT_HEADER!r}", header)
    for line_number, line in lines:
        tokens = line.split("\t")
        if len(tokens) != 2:
            _fail(path, line_number, f"2 tab-separated columns (there are {len(tokens)})", line)
        for token, column, (kind, limit) in zip(tokens, columns, limits, strict=True):
            if not (token.isascii() and token.isdecimal()):
                _fail(path, line_number, f"the {kind} id to be a non-negative integer", token)
            # Python refuses to read numbers of thousands of digits.
            number = int(token) if len(token) <= 19 else 2**63
            if number >= 2**63:
                _fail(path, line_number, f"the {kind} id to be below 2**63", token)
            if limit is not None and number >= limit:
                _fail(path, line_number, f"the {kind} id to be below {limit}, the range of train.tsv", token)
            column.append(number)
    if not columns[0]:
        raise DataError(f"{path}: expected interactions after the header, got none")
    return np.asarray(columns[0]), np.asarray(columns[1])


def _count_ids(ids: np.ndarray, path: Path, kind: str) -> int:
    """Return the size of the range of 0-based ids, refusing ids so sparse that they cannot be 0-based."""
    count = int(ids.max()) + 1
    distinct = len(np.unique(ids))
    if count > _MAX_ID_SPREAD * distinct:
        raise DataError(
            f"{path}: expected 0-based {kind} ids without large gaps, got a largest id of {count - 1} "
            f"with {distinct} distinct ids; give a plain file with --data to have ids renumbered"
        )
    return count


def _read_interactions(path: Path, min_rating: float) -> tuple[np.ndarray, np.ndarray]:
    """Read a plain or RecBole file; ids are numbered in the order in which they first occur."""
    lines = _lines(path)
    first_number, first_line = next(lines, (0, ""))
    if first_number == 0:
        raise DataError(f"{path}: expected interactions, got an empty file")
    separator = "\t" if "\t" in first_line else "," if "," in first_line else None
    separator_name = {"\t": "tabs", ",": "commas", None: "blanks"}[separator]
    first_tokens = [token.strip() for token in first_line.split(separator)]
    num_columns = len(first_tokens)
    if num_columns < 2:
        _fail(path, first_number, "a user and an item, separated by a tab, a comma or blanks", first_line)

    user_column, item_column, rating_column = 0, 1, None
    pending: list[tuple[int, str]] = []
    if all(token.rpartition(":")[2] in _RECBOLE_TYPES for token in first_tokens):
        names = [token.rpartition(":")[0] for token in first_tokens]
        if "user_id" not in names or "item_id" not in names:
            _fail(path, first_number, "columns user_id and item_id in the typed header", first_line)
        user_column, item_column = names.index("user_id"), names.index("item_id")
        rating_column = names.index("rating") if "rating" in names else None
    else:
        pending = [(first_number, first_line)]
        second = next(lines, None)
        if second is not None:
            pending.append(second)
        if _is_header(first_tokens, second[1].split(separator) if second else None):
            del pending[0]

    codes: tuple[dict[str, int], dict[str, int]] = ({}, {})
    columns = (array("q"), array("q"))
    for source in (pending, lines):
        for line_number, line in source:
            tokens = line.split(separator)
            if len(tokens) != num_columns:
                expected = f"{num_columns} columns separated by {separator_name}, as in line {first_number}"
                _fail(path, line_number, f"{expected} (there are {len(tokens)})", line)
            user, item = tokens[user_column].strip(), tokens[item_column].strip()
            if not user or not item:
                _fail(path, line_number, "a user id and an item id that are not empty", line)
            if rating_column is not None:
                try:
                    rating = float(tokens[rating_column])
                except ValueError:
                    _fail(path, line_number, "a number as rating", tokens[rating_column])
                if not rating >= min_rating:
                    continue
            columns[0].append(codes[0].setdefault(user, len(codes[0])))
            columns[1].append(codes[1].setdefault(item, len(codes[1])))
    if not columns[0]:
        kept = "" if rating_column is None else f" with a rating of at least {min_rating:g}"
        raise DataError(f"{path}: expected interactions{kept}, got none")
    return np.asarray(columns[0]), np.asarray(columns[1])


def _is_header(first: list[str], second: list[str] | None) -> bool:
    """Whether the first line of a plain file names columns; a wrong guess costs a single interaction."""
    if first[0].lower() in _USER_COLUMN_NAMES:
        return True
    if second is None:
        return False
    return not any(map(_is_integer, first[:2])) and all(map(_is_integer, second[:2]))


def _is_integer(token: str) -> bool:
    token = token.strip()
    return token.removeprefix("-").isdecimal()


def _distinct_pairs(users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop repeated pairs; the result is sorted by user, then item."""
    order = np.lexsort((items, users))
    users, items = users[order], items[order]
    first = np.ones(len(users), dtype=bool)
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return users[first], items[first]


def _k_core(users: np.ndarray, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Drop users and items with fewer than k interactions until none is left to drop."""
    while True:
        keep = (np.bincount(users)[users] >= k) & (np.bincount(items)[items] >= k)
        if keep.all():
            return users, items
        users, items = users[keep], items[keep]


def _choose_per_user(users: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Mark a random share of each user's pairs, rounded down, at least one, never all: bool [len(users)]."""
    order = np.lexsort((rng.random(len(users)), users))
    counts = np.bincount(users)
    starts = np.cumsum(counts) - counts
    rank = np.arange(len(users)) - starts[users[order]]
    quota = np.minimum(np.maximum((counts * fraction + 1e-9).astype(np.int64), 1), counts - 1)
    chosen = np.zeros(len(users), dtype=bool)
    chosen[order] = rank < quota[users[order]]
    return chosen


def _one_of_each_cold_item(items: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return the index of one test pair of every item that has no training pair."""
    is_cold = np.bincount(items[~test], minlength=items.max() + 1) == 0
    candidates = np.flatnonzero(test & is_cold[items])
    _, first = np.unique(items[candidates], return_index=True)
    return candidates[first]


def _interaction_data(
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    num_users: int,
    num_items: int,
    name: str,
) -> InteractionData:
    tensors = [torch.from_numpy(np.array(ids, dtype=np.int64)) for ids in (*train, *test)]
    return InteractionData(*tensors, num_users=num_users, num_items=num_items, name=name)

"""Load implicit-feedback interactions and split them into training, validation and test sets."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cw_ext import files

DEFAULT_CORE = 10
DEFAULT_MIN_RATING = 3.0
TEST_FRACTION = 0.2


class DataError(ValueError):
    """Interactions that cannot be used; the message has the file and line, and what was expected."""


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
        notes: what was read and how much of it was kept, a line each.
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
    notes: tuple[str, ...] = ()

    def sizes(self) -> dict[str, str | int]:
        """Return the entry of a result file: the data's name, and the numbers of users, items and interactions."""
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


def load(path: str | Path | None = None, *, seed: int = 0, core: int | None = None, **reading: Any) -> InteractionData:
    """Load a file or a directory of interactions, or (``path`` None) MovieLens-100K.

    A directory's training and test files are kept as they are (:func:`load_split_directory`), and so is the split of a
    file with a column ``split``, whose validation rows join the training set. Any other file is filtered
    to its k-core and split 80/20 per user: the 20 % are rounded down, but at least one interaction, and never a user's
    only one; every test item also occurs in training. Repeated pairs count once.

    Args:
        path: the directory or the file, of any kind that :meth:`cw_ext.Interactions.from_file` knows.
        seed: of the 80/20 split.
        core: every user and item kept has at least this many interactions, at least 1; 10 if None. Only for what is
            split here.
        reading: columns, ``separator``, ``format``, ``encoding`` and ``min_rating`` as for
            :class:`cw_ext.files.Reading`; where there are ratings and no ``min_rating``, those below 3 are dropped.

    Raises:
        DataError: the input is missing, malformed, or empty after filtering, or an argument does not apply to it.
    """
    return load_seeds(path, [seed], core=core, **reading)[seed]


def load_seeds(
    path: str | Path | None, seeds: Sequence[int], *, core: int | None = None, **reading: Any
) -> dict[int, InteractionData]:
    """Load the data once, and split it with each seed; otherwise as :func:`load`."""
    with _as_data_errors(path):
        how = files.Reading(**reading)
        if path is None:
            return _load_file(movielens_100k_file(), seeds, core, how, "ml-100k")
        path = Path(path)
        if not path.is_dir():
            packed = path.suffix in (".gz", ".bz2", ".xz")
            return _load_file(path, seeds, core, how, path.with_suffix("").stem if packed else path.stem)
        if core is not None:
            raise DataError(f"{path}: core (--core) does not apply to a directory, whose split is used as it is")
        return dict.fromkeys(seeds, load_split_directory(path, how))


@contextmanager
def _as_data_errors(path: str | Path | None) -> Iterator[None]:
    """Raise errors of reading as DataError."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: expected an interaction file, got none") from None
    except OSError as error:
        raise DataError(f"{error.filename or path}: expected a readable file, got: {error.strerror}") from None
    except (ValueError, ImportError) as error:
        raise DataError(str(error)) from None


def load_movielens_100k(*, seed: int = 0, core: int | None = None, **reading: Any) -> InteractionData:
    """Load MovieLens-100K from the installed ``recbole`` package.

    Raises:
        DataError: ``recbole`` or its example file is not installed.
    """
    return load(None, seed=seed, core=core, **reading)


def load_split_directory(path: str | Path, reading: files.Reading | None = None) -> InteractionData:
    """Load the files ``train.*`` and ``test.*`` of a directory, or ``*.train.inter`` and ``*.test.inter``.

    Pairs of ``valid.*`` join the training set. Ids are numbered in the sorted order of those in training, so that no
    other has a row; integers from 0 without gaps stay as they are. Test pairs that occur in training, or whose user or
    item does not occur there, are left out and counted on stderr.

    Raises:
        DataError: a file is missing or malformed, or no test pair is left.
    """
    path = Path(path)
    reading = files.Reading() if reading is None else reading
    parts = {name: _split_file(path, name) for name in files.SPLITS}
    with _as_data_errors(path):
        reading.refuse(path, "a directory, whose files are the split", "split_column")
        tables = {
            name: files.read_interactions(part, reading, default_min_rating=DEFAULT_MIN_RATING)
            for name, part in parts.items()
            if part is not None
        }
    for name, table in tables.items():
        if not len(table.lines):
            raise DataError(f"{parts[name]}: expected interactions, got {table.summary}")
        _check_part(parts[name], name, table)  # type: ignore[arg-type]
    notes = [f"{parts[name].name}: {table.summary}" for name, table in tables.items()]  # type: ignore[union-attr]
    for kind in ("user", "item"):
        _check_one_form(path, kind, [getattr(table, f"{kind}s").of_rows for table in tables.values()])
    test = tables.pop("test")
    train = [_joined(ids) for ids in zip(*(_own_ids(table) for table in tables.values()), strict=True)]
    return _as_split(path, (train[0], train[1]), _own_ids(test), path.resolve().name, notes)


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
        + "; run: pip install --no-deps recbole==1.2.1 (or use your own data, with --data)"
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


def _load_file(
    path: Path, seeds: Sequence[int], core: int | None, reading: files.Reading, name: str
) -> dict[int, InteractionData]:
    if core is not None and core < 1:
        raise DataError(f"core must be at least 1, got {core}")
    table = files.read_interactions(path, reading, default_min_rating=DEFAULT_MIN_RATING)
    if not len(table.lines):
        raise DataError(f"{path}: expected interactions, got {table.summary}")
    notes = [f"{path.name}: {table.summary}"]
    if table.split is not None:
        if core is not None:
            raise DataError(
                f"{path}: core (--core) does not apply to a file with a column split, which is used as it is"
            )
        is_test = table.split == files.SPLITS.index("test")
        users, items = _own_ids(table)
        train, test = (users[~is_test], items[~is_test]), (users[is_test], items[is_test])
        if not len(train[0]) or not len(test[0]):
            missing = "train" if len(test[0]) else "test"
            raise DataError(f"{path}: expected rows of the split {missing}, got none")
        return dict.fromkeys(seeds, _as_split(path, train, test, name, notes))

    core = DEFAULT_CORE if core is None else core
    users, items = _distinct_pairs(table.users.codes, table.items.codes)
    before = (len(np.unique(users)), len(np.unique(items)))
    notes.append(f"{len(table.lines)} rows: {len(users)} distinct pairs of {before[0]} users and {before[1]} items")
    users, items = _k_core(users, items, core)
    if len(users) == 0:
        raise DataError(
            f"{path}: expected interactions left after the {core}-core filter (--core {core}), got none of "
            f"{notes[-1].partition(': ')[2]}; lower --core"
        )
    kept_users, users = np.unique(users, return_inverse=True)
    kept_items, items = np.unique(items, return_inverse=True)
    if core > 1:
        left_out = (before[0] - len(kept_users), before[1] - len(kept_items))
        notes.append(
            f"{core}-core (--core {core}): {len(users)} pairs of {len(kept_users)} users and {len(kept_items)} items "
            f"kept; {left_out[0]} users and {left_out[1]} items with fewer than {core} left out"
        )
    return {
        seed: replace(
            _split_at_random(path, users, items, seed, name),
            user_ids=table.users.values[kept_users],
            item_ids=table.items.values[kept_items],
            notes=tuple(notes),
        )
        for seed in seeds
    }


def _split_at_random(path: Path, users: np.ndarray, items: np.ndarray, seed: int, name: str) -> InteractionData:
    rng = np.random.default_rng(seed)
    test = _choose_per_user(users, TEST_FRACTION, rng)
    test[_one_of_each_cold_item(items, test)] = False
    if not test.any():  # in small data every item drawn may be one that occurs once
        drawable = np.flatnonzero((np.bincount(users)[users] > 1) & (np.bincount(items)[items] > 1))
        if not len(drawable):
            raise DataError(
                f"{path}: expected a user with at least 2 interactions to draw test items from, one of them with an "
                f"item that others have too, got none in {len(users)} pairs"
            )
        test[rng.choice(drawable)] = True
    return _interaction_data(
        (users[~test], items[~test]), (users[test], items[test]), int(users.max()) + 1, int(items.max()) + 1, name
    )


def _split_file(directory: Path, name: str) -> Path | None:
    """The one file of that part of a split; None where there is no validation part."""
    words = ("valid", "val", "validation", "dev") if name == "valid" else (name,)
    patterns = [pattern for word in words for pattern in (f"{word}.*", f"*.{word}.inter", f"*.{word}.csv")]
    found = sorted({part for pattern in patterns for part in directory.glob(pattern)})
    if len(found) > 1:
        names = ", ".join(part.name for part in found)
        raise DataError(f"{directory}: expected one file of the part {name}, got {names}")
    if found:
        return found[0]
    if name == "valid":
        return None
    raise DataError(f"{directory / name}.tsv: expected an interaction file, got none")


def _own_ids(table: files.InteractionTable) -> tuple[np.ndarray, np.ndarray]:
    return table.users.of_rows, table.items.of_rows


def _check_part(path: Path, name: str, table: files.InteractionTable) -> None:
    """Refuse a file of a directory whose column ``split`` contradicts its name."""
    if table.split is None:
        return
    others = np.flatnonzero(table.split != files.SPLITS.index(name))
    if len(others):
        line, got = table.lines[others[0]], files.SPLITS[table.split[others[0]]]
        raise DataError(f"{path}, {table.unit} {line}: expected the split {name}, as the file's name says, got {got}")


def _check_one_form(path: Path, kind: str, parts: Sequence[np.ndarray]) -> None:
    """Refuse an id that is an integer in one file, and the same number with a decimal point in another."""
    if len({part.dtype for part in parts}) == 1:
        return
    integers = {str(name) for part in parts if part.dtype != object for name in np.unique(part).tolist()}
    for part in parts:
        for name in part.tolist() if part.dtype == object else ():
            whole, point, zeros = name.partition(".")
            if point and not zeros.strip("0") and whole in integers:
                raise DataError(f"{path}: expected {kind} ids of one form, got both '{whole}' and '{name}'")


def _joined(ids: Sequence[np.ndarray]) -> np.ndarray:
    """The ids of several files in a row: strings, where those of any file are."""
    return np.concatenate(ids if len({part.dtype for part in ids}) == 1 else [_as_strings(part) for part in ids])


def _as_strings(ids: np.ndarray) -> np.ndarray:
    return ids if ids.dtype == object else ids.astype(str).astype(object)


def _as_split(
    path: Path, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], name: str, notes: list[str]
) -> InteractionData:
    """Number the ids of a split by its training part, and leave test pairs out that cannot be hits."""
    users, test_users, num_users, user_ids = _numbered(train[0], test[0])
    items, test_items, num_items, item_ids = _numbered(train[1], test[1])
    users, items = _distinct_pairs(users, items)
    test_users, test_items = _distinct_pairs(test_users, test_items)
    unknown_user, unknown_item = test_users < 0, test_items < 0
    in_training = np.isin(test_users * num_items + test_items, users * num_items + items)
    in_training &= ~unknown_user & ~unknown_item
    kept = ~(in_training | unknown_user | unknown_item)
    if not kept.all():
        reasons = (
            f"{np.count_nonzero(in_training)} are also in training, {np.count_nonzero(unknown_user)} have users and "
            f"{np.count_nonzero(unknown_item)} have items that do not occur in training"
        )
        counted = f"of {len(kept)} distinct test pairs, {reasons}"
        if not kept.any():
            raise DataError(f"{path}: expected test pairs of known users and items that are not in training, {counted}")
        print(f"warning: {path}: {counted}; these are left out, and {np.count_nonzero(kept)} remain", file=sys.stderr)
    dataset = _interaction_data((users, items), (test_users[kept], test_items[kept]), num_users, num_items, name)
    return replace(dataset, user_ids=user_ids, item_ids=item_ids, notes=tuple(notes))


def _numbered(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, np.ndarray | None]:
    """Number the ids of one side of a split in the sorted order of those in training: every row has interactions.

    Returns:
        Rows of the training ids; rows of the test ids, with a distinct negative number for each that does not occur
        in training; the number of rows; the own id of each row, or None where every id is its own row.
    """
    if train.dtype != test.dtype:  # integers in one file only
        train, test = _as_strings(train), _as_strings(test)
    values, rows = np.unique(train, return_inverse=True)
    test_values, test_codes = np.unique(test, return_inverse=True)
    places = np.searchsorted(values, test_values).clip(max=len(values) - 1)
    test_rows = np.where(values[places] == test_values, places, -1 - np.arange(len(places)))
    are_rows = values.dtype != object and values[0] == 0 and values[-1] == len(values) - 1
    return rows.reshape(-1), test_rows[test_codes.reshape(-1)], len(values), None if are_rows else values


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

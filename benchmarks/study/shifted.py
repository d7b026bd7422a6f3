"""Split a data set again, so that test items are spread evenly over popularity while training items follow it.

The training and test pairs of a split folder are pooled. Test pairs are then drawn from the pool one after another.
Each pair that may still be drawn has a probability proportional to 1/n_i, where n_i is the number of pairs of its item
i in the pool. At first, all items therefore have the same chance, whatever their popularity; items with few pairs may
run out of them. The last pair of a user or an item is never drawn, so each keeps one to train on, and no test item is
cold.

Training takes its validation pairs from the training pairs, so validation follows popularity.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import command, data, whole_directory
from benchmarks.common.arguments import non_negative_int

DEFAULT_SHARE = 0.2


def draw_evenly(users: np.ndarray, items: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Draw pairs with probability ∝ 1/n_i, leaving each user and each item at least one.

    Args:
        users, items: ids ≥ 0 of distinct pairs, each [P].
        number: how many to draw.
        seed: of the draw.

    Returns:
        bool [P], whether each pair was drawn.

    Raises:
        ValueError: so many cannot be drawn.
    """
    popularity = np.bincount(items)
    # The order in which waiting times with rates 1/n_i end is that of a draw without replacement (Efraimidis and
    # Spirakis, 2006). A pair that may not be drawn when its turn comes may not be drawn later either.
    waits = np.random.default_rng(seed).exponential(size=len(items)) * popularity[items]
    users_left, items_left = np.bincount(users).tolist(), popularity.tolist()
    drawn = []
    for pair in np.argsort(waits).tolist():
        if len(drawn) == number:
            break
        user, item = int(users[pair]), int(items[pair])
        if users_left[user] > 1 and items_left[item] > 1:
            users_left[user] -= 1
            items_left[item] -= 1
            drawn.append(pair)
    if len(drawn) < number:
        raise ValueError(
            f"share (--share) must leave each user and each item a pair to train on, got {number} test pairs of "
            f"{len(users)}, of which {len(drawn)} could be drawn"
        )
    chosen = np.zeros(len(items), dtype=bool)
    chosen[drawn] = True
    return chosen


def write_split(source: Path, target: Path, share: float = DEFAULT_SHARE, seed: int = 0) -> str:
    """Write the split as train.tsv and test.tsv, whole or not at all; a target that is this split already is left.

    Args:
        source: a directory as :func:`benchmarks.common.data.load_split_directory` reads it. Test pairs that it leaves
            out are left out here too.
        target: a directory that is new, empty, or of this very split.
        share: of the pairs that go to the test, in (0, 1), rounded, but at least one pair.
        seed: of the draw. The result depends on it and on the pairs, not on how the source splits them.

    Returns:
        What was written, in a line.

    Raises:
        ValueError: the source cannot be read, the share is out of its range or too large, or the target is something
            else; nothing was written.
        OSError: the target cannot be written.
    """
    if not 0 < share < 1:
        raise ValueError(f"share (--share) must be in (0, 1), got {share}")
    split = data.load_split_directory(source)
    users = np.concatenate([split.train_users.numpy(), split.test_users.numpy()])
    items = np.concatenate([split.train_items.numpy(), split.test_items.numpy()])
    order = np.lexsort((items, users))
    users, items = users[order], items[order]
    is_test = draw_evenly(users, items, max(1, round(share * len(users))), seed)

    shifted = replace(
        split,
        train_users=torch.from_numpy(users[~is_test]),
        train_items=torch.from_numpy(items[~is_test]),
        test_users=torch.from_numpy(users[is_test]),
        test_items=torch.from_numpy(items[is_test]),
    )
    _write(shifted, target)
    popularity = np.bincount(items)
    before, now = (popularity[pairs.test_items.numpy()].mean() for pairs in (split, shifted))
    return (
        f"{target}: {len(shifted.train_users)} training and {len(shifted.test_users)} test pairs of "
        f"{split.num_users} users and {split.num_items} items; the item of a test pair has {now:.1f} pairs in the "
        f"mean, {before:.1f} in the split read"
    )


def _write(split: data.InteractionData, target: Path) -> None:
    parts = {
        "train.tsv": _as_table(split, split.train_users, split.train_items),
        "test.tsv": _as_table(split, split.test_users, split.test_items),
    }
    if _is_there(target, parts):
        return
    with whole_directory.written_whole(target) as unfinished:
        for name, content in parts.items():
            (unfinished / name).write_bytes(content)
        if not _reads_as(unfinished, split):
            raise ValueError(f"ids of {split.name} must read the same from a table separated by tabs, got others")


def _as_table(split: data.InteractionData, users: torch.Tensor, items: torch.Tensor) -> bytes:
    user_ids = users.numpy() if split.user_ids is None else split.user_ids[users.numpy()]
    item_ids = items.numpy() if split.item_ids is None else split.item_ids[items.numpy()]
    lines = [f"{user}\t{item}\n" for user, item in zip(user_ids.tolist(), item_ids.tolist(), strict=True)]
    return "".join(["user\titem\n", *lines]).encode()


def _reads_as(directory: Path, split: data.InteractionData) -> bool:
    try:
        found = data.load_split_directory(directory)
    except data.DataError:
        return False
    names = ("user_ids", "item_ids", "train_users", "train_items", "test_users", "test_items")
    return all(np.array_equal(getattr(found, name), getattr(split, name)) for name in names)


def _is_there(directory: Path, parts: dict[str, bytes]) -> bool:
    """Whether the directory contains just these files.

    Raises:
        ValueError: it contains something else.
    """
    if not directory.exists():
        return False
    expected = f"{directory} (--out): expected a new or empty directory, or this split"
    if not directory.is_dir():
        raise ValueError(f"{expected}, got a file")
    names = {path.name for path in directory.iterdir()}
    if not names:
        return False
    if others := sorted(names - parts.keys()):
        raise ValueError(f"{expected}, got one with {', '.join(others[:3])}")
    if any(name not in names or (directory / name).read_bytes() != content for name, content in parts.items()):
        raise ValueError(f"{expected}, got another split")
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser(
        "python -m benchmarks.study.shifted", __doc__, "bad arguments or data", "no file is left half-written"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", required=True, help="folder with train.tsv and test.tsv")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="folder for the two new files")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of the draw")
    parser.add_argument("--share", type=float, default=DEFAULT_SHARE, help="share of the pairs that become test pairs")
    arguments = parser.parse_args(argv)

    def work() -> None:
        print(write_split(arguments.data, arguments.out, arguments.share, arguments.seed))

    return command.run(work)


if __name__ == "__main__":
    sys.exit(main())

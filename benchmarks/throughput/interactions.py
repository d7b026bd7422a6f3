"""Known positives for the throughput benchmark: of a data set, or made up with the skew of a real one."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from benchmarks.common import data
from cw_ext import Interactions

# Close to gowalla's training set (29,858 users, 40,988 items, 810,128 pairs, 8 to 811 of a user): its
# lengths at the quartiles, 90 and 99 %, and its items' counts from the 10th to the last.
_SHORTEST, _MEDIAN_BEYOND, _SPREAD, _LONGEST = 7, 7.0, 1.4, 810
_OFFSET, _EXPONENT = 10, 0.6


@lru_cache(maxsize=4)
def history(path: str | None, num_users: int, num_items: int) -> Interactions:
    """Return the training interactions of the data set at the path, or made-up ones, always the same.

    Args:
        path: as for :func:`benchmarks.common.data.load`; None for a made-up history, in which the k-th item has a
            popularity proportional to (k + 10)^−0.6, the lengths of the users' histories are log-normal beyond the
            shortest, and every item occurs.
        num_users, num_items: its sizes.

    Raises:
        DataError: the data set cannot be loaded.
        ValueError: it has other sizes.
    """
    if path is not None:
        dataset = data.load(path)
        if (dataset.num_users, dataset.num_items) != (num_users, num_items):
            raise ValueError(
                f"{path}: expected {num_users} users and {num_items} items, got {dataset.num_users} and "
                f"{dataset.num_items}"
            )
        users, items = dataset.train_users, dataset.train_items
    else:
        rng = np.random.default_rng(0)
        beyond = rng.lognormal(np.log(_MEDIAN_BEYOND), _SPREAD, num_users)
        lengths = np.minimum(_SHORTEST + beyond.astype(np.int64), max(1, min(_LONGEST, num_items // 4)))
        users = np.repeat(np.arange(num_users), lengths)
        popularity = (np.arange(num_items) + _OFFSET) ** -_EXPONENT
        ranks = np.searchsorted(np.cumsum(popularity / popularity.sum()), rng.random(len(users)))
        # The last sum may be below 1 by rounding. Ids are independent of popularity.
        items = rng.permutation(num_items)[np.minimum(ranks, num_items - 1)]
        users = np.concatenate([users, rng.integers(num_users, size=num_items)])
        items = np.concatenate([items, np.arange(num_items)])
        # Each pair once, as in a data set.
        users, items = np.divmod(np.unique(users * num_items + items), num_items)
    return Interactions(users, items, num_queries=num_users, num_items=num_items)

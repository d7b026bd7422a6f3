"""What a step over several processes sends and holds, by arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

DIM = 64
ROW_BYTES = 4 * DIM
ID_BYTES = 8
# Where the negatives of a step come from. "per row" and "shared" are drawn for each row or for all rows of a process,
# from a table whose rows are spread over the processes. The others are in-batch ones, of all processes: of a table that
# each process holds alike ("ids": only ids travel, and then the gradient of the whole table), or of vectors that each
# process has encoded: with gradients for the other processes' vectors or without ("own gradients"), and from process
# to process ("ring").
Way = Literal["per row", "shared", "ids", "vectors", "own gradients", "ring"]
DRAWN: tuple[Way, ...] = ("per row", "shared")
WAYS: tuple[Way, ...] = (*DRAWN, "ids", "vectors", "own gradients", "ring")


@dataclass(frozen=True)
class Step:
    """Sizes of a step, per process.

    Attributes:
        way: where the negatives come from.
        items: in the whole catalogue, I.
        negatives: drawn, N; 0 for in-batch ones.
        batch_size: rows, B.
    """

    way: Way
    items: int
    negatives: int = 0
    batch_size: int = 256


PREDICTED = tuple(
    (Step(way, items, negatives, 1024), processes)
    for way, negatives in (("per row", 100), ("per row", 1000), ("shared", 1000), *((way, 0) for way in WAYS[2:]))
    for items in (10**6, 10**7, 10**8, 10**9)
    for processes in (2, 8, 64, 1024)
)


def predict(step: Step, processes: int) -> dict[str, float]:
    """Count what a process sends per step and holds, for uniform positives and negatives.

    Returns:
        distinct_rows: of the spread table, the expected number that a process's step uses, I·(1 − (1 − 1/I)^draws).
        sent_ids, sent_forward, sent_backward: bytes to other processes: integers, and vectors or gradients.
        held: bytes of the process's part of the item table and of Adam's two moments, fp32; 0 where there is none.
    """
    others = processes - 1
    if step.way in DRAWN:
        draws = step.batch_size + step.negatives * (1 if step.way == "shared" else step.batch_size)
        missed = draws * math.log1p(-1 / step.items) if step.items > 1 else -math.inf
        distinct = -step.items * math.expm1(missed)
        elsewhere = distinct * others / processes  # a share 1/R of the rows that a process asks for is its own
        return {
            "distinct_rows": distinct,
            "sent_ids": ID_BYTES * (elsewhere + others),  # and how many
            "sent_forward": ROW_BYTES * elsewhere,
            "sent_backward": ROW_BYTES * elsewhere,
            "held": 3 * ROW_BYTES * math.ceil(step.items / processes),
        }
    vectors = ROW_BYTES * step.batch_size * others
    table = step.items if step.way == "ids" else 0
    # A process's vectors go to all others. In backward so do the gradients of what it has from them; around the ring
    # the vectors go once more, and the gradients with them, and on to where the vectors came from.
    backward = {
        "ids": 2 * ROW_BYTES * table * others / processes,  # an all-reduce: a sum of parts, and their distribution
        "vectors": vectors,
        "own gradients": 0,
        "ring": 2 * vectors + ROW_BYTES * step.batch_size * min(others, 1),
    }[step.way]
    # Of items, where these are no rows of a table also of queries, and around the ring both again in backward.
    ids = {"ids": 1, "vectors": 2, "own gradients": 2, "ring": 4}[step.way]
    return {
        "distinct_rows": 0,
        "sent_ids": ids * ID_BYTES * step.batch_size * others,
        "sent_forward": 0 if step.way == "ids" else vectors,
        "sent_backward": backward,
        "held": 3 * ROW_BYTES * table,
    }

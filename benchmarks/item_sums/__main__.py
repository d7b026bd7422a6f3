"""Compare two ways to sum the item table's gradient on a GPU: by atomic additions, and over sorted pairs.

Both ways of the kernel's op take turns in one process, for batches of many sizes. csrc/cuda/item_sums.cpp chooses
between them by the number of pairs (kLeastSorted). The table that this program prints shows from which number on
sorting is faster. It needs a GPU, and it has never run on one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import command, gpu, reporting, timing
from benchmarks.common.arguments import add_out

WAYS = ("atomic", "sorted")
ROUNDS = 20
# For all rounds of one size.
BUDGET_SECONDS = 0.5
ROWS = (8, 32, 128, 512, 2048, 8192)
NEGATIVES = 1000
# Dimension and items: tables that fit into an H200's second-level cache, and one that does not.
TABLES = ((64, 41_000), (128, 41_000), (64, 1_000_000))


def item_gradient(*arguments: Any) -> torch.Tensor:
    """The op itself, whose last argument is the way."""
    return torch.ops.cw_ext.item_gradient(*arguments)


def measure(rows: int, negatives: int, dim: int, items: int, device: str = "cuda") -> dict[str, Any]:
    """Time the op both ways, on uniformly drawn ids.

    Args:
        rows: B.
        negatives: per row, N.
        dim: length of an embedding, D.
        items: rows of the table, I.
        device: "cuda"; the CPU has one way only.

    Returns:
        A JSON-ready dict: the sizes, pairs = B·(1 + N), seconds per way in quantiles, and speedup_sorted, the median by
        atomic additions over the one by sorting.
    """
    generator = torch.Generator().manual_seed(0)
    table, sources = (torch.randn(size, dim, generator=generator).to(device) for size in (items, rows))
    coefficients = torch.randn(rows, 1 + negatives, generator=generator).to(device)
    pos_ids, neg_ids = (
        torch.randint(items, size, generator=generator).to(device) for size in ((rows,), (rows, negatives))
    )
    none = torch.empty(0, device=device)  # arguments of other cases

    arguments = (sources, None, coefficients, none, none, none, table, pos_ids, neg_ids, None, "half_cosine")

    synchronize = partial(gpu.synchronize, device)
    steps = {way: partial(item_gradient, *arguments, way) for way in WAYS}
    plans = {}
    for way, own in steps.items():
        own()
        seconds = timing.estimate(own, synchronize, timing.LIMITS[device])
        plans[way] = timing.plan(seconds, ROUNDS, BUDGET_SECONDS, timing.LIMITS[device])
    samples = timing.alternate(steps, plans, synchronize)
    seconds = {way: timing.quantiles(samples[way]) for way in WAYS}
    return {
        "rows": rows,
        "negatives": negatives,
        "dim": dim,
        "items": items,
        "pairs": rows * (1 + negatives),
        "seconds": seconds,
        "speedup_sorted": seconds["atomic"]["median"] / seconds["sorted"]["median"],
    }


def describe(results: Sequence[dict[str, Any]]) -> str:
    """A table of the medians, a row per size."""
    lines = [
        [
            f"D={r['dim']} I={r['items']}",
            str(r["pairs"]),
            *(f"{1e6 * r['seconds'][way]['median']:.1f}" for way in WAYS),
            f"{r['speedup_sorted']:.2f}",
        ]
        for r in results
    ]
    return reporting.format_table(["table", "pairs", "atomic us", "sorted us", "x sorted"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser(
        "python -m benchmarks.item_sums", __doc__, "bad arguments or no GPU", "nothing is written"
    )
    add_out(parser)
    parser.add_argument(
        "--device", choices=("cuda",), default="cuda", help="device to run on; the CPU has only one way"
    )
    arguments = parser.parse_args(argv)
    out = arguments.out or reporting.default_directory("item-sums")
    return command.run(lambda: _run(arguments.device, out))


def _run(device: str, out: Path) -> None:
    gpu.require(device)
    reporting.make_writable_directory(out)
    results = [measure(rows, NEGATIVES, dim, items) for dim, items in TABLES for rows in ROWS]
    reporting.write_json(out / "item_sums.json", {"environment": reporting.environment("cuda"), "sizes": results})
    print(describe(results))
    print()
    reporting.print_results(out / "item_sums.json")


if __name__ == "__main__":
    sys.exit(main())

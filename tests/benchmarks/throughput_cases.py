"""Shapes of next to nothing for the throughput benchmark, and reports with made-up times."""

from __future__ import annotations

from benchmarks.throughput import report
from benchmarks.throughput.shapes import Shape

SCORES = Shape("scores", 8, 6)
PER_ROW = Shape("ids", 8, 6, dim=4, items=20)
SHARED = Shape("ids", 8, 6, dim=4, items=20, shared=True)
SOFTMAX = Shape("ids", 8, 6, dim=4, items=20, loss="sampled_softmax")
HISTORY = {"dim": 4, "items": 30, "users": 12}
SAMPLED = Shape("sampled", 8, 6, **HISTORY)
POPULARITY = Shape("sampled", 8, 6, **HISTORY, popularity=True)
ONE_SETS = {
    "shared-set": Shape("shared", 8, 6, **HISTORY),
    "in-batch": Shape("in-batch", 8, **HISTORY),
    "mixed": Shape("mixed", 8, 6, **HISTORY),
    "full": Shape("full", 8, **HISTORY),
}
SHAPES = {
    "scores": SCORES,
    "per-row": PER_ROW,
    "shared": SHARED,
    "softmax": SOFTMAX,
    "sampled": SAMPLED,
    "popularity": POPULARITY,
    **ONE_SETS,
}


def made_up_costs(peak: int | None = None, **medians: float) -> dict:
    return {
        name: {"seconds": {"q20": median, "median": median, "q80": median}, "peak_extra_bytes": peak}
        for name, median in medians.items()
    }


def made_up_report(*shapes: Shape, environment: dict | None = None, **medians: float) -> dict:
    entries = []
    for shape in shapes:
        costs = made_up_costs(**medians)
        report.add_derived(shape, costs)
        described = {"shape": vars(shape), "table": shape.table, "label": shape.label}
        entries.append({**described, "contestants": costs, "left_out": {}, "wrong": []})
    return {"environment": environment or {}, "shapes": entries, "scaling": [], "not_begun": []}


def columns_of(described: str, table: str) -> dict[str, dict[str, str]]:
    """A table: per contestant its cells by the heading of their column, for one shape."""
    lines = described.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{table}  "))
    rule, width = lines[start + 1], len(lines[start])
    ends = [i + 1 for i, c in enumerate(rule) if c == "-" and rule[i + 1 : i + 2] in ("", " ")]

    def cells(line: str) -> list[str]:
        line = line.ljust(width)
        return [line[a:b].strip() for a, b in zip([0, *ends], ends)]

    titles = cells(lines[start])[2:]
    rows = [cells(line) for line in lines[start + 2 :][: lines[start + 2 :].index("")]]
    return {row[1]: dict(zip(titles, row[2:], strict=True)) for row in rows}

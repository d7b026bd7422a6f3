"""Shapes of next to nothing for the throughput benchmark, and reports with made-up times."""

from __future__ import annotations

from benchmarks import throughput_report
from benchmarks.throughput_shapes import Shape

SCORES = Shape(1, 8, 6)
PER_ROW = Shape(2, 8, 6, dim=4, items=20)
SHARED = Shape(2, 8, 6, dim=4, items=20, shared=True)
SOFTMAX = Shape(2, 8, 6, dim=4, items=20, loss="sampled_softmax")
SHAPES = {"scores": SCORES, "per-row": PER_ROW, "shared": SHARED, "softmax": SOFTMAX}


def made_up_costs(peak: int | None = None, **medians: float) -> dict:
    return {
        name: {"seconds": {"q20": median, "median": median, "q80": median}, "peak_extra_bytes": peak}
        for name, median in medians.items()
    }


def made_up_report(*shapes: Shape, environment: dict | None = None, **medians: float) -> dict:
    entries = []
    for shape in shapes:
        costs = made_up_costs(**medians)
        throughput_report.add_derived(shape, costs)
        described = {"shape": vars(shape), "label": shape.label}
        entries.append({**described, "contestants": costs, "left_out": {}, "wrong": []})
    return {"environment": environment or {}, "shapes": entries, "scaling": [], "not_begun": []}


def columns_of(described: str, level: int) -> dict[str, dict[str, str]]:
    """The table of a level: per contestant its cells by the heading of their column, for one shape."""
    lines = described.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"level {level} "))
    rule, width = lines[start + 1], len(lines[start])
    ends = [i + 1 for i, c in enumerate(rule) if c == "-" and rule[i + 1 : i + 2] in ("", " ")]

    def cells(line: str) -> list[str]:
        line = line.ljust(width)
        return [line[a:b].strip() for a, b in zip([0, *ends], ends)]

    titles = cells(lines[start])[2:]
    rows = [cells(line) for line in lines[start + 2 :][: lines[start + 2 :].index("")]]
    return {row[1]: dict(zip(titles, row[2:], strict=True)) for row in rows}

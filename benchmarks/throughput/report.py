"""Ratios, rates and tables from the measurements of the throughput benchmark."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.common.reporting import format_table
from benchmarks.throughput.samplers import SAMPLERS
from benchmarks.throughput.shapes import TABLES, Shape, gradient_bytes, least_bytes

MIB = 2**20
RIVALS = ("eager", "tuned", "compile", "checkpoint", "cce", *SAMPLERS)
# Those whose speed the others' is compared with, in the tables that have them.
COMPARED = ("eager", "compile", "cce", "ready-ids", *SAMPLERS)


def add_derived(shape: Shape, costs: dict[str, dict[str, Any]]) -> None:
    """Add to each contestant's costs what follows from the medians; None where its counterpart was not measured.

    - speed_vs_eager and so on, for each of :data:`COMPARED`: the other's median over its own, so that more than 1 is
      faster.
    - gb_per_s: :func:`least_bytes` over the median.
    - share_of_floor: the floor's median over its own; 1 is as fast as the floor.
    - extra_bytes_per_negative: peak extra memory less the gradients of the inputs, over B times the negatives of a row.
    """
    medians = {name: cost["seconds"]["median"] for name, cost in costs.items()}

    def ratio(name: str, other: str) -> float | None:
        return medians[other] / medians[name] if other in medians else None

    for name, cost in costs.items():
        peak = cost["peak_extra_bytes"]
        beyond_gradients = None if peak is None else peak - gradient_bytes(shape)
        cost |= {
            **{speed_key(other): ratio(name, other) for other in COMPARED},
            "gb_per_s": None if name == "floor" else least_bytes(shape) / medians[name] / 1e9,
            "share_of_floor": ratio(name, "floor"),
            "extra_bytes_per_negative": (
                None if beyond_gradients is None else beyond_gradients / (shape.batch_size * shape.columns)
            ),
        }


def speed_key(other: str) -> str:
    """The key of a contestant's speed relative to another's."""
    return f"speed_vs_{other.replace('-', '_')}"


def describe(report: dict[str, Any]) -> str:
    """Return the report as its tables, followed by notes and where cw_ext loses."""
    parts = []
    copying = report["environment"].get("copy_bytes_per_second")
    for table in dict.fromkeys(TABLES.values()):
        measured = [entry for entry in report["shapes"] if entry["table"] == table]
        if measured:
            parts.append(_table(table, measured, copying if table == "scores" else None))
    parts.append(
        "x eager and so on: how many times as fast. GB/s: counting only the bytes that any implementation must move. "
        "% of floor: of the\nspeed of a yardstick that does less work than the loss. B/neg: bytes per negative beyond "
        "inputs and gradients; mostly noise if the peak\nis below a MiB."
    )
    if copying is not None:
        parts.append(
            f"% of copy: of the bandwidth of a large copy within the memory of {report['environment']['gpu']}, "
            f"{copying / 1e9:.0f} GB/s read and written"
        )
    for entry in report["scaling"]:
        one, many = (1e3 * entry["seconds"][str(count)]["median"] for count in (1, entry["threads"]))
        parts.append(
            f"threads: {entry['table']}, {entry['label']}: {one:.2f} ms with 1, {many:.2f} ms with "
            f"{entry['threads']}: {entry['factor']:.2f} times the speed"
        )
    for entry in report["shapes"]:
        drawing = entry["contestants"].get("cw_ext", {}).get(speed_key("ready-ids"))
        if drawing is not None:
            parts.append(f"drawing inside: {entry['label']}: {1 / drawing:.2f} times the time with ready ids")
    compiling = [cost["compile_seconds"] for e in report["shapes"] if (cost := e["contestants"].get("compile"))]
    if compiling:
        parts.append(f"compiling (with the first step) took {min(compiling):.1f} to {max(compiling):.1f} s per shape")
    for entry in report["shapes"]:
        for name, reason in entry["left_out"].items():
            parts.append(f"left out: {name} ({entry['table']}, {entry['label']}): {reason}")
    if report["not_begun"]:
        parts.append(f"not started, since the budget was spent: {'; '.join(report['not_begun'])}")
    if any("cw_ext" in entry["contestants"] for entry in report["shapes"]):
        parts.append(f"where cw_ext loses: {'; '.join(defeats(report)) or 'nowhere on this grid'}")
    return "\n\n".join(parts)


def defeats(report: dict[str, Any]) -> list[str]:
    """Return a phrase for every shape where a rival's median is below cw_ext's, with the fastest rival."""
    found = []
    for entry in report["shapes"]:
        medians = {name: cost["seconds"]["median"] for name, cost in entry["contestants"].items()}
        rivals = [name for name in RIVALS if name in medians]
        if "cw_ext" not in medians or not rivals:
            continue
        best = min(rivals, key=medians.__getitem__)
        if medians[best] < medians["cw_ext"]:
            factor = medians["cw_ext"] / medians[best]
            found.append(f"{entry['table']}, {entry['label']} ({factor:.2f} times the time of {best})")
    return found


def _table(table: str, entries: list[dict[str, Any]], copy_bytes_per_second: float | None) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "ms 20 %": lambda cost: _number(cost["seconds"]["q20"], 3, 1e3),
        "50 %": lambda cost: _number(cost["seconds"]["median"], 3, 1e3),
        "80 %": lambda cost: _number(cost["seconds"]["q80"], 3, 1e3),
    }
    for other in COMPARED:
        if any(other in entry["contestants"] for entry in entries):
            columns[f"x {other}"] = lambda cost, key=speed_key(other): _number(cost[key], 2)
    columns["GB/s"] = lambda cost: _number(cost["gb_per_s"], 2)
    if copy_bytes_per_second is not None:
        columns["% of copy"] = lambda cost: _number(cost["gb_per_s"], 0, 100 * 1e9 / copy_bytes_per_second)
    columns["% of floor"] = lambda cost: _number(cost["share_of_floor"], 0, 100)
    columns["peak extra MiB"] = lambda cost: _number(cost["peak_extra_bytes"], 1, 1 / MIB)

    rows = []
    for entry in entries:
        label = entry["label"]
        for name, cost in entry["contestants"].items():
            per_negative = _number(cost["extra_bytes_per_negative"] if name == "cw_ext" else None, 2)
            rows.append([label, name, *(cell(cost) for cell in columns.values()), per_negative])
            label = ""
    return format_table([table, "", *columns, "B/neg"], rows)


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"

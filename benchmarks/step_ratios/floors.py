"""The least work that a step has to do, and how long that takes at the machine's best rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import reporting
from benchmarks.step_ratios import rates
from benchmarks.step_ratios.grid import Shape

ID_BYTES = 8
ONE_SET = ("ids for all", "drawn for all", "in-batch", "full")


@dataclass(frozen=True)
class Work:
    """What a step has to do, forward and backward.

    Attributes:
        multiply_adds: of the scores and both gradients.
        in_bf16: whether they may be in bf16, with sums in fp32.
        exponentials: one per score.
        words: of the generator.
        rows: that are read of the table, one per negative of each row; 0 where a product reads them in order.
        copied: other bytes, read or written once each: scores, ids, tables and gradients.
    """

    multiply_adds: int = 0
    in_bf16: bool = False
    exponentials: int = 0
    words: int = 0
    rows: int = 0
    copied: int = 0


def ways(shape: Shape) -> list[Work]:
    """Return what a step does in each of the ways in which it can be computed.

    Scores are read, and their gradients written. One set of negatives takes three products. Where each row has its own
    negatives, either these are looked up, once at least, or three products do it with the whole table. The table's
    gradient is written, if it is sparse as far as it is not zero. What belongs to queries and positives is left out,
    being N times less.
    """
    size = getattr(torch, shape.dtype).itemsize
    pairs = shape.rows * shape.negatives
    if shape.kind == "scores":
        return [Work(exponentials=pairs, copied=2 * size * pairs)]
    row_bytes = shape.dim * size
    if shape.kind in ONE_SET:
        columns = {"in-batch": shape.rows, "full": shape.items}.get(shape.kind, shape.negatives)
        written = min(columns, shape.items) if shape.sparse else shape.items
        scores = shape.rows * columns
        narrow = shape.dtype == "bfloat16" or shape.precision != "highest"
        return [Work(3 * scores * shape.dim, narrow, scores, copied=(columns + written) * row_bytes)]
    drawn = shape.kind == "drawn"
    words = pairs * (2 if shape.popularity else 1) if drawn else 0
    ids = 0 if drawn else pairs * ID_BYTES
    written = min(pairs, shape.items) if shape.sparse else shape.items
    gradient = ids + written * row_bytes
    scores = shape.rows * shape.items
    return [
        Work(3 * pairs * shape.dim, False, pairs, words, pairs, gradient),
        Work(3 * scores * shape.dim, False, scores, words, 0, gradient + shape.items * row_bytes),
    ]


def floors(shapes: Sequence[Shape], threads: int) -> dict[str, Any]:
    """Return, JSON-ready, the machine's ``"rates"``, and ``"seconds"`` of the fastest way of each shape by its label.

    Arithmetic and memory can overlap, so that the slower of the two counts.
    """
    tables = {_table(shape) for shape in shapes if any(way.rows for way in ways(shape))}
    copies = {way.copied for shape in shapes for way in ways(shape)}
    found = rates.measure(threads, sorted(tables), sorted(copies))
    seconds = {shape.label: min(_seconds(shape, way, found) for way in ways(shape)) for shape in shapes}
    return {"rates": found, "seconds": seconds}


def _table(shape: Shape) -> tuple[int, int]:
    return shape.items, shape.dim * getattr(torch, shape.dtype).itemsize


def _seconds(shape: Shape, work: Work, found: dict[str, float]) -> float:
    narrow = "multiply_add_bf16" if work.in_bf16 and "multiply_add_bf16" in found else "multiply_add"
    lanes = 2 if shape.dtype == "float64" else 1  # of fp64 half as many fit into a register
    arithmetic = lanes * (work.multiply_adds / found[narrow] + work.exponentials / found["exponential"])
    arithmetic += work.words / found["word"]
    memory = work.copied / found[f"copy {work.copied}"]
    if work.rows:
        memory += work.rows / found["rows {} {}".format(*_table(shape))]
    return max(arithmetic, memory)


def describe(results: dict[str, Any], steps: dict[str, Any]) -> str:
    """Return the floors as a table, beside the time that the steps took here."""
    rows = []
    for label, floor in results["seconds"].items():
        took = steps[label]["seconds"][0]
        rows.append([label, f"{1e3 * floor:.3f}", f"{1e3 * took:.3f}", f"{took / floor:.1f}"])
    return reporting.format_table(["step", "floor, ms", "ms here", "here/floor"], rows)

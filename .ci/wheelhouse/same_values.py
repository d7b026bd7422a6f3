"""Compares what tests/build/kernel_values.cpp prints on two machines."""

from __future__ import annotations

# Of the largest value under a name: machines differ in how they contract a·b + c. What is stored in 16 bits may then be
# rounded to its neighbour.
TOLERANCES = {"double": 1e-13, "float": 2e-6, "half": 2e-6, "bfloat16": 2e-6, "drawn": 0.0}
STORED = {"half.item_gradient": 2e-3, "bfloat16.item_gradient": 1e-2}


def parse(text: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for line in text.splitlines():
        name, value = line.split()
        values.setdefault(name, []).append(float(value))
    return values


def differences(here: str, there: str) -> list[str]:
    """A sentence for each name under which the values differ."""
    mine, other = parse(here), parse(there)
    if mine.keys() != other.keys() or not mine:
        return [f"expected values of {sorted(mine)}, got those of {sorted(other)}"]
    found = []
    for name, values in mine.items():
        if len(values) != len(other[name]):
            found.append(f"{name}: expected {len(values)} values, got {len(other[name])}")
            continue
        tolerance = STORED.get(name, TOLERANCES[name.partition(".")[0]]) * max(map(abs, values))
        wrong = [abs(a - b) for a, b in zip(values, other[name]) if not abs(a - b) <= tolerance]
        if wrong:
            found.append(f"{name}: {len(wrong)} differ, by {wrong[0]:.3g}, of which {tolerance:.3g} may be rounding")
    return found

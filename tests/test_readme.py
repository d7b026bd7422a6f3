"""The README: short, and its drop-in is the same loss as what it replaces."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from cases import assert_near


def blocks(checkout: Path) -> list[str]:
    """The Python blocks of "Drop in"."""
    text = (checkout / "README.md").read_text(encoding="utf-8")
    section = re.split(r"(?m)^## ", text.split("\n## Drop in\n")[1])[0]
    return re.findall(r"(?s)```python\n(.*?)```", section)


def test_it_is_short(checkout: Path) -> None:
    assert len((checkout / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_drop_in_has_the_gradients_of_what_it_replaces(checkout: Path) -> None:
    """Values are compared by the README itself."""
    after, before, *_ = blocks(checkout)
    *made, call = after.split("\n\n")
    found: dict[str, Any] = {}
    exec("\n".join(made), found)
    tables = {name: found[name].double().weight for name in ("users", "items")}
    exec(call, found)
    fused = {name: table.grad for name, table in tables.items()}
    for table in tables.values():
        table.grad = None
    exec(before, found)
    expression = re.search(r"torch\.logsumexp\(.*\)\.mean\(\)", before)
    assert expression is not None
    eval(expression.group(), found).backward()
    for name, table in tables.items():
        assert table.grad is not None and table.grad.any()
        assert_near(fused[name], table.grad, torch.float64, name)

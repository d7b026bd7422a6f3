"""The blocks of docs/guides/pytorch.md that take long to run, or need Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from documentation.markdown_blocks import RUN_BY, blocks

pytestmark = [pytest.mark.thorough, pytest.mark.cpu_kernels]


def run(checkout: Path, having: str) -> dict[str, Any]:
    """Run the page's first block, then the one with this text; return the names that there are then."""
    page = checkout / "docs" / "guides" / "pytorch.md"
    first, *others = blocks(page)
    [block] = [block for block in others if RUN_BY.fullmatch(block.comment) and having in block.code]
    names: dict[str, Any] = {}
    for one in (first, block):
        exec(compile("\n" * (one.line - 1) + one.code, str(page), "exec"), names)
    return names


def test_compile(checkout: Path) -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    names = run(checkout, "torch.compile(")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, "compiled once, for both sizes"
    assert names["items"].weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore")  # of Lightning, about a run of a second
def test_lightning(checkout: Path) -> None:
    pytest.importorskip("lightning")
    assert "MatrixFactorization" in run(checkout, "import lightning")

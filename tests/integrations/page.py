"""The blocks of docs/guides/other-libraries.md that need another library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from documentation.markdown_blocks import Block, blocks

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "other-libraries.md"


def block_of(test: str) -> Block:
    """The one whose comment has the test with this path."""
    [found] = [b for b in blocks(PAGE) if b.comment == f"<!-- run by tests/integrations/{Path(test).name} -->"]
    return found


def run_block_of(test: str, **names: Any) -> dict[str, Any]:
    """Run it with what the reader has, and return the names that there are then."""
    block = block_of(test)
    exec(compile("\n" * (block.line - 1) + block.code, str(PAGE), "exec"), names)
    return names


def configuration() -> str:
    """The YAML of the page."""
    [found] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return found

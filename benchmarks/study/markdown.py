"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def section(title: str, text: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a heading, a line of text and a table; nothing without rows."""
    return f"## {title}\n\n{text}\n\n{markdown(header, rows)}" if rows else ""

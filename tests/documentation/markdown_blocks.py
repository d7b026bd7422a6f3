"""The code blocks of a Markdown page, and how each is run.

Blocks of `python` and `bash` run as they stand, from the top of the page to its end, in one namespace and one folder. A
`text` block right after one of them shows what it prints. A comment in the line before a block says what else holds:
`<!-- run by PATH -->`, a test or program of this repository that runs it, or `<!-- not run: WHY -->`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

RUN_BY = re.compile(r"<!-- run by (\S+) -->")
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
FENCE = re.compile(r"^( *)(`{3,})([^`\s]*)")


@dataclass
class Block:
    """A fenced block."""

    language: str
    code: str
    line: int  # of its first line of code, from 1
    comment: str  # the line before it, if that is a comment
    shown: str | None = None  # the text block right after it


def blocks(page: Path) -> list[Block]:
    """The page's blocks of Python and bash, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    at, after = 0, -1  # `after`: the line after the last block of code, if only blanks came since
    directives: list[str] = []  # the fences of those that are open
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence is None:
            if lines[at].strip():
                after = -1
            at += 1
            continue
        indent, ticks, language = fence.groups()
        if directives and lines[at].strip() == directives[-1]:
            directives.pop()
            at, after = at + 1, -1
            continue
        end = at + 1
        while end < len(lines) and lines[end].strip() != ticks:
            end += 1
        if language.startswith("{"):  # a directive, whose content may have blocks of its own
            directives.append(ticks)
            at, after = at + 1, -1
            continue
        code = "".join(line.removeprefix(indent) + "\n" for line in lines[at + 1 : end])
        if language in ("python", "bash"):
            before = lines[at - 1].strip() if at else ""
            found.append(Block(language, code, at + 2, before if before.startswith("<!--") else ""))
            after = end + 1
        else:
            if language == "text" and after >= 0:
                found[-1].shown = code
            after = -1
        at = end + 1
    return found


def pages(checkout: Path) -> list[Path]:
    """Every Markdown page that users read."""
    top = [checkout / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return top + sorted(page for page in (checkout / "docs").rglob("*.md") if "_build" not in page.parts)

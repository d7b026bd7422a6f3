"""Every code block of the README and the documentation runs as it stands, and prints what is shown."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cases import child_environment
from documentation.markdown_blocks import NOT_RUN, RUN_BY, Block, blocks, pages
from documentation.printed import differs

CHECKOUT = Path(__file__).parents[2]


def run_python(block: Block, page: Path, names: dict[str, Any]) -> str:
    """Runs it as if pasted after the blocks before it; returns what it prints."""
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, names)
    return printed.getvalue()


def run_bash(block: Block, page: Path, folder: Path) -> str:
    """Runs its lines in the folder; returns what they print."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=folder,
        env=child_environment(PATH=path, PYTHONPATH=str(CHECKOUT)),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{page}:{block.line}\n{block.code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_page(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if NOT_RUN.fullmatch(block.comment):
            continue
        if by := RUN_BY.fullmatch(block.comment):
            program = CHECKOUT / by[1]
            assert program.exists() and page.name in program.read_text(encoding="utf-8"), f"{page}:{block.line}"
            continue
        printed = run_python(block, page, names) if block.language == "python" else run_bash(block, page, folder)
        if block.shown is not None and (wrong := differs(block.shown, printed)):
            pytest.fail(f"{page}:{block.line} {wrong}", pytrace=False)


@pytest.mark.parametrize("page", pages(CHECKOUT), ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_blocks_of_a_page_run_as_they_stand(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_page(page, tmp_path)


def test_a_wrong_output_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 2\n```\n\n```python\nprint(x / 3)\n```\n\n```text\n0.667\n```\n")
    run_page(page, tmp_path)
    page.write_text(page.read_text().replace("0.667", "0.669"))
    with pytest.raises(pytest.fail.Exception, match="0.669"):
        run_page(page, tmp_path)
    page.write_text("```bash\necho one 12 two\n```\n```text\none 13 two\n```\n")
    with pytest.raises(pytest.fail.Exception, match="13"):
        run_page(page, tmp_path)


def test_blocks_after_and_inside_a_directive_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```{raw} html\n:file: x.svg\n```\n\n```python\nx = 2\n```\n"
        "````{tip}\n```python\nprint(x)\n```\n```text\n3\n```\n````\n```python\nraise ValueError\n```\n"
    )
    assert [block.code for block in blocks(page)] == ["x = 2\n", "print(x)\n", "raise ValueError\n"]
    with pytest.raises(pytest.fail.Exception, match="3"):
        run_page(page, tmp_path)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a 1.25 b", "a 1.254 b", True),
        ("a 1.25 b", "a 1.27 b", False),
        ("a ... 0.50", "a 1 2 3 0.501", True),
        ("a ... 0.50", "a 1 2 3 0.52", False),
        ("1,682 items", "1,682 items", True),
        ("1,682 items", "1,683 items", False),
        ("C1,1,0.51", "C1,1,0.512", True),
        ("C1,1,0.51", "C1,2,0.51", False),
        ("x  \n", "x", True),
        ("x", "x\ny", False),
        ("tensor([-0.1, 2e-5])", "tensor([-0.1003, 2.4e-05])", True),
    ],
)
def test_what_counts_as_printed(shown: str, printed: str, same: bool) -> None:
    assert (differs(shown, printed) is None) == same

"""python -m benchmarks lists every program, by the command that its --help shows."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import __main__ as programs

ROOT = Path(__file__).parents[2]
# Processes that a program starts itself.
WORKERS = {"benchmarks.scaling.worker"}
LISTED = {program.module: program for group in programs.GROUPS.values() for program in group}


def _modules_that_run() -> set[str]:
    found = set()
    for folder in ("benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            # A notebook in percent format runs from top to bottom.
            if 'if __name__ == "__main__":' in text or (folder == "examples" and text.startswith("# %%")):
                parts = path.relative_to(ROOT).with_suffix("").parts
                found.add(".".join(parts[:-1] if parts[-1] == "__main__" else parts))
    return found - WORKERS - {"benchmarks"}


def test_every_program_is_listed_once() -> None:
    assert len(LISTED) == sum(map(len, programs.GROUPS.values()))
    assert LISTED.keys() == _modules_that_run()


def test_the_list_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert programs.main([]) == 0
    printed = capsys.readouterr().out
    for program in LISTED.values():
        assert f"\n  {program.command}  [{program.duration}]\n" in printed
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize("module", [name for name in sorted(LISTED) if name != "examples.movielens"])
def test_help_shows_the_listed_command(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        program = importlib.import_module(f"{module}.__main__")
    except ModuleNotFoundError as error:
        if error.name is not None and not error.name.startswith(module.partition(".")[0]):
            pytest.skip(f"needs {error.name}")
        program = importlib.import_module(module)
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {LISTED[module].command} ")

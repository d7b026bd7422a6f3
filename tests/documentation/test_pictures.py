"""Pictures that programs of docs/pictures draw."""

from __future__ import annotations

import runpy
from pathlib import Path

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


def test_decision_trees_are_those_that_the_program_draws() -> None:
    trees = runpy.run_path(str(PICTURES / "decisions.py"))["TREES"]
    assert trees == {name: (PICTURES / name).read_text(encoding="utf-8") for name in trees}

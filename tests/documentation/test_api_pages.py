"""The API pages of the site describe every public name."""

from __future__ import annotations

import re
from pathlib import Path

import cw_ext
from cw_ext import distributed, false_negatives, prior, samplers

PAGES = Path(__file__).parents[2] / "docs" / "api"
DIRECTIVE = re.compile(r"^\.\. auto\w+:: (\S+)((?:\n   :.*)*)", re.MULTILINE)


def _described() -> set[str]:
    found = set()
    for page in PAGES.glob("*.md"):
        for name, options in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            found.add(name)
            members = re.search(r":members: (.+)", options)
            found |= {f"{name}.{member}" for member in members[1].split(", ")} if members else set()
    return found


def _public() -> set[str]:
    found = set()
    for module in (cw_ext, distributed, false_negatives, prior, samplers, cw_ext.presets):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", own):
            if callable(getattr(module, name)) and not name.startswith("_"):
                found.add(f"{module.__name__}.{name}")
    arguments = {name for name in found if re.fullmatch(r"cw_ext\.presets\.\w+Arguments", name)}
    return found - arguments


def test_every_public_name_has_its_entry() -> None:
    assert _public() - _described() <= {"cw_ext.samplers.LogWeight", "cw_ext.false_negatives.FalseNegatives"}


def test_the_overview_mentions_every_public_name() -> None:
    assert cw_ext.__doc__ is not None
    missing = {name for name in cw_ext.__all__ if name not in cw_ext.__doc__}
    assert missing <= {"__version__"}

"""CONTRIBUTING.md and the README against the files they point to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

# Where the recipes' tables are cut: `| `file` | edit |`.
_ROW = re.compile(r"(?m)^\| `([\w./]+)` \| (.*) \|$")
_PATH = re.compile(r"(?:\.ci|benchmarks|csrc|cw_ext|examples|findings|tests)/[\w./-]+\w")
# What points to a system's headers or to a file of torch, which has a csrc too.
_NOT_OURS = re.compile(r"#include <.*>|\b(?:aten|torch)/[\w./]+")
_SOURCE = (".h", ".cuh", ".cpp", ".cu", ".py")
_MODULE = re.compile(r"python -m ((?:benchmarks|examples)[\w.]*)")


def _text(checkout: Path, name: str) -> str:
    return (checkout / name).read_text(encoding="utf-8")


def _recipes(checkout: Path) -> dict[str, str]:
    sections = re.split(r"(?m)^### ", _text(checkout, "CONTRIBUTING.md").split("\n## Recipes\n")[1])
    return dict(section.split("\n", 1) for section in sections[1:])


def _code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def _names(text: str) -> list[str]:
    """The identifiers, and strings in quotes, among what is set as code."""
    return [name for name in _code(text) if re.fullmatch(r"[A-Za-z_]\w*|\"\w+\"", name)]


def test_recipes_are_read(checkout: Path) -> None:
    recipes = _recipes(checkout)
    assert len(recipes) == 6
    assert all(len(_ROW.findall(text)) >= 4 for text in recipes.values())


def test_files_of_the_recipes_hold_what_they_should(checkout: Path) -> None:
    missing = []
    for title, text in _recipes(checkout).items():
        for file, edit in _ROW.findall(text):
            source = _text(checkout, file) if (checkout / file).is_file() else None
            if source is None:
                missing.append(f"{title}: {file}")
                continue
            names = [name for name in _names(edit) if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", source)]
            missing += [f"{title}: {name} in {file}" for name in names]
    assert not missing


def test_names_that_a_recipes_text_puts_into_files(checkout: Path) -> None:
    """Such as "`name`, `name` (`file`)" and "`name` in `file`"."""
    found = 0
    for title, text in _recipes(checkout).items():
        for names, file in re.findall(r"((?:`\w+`(?:,|,? and| in|\s)*)+)\(?`([\w/]+\.\w+)`", text):
            found += 1
            for name in _names(names):
                assert re.search(rf"\b{name}\b", _text(checkout, file)), f"{title}: {name} in {file}"
    assert found >= 5


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/NOTES.md"])
def test_paths_exist(checkout: Path, document: str) -> None:
    text = _text(checkout, document)
    # Not what stands in an address, nor the end of a longer path.
    paths = {m.group() for m in _PATH.finditer(text) if not re.search(r"[\w/.@:]$", text[: m.start()])}
    # What runs write, and git does not keep.
    missing = [path for path in sorted(paths) if not (checkout / path).exists() and "/runs" not in path]
    assert not missing


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_modules_to_run_exist(checkout: Path, document: str) -> None:
    for module in set(_MODULE.findall(_text(checkout, document))) - {"benchmarks.X"}:
        path = checkout / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_layout_lists_every_source(checkout: Path) -> None:
    """Each file of csrc/ and cw_ext/ itself; a kernel's folder may sum up."""
    layout = _text(checkout, "CONTRIBUTING.md").split("\n## Layout\n")[1].split("\n## ")[0]
    folders = {"csrc": "*.*", "csrc/python": "*.*", "cw_ext": "*.py"}
    files = [file for folder, kind in folders.items() for file in (checkout / folder).glob(kind)]
    unlisted = {f.name for f in files if f.name not in layout}
    assert unlisted <= {"__init__.py", "version.py", "scipy_matrix.py"}


def test_comments_point_to_files_that_exist(checkout: Path) -> None:
    """By their paths, or by their names alone; folders by their paths."""
    sources = [f for folder in ("csrc", "cw_ext") for f in (checkout / folder).rglob("*") if f.suffix in _SOURCE]
    known = {f.name for f in [*sources, *(checkout / "tests").rglob("*"), *(checkout / "benchmarks").rglob("*")]}
    for source in sources:
        text = _NOT_OURS.sub("", source.read_text(encoding="utf-8"))
        names = set(re.findall(r"\b\w+\.(?:h|cuh|cpp|cu|py)\b", text))
        assert names <= known | {"setup.py"}, source
        paths = set(re.findall(r"\b(?:csrc|cw_ext|tests|benchmarks|examples)/[\w/]*\w(?:\.\w+)?", text))
        assert not [path for path in paths if not (checkout / path).exists()], source

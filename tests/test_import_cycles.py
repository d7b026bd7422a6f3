"""No module imports itself by way of others, be it in a function or for types only."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cw_ext", "benchmarks", "examples")


def modules(root: Path) -> dict[str, Path]:
    """The source of each module, by its dotted name; a package has the name of its folder."""
    found = {}
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules among the known ones that the source imports, wherever it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if path.stem == "__init__" else name.rpartition(".")[0]
            for _ in range(node.level - 1):
                package = package.rpartition(".")[0]
            source = ".".join(filter(None, [package if node.level else "", node.module]))
            # `from a import b` takes the module a.b, or else something that a defines.
            found |= {member if (member := f"{source}.{alias.name}") in known else source for alias in node.names}
    return found & known.keys()


def imports(root: Path) -> dict[str, set[str]]:
    known = modules(root)
    return {name: imported(name, path, known) for name, path in known.items()}


def test_no_module_imports_itself() -> None:
    graph = imports(ROOT)
    assert len(graph) > 100 and sum(map(len, graph.values())) > 200
    TopologicalSorter(graph).prepare()  # CycleError has the modules of a cycle


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("from cw_ext.b import f", "import cw_ext.a"),
        ("from cw_ext import b", "def f():\n    from cw_ext.a import g"),
        ("from . import b", "if TYPE_CHECKING:\n    from .a import g"),
        ("import torch, cw_ext.b", "from cw_ext import a as other"),
        ("from cw_ext import b", "from . import f"),  # of the package, which imports a
    ],
)
def test_a_cycle_is_found(tmp_path: Path, first: str, second: str) -> None:
    package = tmp_path / "cw_ext"
    package.mkdir()
    for name, source in (("__init__", "from cw_ext.a import f"), ("a", first), ("b", second)):
        (package / f"{name}.py").write_text(source + "\n")
    with pytest.raises(CycleError):
        TopologicalSorter(imports(tmp_path)).prepare()
    (package / "b.py").write_text("import torch\n")
    TopologicalSorter(imports(tmp_path)).prepare()

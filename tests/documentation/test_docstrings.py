"""The examples in docstrings run as they stand; every public function and class has one."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from documentation.markdown_blocks import blocks
from documentation.printed import differs

import cw_ext
from cw_ext import distributed, false_negatives, prior, samplers


class _Checker(doctest.OutputChecker):
    """Compares numbers as far as they are written out."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(want, got, optionflags) or differs(want, got) is None


# Adapters import the libraries that they adapt.
MODULES = [
    module.name
    for module in pkgutil.walk_packages(cw_ext.__path__, "cw_ext.")
    if not module.name.startswith(("cw_ext.integrations", "cw_ext._"))
]


@pytest.mark.parametrize("name", ["cw_ext", *MODULES])
def test_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(_Checker(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


ADAPTERS = sorted((Path(cw_ext.__file__).parent / "integrations").glob("*.py"))


@pytest.mark.parametrize("module", ADAPTERS, ids=lambda path: path.stem)
def test_examples_of_adapters_are_those_of_the_page(module: Path, checkout: Path) -> None:
    """tests/integrations runs the page's blocks, each with its library."""
    page = checkout / "docs" / "guides" / "other-libraries.md"
    run = {line for block in blocks(page) for line in block.code.splitlines()}
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module):
            continue
        for example in doctest.DocTestParser().get_examples(ast.get_docstring(node) or ""):
            assert set(example.source.splitlines()) <= run, (module.name, example.source)


def _is_form(value: object) -> bool:
    """Whether users never construct it: a protocol, or a NamedTuple, which functions return."""
    return isinstance(value, type) and (getattr(value, "_is_protocol", False) or hasattr(value, "_fields"))


def _public() -> list[tuple[str, object]]:
    found = []
    for module in (cw_ext, distributed, false_negatives, prior, samplers):
        own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        for name in getattr(module, "__all__", own):
            value = getattr(module, name)
            callable_ = inspect.isclass(value) or inspect.isroutine(value)
            if callable_ and not name.startswith("_") and not _is_form(value):
                found.append((f"{module.__name__}.{name}", value))
    return found


@pytest.mark.parametrize(("name", "value"), _public(), ids=[name for name, _ in _public()])
def test_public_names_have_an_example(name: str, value: object) -> None:
    assert ">>> " in (value.__doc__ or ""), name

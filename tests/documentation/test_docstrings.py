"""The examples in docstrings run as they stand; every public function and class has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
from documentation.printed import differs

import cw_ext
from cw_ext import distributed, false_negatives, prior, samplers


class _Checker(doctest.OutputChecker):
    """Compares numbers as far as they are written out."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(want, got, optionflags) or differs(want, got) is None


# Adapters import the libraries that they adapt: .ci/integrations runs those.
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

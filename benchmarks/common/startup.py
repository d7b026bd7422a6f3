"""What every benchmark does first: find the built copy of cw_ext, and report a missing extra in one line."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path
from types import TracebackType

_ROOT = Path(__file__).resolve().parents[2]


def use_the_built_copy() -> None:
    """Where cw_ext beside the benchmarks is not built but an installed one is, import the installed one.

    `python -m benchmarks.…` in a clone finds the clone's own package first, whose steps then take eighty times as long.
    """
    beside = _ROOT / "cw_ext"
    if "cw_ext" in sys.modules or any(beside.glob("_cpu.*")):
        return
    cw_ext = importlib.import_module("cw_ext")
    extension = importlib.import_module("cw_ext.extension")
    other = extension.built_elsewhere()
    if other is None or extension.PACKAGE != beside:
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == "cw_ext"]:
        del sys.modules[name]
    sys.path.insert(0, str(other.parent))
    installed = importlib.import_module("cw_ext")
    sys.path.remove(str(other.parent))
    if installed.__version__ != cw_ext.__version__:
        sys.exit(
            f"cw_ext {cw_ext.__version__} in {beside} is not built, and {other} has version {installed.__version__}; "
            "in the source tree, run: pip install --no-build-isolation ."
        )
    print(f"using the installed cw_ext, in {other}: the one in {beside} is not built", file=sys.stderr)


def _extra_with(package: str) -> str | None:
    """The extra of pyproject.toml that has the package."""
    file = _ROOT / "pyproject.toml"
    if not file.is_file():
        return None
    extras = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    names = {extra: {re.split(r"[^\w.-]", need)[0] for need in needs} for extra, needs in extras.items()}
    return next((extra for extra in ("benchmarks", "examples") if package in names[extra]), None)


def report_missing_extra(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """An exception hook: one line instead of a traceback where a package of an extra is missing."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if extra := _extra_with(package):
            print(
                f'benchmarks needs {package}, which is in the extra "{extra}"; in the source tree, run: '
                f"pip install --no-build-isolation -e '.[{extra}]'",
                file=sys.stderr,
            )
            return
    sys.__excepthook__(kind, error, traceback)

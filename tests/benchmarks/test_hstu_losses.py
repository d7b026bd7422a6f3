"""The comparison with HSTU's code bases, as far as it goes without one; the rest is in tests/integrations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.hstu_losses import __main__ as hstu_losses


@pytest.mark.parametrize(("code_base", "package"), [("meta", "generative_recommenders"), ("nvidia", "modules")])
def test_without_a_checkout(
    code_base: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line says what is missing, and nothing is written."""
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "out"
    assert hstu_losses.main([code_base, "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: expected PYTHONPATH to contain the checkout") and package in message
    assert not out.exists()


def test_describe() -> None:
    """A row per shape and loss, in milliseconds and MiB; no memory where it cannot be measured."""
    losses = hstu_losses.LOSSES["nvidia"]
    result = {
        "name": "some",
        "seconds": {loss: {"median": 0.25} for loss in losses},
        "peak_bytes": dict.fromkeys(losses, 3 * 2**20) | {"cw": None},
    }
    rows = [line.split() for line in hstu_losses.describe("nvidia", [result]).splitlines()[2:]]
    assert rows == [["some", "softmax", "250", "3"], ["some", "infonce", "250", "3"], ["some", "cw", "250"]]

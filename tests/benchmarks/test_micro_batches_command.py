"""The benchmark of encoding in parts: its steps compute the same, and the command writes what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.micro_batches import __main__ as micro_batches
from benchmarks.micro_batches import steps
from benchmarks.micro_batches.steps import Sizes

SIZES = Sizes(rows=7, length=3, dim=8)


def test_all_steps_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutDropout(nn.TransformerEncoderLayer):
        def __init__(self, *arguments: int, **settings: bool) -> None:
            super().__init__(*arguments, dropout=0.0, **settings)

    kept: list[nn.Module] = []

    class Kept(steps.Encoder):
        def __init__(self, dim: int) -> None:
            super().__init__(dim)
            kept.append(self)

    monkeypatch.setattr(nn, "TransformerEncoderLayer", WithoutDropout)
    monkeypatch.setattr(steps, "Encoder", Kept)
    for part in (None, 3, 7):
        steps.make_step(SIZES, part)()
    found = [torch.cat([p.grad.flatten() for p in tower.parameters()]) for tower in kept]
    for other in (found[2:4], found[4:]):
        for one, plain in zip(other, found[:2], strict=True):
            torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-6)


def test_the_command_writes_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--rows", "6", "--length", "4", "--parts", "6", "2", "--rounds", "1", "--out", str(tmp_path / "out")]
    assert micro_batches.main(arguments) == 0
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [result["part"] for result in report["results"]] == [None, 6, 2]
    assert report["sizes"] == {"rows": 6, "length": 4, "dim": 64}
    printed = capsys.readouterr().out
    assert "all, once" in printed
    assert str(tmp_path / "out") in printed

"""The example of extra positives that are held out: what each way trains on, and what pushes scores up."""

from __future__ import annotations

import pytest
import torch
from training_cases import load_blocks, write_blocks

from examples import held_out_positives
from examples.held_out_positives import WAYS, extra_positives, train


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in (("DIM", 16), ("NEGATIVES", 16), ("BATCH", 64)):
        monkeypatch.setattr(held_out_positives, name, value)


def test_extra_positives_are_those_of_the_user():
    users, items = torch.tensor([3, 0, 3, 1, 3]), torch.tensor([7, 5, 6, 9, 4])
    assert extra_positives(users, items, 5).tolist() == [[5, -1, -1], [9, -1, -1], [-1] * 3, [7, 6, 4], [-1] * 3]


def test_the_corrections_gradient_pushes_its_positives_up(tmp_path):
    """Held out of the rows, they score as test items do, but only where their margins are constants."""
    dataset = load_blocks(tmp_path)
    scores = {name: train(dataset, way, 8, 0)[1] for name, way in WAYS.items()}
    for name in ("gradient, no rows", "extra ones have rows and gradient"):
        assert scores[name]["extra"] > scores[name]["hidden"] + 0.05, name
    for name in ("neither rows nor gradient", "no correction, fewer rows"):
        assert scores[name]["extra"] < scores["gradient, no rows"]["extra"] - 0.05, name
        assert abs(scores[name]["extra"] - scores[name]["hidden"]) < 0.05, name


def test_it_learns(tmp_path):
    dataset = load_blocks(tmp_path)
    for way in WAYS.values():
        before, after = (train(dataset, way, epochs, 1)[0].ndcg(dataset) for epochs in (1, 12))
        assert after > before


def test_command_line(kernels, tmp_path, capsys):
    path = write_blocks(tmp_path / "blocks.txt")
    assert held_out_positives.main(["--data", str(path), "--core", "2", "--epochs", "1", "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("blocks, π = 0.1") and all(name in printed for name in WAYS) and " ± " in printed
    assert held_out_positives.main(["--data", str(tmp_path / "nothing")]) == 2
    assert "nothing: expected an interaction file" in capsys.readouterr().err

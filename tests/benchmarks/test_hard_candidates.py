"""The example of hard candidates that may be false negatives: who sees which items, what they weigh, and the table."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from training_cases import load_blocks, pairs, write_blocks

from benchmarks.common import data
from benchmarks.training.metrics import ranking_metrics
from examples import hard_candidates
from examples.hard_candidates import HardWeights, Split, compare, train

# In the made-up data, users take items of their own block only. A user's negatives are 56 items without the 7 known
# ones; in the own block are 7 of them, 3 of which are validation and test items.
IN_BLOCK, HIDDEN, DRAWABLE = 7, 3, 49


@pytest.fixture(autouse=True)
def small(monkeypatch):
    settings = {"DIM": 16, "NEGATIVES": 16, "BATCH": 64, "CANDIDATES": 8, "PASSES": 40, "PRIOR": HIDDEN / DRAWABLE}
    for name, value in settings.items():
        monkeypatch.setattr(hard_candidates, name, value)


@pytest.fixture
def blocks(tmp_path) -> data.InteractionData:
    return load_blocks(tmp_path)


def test_every_positive_has_one_use(blocks):
    split = Split(blocks, 0)
    rows = pairs(split.rows.train_users, split.rows.train_items)
    held_out = pairs(split.held_out.users, split.held_out.items)
    validation, test, seen = (pairs(*part) for part in (split.validation, split.test, split.seen))
    assert rows | held_out == seen and seen | validation == pairs(blocks.train_users, blocks.train_items)
    assert len(rows) + len(held_out) + len(validation) + len(test) == len(rows | held_out | validation | test) == 600
    users = torch.arange(60)
    drawn = split.draw(users, 500, torch.Generator().manual_seed(0))
    found = set(zip(users.repeat_interleave(500).tolist(), drawn.flatten().tolist(), strict=True))
    assert found.isdisjoint(seen) and found >= validation | test


def test_candidates_weigh_as_likely_as_they_are_true_negatives(blocks, monkeypatch):
    """Of the own block's items 3 in 7 are hidden positives, and of the others none."""
    monkeypatch.setattr(hard_candidates, "CANDIDATES", 56)
    split = Split(blocks, 0)
    users, items = train(split, split.rows, (10, 1), 0, weighted=False)
    weights = HardWeights(split, 0)
    weights.learn((users, items))
    seen = pairs(*split.seen)
    ids = torch.tensor([[item for item in range(56) if (user, item) not in seen] for user in range(60)])
    assert ids.shape == (60, DRAWABLE)
    found = weights.of_batch(users, items, ids).exp()
    block_of = {int(item): int(user) % 4 for user, item in zip(blocks.train_users, blocks.train_items, strict=True)}
    user_block = torch.tensor([block_of[int(blocks.train_items[blocks.train_users == user][0])] for user in range(60)])
    item_block = torch.tensor([block_of[item] for item in range(56)])
    own = item_block[ids] == user_block.unsqueeze(1)
    assert (own.sum(1) == IN_BLOCK).all()
    assert found[own].mean().item() == pytest.approx(1 - HIDDEN / IN_BLOCK, abs=0.1)
    assert found[~own].mean() > 0.95


def test_the_network_changes_only_the_epochs_with_weights(blocks, monkeypatch):
    split = Split(blocks, 0)

    def tables(epochs: tuple[int, int], weighted: bool) -> torch.Tensor:
        return torch.cat(train(split, split.rows, epochs, 0, weighted))

    assert torch.equal(tables((3, 0), True), tables((3, 0), False))
    assert not torch.equal(tables((3, 1), True), tables((3, 1), False))
    monkeypatch.setattr(hard_candidates, "STRENGTH", 0.0)  # all weights are 1
    torch.testing.assert_close(tables((3, 1), True), tables((3, 1), False), atol=1e-5, rtol=1e-4)


def test_each_way_is_tested_on_its_own_tables(blocks, monkeypatch):
    split = Split(blocks, 3)
    found = compare(blocks, 4, 3)
    for name, rows, weighted in (
        ("base", split.rows, False),
        ("weighted", split.rows, True),
        ("base, all rows", split.fit, False),
    ):
        tables = train(split, rows, (4, 4), 3, weighted)
        assert found[name] == (ranking_metrics(*tables, *split.test, *split.seen, k=20)["ndcg"], None)
    assert all(0 < ndcg <= 1 for ndcg, _ in found.values())
    assert found["base, reranked"][1] is not None and found["weighted, reranked"][1] is not None
    monkeypatch.setattr("benchmarks.training.reranking._EXPONENTS", (0.0,))
    unchanged = compare(blocks, 4, 3)
    assert unchanged["base, reranked"] == (found["base"][0], 0.0)


def test_it_learns(blocks):
    before, after = compare(blocks, 1, 1), compare(blocks, 6, 1)
    assert all(after[name][0] > before[name][0] for name in before)


def test_command_line(kernels, tmp_path, capsys):
    path = write_blocks(tmp_path / "blocks.txt")
    assert hard_candidates.main(["--data", str(path), "--core", "2", "--epochs", "1", "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("blocks, NDCG@20; π = 0.0612")
    for name in ("base", "base, reranked", "weighted", "weighted, reranked", "base, all rows"):
        assert f"\n{name}  " in printed
    assert hard_candidates.main(["--data", str(tmp_path / "nothing")]) == 2
    assert "nothing: expected an interaction file" in capsys.readouterr().err


def test_data_that_cannot_be_split_are_named(tmp_path, capsys):
    for part, rows in (("train", "a\tx\nb\ty\n"), ("test", "a\ty\n")):
        (tmp_path / f"{part}.tsv").write_text(rows, encoding="utf-8")
    assert hard_candidates.main(["--data", str(tmp_path)]) == 2
    assert "expected a user with at least 2 training items to validate on" in capsys.readouterr().err


def test_a_missing_package_is_told_in_a_line(tmp_path):
    (tmp_path / "tqdm.py").write_text("raise ModuleNotFoundError(\"No module named 'tqdm'\", name='tqdm')\n")
    command = [sys.executable, "-m", "examples.hard_candidates"]
    found = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert found.returncode != 0 and len(found.stderr.splitlines()) == 1 and "tqdm" in found.stderr

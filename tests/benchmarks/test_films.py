"""What the demo shows: users' films and recommendations by title."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_recommend import ITEMS, USERS, brute_force, save_model, vectors
from training_cases import load_blocks

from benchmarks.demo import __main__ as demo
from benchmarks.demo import films
from benchmarks.training import compare, saved


@pytest.mark.skipif(importlib.util.find_spec("recbole") is None, reason="recbole has the titles")
def test_titles_are_found_by_id():
    titles = films.titles()
    assert len(titles) == 1682
    assert titles["1"] == "Toy Story (1995)"
    assert titles["12"] == "The Usual Suspects (1995)"
    assert titles["1682"].startswith("Scream of Stone")


def test_users_films_and_recommendations_are_shown_by_title(tmp_path: Path):
    item_ids = 100 + np.arange(ITEMS)
    model, train, test = save_model(tmp_path, 7 * np.arange(USERS), item_ids)
    titles = {str(item): f"Film no. {item}" for item in item_ids[:-1]}
    text = films.describe(saved.load(model), titles)
    assert all(len(line) <= 100 for line in text.splitlines())
    blocks = [" ".join(block.split()) for block in ("\n" + text).split("\nuser ")[1:]]
    assert [block.split()[0] for block in blocks] == ["0", "7", "14", "21", "28"]

    users, items = vectors("many ties")
    scores = users.double() @ items.double().T
    names = [titles.get(str(item), f"film {item}") for item in item_ids]
    recommended = brute_force(users, items, 5, train)
    for user, block in enumerate(blocks):
        knows, gets = block.partition("knows")[2].split(" gets")
        marked = [names[item] + (" ✓" if (user, item) in test else "") for item, _ in recommended[user]]
        assert gets.strip() == (" · ".join(marked) or "nothing")
        known = [item for item in range(ITEMS) if (user, item) in train]
        shown = [name for name in knows.strip().split(" · ") if name != "nothing"]
        if len(known) > 3:
            assert shown.pop() == f"{len(known) - 3} more"
        best = torch.tensor([scores[user, item] for item in known]).sort(descending=True).values[:3]
        assert [scores[user, names.index(name)].item() for name in shown] == best.tolist()


@pytest.fixture
def small_demo(tmp_path: Path, monkeypatch) -> None:
    data = replace(load_blocks(tmp_path), user_ids=np.arange(1, 61), item_ids=np.arange(1, 57))
    monkeypatch.setattr(demo.data, "load", lambda seed: data)
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo.step_cost, "measure", lambda *_, **__: {})
    monkeypatch.setattr(demo.step_cost, "describe", lambda report: "")
    monkeypatch.setattr(compare, "plot_runs", lambda *_: None)


@pytest.mark.usefixtures("small_demo")
def test_the_demo_gives_the_same_again_and_something_else_with_another_seed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(demo, "_print_recommendations", lambda directory: None)
    found = []
    for seed, out in ((4, "a"), (4, "b"), (5, "c")):
        assert demo.main(["--seed", str(seed), "--out", str(tmp_path / out)]) == 0
        runs = json.loads((tmp_path / out / "results.json").read_text(encoding="utf-8"))["runs"]
        assert [run["loss"] for run in runs] == ["bpr", "sl", "slk", "cw"]
        found.append([(run["test"], run["best_validation"], run["best_epoch"]) for run in runs])
    assert found[0] == found[1] != found[2]


@pytest.mark.skipif(importlib.util.find_spec("recbole") is None, reason="recbole has the titles")
@pytest.mark.usefixtures("small_demo")
def test_the_demo_keeps_its_cw_model_and_shows_five_users(tmp_path: Path, capsys):
    assert demo.main(["--out", str(tmp_path / "demo")]) == 0
    model = saved.load(tmp_path / "demo" / "model")
    assert model.config["run"]["loss"] == "cw"
    printed = capsys.readouterr().out
    assert films.describe(model, films.titles()) in printed
    assert [line for line in printed.splitlines() if line.startswith("user ")] == [f"user {n}" for n in range(1, 6)]

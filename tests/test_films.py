"""What the demo shows: users' films and recommendations by title."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from test_recommend import ITEMS, USERS, brute_force, save_model, vectors

from benchmarks import films, saved


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

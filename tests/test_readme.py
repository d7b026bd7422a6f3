"""What the README has users paste."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from cases import assert_near, generator
from torch import nn

from cw_ext import Interactions, cw_loss, cw_loss_from_embeddings


def blocks(checkout: Path, heading: str) -> list[str]:
    """The Python blocks of a section."""
    text = (checkout / "README.md").read_text(encoding="utf-8")
    section = re.split(r"(?m)^## ", text.split(f"\n## {heading}\n")[1])[0]
    return re.findall(r"(?s)```python\n(.*?)```", section)


def names() -> dict[str, Any]:
    """What the reader has: two layers and a batch of ids."""
    g = generator(51)
    users, items = nn.Embedding(7, 5, dtype=torch.float64), nn.Embedding(20, 5, dtype=torch.float64)
    for layer in (users, items):
        nn.init.normal_(layer.weight, generator=g)
    u, i, neg = (torch.randint(n, size, generator=g) for n, size in ((7, (6,)), (20, (6,)), (20, (6, 9))))
    return {"users": users, "items": items, "u": u, "i": i, "neg": neg}


def test_drop_in(checkout: Path) -> None:
    """Before and after are one loss, with one gradient."""
    results = []
    for block in blocks(checkout, "Drop in")[:2]:
        found = names()
        exec(block, found)
        found["loss"].backward()
        results.append((found["loss"], found["users"].weight.grad, found["items"].weight.grad))
    assert len(results) == 2
    for after, before in zip(results[1], results[0], strict=True):
        assert_near(after, before, torch.float64)


def test_likely_positives_are_taken_out(checkout: Path) -> None:
    """The loss with the correction as a user writes it, of scores computed one by one."""
    g = generator(52)
    pairs = {"user_ids": torch.randint(7, (60,), generator=g), "item_ids": torch.randint(20, (60,), generator=g)}
    found = names() | pairs | {"num_users": 7, "num_items": 20, "cw_loss_from_embeddings": cw_loss_from_embeddings}
    torch.manual_seed(3)
    exec(blocks(checkout, "Drop in")[2], found)
    torch.manual_seed(3)
    extra = found["likely"].draw(found["u"], 20)
    assert (extra >= 0).any()
    queries, items = found["users"](found["u"]), found["items"].weight
    scores = nn.functional.cosine_similarity(queries.unsqueeze(1), items, dim=-1) / 2
    mean = {}
    for name, ids in (("pos", found["i"].unsqueeze(1)), ("neg", found["neg"]), ("extra", extra)):
        mean[name] = (scores.gather(1, ids.clamp(min=0)) / 0.1).exp()
    negative = mean["neg"].mean(1)
    is_item = (extra >= 0).double()
    likely = (mean["extra"] * is_item).sum(1) / is_item.sum(1).clamp(min=1)
    likely = likely.where(is_item.any(1), mean["pos"][:, 0])  # the row's own where there are none
    corrected = torch.maximum(negative - 0.1 * likely, 0.3 * negative) / 0.9
    assert_near(found["loss"], (9 * corrected / mean["pos"][:, 0]).log().mean(), torch.float64)


def test_drop_in_on_scores(checkout: Path) -> None:
    found = {"pos_scores": torch.rand(4), "neg_scores": torch.rand(4, 9)}
    exec(blocks(checkout, "Drop in")[3], found)
    assert found["criterion"](found["pos_scores"], found["neg_scores"]).isfinite() and found["loss"].isfinite()


def test_half_of_a_temperature_on_the_half_cosine(checkout: Path) -> None:
    """As in the text below the blocks: sl(0.1) is the loss of sl(0.2, similarity="cosine")."""
    (_, after, *_) = blocks(checkout, "Drop in")
    halved = after.replace('presets.sl(0.2, similarity="cosine")', "presets.sl(0.1)")
    assert halved != after
    results = []
    for block in (after, halved):
        found = names()
        exec(block, found)
        results.append(found["loss"])
    assert_near(results[1], results[0], torch.float64)


def test_temperatures_curves_and_thresholds(checkout: Path) -> None:
    """Every block runs, in order; what is learned moves."""
    found = names() | {"nn": nn, "torch": torch, "n_users": 7, "n_items": 120}  # more items than the 20 of a threshold
    found |= {"pos_scores": torch.rand(4), "neg_scores": torch.rand(4, 9)}
    found |= {"users": found["users"].float(), "items": nn.Embedding(120, 5)}
    found["known"] = Interactions(found["u"], found["i"], num_queries=7, num_items=120)
    temperatures, curve, thresholds = blocks(checkout, "Learned temperatures, curves of weights, top-K thresholds")
    learned, _, of_the_positive = temperatures.rpartition("loss = ")
    exec(learned, found)
    found["loss"].backward()
    assert found["log_tau"].grad != 0
    exec(f"loss = {of_the_positive}", found)
    scores = found["pos_scores"], found["neg_scores"]
    rest = found["pos_scores"].mean() * (1 / 0.1 - 1 / 0.125)
    assert_near(found["loss"], cw_loss(*scores) + rest, torch.float32)
    exec(curve, found)
    assert found["loss"] < cw_loss(*scores)
    exec(thresholds, found)
    assert found["users"].weight.grad.any() and found["beta"].thresholds[found["u"]].all()

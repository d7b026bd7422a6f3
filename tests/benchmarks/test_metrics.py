"""Ranking metrics against a per-user implementation in plain Python, and against ranx."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.training import metrics
from benchmarks.training.metrics import ranking_metrics


def by_hand(user_table, item_table, targets, masked, k) -> dict[str, float]:
    """targets and masked: sets of (user, item)."""
    recalls, ndcgs = [], []
    for user in range(len(user_table)):
        wanted = {item for u, item in targets if u == user}
        if not wanted:
            continue
        candidates = [item for item in range(len(item_table)) if (user, item) not in masked]
        scores = {
            item: sum(a * b for a, b in zip(user_table[user], item_table[item], strict=True)) for item in candidates
        }
        ranking = sorted(candidates, key=lambda item: -scores[item])[:k]
        recalls.append(len(wanted.intersection(ranking)) / len(wanted))
        gain = sum(1 / math.log2(rank + 2) for rank, item in enumerate(ranking) if item in wanted)
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, len(wanted))))
        ndcgs.append(gain / ideal)
    return {"recall": sum(recalls) / len(recalls), "ndcg": sum(ndcgs) / len(ndcgs)}


def columns(pairs) -> tuple[torch.Tensor, torch.Tensor]:
    tensor = torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 2)
    return tensor[:, 0], tensor[:, 1]


def random_case(num_users, num_items, seed):
    rng = np.random.default_rng(seed)
    # fp64 normal draws have no ties.
    tables = (
        torch.from_numpy(rng.standard_normal((num_users, 5))),
        torch.from_numpy(rng.standard_normal((num_items, 5))),
    )
    role = rng.random((num_users, num_items))
    role[rng.random(num_users) < 0.3] = 1.0  # users with neither targets nor masked items
    role[0] = 1.0
    role[1, :3] = 0.1  # a user with targets and no mask
    role[1, 3:] = 1.0
    targets = {(int(u), int(i)) for u, i in np.argwhere(role < 0.15)}
    masked = {(int(u), int(i)) for u, i in np.argwhere((role >= 0.15) & (role < 0.5))}
    masked |= {(2, item) for item in range(num_items) if item % 2}  # mask without respect to targets below
    return tables, targets - masked, masked


@pytest.mark.parametrize("k", [1, 5, 20, 50])
@pytest.mark.parametrize("scores_per_block", [1, 200, 2**22])
def test_metrics_agree_with_plain_python(monkeypatch, k, scores_per_block):
    monkeypatch.setattr(metrics, "_SCORES_PER_BLOCK", scores_per_block)
    tables, targets, masked = random_case(40, 30, seed=k)
    found = ranking_metrics(*tables, *columns(targets), *columns(masked), k=k)
    expected = by_hand(*(table.tolist() for table in tables), targets, masked, k)
    assert 0 < expected["ndcg"] < 1
    assert found == pytest.approx(expected, rel=1e-12)


def balance_by_hand(user_table, item_table, targets, masked, k, popularity) -> dict[str, float]:
    """As by_hand, of the four numbers beside it."""
    num_items = len(item_table)
    tests = [sum(item == i for _, item in targets) for i in range(num_items)]
    gain = ideal = 0.0
    means, lists = [], np.zeros(num_items)
    for user in sorted({user for user, _ in targets}):
        wanted = [item for u, item in targets if u == user]
        scores = {i: float(user_table[user] @ item_table[i]) for i in range(num_items) if (user, i) not in masked}
        ranking = sorted(scores, key=lambda item: -scores[item])[:k]
        gain += sum(1 / tests[item] / math.log2(place + 2) for place, item in enumerate(ranking) if item in wanted)
        best = sorted((1 / tests[item] for item in wanted), reverse=True)[:k]
        ideal += sum(one / math.log2(place + 2) for place, one in enumerate(best))
        if ranking:
            means.append(np.mean([popularity[item] for item in ranking]))
        lists[ranking] += 1
    differences = np.abs(lists[:, None] - lists[None, :]).mean()
    return {
        "balanced_ndcg": gain / ideal,
        "mean_popularity": float(np.mean(means)),
        "coverage": float(np.mean(lists > 0)),
        "gini": float(differences / (2 * lists.mean())),
    }


@pytest.mark.parametrize("k", [1, 5, 20, 50])
@pytest.mark.parametrize("scores_per_block", [1, 200, 2**22])
def test_what_is_recommended_agrees_with_numpy(device, monkeypatch, k, scores_per_block):
    monkeypatch.setattr(metrics, "_SCORES_PER_BLOCK", scores_per_block)
    tables, targets, masked = random_case(40, 30, seed=k)
    targets |= {(user, 4) for user in range(5, 25)} - masked  # an item that many look for
    targets |= {(39, 1)}
    masked |= {(39, item) for item in range(30)}  # a user that nothing can be recommended to
    popularity = torch.from_numpy(np.random.default_rng(k).integers(0, 100, 30))
    pairs = [tensor.to(device) for tensor in (*columns(targets), *columns(masked))]
    tables_there = [table.to(device) for table in tables]
    found = ranking_metrics(*tables_there, *pairs, k=k, popularity=popularity.to(device))
    expected = balance_by_hand(*(table.numpy() for table in tables), targets, masked, k, popularity.tolist())
    assert 0 < expected["balanced_ndcg"] < 1
    accuracy = ranking_metrics(*tables_there, *pairs, k=k)
    assert abs(accuracy["ndcg"] - expected["balanced_ndcg"]) > 1e-3
    assert found == pytest.approx({**accuracy, **expected}, rel=1e-12)


def test_what_is_recommended_when_reranked_is_what_the_reranked_list_holds():
    # By the scores the list is item 2, 1, 0; turned round, the first of three is item 0.
    tables = torch.ones(1, 1), torch.arange(3.0).unsqueeze(1)
    popularity = torch.tensor([7, 20, 30])
    found = ranking_metrics(
        *tables, *columns([(0, 0)]), *columns([]), k=1, rerank=(3, lambda _, scores, __: -scores), popularity=popularity
    )
    assert found["mean_popularity"] == 7
    assert found["balanced_ndcg"] == 1


def test_each_item_counts_the_same_in_balanced_ndcg():
    # Item 0 is looked for by three users, item 1 by one; each list has room for one item.
    users = torch.eye(2)[[0, 0, 0, 1]]
    targets = columns([(0, 0), (1, 0), (2, 0), (3, 1)])
    popularity = torch.tensor([3, 1])
    for items, ndcg in ((torch.tensor([[1.0, 1], [0, 0]]), 3 / 4), (torch.tensor([[0.0, 0], [1, 1]]), 1 / 4)):
        found = ranking_metrics(users, items, *targets, *columns([]), k=1, popularity=popularity)
        assert found["ndcg"] == ndcg
        assert found["balanced_ndcg"] == pytest.approx(1 / 2)
        assert found["coverage"] == found["gini"] == 1 / 2  # one of two items, always the same
        assert found["mean_popularity"] == (3 if ndcg > 0.5 else 1)
    found = ranking_metrics(users, torch.eye(2), *targets, *columns([]), k=1, popularity=popularity)
    assert found["balanced_ndcg"] == pytest.approx(1)
    assert found["mean_popularity"] == 2.5


def test_where_nothing_can_be_recommended_the_numbers_are_0():
    tables = torch.ones(1, 1), torch.ones(2, 1)
    everything = columns([(0, 0), (0, 1)])
    found = ranking_metrics(*tables, *columns([(0, 0)]), *everything, popularity=torch.ones(2, dtype=torch.int64))
    assert found == dict.fromkeys(("recall", "ndcg", "balanced_ndcg", "mean_popularity", "coverage", "gini"), 0.0)


def by_ranx(cases: list[tuple[dict, dict]]) -> list[dict[str, float]]:
    """What ranx returns for each case, (what is relevant, scores), both {user: {item: number}}.

    In a process of its own: its loops take half a minute to compile, and that can only be forbidden before numba, which
    others import too, is imported.
    """
    program = (
        "import json, ranx, sys\n"
        "for relevant, scores in json.load(sys.stdin):\n"
        "    found = ranx.evaluate(ranx.Qrels(relevant), ranx.Run(scores), ['recall@20', 'ndcg@20'])\n"
        "    print(json.dumps({name.removesuffix('@20'): float(value) for name, value in found.items()}))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(cases),
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.mark.skipif(importlib.util.find_spec("ranx") is None, reason="ranx is not installed")
def test_metrics_agree_with_ranx():
    found, cases = [], []
    for seed in range(4):
        tables, targets, masked = random_case(60, 80, seed)
        found.append(ranking_metrics(*tables, *columns(targets), *columns(masked), k=20))
        relevant, scores = {}, {}
        for user, item in targets:
            relevant.setdefault(f"user {user}", {})[f"item {item}"] = 1
            scores[f"user {user}"] = {
                f"item {other}": score
                for other, score in enumerate((tables[1] @ tables[0][user]).tolist())
                if (user, other) not in masked
            }
        cases.append((relevant, scores))
    for ours, expected in zip(found, by_ranx(cases), strict=True):
        assert 0 < expected["ndcg"] < 1
        assert ours == pytest.approx(expected, rel=1e-12)


def test_a_ranking_counted_out():
    # Scores 3 > 2 > 1 > 0; item 0 is masked, so the ranking of the user is 1, 2, 3.
    items = torch.tensor([[3.0], [2.0], [1.0], [0.0]])
    found = ranking_metrics(torch.ones(1, 1), items, *columns([(0, 2), (0, 3)]), *columns([(0, 0)]), k=2)
    assert found["recall"] == 1 / 2
    assert found["ndcg"] == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))


def test_without_a_mask_and_with_k_beyond_the_items_everything_is_found():
    tables, targets, _ = random_case(10, 8, seed=0)
    assert ranking_metrics(*tables, *columns(targets), *columns([]), k=100)["recall"] == 1


def test_a_masked_item_is_no_hit_even_if_the_list_has_room_for_it():
    tables = torch.ones(1, 1), torch.arange(4.0).unsqueeze(1)
    found = ranking_metrics(*tables, *columns([(0, 1), (0, 2)]), *columns([(0, 1), (0, 3)]), k=4)
    assert found["recall"] == 1 / 2


def test_bad_arguments_are_refused():
    tables = torch.ones(1, 1), torch.ones(2, 1)
    with pytest.raises(ValueError, match="target_users: expected at least one target pair"):
        ranking_metrics(*tables, *columns([]), *columns([]))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        ranking_metrics(*tables, *columns([(0, 0)]), *columns([]), k=0)
    wrong = {
        r"expected int64 \[2\], one number per item, got torch.int64 \[3\]": torch.tensor([1, 2, 3]),
        r"expected int64 \[2\], one number per item, got torch.float32 \[2\]": torch.tensor([1.0, 2.0]),
        "expected numbers of interactions, got -1": torch.tensor([1, -1]),
    }
    for message, popularity in wrong.items():
        with pytest.raises(ValueError, match="popularity: " + message):
            ranking_metrics(*tables, *columns([(0, 0)]), *columns([]), popularity=popularity)


def test_shares_below_are_counted_one_by_one(device, monkeypatch):
    monkeypatch.setattr(metrics, "_SCORES_PER_BLOCK", 3 * 9)  # 3 targets at a time
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(-2, 3, (7, 2), generator=generator).double()  # whole numbers, so that there are ties
    items = torch.randint(-2, 3, (9, 2), generator=generator).double()
    pairs = torch.randperm(7 * 9, generator=generator)
    targets, masked = pairs[:16], torch.cat([pairs[16:30], 9 * 6 + torch.arange(9)])
    masked = masked[~torch.isin(masked, targets)].unique()  # user 6 has nothing else
    arguments = [users, items, targets // 9, targets % 9, masked // 9, masked % 9]
    found = metrics.shares_below(*(tensor.to(device) for tensor in arguments))
    expected = []
    for pair in sorted(targets.tolist(), key=lambda pair: pair // 9):
        user, item = divmod(pair, 9)
        others = [i for i in range(9) if i != item and 9 * user + i not in masked.tolist()]
        scores = (users[user] * items).sum(1)
        below = [1.0 * (scores[i] < scores[item]) + 0.5 * (scores[i] == scores[item]) for i in others]
        expected.append((user, float(sum(below)) / len(others) if others else -1.0))
    found = sorted(zip(sorted((targets // 9).tolist()), found.nan_to_num(-1.0).tolist(), strict=True))
    assert found == sorted(expected)
    assert (6, -1.0) in found

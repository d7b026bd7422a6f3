"""`Memory` against SRNS' rules, recomputed in numpy: who stays in a memory, what is drawn from it, and its moments."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import pytest
import torch
from cases import generator
from drawing import assert_distributed
from sampler_cases import Tables, counts_of, leaving, make_tables, softmax_over, successive
from torch import Tensor

from cw_ext import Interactions
from cw_ext.samplers import Memory

DOT: dict[str, Any] = {"similarity": "dot", "seed": 0}


def _memory_items(memory: Memory) -> Tensor:
    """[Q, size], the items of each query's memory."""
    return memory.pool.gather(1, memory.kept.long())[:-1]


@pytest.mark.parametrize("temperature", [0.8, 3.0])
def test_two_of_four_stay_one_by_one(temperature: float, device: torch.device) -> None:
    """The 12 ordered pairs."""
    rows = 60_000
    tables = leaving(4, rows, device=device)
    memory = Memory(tables.interactions, size=2, extension=2, pool=4, temperature=temperature, **DOT)
    memory.update(*tables.batch(torch.arange(rows)), seed=3)
    pairs = _memory_items(memory).cpu()
    expected = rows * successive(np.exp(tables.scores("dot")[0][:4] / temperature))
    assert_distributed(counts_of(pairs[:, 0] * 4 + pairs[:, 1], 16), expected.flatten())


def test_it_is_extended_by_others_of_the_pool_at_random(device: torch.device) -> None:
    """One of five, extended by two: whatever the scores, at a high temperature, it stays one time in three."""
    rows = 30_000
    tables = leaving(5, rows, device=device)
    memory = Memory(tables.interactions, size=1, extension=2, pool=5, temperature=1e9, **DOT)
    before = _memory_items(memory)
    memory.update(*tables.batch(torch.arange(rows)), seed=3)
    moved = (_memory_items(memory) - before).cpu() % 5
    assert_distributed(counts_of(moved, 5), rows * torch.tensor([2, 1, 1, 1, 1]) / 6)


def test_the_coldest_memory_is_the_hardest(device: torch.device) -> None:
    """And with no deviation the hardest of it are drawn, in their order."""
    tables = make_tables(device=device)
    memory = Memory(tables.interactions, 3, size=6, extension=34, pool=40, temperature=1e-9, deviation=0.0, **DOT)
    batch = tables.batch(torch.tensor([4, 0, 2]))
    for step in range(3):  # whatever it was before, as the pool holds at most 40 of the 42 unknown items
        memory.update(*batch, epoch=5 * step, seed=step)
    ids = memory.draw(*batch).ids
    for row, query in enumerate((4, 0, 2)):
        scores = tables.scores("dot")[query]
        in_pool = [item for item in memory.pool[query].tolist() if item >= 0]
        hardest = sorted(in_pool, key=lambda item: -scores[item])
        assert _memory_items(memory)[query].tolist() == hardest[:6]
        assert ids[row].tolist() == hardest[:3]


def test_a_memory_only_keeps_what_it_was_extended_by() -> None:
    """Of 2 + 3 places the hardest two: of the others nothing comes in."""
    rows = 2000
    tables = leaving(30, rows)
    memory = Memory(tables.interactions, size=2, extension=3, pool=30, temperature=1e-9, **DOT)
    memory.update(*tables.batch(torch.arange(rows)), seed=1)
    ranks = torch.from_numpy((-tables.scores("dot")[0][:30]).argsort().argsort())[_memory_items(memory)]
    assert (ranks[:, 0] < ranks[:, 1]).all()
    # The best of 5 of 30 has rank r with probability C(29 − r, 4)/C(30, 5).
    expected = torch.tensor([rows * comb(29 - r, 4) / comb(30, 5) for r in range(15)])
    counts = counts_of(ranks[:, 0], 30)
    rest = rows - expected.sum()
    assert_distributed(torch.cat([counts[:15], counts[15:].sum()[None]]), torch.cat([expected, rest[None]]))


class _History:
    """σ(s_j − s⁺) of every epoch that an item has been in its place of the pool, by numpy."""

    def __init__(self) -> None:
        self.values: dict[tuple[int, int], list[float]] = {}

    def add(
        self, query: int, pool: list[int], kept_before: list[int], scores: np.ndarray, pos: int, epoch: int
    ) -> None:
        part = len(pool) // 5  # which is renewed, but for the memory
        for place, item in enumerate(pool):
            if place // part == epoch % 5 and place not in kept_before:
                self.values[query, place] = []
            self.values.setdefault((query, place), []).append(1 / (1 + np.exp(scores[pos] - scores[item])))

    def deviation(self, query: int, place: int) -> float:
        return float(np.std(self.values[query, place]))


def _moved(tables: Tables, g: torch.Generator) -> Tables:
    return tables._replace(items=tables.items + 0.5 * torch.randn(tables.items.shape, generator=g))


def test_the_draw_is_an_argmax_recomputed() -> None:
    """σ(s_j − s⁺) + α_t·std over the epochs, in which the tables move; over each query's first row of an epoch."""
    g = generator(4)
    tables = make_tables()
    memory = Memory(tables.interactions, 2, size=5, extension=10, temperature=2.0, warm_up=4, pool=30, **DOT)
    history = _History()
    query_ids, pos_ids = torch.tensor([3, 1, 3, 0]), torch.tensor([7, 14, 21, 28])
    for epoch in range(5):
        tables = _moved(tables, g)
        scores = tables.scores("dot")
        for step in range(3):  # of which the first counts for the moments
            batch, kept = _moved(tables, g) if step else tables, memory.kept.tolist()
            memory.update(*batch.batch(query_ids, pos_ids), epoch=epoch, seed=10 * epoch + step)
            if step == 0:
                for query, pos in ((3, 7), (1, 14), (0, 28)):
                    history.add(query, memory.pool[query].tolist(), kept[query], scores[query], pos, epoch)
        ids = memory.draw(*tables.batch(query_ids, pos_ids)).ids
        alpha = 5 * min(1, epoch / 4)
        for row, (query, pos) in enumerate(zip(query_ids.tolist(), pos_ids.tolist())):
            value = {}
            for place in memory.kept[query].tolist():
                sigmoid = 1 / (1 + np.exp(scores[query][pos] - scores[query][memory.pool[query, place]]))
                value[place] = sigmoid + alpha * history.deviation(query, place)
            best = sorted(value, key=lambda place: -value[place])[:2]
            assert ids[row].tolist() == memory.pool[query, best].tolist(), (epoch, row)
    assert max(map(len, history.values.values())) == 5 and min(map(len, history.values.values())) < 5


def test_moments_of_more_epochs_than_the_window() -> None:
    """The newest counts 1/window from then on, the others as they did among themselves."""
    g = generator(5)
    tables, values = leaving(9, 3), []
    memory = Memory(tables.interactions, size=2, extension=3, window=3, pool=9, **DOT)
    items = memory.pool[2].long()
    for epoch in range(7):
        tables = _moved(tables, g)
        scores = tables.scores("dot")[2]
        values.append(1 / (1 + np.exp(scores[0] - scores[items.numpy()])))
        memory.update(*tables.batch(torch.tensor([2])), epoch=epoch, seed=epoch)
    weights = np.array([1.0])
    for epoch in range(1, 7):
        rate = 1 / min(epoch + 1, 3)
        weights = np.append((1 - rate) * weights, rate)
    mean = weights @ np.array(values)
    variance = weights @ (np.array(values) - mean) ** 2
    np.testing.assert_allclose(memory.mean[2], mean, atol=1e-5)
    np.testing.assert_allclose(memory.variance[2], variance, atol=1e-5)


@pytest.mark.parametrize("window", [4, 255])
def test_counts_stop_at_the_window(window: int) -> None:
    tables = leaving(9, 1)
    memory = Memory(tables.interactions, size=2, extension=3, window=window, pool=9, **DOT)
    for epoch in range(260):
        memory.update(*tables.batch(torch.tensor([0])), epoch=epoch, seed=epoch)
    assert (memory.counts[0] == window).all()


def test_each_epoch_renews_a_part_of_the_pool(device: torch.device) -> None:
    """Not what the memory holds, not in a query's first epoch, and once per epoch."""
    tables = make_tables(num_queries=200, device=device)
    memory = Memory(tables.interactions, size=4, extension=6, pool=20, window=5, **DOT)
    some, seen = torch.arange(100), torch.zeros(201, dtype=torch.bool)
    for epoch in (0, 1, 2, 3, 4, 7):
        before, kept = memory.pool.clone(), memory.kept.long()
        in_memory = torch.zeros_like(before, dtype=torch.bool).scatter_(1, kept, True)
        memory.update(*tables.batch(some), epoch=epoch, seed=epoch)
        changed = (memory.pool != before).cpu()
        part = torch.zeros(20, dtype=torch.bool)
        part[4 * (epoch % 5) : 4 * (epoch % 5) + 4] = True
        may_change = part & ~in_memory.cpu() & seen.unsqueeze(1)
        assert not (changed & ~may_change).any()
        # One in 42 is drawn again.
        assert changed[may_change].float().mean() > 0.9 or not may_change.any()
        assert ((memory.counts.cpu() == 1) == may_change)[:100].all() or epoch == 0
        seen[some] = True
        again = memory.pool.clone()
        memory.update(*tables.batch(some), epoch=epoch, seed=100 + epoch)
        assert torch.equal(memory.pool, again)
    for query in range(100):
        assert set(memory.pool[query].tolist()) <= set(tables.unknown(query))


def test_renewed_items_are_uniform() -> None:
    tables = leaving(12, 20_000)
    memory = Memory(tables.interactions, size=1, extension=3, pool=8, window=4, **DOT)
    batch = tables.batch(torch.arange(20_000))
    memory.update(*batch, epoch=0, seed=0)
    free = (memory.kept[:-1, 0] != 2) & (memory.kept[:-1, 0] != 3)
    memory.update(*batch, epoch=1, seed=1)
    for place in (2, 3):
        ids = memory.pool[:-1][free][:, place]
        assert_distributed(counts_of(ids, 12), torch.full((12,), len(ids) / 12))


def test_a_pool_of_all_unknown_items_stays() -> None:
    tables = leaving(9, 30)
    memory = Memory(tables.interactions, size=2, extension=3, window=3, pool=9, **DOT)
    before = memory.pool.clone()
    for epoch in range(6):
        memory.update(*tables.batch(torch.arange(30)), epoch=epoch, seed=epoch)
    assert torch.equal(memory.pool, before)


def test_of_a_query_twice_in_a_batch_the_first_row_writes() -> None:
    tables = make_tables()
    states = []
    for query_ids, pos_ids in (([2, 4, 2, 4], [0, 7, 14, 21]), ([2, 4, -1, 4], [0, 7, 14, -1]), ([2, 4], [0, 7])):
        memory = Memory(tables.interactions, size=4, extension=8, pool=20, **DOT)
        memory.update(*tables.batch(torch.tensor(query_ids), torch.tensor(pos_ids)), epoch=1, seed=5)
        states.append({name: tensor[:-1] if tensor.dim() else tensor for name, tensor in memory.state_dict().items()})
    fresh = Memory(tables.interactions, size=4, extension=8, pool=20, **DOT).state_dict()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]) and torch.equal(tensor, states[2][name]), name
        if tensor.dim():
            others = torch.tensor([0, 1, 3])
            assert torch.equal(tensor[others], fresh[name][others]), name
    assert not torch.equal(states[0]["kept"][2], fresh["kept"][2])


def test_the_pool_holds_unknown_items_once_each(device: torch.device) -> None:
    tables = make_tables(num_queries=40, num_items=60, device=device)
    memory = Memory(tables.interactions, size=4, extension=8, pool=20, seed=1)
    for query, items in enumerate(memory.pool[:-1].tolist()):
        assert len(set(items)) == 20 and set(items) <= set(tables.unknown(query))
    assert (memory.pool[-1] == -1).all()


def test_the_pool_is_uniform() -> None:
    """In each place, also where many of its items are all that there are."""
    for count, pool in ((8, 6), (30, 6)):
        tables = leaving(count, 20_000)
        items = Memory(tables.interactions, size=2, extension=3, pool=pool, seed=2).pool[:-1]
        for place in (0, 5):
            assert_distributed(counts_of(items[:, place], count), torch.full((count,), 20_000 / count))
        pairs = items[:, 0].long() * count + items[:, 5]
        expected = (1 - torch.eye(count)) * 20_000 / (count * (count - 1))
        assert_distributed(counts_of(pairs, count**2), expected.flatten())


def test_a_query_with_few_unknown_items() -> None:
    """All of them are its pool; it draws no padding before them, and nothing that it knows."""
    tables = leaving(3, 50)
    memory = Memory(tables.interactions, 6, size=6, extension=10, pool=20, **DOT)
    assert memory.pool[:-1, :3].sort(1).values.tolist() == [[0, 1, 2]] * 50
    assert (memory.pool[:, 3:] == -1).all()
    batch = tables.batch(torch.arange(50), torch.full((50,), 4))
    hardest = (-tables.scores("dot")[0][:3]).argsort().tolist()
    for epoch in range(3):
        assert memory.draw(*batch).ids.tolist() == [[*hardest, -1, -1, -1]] * 50
        memory.update(*batch, epoch=epoch, seed=epoch)


def test_a_query_that_knows_everything_is_refused_only_when_it_is_asked_for() -> None:
    known = Interactions([0] * 6, list(range(6)), num_queries=2, num_items=6)
    memory = Memory(known, size=2, extension=3, pool=5, seed=0)
    queries, items = torch.randn(1, 3), torch.randn(6, 3)
    assert (memory.draw(queries, items, torch.tensor([1]), torch.tensor([0])).ids >= 0).all()
    with pytest.raises(ValueError, match="query_ids: query 0 has all 6 items"):
        memory.draw(queries, items, torch.tensor([0]), torch.tensor([0]))


def test_scores_that_are_nan() -> None:
    """Such items are neither kept nor drawn, and moments do not see them."""
    tables = make_tables()
    memory = Memory(tables.interactions, 6, size=6, extension=30, pool=40, temperature=1e-6, **DOT)
    batch = tables.batch(torch.arange(5))
    memory.update(*batch, epoch=0, seed=0)
    bad = _memory_items(memory)[0, :2].long()
    mean = memory.mean.clone()
    broken = tables._replace(items=tables.items.clone())
    broken.items[bad] = torch.nan
    drawn = memory.draw(*broken.batch(torch.arange(5))).ids
    assert (drawn[0, 4:] == -1).all() and not set(drawn[0, :4].tolist()) & set(bad.tolist())
    memory.update(*broken.batch(torch.arange(5)), epoch=1, seed=1)
    assert not torch.isin(_memory_items(memory), bad).any()
    assert memory.mean.isfinite().all() and memory.variance.isfinite().all()
    of_bad = torch.isin(memory.pool, bad)
    assert torch.equal(memory.mean[of_bad], mean[of_bad])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_memory_stays_where_too_few_scores_are_numbers(dtype: torch.dtype) -> None:
    tables = make_tables(dtype=dtype)
    memory = Memory(tables.interactions, 4, size=6, extension=34, pool=40, temperature=1e-6, **DOT)
    queries, items, query_ids, pos_ids = tables.batch(torch.arange(5))
    memory.update(queries, items, query_ids, pos_ids, epoch=0, seed=0)
    before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    memory.update(queries * torch.nan, items, query_ids, pos_ids, epoch=0, seed=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory.state_dict().items())
    drawn = memory.draw(queries * torch.nan, items, query_ids, pos_ids).ids
    assert torch.equal(drawn, _memory_items(memory)[:, :4].long())

    # Of query 0's pool, only the memory's last and two others have a number for a score.
    kept = before["kept"][0].tolist()
    others = [place for place in range(40) if place not in kept][:2]
    has_number = memory.pool[0][[kept[5], *others]].long()
    broken = torch.full_like(items, torch.nan)
    broken[has_number] = items[has_number]
    broken[0] = items[0]  # the positive
    memory.update(queries, broken, query_ids, pos_ids, epoch=0, seed=2)
    now = memory.kept[0].tolist()
    assert set(now[:3]) == {kept[5], *others} and now[3:] == kept[:3]


def test_high_inner_products_are_told_apart() -> None:
    """σ rounds to 1 in fp32 from 17 on."""
    tables = leaving(4, 1)
    queries, items = torch.ones(1, 1), torch.tensor([[21.0], [22.0], [24.0], [23.0], [0.0], [0.0]])
    memory = Memory(tables.interactions, size=4, extension=1, pool=5, **DOT)
    ids = memory.draw(queries, items, torch.tensor([0]), torch.tensor([4])).ids
    assert ids.tolist() == [[2]]


def test_uniform_at_first() -> None:
    """Before any update a memory is the first of a random pool."""
    tables = leaving(12, 20_000)
    memory = Memory(tables.interactions, size=1, extension=3, pool=8, **DOT)
    ids = memory.draw(*tables.batch(torch.arange(20_000))).ids
    assert_distributed(counts_of(ids, 12), torch.full((12,), 20_000 / 12))


def test_kept_by_scores_not_by_ids() -> None:
    """One of many: the memory's one item has the softmax of the scores after one update from the whole pool."""
    rows = 30_000
    tables = leaving(10, rows)
    memory = Memory(tables.interactions, size=1, extension=9, pool=10, temperature=0.9, **DOT)
    memory.update(*tables.batch(torch.arange(rows)), seed=8)
    expected = softmax_over(tables.scores("dot")[0], list(range(10)), 0.9)[:10]
    assert_distributed(counts_of(_memory_items(memory), 10), rows * expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 0}, ValueError, "size must be an integer ≥ 1, got 0"),
        ({"extension": 2.5}, TypeError, "extension must be an integer ≥ 1, got float"),
        ({"pool": 11}, ValueError, r"pool must be at least size \+ extension = 12, got 11"),
        ({"num_negatives": 5}, ValueError, "num_negatives must be at most size = 4, got 5"),
        ({"temperature": 0}, ValueError, "temperature must be > 0, got 0"),
        ({"deviation": -1}, ValueError, "deviation must be a number ≥ 0, got -1"),
        ({"warm_up": 0}, ValueError, "warm_up must be an integer ≥ 1, got 0"),
        ({"window": 0}, ValueError, r"window must be an integer in \[1, 255\], got 0"),
        ({"similarity": "l2"}, ValueError, "similarity must be one of"),
        ({"seed": -1}, ValueError, "seed must be an integer in"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    settings = {"num_negatives": 1, "size": 4, "extension": 8, "pool": 20} | arguments
    with pytest.raises(error, match=message):
        Memory(make_tables().interactions, settings.pop("num_negatives"), **settings)


def test_a_wrong_epoch_changes_nothing() -> None:
    tables = make_tables()
    memory = Memory(tables.interactions, size=4, extension=8, pool=20, **DOT)
    before = {name: tensor.clone() for name, tensor in memory.state_dict().items()}
    with pytest.raises(ValueError, match="epoch must be an integer in"):
        memory.update(*tables.batch(torch.arange(5)), epoch=-1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in memory.state_dict().items())

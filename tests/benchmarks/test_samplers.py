"""The rivals of draws inside the op: that they draw what they should; and the histories that they draw for."""

from __future__ import annotations

import pytest
import torch

from benchmarks.common import data
from benchmarks.throughput import interactions as histories
from benchmarks.throughput import samplers
from benchmarks.throughput.interactions import history
from benchmarks.throughput.samplers import SAMPLERS, count_known
from cw_ext import Interactions

KNOWN = {0: [0, 1, 2, 19], 1: [7], 2: [], 3: list(range(19)), 4: [3, 4, 5, 6, 10, 12, 18], 5: [*range(20, 40)]}
NUM_ITEMS = 40
# How popular items are where draws follow popularity; item 0 is never drawn.
WEIGHTS = torch.arange(NUM_ITEMS).double()


def interactions() -> Interactions:
    pairs = torch.tensor([(query, item) for query, items in KNOWN.items() for item in items])
    return Interactions(pairs[:, 0], pairs[:, 1], num_queries=len(KNOWN), num_items=NUM_ITEMS)


def p_value(counts: torch.Tensor, weights: torch.Tensor) -> float:
    """Of the chi-square test that counts come from a distribution in proportion to the weights, all > 0."""
    expected = weights / weights.sum() * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2).double(), statistic / 2).item()


def cases():
    for name in SAMPLERS:
        yield pytest.param(name, None, id=f"{name}-uniform")
        if name != "bit-table":
            yield pytest.param(name, WEIGHTS, id=f"{name}-weights")


@pytest.fixture(params=["gathered", "taken"])
def look_up(request, monkeypatch) -> None:
    """Both ways in which the bit table looks draws up."""
    if request.param == "taken":
        monkeypatch.setattr(samplers, "_CACHE_LINE_BYTES", 0)


@pytest.mark.parametrize(("name", "weights"), list(cases()))
def test_draws_have_the_distribution_without_what_is_known(name, weights, look_up):
    queries = torch.tensor([4, 0, 1, 2, 3, 4, 5]).repeat(100)
    drawn = SAMPLERS[name](interactions(), weights, 5)(queries, 200).long()
    assert drawn.shape == (700, 200)
    for query, items in KNOWN.items():
        counts = torch.bincount(drawn[queries == query].flatten(), minlength=NUM_ITEMS)
        assert len(counts) == NUM_ITEMS
        assert counts[items].sum() == 0
        chances = torch.ones(NUM_ITEMS) if weights is None else weights
        possible = [item for item in range(NUM_ITEMS) if item not in items and chances[item] > 0]
        assert counts[possible].sum() == 200 * (queries == query).sum()
        assert p_value(counts[possible].double(), chances[possible].double()) > 1e-6


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_are_independent_along_a_row(name, look_up):
    # Two draws of a row fall on each pair of the 3 × 3 candidates equally often.
    sampler = SAMPLERS[name](Interactions([0, 0], [1, 3], num_queries=1, num_items=5), None, 0)
    drawn = sampler(torch.zeros(20_000, dtype=torch.int64), 2).long()
    rank = torch.tensor([0, -1, 1, -1, 2])[drawn]
    assert p_value(torch.bincount(3 * rank[:, 0] + rank[:, 1], minlength=9).double(), torch.ones(9).double()) > 1e-6


@pytest.mark.parametrize(("name", "weights"), list(cases()))
def test_a_seed_gives_one_sequence_of_draws(name, weights):
    queries = torch.arange(len(KNOWN))
    first, again, other = (SAMPLERS[name](interactions(), weights, seed) for seed in (5, 5, 6))
    sequence = [first(queries, 30).clone() for _ in range(2)]
    assert all(torch.equal(again(queries, 30), drawn) for drawn in sequence)
    assert not torch.equal(*sequence)
    assert not torch.equal(other(queries, 30), sequence[0])


def test_a_bit_table_serves_batches_of_any_size(look_up):
    known = history(None, 40, 3000)
    sampler = SAMPLERS["bit-table"](known, None, 0)
    drawn = []
    for rows, num_negatives in [(40, 50), (7, 200), (40, 3), (1, 1), (40, 50)]:
        negatives = sampler(torch.arange(rows), num_negatives)
        assert count_known(torch.arange(rows), negatives, known) == 0
        drawn.append((negatives, negatives.clone()))
    assert all(torch.equal(*pair) for pair in drawn)  # later calls have not written to it


def test_a_bit_table_is_for_uniform_draws():
    with pytest.raises(ValueError, match="weights must be None"):
        SAMPLERS["bit-table"](interactions(), WEIGHTS, 0)


def test_known_positives_are_counted():
    queries = torch.tensor([0, 2, 3])
    assert count_known(queries, torch.tensor([[0, 5, 19], [0, 5, 19], [0, 5, 19]]), interactions()) == 2 + 0 + 2


# --- histories ---


def test_a_made_up_history_has_the_skew_of_a_real_one():
    made_up = history(None, 3000, 4000)
    assert (made_up.num_queries, made_up.num_items) == (3000, 4000)
    lengths, counts = (values.double().sort().values for values in (made_up.starts.diff(), made_up.item_counts))
    assert lengths[0] >= 5 and counts[0] >= 1
    # A few have far more than most: in gowalla 1 % of the users have 11 times the median, and 1 % of the items.
    for sizes in (lengths, counts):
        assert sizes[-len(sizes) // 100] > 5 * sizes[len(sizes) // 2]
    assert history(None, 3000, 4000) is made_up
    histories.history.cache_clear()
    assert torch.equal(history(None, 3000, 4000).items, made_up.items)


def test_a_history_of_a_data_set_is_what_is_trained_on(tmp_path):
    lines = [f"{user} {(user + 3 * item) % 40}\n" for user in range(40) for item in range(12)]
    path = tmp_path / "own.txt"
    path.write_text("".join(lines), encoding="utf-8")
    dataset = data.load(path)
    found = history(str(path), dataset.num_users, dataset.num_items)
    users = torch.arange(found.num_queries).repeat_interleave(found.starts.diff())
    trained_on = zip(dataset.train_users.tolist(), dataset.train_items.tolist(), strict=True)
    assert sorted(trained_on) == list(zip(users.tolist(), found.items.tolist(), strict=True))
    with pytest.raises(ValueError, match="expected 40 users and 7 items, got 40 and 40"):
        history(str(path), 40, 7)

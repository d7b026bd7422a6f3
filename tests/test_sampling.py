"""Which negatives are drawn: the generator, the distribution, what is rejected; the same everywhere."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import child_environment, generator
from drawing import assert_distributed, histories, make_interactions
from torch import Tensor

from cw_ext import Interactions, build_config, draw_negatives, reference_sampling, sampled_cw_loss
from cw_ext.negative_sampling import draws_of
from cw_ext.reference_sampling import Draws, history_of

# Random123's known answers for philox4x32-10 (kat_vectors): counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def _signed(key: list[int]) -> int:
    """The 64 bits of a key as an int64."""
    value = key[1] << 32 | key[0]
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_the_generator_is_philox(kernels: None, counter: str, key: str, expected: str) -> None:
    found = torch.ops.cw_ext.philox_words(torch.tensor([_words(counter)]), _signed(_words(key)))
    assert found[0].tolist() == _words(expected)
    words = [torch.tensor([word]) for word in _words(counter)]
    found = reference_sampling.philox(*words, torch.tensor(_signed(_words(key))))
    assert [int(word) for word in found] == _words(expected)


# ---- the same everywhere -----------------------------------------------------------------------------------


def _draws(num_items: int, n: int, seed: int, **more: Any) -> Draws:
    fields = dict.fromkeys(Draws._fields) | {"seed": torch.tensor(seed), "first_row": 0, "num_negatives": n} | more
    return Draws(**fields)


def _by_kernels(draws: Draws, rows: int, num_items: int, device: torch.device) -> Tensor:
    there = [x.to(device) if isinstance(x, Tensor) else x for x in draws]
    return torch.ops.cw_ext.draw_negatives(rows, num_items, *there).cpu()


@pytest.mark.parametrize("popular", [False, True], ids=["uniform", "popularity"])
@pytest.mark.parametrize("n", [1, 3, 255, 256, 1000])
def test_kernels_draw_what_the_reference_sampling(kernels: None, device: torch.device, n: int, popular: bool) -> None:
    interactions = make_interactions(12, 500, 2000)
    table = interactions.popularity(0.6) if popular else None
    names = ("thresholds", "aliases", "cumulative", "known_shares")
    tables = {} if table is None else {name: getattr(table, name) for name in names}
    query_ids = torch.arange(12).repeat(2)
    history = history_of(query_ids, interactions)._asdict()
    draws = _draws(500, n, 2**62 + 12345, **history, **tables)
    expected = reference_sampling.draw(draws, 24, 500)
    assert torch.equal(_by_kernels(draws, 24, 500, device).long(), expected)


@pytest.mark.parametrize("first_row", [0, 5, 2**32 - 3, 2**63 - 25])
@pytest.mark.parametrize("popular", [False, True], ids=["uniform", "popularity"])
def test_parts_of_a_batch_draw_what_the_whole_draws(
    kernels: None, device: torch.device, first_row: int, popular: bool
) -> None:
    """By the kernels and by the reference, in which row b is row first_row + b; query 1 knows almost everything."""
    interactions = make_interactions(12, 500, 2000).to(device)
    query_ids = torch.arange(24, device=device) % 12
    settings = {"distribution": "popularity" if popular else "uniform", "seed": 4}
    whole = draw_negatives(query_ids, interactions, 9, first_row=first_row, **settings)
    for begin, end in ((0, 7), (7, 20), (20, 24)):
        part = draw_negatives(query_ids[begin:end], interactions, 9, first_row=first_row + begin, **settings)
        assert torch.equal(part, whole[begin:end])
    assert first_row == 0 or not torch.equal(draw_negatives(query_ids, interactions, 9, **settings), whole)
    draws = draws_of(query_ids, interactions, 9, 4, first_row, settings["distribution"])
    assert torch.equal(reference_sampling.draw(draws, 24, 500), whole)


@pytest.mark.parametrize("left", [0, 1, 2, 10])
@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_what_almost_nothing_is_left_for_is_drawn_the_same(
    kernels: None, device: torch.device, distribution: str, left: int
) -> None:
    """After the last attempt, with sums of what is known and without, where they were not made."""
    num_items, exponent = 700, 2.0
    g = torch.Generator().manual_seed(left)
    known = torch.randperm(num_items, generator=g)[left:]
    others = (num_items * torch.rand(5000, generator=g) ** 3).long()
    interactions = Interactions(
        torch.cat([torch.full_like(known, 1), 2 + torch.arange(len(others)) % 50, torch.tensor([0, 0, 60])]),
        torch.cat([known, others, torch.tensor([3, 9, 698])]),
        num_queries=61,
        num_items=num_items,
    )
    query_ids = torch.tensor([1, 0, 1, 60], dtype=torch.int32)
    history = history_of(query_ids, interactions)._asdict()
    tables = dict.fromkeys(("thresholds", "aliases", "cumulative", "known_shares"))
    if distribution == "popularity":
        tables = {name: getattr(interactions.popularity(exponent), name) for name in tables}
        assert tables["known_shares"] is not None
    draws = _draws(num_items, 100, 3, **history, **tables)
    expected = reference_sampling.draw(draws, 4, num_items)
    assert torch.equal(_by_kernels(draws, 4, num_items, device).long(), expected)
    assert torch.equal(_by_kernels(draws._replace(known_shares=None), 4, num_items, device).long(), expected)
    assert (expected[0] == -1).all() if left == 0 else not torch.isin(expected[0], known).any()


@pytest.mark.parametrize("num_items", [1, 2, 3, 63, 1000, 3 * 2**29 + 1, 2**31 - 1])
def test_any_number_of_items(kernels: None, device: torch.device, num_items: int) -> None:
    """With 3·2²⁹ + 1 items a quarter of the words favours an item, and is drawn again."""
    draws = _draws(num_items, 500, 7)
    found = _by_kernels(draws, 3, num_items, device).long()
    assert torch.equal(found, reference_sampling.draw(draws, 3, num_items))
    assert 0 <= found.min() and found.max() < num_items
    assert found.unique().numel() > min(num_items, 1000) / 2


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_a_draw_is_a_function_of_seed_row_and_place(device: torch.device, distribution: str) -> None:
    interactions = make_interactions().to(device)
    query_ids = torch.arange(20, device=device)

    def drawn(rows: int, n: int, seed: int = 3) -> Tensor:
        return draw_negatives(query_ids[:rows], interactions, n, seed=seed, distribution=distribution)

    whole = drawn(20, 700)
    assert torch.equal(drawn(20, 700), whole)
    for rows, n in ((20, 699), (20, 257), (20, 2), (7, 700), (1, 1)):
        assert torch.equal(drawn(rows, n), whole[:rows, :n])
    assert not torch.equal(drawn(20, 700, seed=4), whole)
    # Rows of the same query, and draws of a row, differ.
    again = draw_negatives(query_ids[:1].repeat(20), interactions, 700, seed=3, distribution=distribution)
    assert len({tuple(row) for row in again.tolist()}) == 20


@pytest.mark.cpu_kernels
def test_threads_draw_the_same(kernels: None, threads: Callable[[int], None]) -> None:
    interactions = make_interactions(300, 5000, 20000)
    query_ids = torch.arange(300)
    threads(1)
    alone = draw_negatives(query_ids, interactions, 2000, seed=5)
    threads(8)
    assert torch.equal(draw_negatives(query_ids, interactions, 2000, seed=5), alone)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


_DIGEST = """
import hashlib, json, cw_ext, torch
from drawing import make_interactions
interactions = make_interactions(50, 3000, 40000)
digests = [
    hashlib.sha256(
        cw_ext.draw_negatives(torch.arange(50), interactions, 999, seed=9, distribution=d).numpy().tobytes()
    ).hexdigest()
    for d in ("uniform", "popularity")
]
print(json.dumps([cw_ext.build_config()["cpu_capability"], digests]))
"""


@pytest.mark.cpu_kernels
def test_every_instruction_set_draws_the_same(kernels: None) -> None:
    found = {}
    for capability in build_config()["cpu_capabilities"]:
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST],
            env=child_environment(ATEN_CPU_CAPABILITY=capability),
            check=True,
            timeout=120,
            capture_output=True,
            text=True,
        )
        ran_on, digests = json.loads(done.stdout)
        found[ran_on] = tuple(digests)
    assert len(set(found.values())) == 1, found


def test_seeds_come_from_torchs_generator(device: torch.device) -> None:
    interactions = make_interactions().to(device)
    query_ids = torch.arange(20, device=device)
    torch.manual_seed(11)
    first, second = (draw_negatives(query_ids, interactions, 50) for _ in range(2))
    torch.manual_seed(11)
    assert torch.equal(draw_negatives(query_ids, interactions, 50), first)
    assert not torch.equal(first, second)
    seed = torch.tensor(2**63 - 1, device=device)
    expected = draw_negatives(query_ids, interactions, 50, seed=2**63 - 1)
    assert torch.equal(draw_negatives(query_ids, interactions, 50, seed=seed), expected)


# ---- the distribution --------------------------------------------------------------------------------------


# Query 1 of make_interactions knows all items but two.
@pytest.mark.parametrize("query", [0, 1, 5])
@pytest.mark.parametrize("exponent", [None, 0.0, 0.75, 1.0, 2.0])
def test_the_distribution(kernels: None, device: torch.device, query: int, exponent: float | None) -> None:
    """Of one query's draws over many rows, against the exact probabilities."""
    interactions = make_interactions(pairs=400)
    known = torch.tensor([i in histories(interactions)[query] for i in range(50)])
    counts = interactions.item_counts.double()
    weights = torch.ones(50).double() if exponent is None else torch.where(counts > 0, counts**exponent, 0)
    weights = torch.where(known, 0, weights)
    rows, n = 2000, 500
    distribution = {} if exponent is None else {"distribution": "popularity", "popularity_exponent": exponent}
    query_ids = torch.full((rows,), query, device=device)
    if not weights.sum():
        with pytest.raises(ValueError, match=f"query {query}"):
            draw_negatives(query_ids, interactions.to(device), n, seed=0, **distribution)
        return
    ids = draw_negatives(query_ids, interactions.to(device), n, seed=13, **distribution).cpu()
    expected = weights / weights.sum()
    assert_distributed(torch.bincount(ids.flatten(), minlength=50), expected * ids.numel())
    # Neighbours, in a row and between rows, do not know of each other.
    pairs = torch.outer(expected, expected).flatten()
    likely = torch.where(pairs * rows * n // 2 >= 5, pairs, 0)
    for a, b in ((ids[:, 0::2], ids[:, 1::2]), (ids[0::2], ids[1::2]), (ids[:, :-4:8], ids[:, 4::8])):
        found = torch.bincount((a * 50 + b).flatten(), minlength=2500)
        rest = pairs[likely == 0].sum()
        grouped = torch.cat([found[likely > 0], found[likely == 0].sum().reshape(1)])
        wanted = torch.cat([likely[likely > 0], rest.reshape(1)]) * a.numel()
        assert_distributed(grouped[wanted >= 5], wanted[wanted >= 5])


@pytest.mark.parametrize("exponent", [1.0, 2.0, 2.5, 3.0, 8.0])
def test_a_query_that_knows_what_has_nearly_all_of_the_mass(kernels: None, exponent: float) -> None:
    """What is left can be drawn however small its share is, and the log weights are those of what is drawn."""
    events = torch.tensor([1, 2, 3, 5])
    items = torch.arange(1, 5).repeat_interleave(events)
    known = torch.zeros(100_000, dtype=torch.int64)
    interactions = Interactions(
        torch.cat([known, torch.ones_like(items)]),
        torch.cat([known, items]),
        num_queries=2,
        num_items=5,
        keep_counts=True,
    )
    query, n = torch.tensor([0]), 20_000
    drawing: dict[str, Any] = {"distribution": "popularity", "popularity_exponent": exponent, "seed": 3}
    assert draw_negatives(query, interactions, n, **drawing).unique().tolist() == [1, 2, 3, 4]

    g = generator(1)
    queries, table = torch.randn(1, 4, generator=g).double(), torch.randn(5, 4, generator=g).double()
    loss = sampled_cw_loss(
        queries, table, query, torch.tensor([0]), interactions, n, weighting="none", temperature=1.0, **drawing
    )
    unit, items_of = torch.nn.functional.normalize(queries), torch.nn.functional.normalize(table)
    scores = 0.5 * (unit @ items_of.T)[0]
    uniform = (scores[1:] - scores[0]).exp().mean().log() + math.log(n)
    assert abs(float(loss - uniform)) < 0.05


@pytest.mark.parametrize("left", [1, 2, 10])
@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_a_query_that_knows_almost_everything(
    kernels: None, device: torch.device, distribution: str, left: int
) -> None:
    """Most draws are not settled by drawing again, and what takes its place has the same distribution."""
    num_items, rows, n = 5000, 64, 100
    g = torch.Generator().manual_seed(left)
    known = torch.randperm(num_items, generator=g)[left:]
    others = torch.arange(num_items).repeat(3)  # other queries, so that every item occurs
    interactions = Interactions(
        torch.cat([torch.zeros_like(known), 1 + torch.arange(len(others)) // num_items]),
        torch.cat([known, others[torch.randperm(len(others), generator=g)]]),
        num_queries=4,
        num_items=num_items,
    )
    query_ids = torch.zeros(rows, dtype=torch.int64, device=device)
    ids = draw_negatives(query_ids, interactions.to(device), n, seed=1, distribution=distribution).cpu()
    weights = torch.ones(num_items).double()
    if distribution == "popularity":
        weights = interactions.item_counts.double() ** 0.75
    weights[known] = 0
    assert_distributed(torch.bincount(ids.flatten(), minlength=num_items), weights / weights.sum() * ids.numel())


def test_known_positives_are_never_drawn(kernels: None, device: torch.device) -> None:
    interactions = make_interactions(200, 400, 20000)
    known = histories(interactions)
    query_ids = torch.arange(200).repeat(3)
    for distribution in ("uniform", "popularity"):
        ids = draw_negatives(query_ids.to(device), interactions.to(device), 1000, seed=2, distribution=distribution)
        for query, row in zip(query_ids.tolist(), ids.tolist()):
            assert known[query].isdisjoint(row)


def test_shared_draws_reject_nothing(device: torch.device) -> None:
    interactions = make_interactions().to(device)
    ids = draw_negatives(None, interactions, 5000, seed=1)
    assert ids.shape == (5000,) and ids.dtype == torch.int64
    assert_distributed(torch.bincount(ids.cpu(), minlength=50), torch.full((50,), 100.0))


@pytest.mark.parametrize("exponent", [0.0, 0.75, 2.0])
@pytest.mark.parametrize("smoothing", [0.5, 10])
def test_items_that_never_occur_are_drawn_with_smoothing(
    kernels: None, device: torch.device, exponent: float, smoothing: float
) -> None:
    interactions = make_interactions(pairs=60)
    assert (interactions.item_counts == 0).any()
    query_ids = torch.full((2000,), 5, device=device)
    settings = {"distribution": "popularity", "popularity_exponent": exponent, "popularity_smoothing": smoothing}
    ids = draw_negatives(query_ids, interactions.to(device), 500, seed=13, **settings).cpu()
    weights = (interactions.item_counts.double() + smoothing) ** exponent
    weights[list(histories(interactions)[5])] = 0
    assert_distributed(torch.bincount(ids.flatten(), minlength=50), weights / weights.sum() * ids.numel())


def test_smoothing_needs_no_interactions(device: torch.device) -> None:
    nothing = Interactions([], [], num_queries=1, num_items=4).to(device)
    settings = {"distribution": "popularity", "popularity_smoothing": 1}
    ids = draw_negatives(torch.tensor([0], device=device), nothing, 100, seed=1, **settings)
    assert ids.unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_rows_of_padding_draw_nothing(kernels: None, device: torch.device, distribution: str) -> None:
    interactions = make_interactions().to(device)
    query_ids = torch.tensor([3, -1, 2, -1], device=device)
    ids = draw_negatives(query_ids, interactions, 300, seed=1, distribution=distribution)
    expected = draw_negatives(query_ids.clamp(min=0), interactions, 300, seed=1, distribution=distribution)
    assert torch.equal(ids[::2], expected[::2]) and (ids[1::2] == -1).all()
    draws = draws_of(query_ids, interactions, 300, 1, distribution=distribution)
    assert torch.equal(reference_sampling.draw(draws, 4, 50), ids)


# ---- bad input ---------------------------------------------------------------------------------------------

QUERIES = torch.arange(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"query_ids": [0, 1]}, TypeError, r"query_ids must be a torch.Tensor, got list"),
        ({"query_ids": torch.zeros(3)}, TypeError, r"query_ids must have dtype int32, int64, got float32"),
        ({"query_ids": QUERIES[None]}, ValueError, r"query_ids must have shape \[B\], got \(1, 3\)"),
        ({"query_ids": torch.tensor([0, 20])}, IndexError, r"query_ids must be in \[0, 20\), or −1 .*, got 20"),
        ({"query_ids": torch.tensor([0, -2])}, IndexError, r"query_ids must be in \[0, 20\), or −1 .*, got -2"),
        ({"interactions": {0: [1]}}, TypeError, r"interactions must be a cw_ext.Interactions, got dict"),
        ({"num_negatives": 0}, ValueError, r"num_negatives must be an integer ≥ 1, got 0"),
        ({"num_negatives": 2.0}, TypeError, r"num_negatives must be an integer ≥ 1, got float"),
        ({"num_negatives": True}, TypeError, r"num_negatives must be an integer ≥ 1, got bool"),
        ({"seed": -1}, ValueError, r"seed must be an integer in \[0, 9223372036854775807\], got -1"),
        ({"seed": 2**63}, ValueError, r"seed must be an integer in \[0, 9223372036854775807\]"),
        ({"first_row": -1}, ValueError, r"first_row must be an integer ≥ 0, got -1"),
        ({"first_row": 1.0}, TypeError, r"first_row must be an integer ≥ 0, got float"),
        ({"first_row": 2**63 - 3}, ValueError, r"first_row must be at most 2\*\*63 - 1 - B with B = 3, got"),
        ({"popularity_smoothing": -1}, ValueError, r"popularity_smoothing must be a number ≥ 0, got -1"),
        ({"seed": 0.5}, TypeError, r"seed must be an integer in .* got float"),
        (
            {"seed": torch.zeros(1, dtype=torch.int64)},
            ValueError,
            r"seed must be an integer, or a tensor of shape \(\)",
        ),
        ({"seed": torch.zeros(())}, TypeError, r"seed must have dtype int64, got float32"),
        ({"distribution": "zipf"}, ValueError, r"distribution must be one of 'uniform', 'popularity', got 'zipf'"),
        ({"distribution": "popularity", "popularity_exponent": -1}, ValueError, r"exponent must be .*got -1"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"query_ids": QUERIES, "interactions": make_interactions(), "num_negatives": 2, "seed": 0}
    with pytest.raises(error, match=message):
        draw_negatives(**good | arguments)


def test_a_query_with_nothing_left(kernels: None) -> None:
    full = make_interactions(full=True)
    with pytest.raises(ValueError, match="query_ids: query 1 has all 50 items as known positives"):
        draw_negatives(torch.tensor([0, 1]), full, 3)
    assert draw_negatives(torch.tensor([0, 2]), full, 3).shape == (2, 3)
    # Where this is not checked, there is no item to draw, and none is invented.
    draws = _draws(50, 4, 0, **history_of(torch.tensor([1, 0]), full)._asdict())
    ids = torch.ops.cw_ext.draw_negatives(2, 50, *draws)
    assert (ids[0] == -1).all() and (ids[1] >= 0).all()

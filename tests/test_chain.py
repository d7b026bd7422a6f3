"""`Chain` against its stationary distribution, and one step of it against the kernel of Metropolis and Hastings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from drawing import assert_distributed
from sampler_cases import Tables, counts_of, make_tables, softmax_over
from torch import Tensor

from cw_ext import Interactions
from cw_ext.samplers import Chain

# Item 1 has no way back from 2, and 5 proposes itself, 3 twice, padding and the known 7. The query is 1, which knows
# 0, 1 and 7; the positives of query 2 are 0, 2 and 7.
NEIGHBOURS = torch.tensor(
    [
        [1, 2, -1, 3],
        [2, 3, 4, 5],
        [3, 4, 4, 5],
        [2, 5, 5, 4],
        [3, 2, 8, -1],
        [3, 3, 7, 5],
        [8, 8, 8, 8],
        [5, 2, 3, 4],
        [2, 4, 6, 3],
    ]
)
QUERY = 1


def _tables(device: Any = "cpu") -> Tables:
    return make_tables(num_items=9, device=device)


def _chain(tables: Tables, n: int, **arguments: Any) -> Chain:
    settings = {"temperature": 0.1, "exponent": 0.5, "seed": 3} | arguments
    return Chain(tables.interactions, n, **settings)


@pytest.mark.parametrize("exponent", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("neighbours", [None, NEIGHBOURS], ids=["uniform", "neighbours"])
def test_after_many_steps_it_has_the_target(exponent: float, neighbours: Tensor | None, device: torch.device) -> None:
    """p^α/Σ, which is uniform at α = 0 and the softmax of `Scored` at τ/α otherwise."""
    tables = _tables(device)
    near = None if neighbours is None else neighbours.to(device)
    chain = _chain(tables, 10, exponent=exponent, steps=60, neighbours=near)
    ids = chain.draw(*tables.repeated(QUERY, 3000), seed=1).ids
    unknown = tables.unknown(QUERY)
    if exponent == 0:
        expected = torch.zeros(9, dtype=torch.float64)
        expected[unknown] = 1 / len(unknown)
    else:
        expected = softmax_over(tables.scores()[QUERY], unknown, 0.1 / exponent)
    assert_distributed(counts_of(ids, 9), ids.numel() * expected)


def test_chains_go_on_over_the_batches() -> None:
    """Few steps at a time come to the same: one chain per query, as only the first of a query's rows writes."""
    known = Interactions(torch.arange(20_000), torch.zeros(20_000, dtype=torch.int64), num_queries=20_000, num_items=9)
    tables = Tables(_tables().queries[:1].expand(20_000, -1).contiguous(), _tables().items, known)
    chain = _chain(tables, 1, steps=2)
    batch = tables.batch(torch.arange(20_000))
    for step in range(40):
        drawn = chain.draw(*batch, seed=step)
        chain.update(*batch, seed=step)
        assert torch.equal(chain.states[:-1].long(), drawn.ids)
    expected = softmax_over(tables.scores()[0], list(range(1, 9)), 0.2)
    assert_distributed(counts_of(drawn.ids, 9), 20_000 * expected)


def _kernel(log_p: np.ndarray, at: int, unknown: list[int]) -> np.ndarray:
    """[I], where one step from `at` ends: half of the proposals are uniform, half are neighbours."""
    near = NEIGHBOURS.numpy()
    moves = np.zeros(len(log_p))
    for to in unknown:
        ratio = np.exp(log_p[to] - log_p[at])
        moves[to] += 0.5 / len(unknown) * min(1, ratio)
        there, back = (near[at] == to).sum() / 4, (near[to] == at).sum() / 4
        if there:
            moves[to] += 0.5 * there * min(1, ratio * back / there)
    moves[at] = 0
    moves[at] = 1 - moves.sum()
    return moves


@pytest.mark.parametrize("at", [2, 3, 4, 5, 6, 8])
def test_one_step_is_that_of_metropolis_and_hastings(at: int) -> None:
    """Moves to a neighbour without a way back are refused, and so are padding and known items."""
    tables = _tables()
    chain = _chain(tables, 20, exponent=1.0, steps=1, neighbours=NEIGHBOURS)
    chain.states.fill_(at)
    ids = chain.draw(*tables.repeated(QUERY, 1500), seed=9).ids
    log_p = tables.scores()[QUERY] / 0.1
    assert_distributed(counts_of(ids, 9), ids.numel() * torch.from_numpy(_kernel(log_p, at, tables.unknown(QUERY))))


def test_without_a_way_back_nothing_moves_by_neighbours() -> None:
    """A ring in one direction; all scores are equal, so that every uniform proposal is taken."""
    ring = (torch.arange(9) + 1).remainder(9).unsqueeze(1)
    nobody = Interactions([], [], num_queries=1, num_items=9)
    chain = Chain(nobody, 20, temperature=0.1, steps=1, neighbours=ring, seed=0)
    chain.states.fill_(4)
    zeros = torch.zeros(1500, 3), torch.ones(9, 3), torch.zeros(1500, dtype=torch.int64)
    ids = chain.draw(*zeros, zeros[2], seed=1).ids
    expected = torch.full((9,), ids.numel() * 0.5 / 9)
    expected[4] += ids.numel() * 0.5
    assert_distributed(counts_of(ids, 9), expected)


def test_it_draws_no_known_item() -> None:
    tables = make_tables()
    everything = torch.arange(50).repeat(50, 1)
    chain = _chain(tables, 8, neighbours=everything)
    batch = tables.batch(torch.arange(5).repeat(20))
    for step in range(5):
        ids = chain.draw(*batch, seed=step).ids
        for row, query in enumerate(batch[2].tolist()):
            assert set(ids[row].tolist()) <= set(tables.unknown(query))
        chain.update(*batch, seed=step)


def test_update_without_a_draw_walks_by_itself() -> None:
    tables = make_tables()
    batch = tables.batch(torch.arange(5))
    drawn, walked = _chain(tables, 6), _chain(tables, 6)
    ids = drawn.draw(*batch, seed=4).ids
    walked.update(*batch, seed=4)
    assert torch.equal(walked.states[:-1].long(), ids)
    assert torch.equal(drawn.states, _chain(tables, 6).states), "a draw leaves the chains where they are"

    other = tables.batch(torch.tensor([3, 1]))
    drawn.update(*other, seed=4)  # the draw before it was for another batch
    expected = _chain(tables, 6)
    expected.update(*other, seed=4)
    assert torch.equal(drawn.states, expected.states)


def test_a_batch_that_was_written_over_since_the_draw_walks_by_itself() -> None:
    tables = make_tables()
    chain, expected = _chain(tables, 6), _chain(tables, 6)
    query_ids = torch.tensor([0, 1, 2])
    chain.draw(*tables.batch(query_ids), seed=4)
    query_ids.copy_(torch.tensor([4, 3, 2]))
    for each in (chain, expected):
        each.update(*tables.batch(query_ids), seed=4)
    assert torch.equal(chain.states, expected.states)


def test_other_positives_or_another_state_since_the_draw_walk_by_themselves() -> None:
    tables = make_tables()
    batch = tables.batch(torch.arange(5))
    few: dict[str, Any] = {"steps": 1, "temperature": 0.01}  # so that chains with the same draws do not meet
    masked = torch.tensor([0, 0, -1, 0, 0])

    def in_place(chain: Chain) -> None:
        pos_ids = masked.clone()
        chain.draw(*batch[:3], pos_ids, seed=4)
        pos_ids.copy_(batch[3])
        chain.update(*batch[:3], pos_ids, seed=4)

    def other_tensor(chain: Chain) -> None:
        chain.draw(*batch[:3], masked, seed=4)
        chain.update(*batch, seed=4)

    def loaded(chain: Chain) -> None:
        state = _chain(tables, 6, **few).state_dict()
        chain.states.copy_(_chain(tables, 6, **few | {"seed": 8}).states)
        chain.draw(*batch, seed=4)
        chain.load_state_dict(state)
        chain.update(*batch, seed=4)

    expected = _chain(tables, 6, **few)
    expected.update(*batch, seed=4)
    for between in (in_place, other_tensor, loaded):
        chain = _chain(tables, 6, **few)
        between(chain)
        assert torch.equal(chain.states, expected.states), between.__name__


def test_padding_that_was_overwritten_unnoticed_leaves_the_chains() -> None:
    """Through numpy, say, by which torch counts no writes."""
    tables = make_tables()
    chain = _chain(tables, 6)
    before = chain.states.clone()
    queries, items, query_ids, pos_ids = tables.batch(torch.arange(5))
    pos_ids[2] = -1
    chain.draw(queries, items, query_ids, pos_ids, seed=4)
    pos_ids.numpy()[2] = 0
    chain.update(queries, items, query_ids, pos_ids, seed=4)
    assert torch.equal(chain.states[2], before[2]) and (chain.states[:-1] >= 0).all()


def test_a_cast_leaves_the_ways_back() -> None:
    """Ratios like 1/3, which fp16 would round."""
    tables = _tables()
    chains = [_chain(tables, 20, neighbours=NEIGHBOURS) for _ in range(2)]
    chains[0].half().float()
    batch = tables.repeated(QUERY, 500)
    assert torch.equal(chains[0].draw(*batch, seed=1).ids, chains[1].draw(*batch, seed=1).ids)
    assert torch.equal(chains[0]._log_ways, chains[1]._log_ways)


def test_ways_back_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour that an item has twice is two ways there, and so for the way back."""
    near = NEIGHBOURS.tolist()
    expected = [[near[to].count(at) / row.count(to) for to in row] for at, row in enumerate(near)]
    monkeypatch.setattr("cw_ext.samplers.chain.BLOCK", 2 * 4**2)
    found = _chain(_tables(), 4, neighbours=NEIGHBOURS)._log_ways
    assert found is not None
    real = NEIGHBOURS >= 0
    torch.testing.assert_close(found.exp()[real], torch.tensor(expected)[real])


def test_in_inference_mode() -> None:
    tables = make_tables()
    chain, expected = _chain(tables, 6), _chain(tables, 6)
    with torch.inference_mode():
        batch = tables.batch(torch.arange(5))
        ids = chain.draw(*batch, seed=4).ids
        chain.update(*batch, seed=4)
    expected.update(*tables.batch(torch.arange(5)), seed=4)
    assert torch.equal(chain.states, expected.states) and torch.equal(chain.states[:-1].long(), ids)


def test_of_a_query_twice_in_a_batch_the_first_row_writes() -> None:
    tables = make_tables()
    chain = _chain(tables, 6)
    before = chain.states.clone()
    batch = tables.batch(torch.tensor([2, 4, 2, -1, 4]), torch.tensor([0, 7, 0, 0, -1]))
    ids = chain.draw(*batch, seed=2).ids
    assert not torch.equal(ids[0], ids[2]), "each row has draws of its own"
    assert (ids[3:] == -1).all()
    chain.update(*batch, seed=2)
    assert torch.equal(chain.states[[2, 4]].long(), ids[:2])
    assert torch.equal(chain.states[[0, 1, 3]], before[[0, 1, 3]])


def test_the_start_is_uniform() -> None:
    tables = _tables()
    start = Chain(tables.interactions, 20_000, temperature=0.1, seed=5).states
    unknown = tables.unknown(3)
    expected = torch.zeros(9)
    expected[unknown] = 20_000 / len(unknown)
    assert_distributed(counts_of(start[3], 9), expected)
    assert (start[-1] == -1).all()


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_scores_that_are_no_numbers(value: float) -> None:
    """A chain leaves such an item, and never moves to one."""
    tables = _tables()
    tables.items[4] = value
    tables.queries[QUERY] = tables.queries[QUERY].abs()
    chain = _chain(tables, 20, steps=50, similarity="dot", temperature=5.0)
    chain.states[QUERY] = 4
    ids = chain.draw(*tables.repeated(QUERY, 200), seed=3).ids
    assert 4 not in ids.tolist()[0] and (ids != 4).float().mean() > 0.999
    chain.states[QUERY] = 3
    assert (chain.draw(*tables.repeated(QUERY, 200), seed=3).ids != 4).all()


def test_a_query_that_knows_everything_is_refused_only_when_it_is_asked_for() -> None:
    known = Interactions([0] * 6, list(range(6)), num_queries=2, num_items=6)
    chain = Chain(known, 4, temperature=0.1)
    assert (chain.states[0] == -1).all() and (chain.states[1] >= 0).all()
    queries, items = torch.randn(1, 3), torch.randn(6, 3)
    assert (chain.draw(queries, items, torch.tensor([1]), torch.tensor([0])).ids >= 0).all()
    with pytest.raises(ValueError, match="query_ids: query 0 has all 6 items"):
        chain.draw(queries, items, torch.tensor([0]), torch.tensor([0]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be > 0, got 0.0"),
        ({"exponent": -0.1}, ValueError, "exponent must be a number ≥ 0, got -0.1"),
        ({"steps": 0}, ValueError, "steps must be an integer in"),
        ({"similarity": "l2"}, ValueError, "similarity must be one of"),
        ({"neighbours": torch.zeros(8, 2, dtype=torch.int64)}, ValueError, r"neighbours must have shape \[9, K\]"),
        ({"neighbours": torch.zeros(9, 0, dtype=torch.int64)}, ValueError, r"neighbours must have shape \[9, K\]"),
        ({"neighbours": torch.zeros(9, 2)}, TypeError, "neighbours must have dtype int32, int64, got float32"),
        (
            {"neighbours": torch.full((9, 2), 9)},
            IndexError,
            r"neighbours must be in \[0, 9\), or −1 for padding, got 9",
        ),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _chain(_tables(), 4, **arguments)

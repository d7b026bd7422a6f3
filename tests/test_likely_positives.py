"""`LikelyPositives` against EASE and RP3β written out in numpy, and its draws against its probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from drawing import assert_distributed, histories, make_interactions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cw_ext import Interactions, LikelyPositives, likely_positives

PENALTY, BETA = 3.0, 0.4
MADE: dict[str, Callable[..., LikelyPositives]] = {
    "regression": LikelyPositives.by_regression,
    "walks": LikelyPositives.by_walks,
}
each_way = pytest.mark.parametrize("way", MADE)


def _known(interactions: Interactions) -> np.ndarray:
    known = np.zeros((interactions.num_queries, interactions.num_items))
    for query, items in enumerate(histories(interactions)):
        known[query, list(items)] = 1
    return known


def _regression(known: np.ndarray) -> np.ndarray:
    """Every item's own ridge regression on all other items: what EASE's closed form must come out as."""
    scores = np.zeros_like(known)
    for item in range(known.shape[1]):
        others = np.delete(known, item, axis=1)
        gram = others.T @ others + PENALTY * np.eye(others.shape[1])
        scores[:, item] = others @ np.linalg.solve(gram, others.T @ known[:, item])
    return scores


def _walks(known: np.ndarray) -> np.ndarray:
    """Walks of three steps, one after another."""
    scores = np.zeros_like(known)
    lengths, counts = known.sum(1), known.sum(0)
    for query, first in np.argwhere(known):
        for other in np.flatnonzero(known[:, first]):
            for last in np.flatnonzero(known[other]):
                probability = 1 / lengths[query] / counts[first] / lengths[other]
                scores[query, last] += math.sqrt(probability) / counts[last] ** BETA
    return scores


SCORES = {"regression": (_regression, {"penalty": PENALTY}), "walks": (_walks, {"popularity_exponent": BETA})}


@each_way
@pytest.mark.parametrize(("number", "power"), [(6, 1.0), (50, 2.5)])
def test_probabilities_are_powers_of_the_published_scores(
    way: str, number: int, power: float, device: torch.device
) -> None:
    interactions = make_interactions()
    known = _known(interactions)
    formula, arguments = SCORES[way]
    scores = np.where(known > 0, 0, formula(known)).clip(min=0)
    weights = scores**power
    least = np.sort(weights, axis=1)[:, -number][:, None]  # the number-th highest
    expected = np.where(weights >= least, weights, 0)
    total = expected.sum(1, keepdims=True)
    expected = np.divide(expected, total, out=np.zeros_like(expected), where=total > 0)

    likely = MADE[way](interactions.to(device), number, power=power, **arguments)
    assert likely.ids.dtype == torch.int32 and likely.ids.shape == likely.probabilities.shape == (20, number)
    found = np.zeros_like(expected)
    ids, probabilities = likely.ids.cpu().numpy(), likely.probabilities.cpu().numpy()
    assert (probabilities[ids < 0] == 0).all()
    for query, row in enumerate(ids):
        found[query, row[row >= 0]] = probabilities[query, row >= 0]
    np.testing.assert_allclose(found, expected, atol=2e-4)
    # Query 0 knows nothing, so that nothing goes together with what it knows.
    assert (ids[0] == -1).all()


@each_way
def test_draws_follow_the_probabilities(way: str, device: torch.device) -> None:
    likely = MADE[way](make_interactions().to(device), 5)
    rows = torch.full((4000,), 3, device=device)
    drawn = likely.draw(rows, 5, seed=11)
    assert drawn.dtype == torch.int64 and drawn.shape == (4000, 5)
    expected = torch.zeros(51, dtype=torch.float64)
    expected[likely.ids[3].long().cpu()] = likely.probabilities[3].double().cpu()
    assert_distributed(torch.bincount(drawn.flatten().cpu(), minlength=51), 20_000 * expected)


def test_draws_depend_on_the_seed_alone(device: torch.device) -> None:
    likely = LikelyPositives.by_walks(make_interactions())
    query_ids = torch.tensor([2, 5, 0, -1, 7], dtype=torch.int32)
    drawn = likely.draw(query_ids, 4, seed=5)
    assert torch.equal(drawn, likely.to(device).draw(query_ids.to(device), 4, seed=5).cpu())
    assert torch.equal(drawn, likely.draw(query_ids.long(), 4, seed=torch.tensor(5)))
    assert not torch.equal(drawn, likely.draw(query_ids, 4, seed=6))
    assert (drawn[[2, 3]] == -1).all()  # without a history, and padding
    assert (drawn[[0, 1, 4]] >= 0).all()
    torch.manual_seed(0)
    first = likely.draw(query_ids, 4)
    assert not torch.equal(first, likely.draw(query_ids, 4))
    assert likely.draw(query_ids[:0], 4).shape == (0, 4)


@each_way
def test_nothing_known_is_drawn(way: str) -> None:
    interactions = make_interactions()
    likely = MADE[way](interactions, 50)
    for query, known in enumerate(histories(interactions)):
        assert not known & set(likely.ids[query].tolist())


@each_way
def test_small_scores_keep_their_probabilities_under_a_high_power(way: str) -> None:
    likely = MADE[way](make_interactions(num_items=400, pairs=900), 50, power=40.0)
    assert torch.equal(likely.probabilities.sum(1) > 0, likely.ids[:, 0] >= 0)


@each_way
def test_many_queries_with_few_items_take_a_block_of_memory(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    interactions = make_interactions(num_queries=5000, num_items=10, pairs=9000)
    expected = MADE[way](interactions, 4)
    monkeypatch.setattr(likely_positives, "_BLOCK", 20_000)
    with _Largest() as largest:
        found = MADE[way](interactions, 4)
    assert largest.numel <= 2 * 5000 * 10  # the known pairs as a matrix, or their users and items
    torch.testing.assert_close(found.probabilities, expected.probabilities)


class _Largest(TorchDispatchMode):
    """Notes how many elements the largest result of an operation has."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_tables_that_fit_no_memory_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    interactions = Interactions([0, 0], [1, 2], num_queries=1, num_items=10**6)
    with pytest.raises(ValueError, match=r"num_items of at most \d+ for by_regression.*got 1000000; by_walks"):
        LikelyPositives.by_regression(interactions)
    assert (LikelyPositives.by_walks(interactions).ids == -1).all()  # no other query
    monkeypatch.setattr(likely_positives, "_memory", lambda device: 3 * 50**2 * 4)
    LikelyPositives.by_regression(make_interactions())
    monkeypatch.setattr(likely_positives, "_memory", lambda device: 3 * 50**2 * 4 - 1)
    with pytest.raises(ValueError, match="num_items of at most 49 for by_regression.*got 50"):
        LikelyPositives.by_regression(make_interactions())
    monkeypatch.setattr(likely_positives, "_memory", lambda device: None)
    LikelyPositives.by_regression(make_interactions())


@pytest.mark.parametrize("penalty", [1e-5, 1e-30])
def test_a_penalty_too_small_to_invert_with_is_refused(penalty: float) -> None:
    """Two items that the same queries know."""
    items = torch.arange(2).repeat(3000)
    interactions = Interactions(torch.arange(3000).repeat_interleave(2), items, num_queries=3000, num_items=2)
    with pytest.raises(ValueError, match=f"penalty must be large enough.*got {penalty}"):
        LikelyPositives.by_regression(interactions, penalty=penalty)


@each_way
def test_the_default_dtype_changes_nothing(way: str) -> None:
    interactions = make_interactions()
    expected = MADE[way](interactions, 5)
    torch.set_default_dtype(torch.float64)
    try:
        found = MADE[way](interactions, 5)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.ids, expected.ids) and torch.equal(found.probabilities, expected.probabilities)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: LikelyPositives.by_walks([1]), TypeError, "interactions must be a cw_ext.Interactions, got list"),
        (lambda x: LikelyPositives.by_walks(x, 0), ValueError, "number must be an integer ≥ 1, got 0"),
        (lambda x: LikelyPositives.by_walks(x, power=0), ValueError, "power must be"),
        (lambda x: LikelyPositives.by_walks(x, popularity_exponent=-1), ValueError, "popularity_exponent must be"),
        (lambda x: LikelyPositives.by_regression(x, penalty=0), ValueError, "penalty must be"),
        (lambda x: LikelyPositives.by_regression(x, penalty=math.nan), ValueError, "penalty must be"),
        (lambda x: LikelyPositives.by_walks(x).draw(torch.tensor([20]), 1), IndexError, r"query_ids must be in \[0"),
        (lambda x: LikelyPositives.by_walks(x).draw(torch.tensor([[1]]), 1), ValueError, r"query_ids must have shape"),
        (lambda x: LikelyPositives.by_walks(x).draw(torch.tensor([1.0]), 1), TypeError, "query_ids must have dtype"),
        (lambda x: LikelyPositives.by_walks(x).draw(torch.tensor([1]), 0), ValueError, "number must be an integer"),
        (lambda x: LikelyPositives.by_walks(x).draw(torch.tensor([1]), 1, seed=-1), ValueError, "seed must be"),
    ],
)  # fmt: skip
def test_bad_input(make: Callable[[Interactions], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(make_interactions())

"""`LikelyPositives` against EASE and RP3β written out in numpy, and its draws against its probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from drawing import assert_distributed, histories, make_interactions

from cw_ext import Interactions, LikelyPositives

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


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: LikelyPositives.by_walks([1]), TypeError, "interactions must be cw_ext.Interactions, got list"),
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

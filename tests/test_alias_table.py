"""Alias tables: what they draw, decoded slot by slot in whole numbers, against the weights as fractions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch
from cases import generator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cw_ext.alias_table import ONE, Popularity, popularity_table

_random = settings(max_examples=300, deadline=None, derandomize=True)


def _weights(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _words(table: Popularity) -> list[int]:
    """In how many of the I·2³² equally likely (slot, word) each item is drawn."""
    thresholds, aliases = table.thresholds.tolist(), table.aliases.tolist()
    words = [0] * len(thresholds)
    for slot, (threshold, alias) in enumerate(zip(thresholds, aliases, strict=True)):
        words[slot] += threshold
        words[alias] += ONE - threshold
    return words


def _assert_draws(table: Popularity, weights: list[float]) -> None:
    """Everything that the table promises about `weights`."""
    total = sum(map(Fraction, weights))
    occurring = sum(w > 0 for w in weights)
    masses, log_weights = table.masses.tolist(), table.log_weights.tolist()
    tensors = table[:5]
    assert [t.dtype for t in tensors] == [torch.uint32, torch.int32, torch.float64, torch.float64, torch.int64]
    assert {t.shape for t in tensors} == {(len(weights),)} and table.known_shares is None
    assert table.cumulative.tolist() == list(itertools.accumulate(_words(table)))
    shares = [Fraction(weight) / total * len(weights) * ONE for weight in weights]
    raised = sum(0 < share < 1 for share in shares)
    for i, words in enumerate(_words(table)):
        mass = Fraction(weights[i]) / total
        assert masses[i] == pytest.approx(float(mass), rel=1e-14, abs=0)
        if mass == 0:
            assert words == 0 and log_weights[i] == 0
            continue
        # A word of rounding, what fp64 leaves of the largest masses, and what the largest gives to those below a word.
        share = shares[i]
        given = raised if share == max(shares) else 0
        assert words >= 1 and abs(words - share) <= 1 + given + share * Fraction(1, 10**14)
        drawn = Fraction(words, len(weights) * ONE) if words < 2**20 else mass
        assert log_weights[i] == pytest.approx(-math.log(drawn * occurring), rel=1e-14, abs=1e-14)
    # Not even where by the threshold the alias is never taken.
    assert all(weights[alias] > 0 for alias in table.aliases.tolist())


# Neither sorted nor in a pattern of lights and heavies that the sweep could be kind to.
SCRAMBLED = torch.randperm(50, generator=generator(1))

CASES = {
    "one": [3.0],
    "two": [1.0, 2.0],
    "all equal": [0.7] * 7,
    "all equal but the first": [0.0] + [0.7] * 6,
    "all equal, every other one zero": [0.0, 5.0] * 20,
    "only the last": [0.0] * 9 + [2.0],
    "only the first": [2.0] + [0.0] * 9,
    "one light": [1.0] * 9 + [0.99],
    "one heavy": [1.0] * 9 + [1.01],
    "lights, then heavies": [1.0] * 9 + [5.0] * 9,
    "heavies, then lights": [5.0] * 9 + [1.0] * 9,
    # One light uses up many heavies, so that each of them passes the deficit on to the next.
    "heavies of a little surplus": [0.0, *[1.001] * 30],
    "one light in the midst of such heavies": [1.001] * 15 + [0.0] + [1.001] * 15,
    "one giant": [1e12] + [1e-12] * 20,
    "one dwarf": [1e-12] + [1e12] * 20,
    "the whole range": [10.0**k for k in range(-12, 13)],
    "subnormal": [5e-324, 1e-323, 0.0],
    "near the largest double": [1.7e308, 1.6e308, 1e300],
    **{f"powers {k}": (SCRAMBLED + 1).double().pow(-k).tolist() for k in (0.5, 1, 2, 8)},
}


@pytest.mark.parametrize("weights", CASES.values(), ids=CASES.keys())
def test_what_is_drawn(weights: list[float]) -> None:
    _assert_draws(popularity_table(_weights(weights)), weights)


_any_weight = st.one_of(
    st.just(0.0),
    st.just(1.0),
    st.integers(1, 5).map(float),
    st.floats(-12, 12).map(lambda k: 10.0**k),
)


@_random
@given(weights=st.lists(_any_weight, min_size=1, max_size=40).filter(any))
def test_what_is_drawn_for_random_weights(weights: list[float]) -> None:
    _assert_draws(popularity_table(_weights(weights)), weights)


@_random
@given(
    counts=st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any),
    exponent=st.one_of(st.sampled_from([0.0, 0.5, 0.75, 1.0]), st.floats(0, 8)),
)
def test_what_is_drawn_by_popularity(counts: list[int], exponent: float) -> None:
    weights = [count**exponent if count else 0.0 for count in counts]
    _assert_draws(popularity_table(_weights(weights)), weights)


def test_equal_weights_need_no_alias() -> None:
    """Not one word is lost to rounding: 1/I is a whole slot."""
    for size in (1, 3, 7, 1000):
        assert popularity_table(torch.full((size,), 0.1, dtype=torch.float64)).aliases.tolist() == list(range(size))


def _assert_draws_many(weights: Tensor) -> None:
    """The same as _words, for more items than Python counts in good time."""
    table, total = popularity_table(weights), weights.numel() * ONE
    thresholds = table.thresholds.long()
    words = thresholds.clone().index_add_(0, table.aliases.long(), ONE - thresholds)
    assert words.sum().item() == total
    share = weights / weights.sum() * total
    assert ((words - share).abs() <= 1 + share * 1e-13).all()
    assert not words[weights == 0].any() and (weights[table.aliases.long()] > 0).all()


def test_many_items() -> None:
    """Running sums far beyond 2⁵³, where doubles would no longer count."""
    weights = (torch.randperm(300_000, generator=generator(2)) + 1).double().pow(-1.1)
    weights[::7] = 0
    _assert_draws_many(weights)


@pytest.mark.parametrize("few", [[1.0, 9.0], [2.0, 3.0], [1.0, 12.0, 7.0]])
def test_few_among_many_items(few: list[float]) -> None:
    """The roundings of their masses are whole words, too many or too few: none may go to an item without mass."""
    weights = torch.zeros(4_000_000, dtype=torch.float64)
    weights[torch.arange(len(few)) * 1_000_000 + 1] = _weights(few)
    _assert_draws_many(weights)


def test_the_importance_weights_make_it_uniform() -> None:
    """E_p[w·f] is the plain mean of f over the items that occur."""
    weights = _weights([4.0, 0.0, 1.0, 0.5, 2.0])
    f = _weights([1.0, 100.0, -3.0, 8.0, 0.25])
    table = popularity_table(weights)
    expected = (1.0 - 3.0 + 8.0 + 0.25) / 4
    assert (table.masses * table.log_weights.exp() * f).sum().item() == pytest.approx(expected, rel=1e-14)


def test_results_are_on_the_weights_device(device: torch.device) -> None:
    weights = _weights([1.0, 0.0, 5.0, 2.0])
    here, there = popularity_table(weights), popularity_table(weights.to(device))
    for a, b in zip(here[:5], there[:5], strict=True):
        assert b.device == weights.to(device).device and torch.equal(a, b.cpu())


def test_the_weights_are_left_alone() -> None:
    weights = _weights([1.0, 0.0, 5.0])
    popularity_table(weights)
    assert weights.tolist() == [1.0, 0.0, 5.0]


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(3), TypeError, r"weights must have dtype float64, got float32"),
        (torch.ones(3, dtype=torch.int64), TypeError, r"weights must have dtype float64, got int64"),
        (_weights([1.0]).reshape(1, 1), ValueError, r"weights must have shape \[I\], got \(1, 1\)"),
        (_weights([1.0, -2.0]), ValueError, r"weights must be finite and ≥ 0, got -2.0"),
        (_weights([1.0, math.nan]), ValueError, r"weights must be finite and ≥ 0, got nan"),
        (_weights([1.0, math.inf]), ValueError, r"weights must be finite and ≥ 0, got inf"),
        (_weights([0.0, 0.0]), ValueError, r"weights must hold a weight > 0, got none in 2"),
        (_weights([]), ValueError, r"weights must hold a weight > 0, got none in 0"),
    ],
)
def test_bad_weights(weights: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        popularity_table(weights)

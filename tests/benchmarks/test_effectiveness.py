"""The training effectiveness against a simulation of its model, exact powers and its limits."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.training.effectiveness import Inputs, best_number, effectiveness, estimate_inputs, informativeness

KINDS = ("good", "easy", "bad")
# Relevant items score N(GAP, 1), others N(0, 1).
GAP = 1.5
# What positives score, at quantiles so many that a mean over them is the expectation.
QUANTILES = GAP + norm.ppf((np.arange(4000) + 0.5) / 4000)
SPREAD = norm.cdf(QUANTILES)
WEIGHTS = [(0.9, 1.0), (0.5, 1.0), (1.0, 0.3), (1.0, 0.0), (0.75, 2.0)]


def counted(rng, number, p, q, samples, rank_first) -> dict[str, float]:
    """Shares of the kinds among samples whose labels are drawn; rank_first(reliable [n], reliable [n, K]) -> [n]."""
    positive, negatives = rng.random(samples) < p, rng.random((samples, number)) < q
    reliable, first = positive & negatives.all(1), rank_first(positive, negatives)
    return {"good": np.mean(reliable & ~first), "easy": np.mean(reliable & first), "bad": np.mean(~reliable)}


def assert_agree(inputs, number, shares, samples) -> None:
    for kind, probability in informativeness(number, inputs)._asdict().items():
        error = math.sqrt(probability * (1 - probability) / samples)
        assert abs(shares[kind] - probability) <= 4 * error, kind


@pytest.mark.parametrize("number", [1, 3, 20, 100])
@pytest.mark.parametrize(("p", "q"), [(1.0, 0.98), (0.8, 0.95), (0.9, 1.0)])
def test_probabilities_agree_with_counts_of_drawn_labels_and_scores(number, p, q):
    rng = np.random.default_rng(number)

    def rank_first(positive, negatives):
        scores = rng.standard_normal(len(positive)) + GAP * positive
        return scores > (rng.standard_normal(negatives.shape) + GAP * ~negatives).max(1)

    shares = counted(rng, number, p, q, 20_000, rank_first)
    assert_agree(Inputs(q, SPREAD, p), number, shares, 20_000)


@pytest.mark.parametrize("number", [1, 3, 20])
def test_with_one_accuracy_the_comparisons_are_independent(number):
    rng = np.random.default_rng(number)

    def rank_first(positive, negatives):
        return (rng.random(negatives.shape) < 0.9).all(1)

    shares = counted(rng, number, 0.9, 0.97, 20_000, rank_first)
    assert_agree(Inputs(0.97, 0.9, 0.9), number, shares, 20_000)


@pytest.mark.parametrize("q", [0.5, 0.999, 1 - 1e-6, 1 - 1e-13, 1.0])
@pytest.mark.parametrize("a", [0.3, 0.9999, 1 - 1e-13])
def test_probabilities_are_exact_for_many_negatives(q, a):
    numbers = np.array([1, 40, 4000, 100_000])
    found = informativeness(numbers, Inputs(q, a, 0.75))
    with localcontext() as context:
        context.prec, context.Emin = 60, -(10**7)
        for index, number in enumerate(numbers.tolist()):
            reliable, first = Decimal("0.75") * Decimal(q) ** number, Decimal(a) ** number
            expected = {"good": reliable * (1 - first), "easy": reliable * first, "bad": 1 - reliable}
            for kind in KINDS:
                # abs: where q^K underflows
                assert getattr(found, kind)[index] == pytest.approx(float(expected[kind]), rel=1e-10, abs=1e-300)


def test_clean_positives_with_very_few_false_negatives_keep_their_bad_samples():
    # 1.3: multiples of 2^−53 would come out of 1 − q^K, too.
    assert informativeness(1.3, Inputs(1 - 2**-53, 0.9)).bad == pytest.approx(1.3 * 2**-53, rel=1e-12, abs=0)


def test_one_negative_and_shapes():
    found = informativeness(1, Inputs(0.9, [0.6, 0.8], 0.5))
    assert [float(x) for x in found] == pytest.approx([0.45 * 0.3, 0.45 * 0.7, 0.55])
    numbers = np.arange(1, 7).reshape(2, 3)
    found = informativeness(numbers, Inputs(0.9, SPREAD))
    assert all(x.shape == (2, 3) and x.dtype == np.float64 for x in found)
    assert sum(found) == pytest.approx(np.ones((2, 3)))
    assert effectiveness(numbers, Inputs(0.9, 0.5)).shape == (2, 3)


def test_effectiveness_weighs_the_kinds():
    inputs = Inputs(0.97, SPREAD, 0.9)
    numbers = np.array([1.0, 2.5, 30.0])
    good, easy, bad = informativeness(numbers, inputs)
    assert effectiveness(numbers, inputs, trade_off=0.7, harm=2) == pytest.approx(0.7 * good + 0.3 * easy - 2 * bad)
    assert effectiveness(numbers, inputs) == pytest.approx(0.9 * good + 0.1 * easy - bad)


def test_reliabilities_of_zero_and_accuracies_of_zero_and_one():
    for inputs in (Inputs(0.0, 0.5), Inputs(1.0, 0.5, 0.0)):
        assert [float(x) for x in informativeness(7, inputs)] == [0, 0, 1]
    assert [float(x) for x in informativeness(7, Inputs(1.0, 0.0))] == [1, 0, 0]
    assert [float(x) for x in informativeness(7, Inputs(1.0, 1.0))] == [0, 1, 0]


@pytest.mark.parametrize(("trade_off", "harm"), WEIGHTS)
@pytest.mark.parametrize("accuracy", [0.5, 0.999, SPREAD])
def test_with_clean_negatives_more_are_never_worse(accuracy, trade_off, harm):
    inputs = Inputs(1.0, accuracy, 0.9)
    values = effectiveness(np.unique(np.geomspace(1, 1e5, 200).round()), inputs, trade_off=trade_off, harm=harm)
    assert np.diff(values).min() >= -1e-15
    best = best_number(inputs, trade_off=trade_off, harm=harm)
    # Beyond the best all is rounding; with the weights of good and easy equal, all K are.
    assert effectiveness(best, inputs, trade_off=trade_off, harm=harm) == pytest.approx(values[-1], rel=1e-14)
    assert (best == 1) == (trade_off == 0.5)


@pytest.mark.parametrize(("trade_off", "harm"), [(0.9, 1.0), (1.0, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize(("q", "accuracy"), [(0.999, 0.9), (0.9999, 0.999), (0.99, SPREAD), (0.9999, SPREAD)])
def test_with_noisy_negatives_the_maximum_is_in_between(q, accuracy, trade_off, harm):
    inputs = Inputs(q, accuracy, 0.9)
    values = effectiveness(np.arange(1, 8001), inputs, trade_off=trade_off, harm=harm)
    best = best_number(inputs, trade_off=trade_off, harm=harm)
    assert 1 < best < 5000
    assert values[best - 1] == values.max()
    assert values.max() > max(values[0], values[-1]) + 1e-4
    assert np.diff(values[:best]).min() >= -1e-15 and np.diff(values[best - 1 :]).max() <= 1e-15


@pytest.mark.parametrize(("trade_off", "harm"), WEIGHTS)
@pytest.mark.parametrize("q", [0.5, 0.97, 0.9999])
def test_best_number_is_that_of_all_numbers_tried(q, trade_off, harm):
    for accuracy in (0.2, 0.95, SPREAD[::40]):
        inputs = Inputs(q, accuracy, 0.8)
        values = effectiveness(np.arange(1, 2001), inputs, trade_off=trade_off, harm=harm)
        best = best_number(inputs, trade_off=trade_off, harm=harm, largest=2000)
        assert values[best - 1] == pytest.approx(values.max(), rel=1e-14, abs=1e-15)
        assert best == best_number(Inputs(q, accuracy), trade_off=trade_off, harm=harm, largest=2000)


@pytest.mark.parametrize(("q", "a"), [(0.999, 0.95), (1 - 1e-6, 0.9999)])
def test_best_number_with_one_accuracy_is_where_the_derivative_is_zero(q, a):
    # (v + 1) / p = 1.9 q^K − 0.8 (qa)^K
    expected = math.log(1.9 * math.log(q) / (0.8 * math.log(q * a))) / math.log(a)
    assert abs(best_number(Inputs(q, a)) - expected) <= 1


def test_a_better_model_and_cleaner_labels_ask_for_more_negatives():
    assert best_number(Inputs(0.999, 0.8)) < best_number(Inputs(0.999, 0.95)) < best_number(Inputs(0.999, 0.99))
    assert best_number(Inputs(0.99, SPREAD)) < best_number(Inputs(0.999, SPREAD)) < best_number(Inputs(1.0, SPREAD))


def test_the_best_number_is_bounded_and_one_where_nothing_can_be_learnt():
    assert best_number(Inputs(1.0, 0.9999), largest=50) == 50
    assert best_number(Inputs(0.99, 1.0)) == best_number(Inputs(0.0, 0.5)) == 1
    assert best_number(Inputs(0.99, 1.0), trade_off=1, harm=0) == 1


@pytest.mark.parametrize("prior", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("shared", [True, False])
def test_inputs_are_recovered_from_scores(prior, shared):
    rng = np.random.default_rng(3)
    means, easy = [], []
    for _ in range(30):
        positives = GAP + rng.standard_normal(100)
        shape = 20_000 if shared else (100, 4000)
        negatives = rng.standard_normal(shape) + GAP * (rng.random(shape) < prior)
        inputs = estimate_inputs(positives, negatives, prior, 0.9)
        assert (inputs.negative_reliability, inputs.positive_reliability) == (1 - prior, 0.9)
        means.append(inputs.accuracy.mean())
        easy.append(informativeness(5, inputs).easy)
    for found, expected in ((means, SPREAD.mean()), (easy, informativeness(5, Inputs(1 - prior, SPREAD, 0.9)).easy)):
        assert abs(np.mean(found) - expected) <= 4 * np.std(found, ddof=1) / math.sqrt(len(found))


def test_an_estimate_counted_out():
    # Below 2: two of four and a tie; below 5: all. Of the positives one is below 5 and none below 2.
    expected = [2.5 / 4, (1 - 0.2) / 0.8]
    negatives = [2.0, 0.0, 1.0, 4.0]
    assert estimate_inputs([2, 5], negatives, 0.0).accuracy == pytest.approx([expected[0], 1])
    assert estimate_inputs([2, 5], negatives, 0.2).accuracy == pytest.approx([expected[0] / 0.8, expected[1]])
    assert estimate_inputs([2, 5], [negatives, [9, 9, 4, 4]], 0.0).accuracy == pytest.approx([expected[0], 0.5])
    # Clipped: (1/4 − 0.6) / 0.4 < 0 and (3/4 − 0) / 0.4 > 1.
    assert estimate_inputs([5, 2], [[9, 9, 9, 4], [9, 1, 1, 1]], 0.6).accuracy.tolist() == [0, 1]


def test_tied_scores_are_worth_a_half():
    assert estimate_inputs([1, 1, 1], [1, 1], 0.3).accuracy == pytest.approx([0.5] * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 0.5), r"negative_reliability must be in \[0, 1\], got -0.1"),
        ((math.nan, 0.5), r"negative_reliability must be in \[0, 1\], got nan"),
        ((0.5, 0.5, 1.1), r"positive_reliability must be in \[0, 1\], got 1.1"),
        ((0.5, [0.5, 1.5]), r"accuracy must be in \[0, 1\], got 0.5 to 1.5"),
        ((0.5, math.nan), r"accuracy must be in \[0, 1\]"),
        ((0.5, []), r"accuracy: expected a number or a non-empty vector, got shape \(0,\)"),
        ((0.5, [[0.5]]), r"accuracy: expected a number or a non-empty vector, got shape \(1, 1\)"),
    ],
)
def test_bad_inputs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Inputs(*arguments)


@pytest.mark.parametrize("numbers", [0, [3, 0.5], math.inf, math.nan])
def test_bad_numbers_are_refused(numbers):
    with pytest.raises(ValueError, match="numbers must be finite and at least 1"):
        effectiveness(numbers, Inputs(0.9, 0.9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trade_off": 0.4}, r"trade_off must be in \[0.5, 1\], got 0.4"),
        ({"trade_off": math.nan}, r"trade_off must be in \[0.5, 1\], got nan"),
        ({"harm": -1}, "harm must be at least 0 and finite, got -1"),
        ({"harm": math.inf}, "harm must be at least 0 and finite, got inf"),
    ],
)
def test_bad_weights_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        effectiveness(1, Inputs(0.9, 0.9), **options)
    with pytest.raises(ValueError, match=message):
        best_number(Inputs(0.9, 0.9), **options)


def test_a_largest_number_below_one_is_refused():
    with pytest.raises(ValueError, match="largest must be at least 1, got 0"):
        best_number(Inputs(0.9, 0.9), largest=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1], 1.0), r"prior must be in \[0, 1\), got 1.0"),
        (([1, 2], [1], math.nan), r"prior must be in \[0, 1\), got nan"),
        (([1], [1], 0.1), r"positive_scores: expected at least two in a vector, got shape \(1,\)"),
        (([[1, 2]], [1], 0.1), r"positive_scores: expected at least two in a vector, got shape \(1, 2\)"),
        (([1, 2], [[1, 2, 3]], 0.1), r"negative_scores: expected shape \[2, M\] or \[M\] with M > 0, got \(1, 3\)"),
        (([1, 2], [], 0.1), r"negative_scores: expected shape \[2, M\] or \[M\] with M > 0, got \(0,\)"),
        (([1, 2], 1.0, 0.1), r"negative_scores: expected shape \[2, M\] or \[M\] with M > 0, got \(\)"),
        (([1, math.nan], [1], 0.1), "scores must be finite"),
        (([1, 2], [math.inf], 0.1), "scores must be finite"),
        (([1, 2], [1], 0.1, 2), "positive_reliability must be"),
    ],
)
def test_bad_scores_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        estimate_inputs(*arguments)

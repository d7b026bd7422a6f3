"""How many negatives a positive should have: training effectiveness, after "Rethinking InfoNCE".

C. Wu, F. Wu, Y. Huang, "Rethinking InfoNCE: How Many Negative Samples Do You Need?" (arXiv 2105.13003; IJCAI 2022),
estimate the best number K of negatives per positive. Their abstract and introduction say: a sample is a positive with K
random negatives, a (K + 1)-way classification; a probabilistic model gives the influence of K on the informativeness of
the samples; a training effectiveness function measures their overall influence on learning from that; the K that
maximises it is the one to use. With clean labels more negatives are better; with noisy ones, such as items that were
not clicked but match the user, too many mislead. The caption of a figure of results has the optimum under λ = 0.9.

**This module rests on no more of the paper than that. The paper's formulas were not available. Those below are a
reconstruction that agrees with the statements above, not quotations.** In particular, the definitions of good, easy and
bad samples, the independence of labels, and the place of λ in v are our reading. Compare them with the paper's text
before you call a curve the paper's.

The reconstruction. A sample is a positive with its K negatives. The positive's label is reliable with probability p,
each negative's with probability q, all independently; a negative with an unreliable label is a false negative. The
model ranks a reliable positive above a reliable negative with probability a. Then a sample is

    bad     if any of its labels is unreliable: its gradient may mislead       1 − p q^K
    easy    if all are reliable and the model ranks the positive first         p q^K a^K
    good    if all are reliable and it does not: there is something to learn   p q^K (1 − a^K)

    v(K) = λ · good + (1 − λ) · easy − harm · bad

λ weighs good samples against easy ones, ``harm`` the bad ones against both (it is no name of the paper's). Every v that
is linear in the three probabilities has this form up to scale, if good and easy samples do not count below 0 nor bad
ones above. For λ in [1/2, 1] it follows that v never falls as K grows if q = 1, and otherwise that v + harm is
log-concave in K: it rises to one maximum and falls, or only falls.

The K negatives of a sample meet the same positive, so that whether it comes before one is not independent of whether it
comes before another: the probability of all is the mean of a^K over the positives, each with its own a, and not the
K-th power of the mean. For hundreds of negatives these are far apart (0.95^1000 = 5e−23, while a mean of 0.95 may be
that of one half with 1, which come before all, and one half with 0.9). The accuracy is therefore one number, which is
plain independence, or one for each of many positives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the samples' informativeness depends on, besides K.

    Args:
        negative_reliability: q in [0, 1], the probability that a sampled negative is a negative.
        accuracy: a, with what probability the model scores a reliable positive above a reliable negative, each in
            [0, 1]: one number, or [P], one of each of P positives that count alike. Becomes a float64 array [P].
        positive_reliability: p in [0, 1], the probability that a training positive is a positive.

    Raises:
        ValueError: a number is not in [0, 1], or there is no accuracy, or it has more than one dimension.
    """

    negative_reliability: float
    accuracy: ArrayLike
    positive_reliability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("negative_reliability", "positive_reliability"):
            value = getattr(self, name)
            if not 0 <= value <= 1:  # NaN is refused too
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        accuracy = np.array(self.accuracy, dtype=np.float64, ndmin=1)
        if accuracy.ndim > 1 or accuracy.size == 0:
            raise ValueError(f"accuracy: expected a number or a non-empty vector, got shape {accuracy.shape}")
        if not ((accuracy >= 0) & (accuracy <= 1)).all():
            raise ValueError(f"accuracy must be in [0, 1], got {accuracy.min()} to {accuracy.max()}")
        object.__setattr__(self, "accuracy", accuracy)


class Informativeness(NamedTuple):
    """Probabilities of the kinds of samples, float64 arrays of the shape of K; they sum to 1."""

    good: Floats
    easy: Floats
    bad: Floats


def informativeness(numbers: ArrayLike, inputs: Inputs) -> Informativeness:
    """Return how probable good, easy and bad samples are with each number of negatives.

    Exact to rounding in each of the three, however small, for K up to 1e5 and beyond.

    Args:
        numbers: K, of any shape, each at least 1; not only integers, for curves.
        inputs: label reliabilities and accuracies.

    Raises:
        ValueError: a number is below 1 or not finite.
    """
    numbers = _checked_numbers(numbers)
    log_reliable = _log(inputs.positive_reliability) + numbers * _log(inputs.negative_reliability)
    reliable = np.exp(log_reliable)
    first, not_first = _ranked_first(numbers, inputs.accuracy)
    return Informativeness(good=reliable * not_first, easy=reliable * first, bad=-np.expm1(log_reliable))


def effectiveness(numbers: ArrayLike, inputs: Inputs, *, trade_off: float = 0.9, harm: float = 1.0) -> Floats:
    """Return the training effectiveness v(K), in [−harm, trade_off], of the shape of K.

    Args:
        numbers, inputs: as for :func:`informativeness`.
        trade_off: λ in [0.5, 1], the weight of a good sample; an easy one has 1 − λ, which is not more.
        harm: the weight of a bad sample, at least 0.

    Raises:
        ValueError: as for :func:`informativeness`, or a weight is out of its range.
    """
    _check_weights(trade_off, harm)
    good, easy, bad = informativeness(numbers, inputs)
    return trade_off * good + (1 - trade_off) * easy - harm * bad


def best_number(inputs: Inputs, *, trade_off: float = 0.9, harm: float = 1.0, largest: int = 100_000) -> int:
    """Return the K from 1 to ``largest`` that maximises v(K), the smallest of equal ones.

    v's maximum does not depend on p, by which v + harm is only scaled, and it is found even where v itself is flat to
    rounding.

    Args:
        inputs, trade_off, harm: as for :func:`effectiveness`.
        largest: at least 1.

    Raises:
        ValueError: an argument is out of its range.
    """
    _check_weights(trade_off, harm)
    if largest < 1:
        raise ValueError(f"largest must be at least 1, got {largest}")
    low, high = 1, int(largest)
    # log(v + harm) is concave in K, so that the steps that do not rise are those from the maximum on.
    while low < high:
        middle = (low + high) // 2
        if _log_step(middle, inputs, trade_off, harm) > 0:
            low = middle + 1
        else:
            high = middle
    return low


def estimate_inputs(
    positive_scores: ArrayLike, negative_scores: ArrayLike, prior: float, positive_reliability: float = 1.0
) -> Inputs:
    """Estimate q and the accuracies from a trained model's scores.

    q = 1 − π. Of the sampled negatives a share π are false ones. They are taken to score as the held-out positives do
    (selected completely at random, in the terms of positive-unlabeled learning). So for a positive with score s

        P(sampled negative below s) = (1 − π) a + π P(another positive below s),

    solved for a. Ties count half. The held-out positives are taken to be reliable, whatever the training ones are.

    a^K of a positive needs many more than K scores of negatives: from M of them a probability above 1 − 1/M looks
    like 1. The scores of all items the user has not taken serve for uniform sampling.

    Args:
        positive_scores: [P] scores of held-out positives, at least two, on one scale for all users, as cosines are.
        negative_scores: [P, M] scores of negatives sampled for each of them, or [M], the same for all.
        prior: π in [0, 1), the probability that a sampled negative is a false one.
        positive_reliability: p, passed on.

    Returns:
        Inputs with an accuracy for each positive, clipped to [0, 1].

    Raises:
        ValueError: a shape is another, a score is not finite, or a probability is out of its range.
    """
    if not 0 <= prior < 1:
        raise ValueError(f"prior must be in [0, 1), got {prior}")
    positives = np.asarray(positive_scores, dtype=np.float64)
    negatives = np.asarray(negative_scores, dtype=np.float64)
    if positives.ndim != 1 or len(positives) < 2:
        raise ValueError(f"positive_scores: expected at least two in a vector, got shape {positives.shape}")
    if negatives.ndim not in (1, 2) or negatives.size == 0 or negatives.shape[:-1] not in ((), positives.shape):
        raise ValueError(
            f"negative_scores: expected shape [{len(positives)}, M] or [M] with M > 0, got {negatives.shape}"
        )
    if not (np.isfinite(positives).all() and np.isfinite(negatives).all()):
        raise ValueError("scores must be finite")

    if negatives.ndim == 1:
        below = _count_below(positives, negatives) / negatives.size
    else:
        pairs = zip(positives, negatives, strict=True)  # row by row: a copy of all could be large
        below = np.array([(np.sum(row < score) + np.sum(row == score) / 2) / row.size for score, row in pairs])
    # Without itself, which counts as a tie.
    positives_below = (_count_below(positives, positives) - 0.5) / (len(positives) - 1)
    accuracy = np.clip((below - prior * positives_below) / (1 - prior), 0, 1)
    return Inputs(1 - prior, accuracy, positive_reliability)


def _ranked_first(numbers: Floats, accuracy: Floats) -> tuple[Floats, Floats]:
    """Return the means over the positives of a^K and of 1 − a^K, of the shape of K."""
    log_accuracy = _log(accuracy)
    means = np.empty((2, numbers.size))
    for column, number in enumerate(numbers.flat):  # not [K, P] at once, which could be large
        exponents = number * log_accuracy
        means[:, column] = np.exp(exponents).mean(), -np.expm1(exponents).mean()
    first, not_first = means.reshape(2, *numbers.shape)
    return first, not_first


def _log_step(number: int, inputs: Inputs, trade_off: float, harm: float) -> float:
    """Return log((v(K + 1) + harm) / (v(K) + harm)), without the difference of nearly equal numbers."""
    # v + harm = p q^K (1 − λ + harm + (2λ − 1) mean(1 − a^K)), of which p cancels.
    slope = 2 * trade_off - 1
    _, not_first = _ranked_first(np.array([number], dtype=np.float64), inputs.accuracy)
    value = 1 - trade_off + harm + slope * not_first.item()
    gain = slope * float(np.mean(inputs.accuracy**number * (1 - inputs.accuracy)))
    # If the value is 0 (all of it λ = 1, harm = 0, a = 1), so is the gain.
    return float(_log(inputs.negative_reliability)) + (float(np.log1p(gain / value)) if gain > 0 else 0.0)


def _count_below(scores: Floats, others: Floats) -> Floats:
    """Return how many of the others are below each score, equal ones counted half."""
    others = np.sort(others)
    return (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / 2


def _log(probability: float | Floats) -> Floats:
    with np.errstate(divide="ignore"):  # −inf is right: K ≥ 1 times it, exponentiated, is 0
        return np.log(np.asarray(probability, dtype=np.float64))


def _checked_numbers(numbers: ArrayLike) -> Floats:
    numbers = np.asarray(numbers, dtype=np.float64)
    bad = numbers[~(np.isfinite(numbers) & (numbers >= 1))]
    if bad.size:
        raise ValueError(f"numbers must be finite and at least 1, got {bad.flat[0]}")
    return numbers


def _check_weights(trade_off: float, harm: float) -> None:
    if not 0.5 <= trade_off <= 1:
        raise ValueError(f"trade_off must be in [0.5, 1], got {trade_off}")
    if not 0 <= harm < float("inf"):
        raise ValueError(f"harm must be at least 0 and finite, got {harm}")

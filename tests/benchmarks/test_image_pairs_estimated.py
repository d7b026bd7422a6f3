"""Methods of the image pairs whose weights are estimated as training goes: CVIR, (TED)ⁿ, 1 − p_FN and FNE's weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("sklearn", reason="the images come with scikit-learn")

from benchmarks.image_pairs import fne, pairs  # noqa: E402
from benchmarks.image_pairs.__main__ import make_data, train_with  # noqa: E402
from benchmarks.image_pairs.cvir import CVIR, HIGHEST_PRIOR, TEDn  # noqa: E402
from benchmarks.image_pairs.fne import FNE, Moments  # noqa: E402
from benchmarks.image_pairs.methods import WARM_UP, InBatch, Setting  # noqa: E402
from benchmarks.image_pairs.pairs import BATCH, DIM, PER_DIGIT, SIDE  # noqa: E402
from benchmarks.image_pairs.posterior import Posterior  # noqa: E402
from cw_ext import FalseNegatives, presets  # noqa: E402

TEMPERATURE = 0.1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of_digits(own: float) -> Tensor:
    """One batch of pairs [1, 2·BATCH, 8, 8], both views alike. As embeddings (an encoder that flattens), images of
    different digits are nearly orthogonal, two of one digit have a cosine of about 1/(1 + own²)."""
    digits = torch.eye(SIDE * SIDE)[torch.arange(BATCH) // PER_DIGIT]
    images = digits + own * F.normalize(torch.randn(BATCH, SIDE * SIDE, generator=generator(3)), dim=1)
    return torch.cat([images, images]).view(1, 2 * BATCH, SIDE, SIDE)


def setting(share: float, own: float = 0.0) -> Setting:
    return Setting(TEMPERATURE, share, pairs.plant_negatives(share, generator()), images_of_digits(own))


def embeddings(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Of the two views of a batch, pairs alike enough that some find each other."""
    first = torch.randn(BATCH, DIM, generator=generator(seed), dtype=torch.float64)
    return first, first + torch.randn(BATCH, DIM, generator=generator(seed + 1), dtype=torch.float64)


def half_cosines(queries: Tensor, items: Tensor) -> np.ndarray:
    return (F.normalize(queries, dim=1) @ F.normalize(items, dim=1).T / 2).numpy()


def weighted_infonce(scores: np.ndarray, negatives: Tensor, weights: np.ndarray) -> float:
    """Mean of log(1 + N·Σ q exp((s − s⁺)/τ)/Σ q), with N the number of negatives of weights q > 0."""
    rows = []
    for row, chosen in enumerate(negatives.tolist()):
        q = weights[row]
        terms = q * np.exp((scores[row, chosen] - scores[row, row]) / TEMPERATURE)
        rows.append(math.log1p((q > 0).sum() * terms.sum() / q.sum()))
    return float(np.mean(rows))


def infonce(of: Setting, queries: Tensor, items: Tensor) -> Tensor:
    return InBatch(of, presets.infonce(TEMPERATURE)).loss(queries, items)


# --- CVIR and (TED)ⁿ ---


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_cvir_is_infonce_on_the_lowest_negatives_of_each_row(share):
    of = setting(share)
    queries, items = embeddings()
    scores = half_cosines(queries, items)
    kept = 20 - round(20 * share)
    rows = []
    for row, chosen in enumerate(of.negatives.tolist()):
        lowest = np.sort(scores[row, chosen])[:kept]
        rows.append(np.log(np.exp((lowest - scores[row, row]) / TEMPERATURE).sum() + 1))
    assert CVIR(of).loss(queries, items).item() == pytest.approx(np.mean(rows), rel=1e-9)


def test_tedn_trains_on_all_negatives_until_its_first_estimate():
    of = setting(0.5)
    queries, items = embeddings()
    method = TEDn(of, same_digit=True)
    for epoch in range(WARM_UP):
        method.start_epoch(epoch, nn.Flatten())
        assert method.estimated_prior is None
        torch.testing.assert_close(method.loss(queries, items), infonce(of, queries, items))
    method.start_epoch(WARM_UP, nn.Flatten())
    torch.testing.assert_close(method.loss(queries, items), CVIR(of).loss(queries, items))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("same_digit", [False, True])
def test_tedn_finds_the_share_where_false_negatives_score_as_the_positives_do(share, same_digit):
    method = TEDn(setting(share, own=0.0), same_digit)
    method.start_epoch(WARM_UP, nn.Flatten())
    assert method.estimated_prior == pytest.approx(share, abs=1e-9)


def test_tedn_finds_the_share_only_by_positives_that_are_no_more_alike_than_the_false_negatives():
    found = {}
    for same_digit in (False, True):
        method = TEDn(setting(0.5, own=0.7), same_digit)
        method.start_epoch(WARM_UP, nn.Flatten())
        found[same_digit] = method.estimated_prior
    assert found[False] == 0  # no false negative scores as the two views of an image do
    assert found[True] == pytest.approx(0.5, abs=0.02)


def test_a_row_keeps_a_negative_whatever_is_estimated():
    of = setting(0.5)
    method = TEDn(of._replace(held_out=torch.ones_like(of.held_out)), same_digit=True)
    method.start_epoch(WARM_UP, nn.Flatten())
    assert (method.estimated_prior, method.prior) == (1.0, HIGHEST_PRIOR)
    queries, items = embeddings()
    lowest = np.take_along_axis(half_cosines(queries, items), of.negatives.numpy(), 1).min(1)
    margins = lowest - half_cosines(queries, items).diagonal()
    expected = np.log1p(np.exp(margins / TEMPERATURE)).mean()
    assert method.loss(queries, items).item() == pytest.approx(expected, rel=1e-9)


def test_in_training_pairs_of_a_digit_give_the_share_and_views_of_an_image_less():
    data = make_data(0, 100)
    found = {name: train_with(name, 0.025, 0.5, data, 0)[1].estimated_prior for name in ("tedn", "tedn-same-digit")}
    assert 0.45 < found["tedn-same-digit"] < 0.65
    assert found["tedn"] < 0.3


def test_what_cvir_leaves_out_in_training_is_mostly_false():
    data = make_data(0, 100)
    encoder, method = train_with("cvir", 0.025, 0.5, data, 0)
    negatives = method.setting.negatives
    false = pairs.same_digit().gather(1, negatives)
    highest = method.setting.held_out_scores(encoder).negatives.topk(10, 1).indices
    found = false.repeat(len(data.held_out), 1).gather(1, highest).float().mean().item()
    assert found > 0.65  # by chance one half


# --- 1 − p_FN ---


@pytest.mark.parametrize("strength", [1.0, 6.0])
def test_posterior_weighs_by_the_estimate_from_held_out_pairs_of_a_digit(strength):
    of = setting(0.3, own=0.7)
    queries, items = embeddings()
    method = Posterior(of, strength)
    method.start_epoch(WARM_UP - 1, nn.Flatten())
    torch.testing.assert_close(method.loss(queries, items), infonce(of, queries, items))
    method.start_epoch(WARM_UP, nn.Flatten())

    held_out = of.held_out.flatten(2)[0, :BATCH]
    held_out_scores = half_cosines(held_out, held_out)
    of_a_digit = held_out_scores[pairs.same_digit().numpy()]
    unlabeled = np.take_along_axis(held_out_scores, of.negatives.numpy(), 1)
    scores = half_cosines(queries, items)
    probability = FalseNegatives.fit(of_a_digit, unlabeled, 0.3).probability(torch.from_numpy(scores)).numpy()
    weights = np.take_along_axis((1 - probability) ** strength, of.negatives.numpy(), 1)
    expected = weighted_infonce(scores, of.negatives, weights)
    assert method.loss(queries, items).item() == pytest.approx(expected, rel=1e-3)  # a curve is not exact
    assert abs(expected - infonce(of, queries, items).item()) > 1e-2


# --- FNE's weights ---


def normal_density(x: np.ndarray, sample: np.ndarray) -> np.ndarray:
    deviation = sample.std(ddof=1)
    return np.exp(-(((x - sample.mean()) / deviation) ** 2) / 2) / (deviation * math.sqrt(2 * math.pi))


def published_weights(cosines: np.ndarray, positives: np.ndarray, matches: np.ndarray, hardest: np.ndarray):
    """The authors' formula, m = 10,000, written out."""
    if len(matches) > 200:
        match, other = normal_density(cosines, matches), normal_density(cosines, hardest)
        p = match / (match + 9_999 * other)
    else:
        p = np.zeros_like(cosines)
    weights = np.where(p > 0.001, np.exp(-p / 2), np.exp(-((cosines - positives[:, None]) ** 2) / 2))
    weights[cosines <= matches.mean() - 0.2] = 0
    for row in np.flatnonzero(weights.sum(1) == 0):
        weights[row, cosines[row].argmax()] = 1
    return weights


def moments(matches: Tensor, hardest: Tensor) -> Moments:
    made = Moments()
    made.matches, made.hardest = matches, hardest
    return made


@pytest.mark.parametrize("number", [200, 201])
def test_fnes_weights_are_the_published_ones(number):
    draw = generator(5)
    cosines = torch.rand(400, 12, generator=draw, dtype=torch.float64) * 1.2 - 0.2
    positives = torch.rand(400, generator=draw, dtype=torch.float64)
    cosines[0] = torch.linspace(-1, 0, 12)  # nothing is left but the hardest
    matches = 0.8 + 0.05 * torch.randn(number, generator=draw, dtype=torch.float64)
    hardest = 0.5 + 0.05 * torch.randn(2 * number, generator=draw, dtype=torch.float64)
    expected = published_weights(*(x.numpy() for x in (cosines, positives, matches, hardest)))
    found = moments(matches, hardest).log_weights(cosines, positives).exp()
    row = expected / expected.max(1, keepdims=True)  # constants of a row cancel in the loss
    torch.testing.assert_close(found / found.amax(1, keepdim=True), torch.from_numpy(row), rtol=1e-9, atol=1e-12)
    assert (found[0] > 0).tolist() == [False] * 11 + [True]
    sure = torch.from_numpy(expected)[cosines > 0.85]  # e^−½ where the densities count, whatever the positive
    assert bool((sure < 0.61).all()) == (number > 200)


def test_moments_are_of_pairs_that_find_each_other():
    cosines = torch.randn(40, 40, generator=generator(6), dtype=torch.float64) + 2.5 * torch.eye(40)
    left_out = torch.rand(40, 40, generator=generator(7)) < 0.3
    cosines.masked_fill_(left_out & ~torch.eye(40, dtype=torch.bool), -math.inf)
    made = Moments()
    for batch in (cosines[:25, :25], cosines[25:, 25:]):
        made.add(batch)
    matches, hardest = [], []
    for batch in (cosines[:25, :25].numpy(), cosines[25:, 25:].numpy()):
        for b in range(len(batch)):
            row, column = np.delete(batch[b], b), np.delete(batch[:, b], b)
            if batch[b, b] > max(row.max(), column.max()):
                matches.append(batch[b, b])
                hardest += [row.max(), column.max()]
    assert 0 < len(matches) < 40
    assert sorted(made.matches.tolist()) == pytest.approx(sorted(matches))
    assert sorted(made.hardest.tolist()) == pytest.approx(sorted(hardest))


def test_fne_weighs_from_the_second_epoch_on_with_moments_of_that_epoch_alone():
    of = setting(0.2)
    method = FNE(of)
    method.start_epoch(0, nn.Flatten())
    queries, items = embeddings()
    torch.testing.assert_close(method.loss(queries, items), infonce(of, queries, items))

    for epoch in (1, 2):
        method.start_epoch(epoch, nn.Flatten())
        seen = Moments()
        for seed in range(10, 15):  # enough matches only at the end
            queries, items = embeddings(seed + 10 * epoch)
            scores = half_cosines(queries, items)
            whole = torch.full((BATCH, BATCH), -math.inf, dtype=torch.float64)
            cosines = np.take_along_axis(2 * scores, of.negatives.numpy(), 1)
            whole.scatter_(1, of.negatives, torch.from_numpy(cosines))
            positives = 2 * scores.diagonal()
            seen.add(whole.diagonal_scatter(torch.tensor(positives)))
            weights = published_weights(cosines, positives, seen.matches.numpy(), seen.hardest.numpy())
            expected = weighted_infonce(scores, of.negatives, weights)
            assert method.loss(queries, items).item() == pytest.approx(expected, rel=1e-6)
        assert len(seen.matches) > fne.ENOUGH


def test_fne_keeps_all_negatives_while_no_pair_is_sure():
    of = setting(0.2)
    method = FNE(of)
    method.start_epoch(1, nn.Flatten())
    queries, items = embeddings()
    shifted = items.roll(1, 0)  # no image finds its own
    torch.testing.assert_close(method.loss(queries, shifted), infonce(of, queries, shifted))

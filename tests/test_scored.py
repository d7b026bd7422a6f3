"""`Scored` against the distributions that it promises, computed in numpy, and against the losses it should equal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from drawing import assert_distributed
from sampler_cases import Tables, counts_of, make_tables, softmax_over, successive
from torch import Tensor

from cw_ext import Interactions, cw_loss_from_embeddings, cw_loss_full, draw_negatives
from cw_ext.samplers import Scored, Uniform, fne, softmax


def _all_drawn(tables: Tables, query: int, rows: int, n: int, **arguments: Any) -> Tensor:
    sampler = Scored(tables.interactions, n, num_candidates=None, **arguments)
    return sampler.draw(*tables.repeated(query, rows), seed=7).ids


@pytest.mark.parametrize(("similarity", "temperature"), [("half_cosine", 0.25), ("cosine", 0.4), ("dot", 3.0)])
def test_of_the_catalogue_it_draws_the_softmax(similarity: str, temperature: float, device: torch.device) -> None:
    tables = make_tables(device=device)
    for query in (0, 3):
        ids = _all_drawn(tables, query, 1500, 20, log_weight=softmax(temperature), similarity=similarity)
        expected = softmax_over(tables.scores(similarity)[query], tables.unknown(query), temperature)
        assert_distributed(counts_of(ids, 50), ids.numel() * expected)


def test_drawn_twice_in_one_row_as_often_as_with_replacement(device: torch.device) -> None:
    """The draws of a row are independent: pairs of its first two are distributed as the product."""
    tables = make_tables(num_items=8, device=device)
    ids = _all_drawn(tables, 2, 40_000, 2, log_weight=softmax(0.5)).cpu()
    p = softmax_over(tables.scores()[2], tables.unknown(2), 0.5)
    assert_distributed(counts_of(ids[:, 0] * 8 + ids[:, 1], 64), 40_000 * torch.outer(p, p).flatten())


def test_without_replacement_it_draws_one_by_one(device: torch.device) -> None:
    tables = make_tables(num_items=7, device=device)
    ids = _all_drawn(tables, 2, 60_000, 2, log_weight=softmax(0.3), replacement=False).cpu()
    weights = softmax_over(tables.scores()[2], tables.unknown(2), 0.3).numpy()
    assert_distributed(counts_of(ids[:, 0] * 7 + ids[:, 1], 49), 60_000 * successive(weights).flatten())


def test_without_replacement_a_row_ends_where_nothing_is_left() -> None:
    tables = make_tables(num_items=9)  # query 1 knows 0, 1 and 7
    ids = _all_drawn(tables, 1, 50, 8, log_weight=softmax(0.1), replacement=False)
    assert (ids[:, 6:] == -1).all()
    assert ids[:, :6].sort(1).values.tolist() == [[2, 3, 4, 5, 6, 8]] * 50


@pytest.mark.parametrize("k", [3, 30])
def test_among_candidates_it_draws_by_their_weights(k: int, device: torch.device) -> None:
    """Given the candidates, which are those of draw_negatives; an item that is two of them counts twice."""
    tables = make_tables(num_items=20, device=device)
    query_ids = torch.tensor([4, 1, 4, 0])
    n, scores = 20_000, tables.scores()
    sampler = Scored(tables.interactions, n, num_candidates=k, log_weight=softmax(0.2))
    ids = sampler.draw(*tables.batch(query_ids), seed=11).ids
    candidates = draw_negatives(query_ids.to(device), tables.interactions, k, seed=11).cpu()
    for row, query in enumerate(query_ids):
        weights = np.exp(scores[query][candidates[row].numpy()] / 0.2)
        expected = np.zeros(20)
        np.add.at(expected, candidates[row].numpy(), weights / weights.sum())
        assert_distributed(counts_of(ids[row], 20), n * torch.from_numpy(expected))


def test_the_choice_does_not_depend_on_the_candidates_noise() -> None:
    """Over many rows the place that is drawn is uniform where all weights are equal, whatever stands there."""
    tables = make_tables(num_items=2000)
    rows, k = 30_000, 8
    sampler = Scored(tables.interactions, 1, num_candidates=k, log_weight=lambda s, _: torch.zeros_like(s))
    batch = tables.repeated(1, rows)
    ids = sampler.draw(*batch, seed=5).ids
    candidates = draw_negatives(batch[2], tables.interactions, k, seed=5)
    once = (candidates == ids).sum(1) == 1
    places = (candidates == ids)[once].int().argmax(1)
    assert_distributed(counts_of(places, k), torch.full((k,), int(once.sum()) / k))
    low = ids < 1000
    unknown = torch.tensor(tables.unknown(1))
    expected = torch.stack([(unknown < 1000).sum(), (unknown >= 1000).sum()]) / len(unknown)
    assert_distributed(torch.stack([low.sum(), (~low).sum()]), rows * expected)


def test_a_high_temperature_is_uniform(device: torch.device) -> None:
    tables = make_tables(device=device)
    ids = _all_drawn(tables, 3, 1000, 20, log_weight=softmax(1e6))
    unknown = tables.unknown(3)
    expected = torch.zeros(50, dtype=torch.float64)
    expected[unknown] = 20_000 / len(unknown)
    assert_distributed(counts_of(ids, 50), expected)


def test_a_low_temperature_draws_the_hardest() -> None:
    """Dynamic negative sampling."""
    tables = make_tables()
    query_ids = torch.arange(5).repeat(40)
    sampler = Scored(tables.interactions, 3, num_candidates=12, log_weight=softmax(1e-9))
    ids = sampler.draw(*tables.batch(query_ids), seed=3).ids
    candidates = draw_negatives(query_ids, tables.interactions, 12, seed=3).numpy()
    scores = np.take_along_axis(tables.scores()[query_ids.numpy()], candidates, 1)
    hardest = np.take_along_axis(candidates, scores.argmax(1)[:, None], 1)
    assert np.array_equal(ids.numpy(), hardest.repeat(3, 1))


def test_the_models_own_draws_have_the_gradient_of_the_full_softmax() -> None:
    """The mean gradient of (s_j − s⁺)/τ over draws at τ_s = τ is that of the loss over all items (system 7)."""
    tables = make_tables(dtype=torch.float64)
    tau, n = 0.7, 40_000
    query_ids, pos_ids = torch.arange(5), torch.tensor([0, 7, 14, 21, 28])
    queries, items, *ids = tables.batch(query_ids, pos_ids)
    queries.requires_grad_()
    settings: dict[str, Any] = {"temperature": tau, "weighting": "none", "similarity": "dot", "reduction": "sum"}
    cw_loss_full(queries, items, pos_ids, query_ids=query_ids, interactions=tables.interactions, **settings).backward()

    sampler = Scored(tables.interactions, n, num_candidates=None, log_weight=softmax(tau), similarity="dot")
    drawn = sampler.draw(queries, items, *ids, seed=2).ids
    of_items = (items.unsqueeze(0) - items[pos_ids].unsqueeze(1)) / tau  # [B, I, D], the gradient for each item
    for row in range(5):
        samples = of_items[row][drawn[row]]
        error = samples.std(0) / math.sqrt(n)
        assert ((samples.mean(0) - queries.grad[row]).abs() < 4 * error).all()


@pytest.mark.parametrize("tau_s", [0.1, 0.3])
def test_its_mean_is_that_of_exponential_weights(tau_s: float) -> None:
    """And corrected, that of uniform candidates."""
    tables = make_tables(dtype=torch.float64)
    tau, n, k = 0.2, 100_000, 40
    batch = tables.batch(torch.arange(4), torch.tensor([0, 7, 14, 21]))
    queries, items, query_ids, pos_ids = batch
    candidates = draw_negatives(query_ids, tables.interactions, k, seed=9)
    scores = torch.from_numpy(tables.scores())
    f = ((scores[:4].gather(1, candidates) - scores[:4].gather(1, pos_ids[:, None])) / tau).exp()  # [B, K]
    w = (scores[:4].gather(1, candidates) / tau_s).exp()

    def mean(ids: Tensor, **loss: Any) -> Tensor:
        settings = {"temperature": tau, "reduction": "none", "weighting": "none"} | loss
        return cw_loss_from_embeddings(queries, items, pos_ids, ids, **settings).exp() / ids.shape[1]

    sampler = Scored(tables.interactions, n, num_candidates=k, log_weight=softmax(tau_s), log_q_correction=True)
    ids, log_weights = sampler.draw(*batch, seed=9)
    hcl = mean(candidates, weighting="exponential", weight_temperature=-tau_s, normalize_weights=True)
    share = w / w.sum(1, keepdim=True)
    error = ((share * f**2).sum(1) - (share * f).sum(1) ** 2).sqrt() / math.sqrt(n)
    assert ((mean(ids) - hcl).abs() < 4 * error).all()
    assert ((hcl - mean(candidates)).abs() > 20 * error).all(), "the two targets are the same here"

    uniform = mean(candidates)
    q = 1 / w
    error = (share * (q * (f - uniform[:, None])) ** 2).sum(1).sqrt() / (share * q).sum(1) / math.sqrt(n)
    assert ((mean(ids, neg_log_weights=log_weights) - uniform).abs() < 3 * error).all()


def test_weights_of_the_correction_are_one_over_the_weight() -> None:
    tables = make_tables()
    batch = tables.batch(torch.arange(5))
    arguments: dict[str, Any] = {"num_candidates": 30, "log_weight": softmax(0.3)}
    ids, log_weights = Scored(tables.interactions, 9, log_q_correction=True, **arguments).draw(*batch, seed=1)
    expected = -np.take_along_axis(tables.scores(), ids.numpy(), 1) / 0.3
    np.testing.assert_allclose(log_weights, expected, atol=1e-5)
    plain = Scored(tables.interactions, 9, **arguments).draw(*batch, seed=1)
    assert plain.log_weights is None and torch.equal(plain.ids, ids)


def test_log_weights_see_scores_and_positives() -> None:
    tables = make_tables()
    pos_ids = torch.tensor([5, 6, 9, 2, 3])
    seen: list[Tensor] = []

    def log_weight(scores: Tensor, pos_scores: Tensor) -> Tensor:
        seen.extend((scores, pos_scores))
        return scores

    batch = tables.batch(torch.arange(5), pos_ids)
    Scored(tables.interactions, 4, num_candidates=11, log_weight=log_weight, similarity="cosine").draw(*batch, seed=6)
    candidates = draw_negatives(batch[2], tables.interactions, 11, seed=6).numpy()
    scores = tables.scores("cosine")
    np.testing.assert_allclose(seen[0], np.take_along_axis(scores, candidates, 1), atol=1e-6)
    np.testing.assert_allclose(seen[1], scores[np.arange(5), pos_ids], atol=1e-6)


@pytest.mark.parametrize("settings", [{"replacement": False}, {}, {"log_q_correction": True}])
@pytest.mark.parametrize("num_candidates", [40, None])
def test_where_no_score_is_a_number_all_unknown_items_are_alike(
    settings: dict[str, Any], num_candidates: int | None
) -> None:
    tables = make_tables()
    queries, items, query_ids, pos_ids = tables.repeated(3, 3000)
    arguments: dict[str, Any] = {"num_candidates": num_candidates, "log_weight": softmax(0.1), **settings}
    ids, log_weights = Scored(tables.interactions, 10, **arguments).draw(
        queries * torch.nan, items, query_ids, pos_ids, seed=3
    )
    counts = counts_of(ids[:, 0], 50)  # as without replacement the rest of a row depends on its first
    expected = torch.zeros(50)
    expected[tables.unknown(3)] = 3000 / len(tables.unknown(3))
    assert_distributed(counts, expected)
    assert log_weights is None or (log_weights == 0).all()


@pytest.mark.parametrize("replacement", [True, False])
def test_weights_that_are_no_numbers(replacement: bool) -> None:
    """NaN and −inf are never drawn, and +inf is drawn before all others."""
    tables = make_tables(num_items=12)
    table = torch.tensor([0, 0, math.nan, -math.inf, 0, 0, 0, 0, math.inf, 0, 0, math.inf])

    def log_weight(scores: Tensor, pos_scores: Tensor) -> Tensor:
        return table.expand(len(scores), 12)

    ids = _all_drawn(tables, 1, 3000, 2, log_weight=log_weight, replacement=replacement)
    assert set(ids.flatten().tolist()) == {8, 11}
    table[8] = table[11] = -math.inf
    ids = _all_drawn(tables, 1, 3000, 2, log_weight=log_weight, replacement=replacement)
    assert set(ids.flatten().tolist()) == {4, 5, 6, 9, 10}
    table[:] = math.nan
    assert (_all_drawn(tables, 1, 20, 2, log_weight=log_weight, replacement=replacement) == -1).all()


def test_items_whose_scores_are_nan_are_not_drawn() -> None:
    tables = make_tables(num_items=12)
    tables.items[5] = math.nan
    ids = _all_drawn(tables, 1, 3000, 2, log_weight=softmax(0.1))
    assert set(ids.flatten().tolist()) == set(tables.unknown(1)) - {5}


def test_weights_of_any_size() -> None:
    """Only differences count: in fp32 exp of these would be 0 or infinite."""
    tables = make_tables(num_items=12)
    offsets = torch.linspace(-1e4, 1e4, 40).unsqueeze(1)
    sampler = Scored(tables.interactions, 500, num_candidates=None, log_weight=lambda s, _: (s * 0).round() + offsets)
    ids = sampler.draw(*tables.repeated(1, 40), seed=4).ids
    expected = torch.zeros(12, dtype=torch.float64)
    expected[tables.unknown(1)] = ids.numel() / len(tables.unknown(1))
    assert_distributed(counts_of(ids, 12), expected)


def _fne_by_numpy(s: np.ndarray, pos: float, moments: tuple[float, ...], margin: float) -> np.ndarray:
    """LuminosityX/FNE, over the scores of a row."""

    def density(mean: float, deviation: float) -> np.ndarray:
        return np.exp(-(((s - mean) / deviation) ** 2) / 2) / (math.sqrt(2 * math.pi) * deviation)

    f_pos, f_neg = density(*moments[:2]), density(*moments[2:])
    p = f_pos / (f_pos + (10_000 - 1) * f_neg)
    weights = np.where(p > 0.001, np.exp(-p / 2), np.exp(-((s - pos) ** 2) / 2))
    weights[s <= moments[0] - margin] = 0
    return weights if weights.any() else (s == s.max()).astype(float)


def test_fne_has_the_published_weights() -> None:
    s = np.linspace(-0.4, 0.99, 400)
    moments, margin = (0.6, 0.15, 0.25, 0.1), 0.5
    weights = fne(moments, margin)(torch.from_numpy(s)[None], torch.tensor([0.8], dtype=torch.float64))[0].exp()
    np.testing.assert_allclose(weights, _fne_by_numpy(s, 0.8, moments, margin), rtol=1e-12)
    assert 0.6 < weights.max() and weights[-1] < 0.61, "a sure false negative keeps exp(−1/2)"
    low = np.array([[-0.3, 0.05, -0.9, 0.04], [0.3, 0.2, 0.7, -0.5]])
    weights = fne(moments, margin)(torch.from_numpy(low), torch.tensor([0.8, 0.1])).exp()
    expected = [_fne_by_numpy(row, pos, moments, margin) for row, pos in zip(low, (0.8, 0.1))]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert weights[0].tolist() == [0, 1, 0, 0], "nothing is left but the hardest"


def test_fne_draws_by_these_weights() -> None:
    tables = make_tables()
    moments = (0.5, 0.2, 0.1, 0.15)
    ids = _all_drawn(tables, 2, 1500, 20, log_weight=fne(moments, 0.6), similarity="cosine")
    scores = tables.scores("cosine")[2]
    unknown = tables.unknown(2)
    expected = np.zeros(50)
    expected[unknown] = _fne_by_numpy(scores[unknown], scores[0], moments, 0.6)
    assert_distributed(counts_of(ids, 50), ids.numel() * torch.from_numpy(expected / expected.sum()))


def test_fne_where_nothing_is_left_draws_the_hardest_unknown_item() -> None:
    tables = make_tables()
    low = tables._replace(items=tables.items / 1e3)  # all below μ⁺ − margin
    low.items[14] = tables.queries[2] / 100  # which is known
    ids = _all_drawn(low, 2, 100, 3, log_weight=fne((0.5, 0.2, 0.1, 0.15), 0.1), similarity="dot")
    scores = low.scores("dot")[2]
    assert scores.argmax() == 14 and scores.max() < 0.4
    assert set(ids.flatten().tolist()) == {max(low.unknown(2), key=lambda item: scores[item])}


def test_fne_where_nothing_is_left_ignores_scores_that_are_nan() -> None:
    low = torch.tensor([[0.1, math.nan, 0.3, 0.2], [math.nan, math.nan, -0.9, -math.inf]])
    weights = fne((0.5, 0.2, 0.1, 0.15), 0.1)(low, torch.tensor([0.8, 0.8]))
    assert weights.exp().nan_to_num(9).tolist() == [[0, 9, 1, 0], [9, 9, 1, 0]]
    assert fne((0.5, 0.2, 0.1, 0.15), 0.1)(low[:, 1:2], torch.tensor([0.8, 0.8])).isnan().all()


def test_a_catalogue_in_parts_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = make_tables()
    batch = tables.batch(torch.arange(5).repeat(3))
    for settings in ({}, {"replacement": False}, {"log_q_correction": True}):
        sampler = Scored(tables.interactions, 6, num_candidates=None, log_weight=softmax(0.1), **settings)
        whole = sampler.draw(*batch, seed=8)
        with monkeypatch.context() as patch:
            patch.setattr("cw_ext.samplers.scored.BLOCK", 2 * 50)
            parts = sampler.draw(*batch, seed=8)
        assert torch.equal(whole.ids, parts.ids)
        if whole.log_weights is not None:
            assert torch.equal(whole.log_weights, parts.log_weights)


def test_only_the_history_of_the_query_is_left_out() -> None:
    """One query without a history, and one that knows all items but one."""
    known = Interactions([1] * 9, list(range(9)), num_queries=2, num_items=10)
    g = torch.Generator().manual_seed(0)
    queries, items = torch.randn(2, 4, generator=g), torch.randn(10, 4, generator=g)
    sampler = Scored(known, 400, num_candidates=None, log_weight=softmax(10.0))
    ids = sampler.draw(queries, items, torch.tensor([0, 1]), torch.tensor([0, 0]), seed=0).ids
    assert set(ids[0].tolist()) == set(range(10)) and set(ids[1].tolist()) == {9}
    nobody = Interactions([], [], num_queries=2, num_items=10)
    ids = Scored(nobody, 400, num_candidates=None, log_weight=softmax(10.0)).draw(
        queries, items, torch.tensor([0, 1]), torch.tensor([0, 0]), seed=0
    )[0]
    assert all(set(row.tolist()) == set(range(10)) for row in ids)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"log_weight": 0.1}, TypeError, "log_weight must be a function of scores and pos_scores, got float"),
        ({"num_candidates": 0}, ValueError, r"num_candidates must be an integer in \[1, 4294967296\], got 0"),
        ({"replacement": 1}, TypeError, "replacement must be True or False, got 1"),
        ({"replacement": False}, ValueError, "num_negatives must be at most the number of candidates, 3, .* got 4"),
        (
            {"replacement": False, "num_candidates": 9, "log_q_correction": True},
            ValueError,
            "log_q_correction must be False without replacement, got True",
        ),
        ({"similarity": "l2"}, ValueError, "similarity must be one of"),
        (
            {"log_weight": lambda s, _: s[:, 0]},
            ValueError,
            r"log_weight\(scores, pos_scores\) must have shape \(5, 3\)",
        ),
        ({"log_weight": lambda s, _: s.long()}, TypeError, r"log_weight\(scores, pos_scores\) must have dtype"),
        ({"log_weight": lambda s, _: 0.0}, TypeError, r"log_weight\(scores, pos_scores\) must be a torch.Tensor"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    tables = make_tables()
    settings = {"log_weight": softmax(0.1), "num_candidates": 3} | arguments
    with pytest.raises(error, match=message):
        Scored(tables.interactions, 4, **settings).draw(*tables.batch(torch.arange(5)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: softmax(0.0), ValueError, "temperature must be > 0, got 0.0"),
        (lambda: fne((0.5, 0.1, 0.2), 0.1), ValueError, "moments must be four numbers"),
        (lambda: fne((0.5, 0.1, 0.2, 0.0), 0.1), ValueError, "moments' deviations must be > 0, got 0.0"),
        (lambda: fne((0.5, 0.1, math.nan, 0.1), 0.1), ValueError, "moments must be four numbers, got nan"),
        (lambda: fne((0.5, 0.1, 0.2, 0.1), -1.0), ValueError, "margin must be > 0, got -1.0"),
    ],
)
def test_wrong_log_weights(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_uniform_is_draw_negatives() -> None:
    tables = make_tables()
    query_ids = torch.tensor([0, 3, -1, 2, 2])
    pos_ids = torch.tensor([7, 7, 7, -1, 14])
    batch = tables.batch(query_ids, pos_ids)
    drawn = Uniform(tables.interactions, 30).draw(*batch, seed=12)
    expected = draw_negatives(torch.tensor([0, 3, -1, -1, 2]), tables.interactions, 30, seed=12)
    assert drawn.log_weights is None and torch.equal(drawn.ids, expected)


def test_popular_ones_come_with_their_log_weights() -> None:
    """As sampled_cw_loss has them: over the draws the mean of exp(log weight) is 1 for each item that occurs."""
    g = torch.Generator().manual_seed(1)
    known = Interactions(
        torch.randint(50, (400,), generator=g),
        (20 * torch.rand(400, generator=g) ** 2).long(),
        num_queries=51,
        num_items=20,
    )
    queries, items = torch.randn(40, 3, generator=g), torch.randn(20, 3, generator=g)
    query_ids = torch.full((40,), 50)  # who knows nothing
    ids, log_weights = Uniform(known, 2000, distribution="popularity").draw(
        queries, items, query_ids, torch.zeros(40, dtype=torch.int64), seed=3
    )
    occurring = int((known.item_counts > 0).sum())
    assert log_weights is not None
    weighted = torch.zeros(20).index_add_(0, ids.flatten(), log_weights.exp().flatten()) / ids.numel()
    torch.testing.assert_close(weighted, (known.item_counts > 0) / occurring, rtol=0.1, atol=0)

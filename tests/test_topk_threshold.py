"""Thresholds learned from counts, against the K-th best of all scores; and each rule of the update by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import generator, saved_and_loaded
from torch import Tensor, nn

from cw_ext.topk_threshold import TopKThreshold

QUERIES, ITEMS = 60, 1000


def _scores(g: torch.Generator) -> Tensor:
    """[QUERIES, ITEMS], each query's with a mean and a spread of its own, in the range of ½·cosine."""
    spread = 0.05 + 0.1 * torch.rand(QUERIES, 1, generator=g)
    mean = 0.2 * torch.rand(QUERIES, 1, generator=g) - 0.1
    return (mean + spread * torch.randn(QUERIES, ITEMS, generator=g)).clamp(-0.5, 0.5)


def _train(beta: TopKThreshold, scores: Tensor, batches: int, n: int, g: torch.Generator) -> None:
    for _ in range(batches):
        ids = torch.randint(QUERIES, (QUERIES // 2,), generator=g)
        negatives = scores[ids].gather(1, torch.randint(ITEMS, (len(ids), n), generator=g))
        beta.update(ids, (negatives > beta.threshold(ids).unsqueeze(1)).sum(1), n)


def _ranks(beta: TopKThreshold, scores: Tensor) -> Tensor:
    """How many of all items score above each threshold."""
    return (scores > beta.thresholds.unsqueeze(1)).sum(1).double()


@pytest.mark.parametrize(("k", "n"), [(20, 100), (20, 1000), (5, 100), (300, 100)])
def test_it_finds_the_kth_best_score(k: int, n: int) -> None:
    """Also where the negatives hold less than one of the K on average, and at a start far off."""
    g = generator(0)
    scores = _scores(g)
    beta = TopKThreshold(QUERIES, k, ITEMS)
    _train(beta, scores, 400, n, g)
    truth = scores.topk(k, 1).values[:, -1]
    assert ((beta.thresholds - truth).abs() < 0.5 * scores.std(1)).all()
    assert (beta.thresholds - truth).abs().mean() < 0.1 * scores.std(1).mean()
    assert abs(_ranks(beta, scores).mean() / k - 1) < 0.15


def test_it_follows_scores_that_move() -> None:
    g = generator(1)
    scores = _scores(g)
    beta = TopKThreshold(QUERIES, 20, ITEMS)
    _train(beta, scores, 200, 500, g)
    first = beta.thresholds.clone()
    for _ in range(100):
        scores = scores + 0.003
        _train(beta, scores, 4, 500, g)
    truth = scores.topk(20, 1).values[:, -1]
    assert (truth - first).mean() > 0.25, "they moved"
    assert (beta.thresholds - truth).abs().mean() < 0.2 * scores.std(1).mean()


def test_one_update_by_hand() -> None:
    """β + η/√(1 + updates)·(found − expected)/max(expected, 1), at most 4 of η."""
    beta = TopKThreshold(4, 10, 100, step=0.5)
    beta.thresholds.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    beta.updates.copy_(torch.tensor([0, 3, 10**6, 8]))
    beta.update(torch.tensor([2, 0, 1, 3]), torch.tensor([0, 3, 40, 0]), torch.tensor([20, 20, 40, 5]))
    expected = [0.1 + 0.5 * (3 - 2) / 2, 0.2 + 0.5 / 2 * 4, 0.3 - 0.5 / 10, 0.4 - 0.5 / 3 * 0.5]
    torch.testing.assert_close(beta.thresholds, torch.tensor(expected))
    assert beta.updates.tolist() == [1, 4, 10**6 + 1, 9]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_of_one_query_are_one_update_with_their_sums(dtype: torch.dtype) -> None:
    ids = torch.tensor([3, 1, 3, -1, 3, 0, -1, 1], dtype=dtype)
    above, number = torch.tensor([2, 0, 5, 9, 1, 0, 3, 5]), torch.tensor([10, 20, 30, 9, 7, 0, 3, 20])
    beta, once = TopKThreshold(5, 10, 100), TopKThreshold(5, 10, 100)
    beta.update(ids, above.to(dtype), number.to(dtype))
    once.update(torch.tensor([1, 3]), torch.tensor([5, 8]), torch.tensor([40, 47]))
    assert torch.equal(beta.thresholds, once.thresholds) and once.thresholds[[1, 3]].all()
    assert beta.updates.tolist() == once.updates.tolist() == [0, 1, 0, 1, 0], "padding and rows without negatives"
    beta.update(ids[:0], above[:0].to(dtype), 7)
    assert torch.equal(beta.thresholds, once.thresholds)


def test_what_was_handed_out_stays_as_it_was() -> None:
    beta = TopKThreshold(3, 2, 10)
    ids = torch.tensor([2, -1, 2])
    first = beta.threshold(ids)
    assert not first.requires_grad and first.tolist() == [0, 0, 0]
    beta.update(ids, torch.tensor([5, 0, 5]), 5)
    assert first.tolist() == [0, 0, 0]
    again = beta.threshold(ids)
    assert again[0] == again[2] == beta.thresholds[2] != 0 and again[1] == 0


def test_saved_and_loaded_it_goes_on_the_same() -> None:
    g = generator(2)
    scores = _scores(g)
    beta, other = TopKThreshold(QUERIES, 20, ITEMS), TopKThreshold(QUERIES, 20, ITEMS)
    _train(beta, scores, 20, 100, g)
    other.load_state_dict(saved_and_loaded(beta.state_dict()))
    assert not list(beta.parameters())
    for one in (beta, other):
        _train(one, scores, 5, 100, generator(3))
    assert torch.equal(beta.thresholds, other.thresholds) and torch.equal(beta.updates, other.updates)


def test_compiled(kernels: None) -> None:
    g = generator(4)
    scores = _scores(g)
    beta, compiled = TopKThreshold(QUERIES, 20, ITEMS), TopKThreshold(QUERIES, 20, ITEMS)
    update = torch.compile(compiled.update, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        ids = torch.randint(-1, QUERIES, (40,), generator=g)
        above = (scores[ids.clamp(min=0), :100] > beta.threshold(ids).unsqueeze(1)).sum(1)
        beta.update(ids, above, 100)
        update(ids, above, 100)
    torch.testing.assert_close(compiled.thresholds, beta.thresholds)


IDS, ABOVE = torch.tensor([0, 2]), torch.tensor([1, 0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_queries": 0}, ValueError, r"num_queries must be an integer ≥ 1, got 0"),
        ({"k": 0}, ValueError, r"k must be an integer in \[1, 9\], got 0"),
        ({"k": 10}, ValueError, r"k must be an integer in \[1, 9\], got 10"),
        ({"k": 2.0}, TypeError, r"k must be an integer in \[1, 9\], got float"),
        ({"num_items": 1}, ValueError, r"num_items must be an integer ≥ 2, got 1"),
        ({"step": 0}, ValueError, r"step must be > 0, got 0"),
        ({"step": "1"}, TypeError, r"step must be a number > 0, got str"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        TopKThreshold(**{"num_queries": 3, "k": 2, "num_items": 10} | arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"query_ids": [0, 1]}, TypeError, "query_ids must be a torch.Tensor, got list"),
        ({"query_ids": ABOVE.float()}, TypeError, "query_ids must have dtype int32, int64, got float32"),
        ({"query_ids": IDS.unsqueeze(1)}, ValueError, r"query_ids must have shape \[B\], got \(2, 1\)"),
        ({"query_ids": torch.tensor([0, 3])}, IndexError, r"query_ids must be in \[0, 3\), or −1 .*, got 3"),
        ({"query_ids": IDS.to("meta")}, ValueError, "query_ids must be on the device of the thresholds, cpu, got meta"),
        ({"above": None}, TypeError, "above must be a torch.Tensor, got NoneType"),
        ({"above": ABOVE.float()}, TypeError, "above must have dtype int32, int64, got float32"),
        ({"above": ABOVE[:1]}, ValueError, r"above must have shape \(2,\), one count per row, got \(1,\)"),
        ({"above": -ABOVE}, ValueError, r"above must be in \[0, num_negatives\], got -1 with num_negatives = 5"),
        ({"above": 9 * ABOVE}, ValueError, r"above must be in \[0, num_negatives\], got 9 with num_negatives = 5"),
        ({"num_negatives": 0}, ValueError, "num_negatives must be an integer ≥ 1, got 0"),
        ({"num_negatives": 5.0}, TypeError, "num_negatives must be an integer ≥ 1, got float"),
        ({"num_negatives": ABOVE.float()}, TypeError, "num_negatives must have dtype int32, int64, got float32"),
        ({"num_negatives": IDS[:1]}, ValueError, r"num_negatives must have shape \(2,\), one count .*, got \(1,\)"),
    ],
)
def test_bad_updates_change_nothing(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    beta = TopKThreshold(3, 2, 10)
    with pytest.raises(error, match=f"^{message}$"):
        beta.update(**{"query_ids": IDS, "above": ABOVE, "num_negatives": 5} | arguments)
    assert not beta.thresholds.any() and not beta.updates.any()


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_a_cast_model_keeps_its_thresholds_in_fp32(cast: str) -> None:
    beta = TopKThreshold(5, 3, 50)
    model = getattr(nn.Sequential(beta), cast)()
    beta.update(torch.tensor([1]), torch.tensor([1]), 9)
    assert model[0] is beta and beta.thresholds.dtype == torch.float32 and beta.thresholds[1] != 0

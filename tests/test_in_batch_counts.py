"""In-batch negatives of a log that repeats pairs: what the log-Q correction must know, and the full softmax."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import assert_near, generator
from drawing import make_interactions
from torch import Tensor

from cw_ext import CWInBatchLoss, Interactions, cw_loss_full, cw_loss_in_batch

TAU = 0.5
SOFTMAX = {"temperature": TAU, "weighting": "none", "include_positive": True, "similarity": "dot"}


def _tables(rows: int, items: int, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    queries = torch.randn(rows, dim, generator=g, dtype=torch.float64) / dim**0.5
    table = torch.randn(items, dim, generator=g, dtype=torch.float64)
    return queries.requires_grad_(), table.requires_grad_()


def _gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves, retain_graph=True))


def test_a_log_that_repeats_its_pairs(backend: str) -> None:
    """One item replayed 99 times: with the counts of events the mean over the batch is that over the other items."""
    positives = torch.tensor([0] + [1] * 99 + [2])
    table = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-0.5, 0.2]], dtype=torch.float64)
    queries = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(101, -1)
    settings = {"similarity": "dot", "temperature": TAU, "weighting": "none", "reduction": "none", "backend": backend}
    scores = table @ queries[0]
    expected = ((scores[1:] - scores[0]) / TAU).exp().mean()

    known = Interactions(positives, positives, num_queries=3, num_items=3, keep_counts=True)
    by_events = cw_loss_in_batch(queries, table, positives, item_counts=known.item_counts, **settings)
    assert_near(by_events[0].exp() / 100, expected, torch.float64, "counts of events")
    with pytest.warns(UserWarning, match="without query_ids"):
        assert torch.equal(cw_loss_in_batch(queries, table, positives, interactions=known, **settings), by_events)

    pairs = Interactions(positives, positives, num_queries=3, num_items=3)
    with pytest.raises(ValueError, match="101 pairs of which 3 are distinct.*keep_counts=True"):
        cw_loss_in_batch(queries, table, positives, query_ids=positives, interactions=pairs, **settings)
    by_pairs = cw_loss_in_batch(queries, table, positives, item_counts=pairs.item_counts, **settings)
    assert (by_pairs[0].exp() / 100 - expected).abs() > 0.3, "that the wrong counts are seen"


def test_with_query_ids_nothing_is_said() -> None:
    known = make_interactions()
    queries, table = _tables(3, 50)
    ids = torch.tensor([2, 3, 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cw_loss_in_batch(queries, table, ids, query_ids=ids, interactions=known)
        CWInBatchLoss()(queries, table, ids, item_counts=known.item_counts)


@pytest.mark.parametrize("with_history", [False, True], ids=["", "history"])
@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
def test_the_whole_log_as_a_batch_is_the_full_softmax(backend: str, with_history: bool, sparse_grad: bool) -> None:
    """Each item as often as its count: then the estimate is exact, values and gradients."""
    num_items = 50
    counts = torch.randint(1, 6, (num_items,), generator=generator(3))
    pos_ids = torch.arange(num_items).repeat_interleave(counts)
    rows = len(pos_ids)
    queries, table = _tables(rows, num_items)
    weights = torch.rand(rows, generator=generator(4), dtype=torch.float64)
    known = {"query_ids": torch.arange(rows) % 20, "interactions": make_interactions()} if with_history else {}
    settings = SOFTMAX | known | {"row_weights": weights, "backend": backend}
    expected = cw_loss_full(queries, table, pos_ids, **settings)
    found = cw_loss_in_batch(
        queries, table, pos_ids, item_counts=counts, estimate_full=True, sparse_grad=sparse_grad, **settings
    )
    assert_near(found, expected, torch.float64, "loss")
    for name, ours, truth in zip(
        ("queries", "items"), _gradients(found, queries, table), _gradients(expected, queries, table), strict=True
    ):
        assert_near(ours.to_dense(), truth, torch.float64, name)
    sampled = cw_loss_in_batch(queries, table, pos_ids, item_counts=counts, **settings)
    assert (sampled - expected).abs() > 0.1, "that it is not the loss without estimate_full"


def test_the_gradient_is_that_of_the_paper(backend: str) -> None:
    """−sg(1 − P)·(f_p − log Σ_j e^{f_j}/Q′_j), Q′_j = Q_j/(1 − Q_p), P = e^{f_p}/(e^{f_p} + mean_j e^{f_j}/Q′_j).

    The paper's estimate of the sum over the catalogue is not normalised by its weights. Both are the same where the
    weights of a row sum to the number of other items, as in a batch with each item as often as its count.
    """
    num_items = 30
    counts = torch.randint(1, 5, (num_items,), generator=generator(5))
    pos_ids = torch.arange(num_items).repeat_interleave(counts)
    queries, table = _tables(len(pos_ids), num_items, seed=1)
    found = cw_loss_in_batch(
        queries, table, pos_ids, item_counts=counts, estimate_full=True, backend=backend, **SOFTMAX
    )

    share = counts.double()[pos_ids] / counts.sum()
    proposal = share / (1 - share.unsqueeze(1))  # [row, column]
    logits = queries @ table[pos_ids].T / TAU
    positive = logits.diagonal()
    absent = pos_ids.unsqueeze(0) == pos_ids.unsqueeze(1)
    corrected = (logits - proposal.log()).masked_fill(absent, -math.inf)
    log_sum = torch.logsumexp(corrected, 1)
    others = (~absent).sum(1).double()
    probability = torch.softmax(torch.stack([positive, log_sum - others.log()], 1), 1)[:, 0]
    paper = ((1 - probability).detach() * (log_sum - positive)).mean()
    for ours, theirs in zip(_gradients(found, queries, table), _gradients(paper, queries, table), strict=True):
        assert_near(ours, theirs, torch.float64, "gradient")


def test_small_batches_estimate_it_better_than_the_sampled_softmax(kernels: None) -> None:
    """A catalogue where the truth is known: the mean gradient over many batches, for a positive that is found."""
    num_items, rows, batches = 300, 64, 300
    g = generator(11)
    popularity = torch.arange(10, num_items + 10).double()
    query = torch.eye(6, dtype=torch.float64)[:1].requires_grad_()
    positive = torch.tensor([150])
    table = 0.3 * torch.randn(num_items, 6, generator=g, dtype=torch.float64)
    table[positive] = 2.5 * query.detach()
    truth = _gradients(cw_loss_full(query, table, positive, **SOFTMAX), query)[0]
    means = []
    for estimate_full in (True, False):
        total = torch.zeros_like(truth)
        for _ in range(batches):
            others = torch.multinomial(popularity, rows - 1, replacement=True, generator=g)
            loss = cw_loss_in_batch(
                query.expand(rows, -1),
                table,
                torch.cat([positive, others]),
                item_counts=popularity,
                estimate_full=estimate_full,
                reduction="none",
                **SOFTMAX,
            )
            total += _gradients(loss[0], query)[0]
        means.append((total / batches - truth).norm() / truth.norm())
    assert 5 * means[0] < means[1]


def test_rows_without_negatives_and_padding(backend: str) -> None:
    queries, table = _tables(4, 50)
    settings = SOFTMAX | {"estimate_full": True, "backend": backend, "item_counts": torch.ones(50)}
    # Query 1 knows all items but 48 and 49, so it has no negative in this batch; row 2 is padding.
    ids = {"query_ids": torch.tensor([1, 0, 0, 1]), "interactions": make_interactions()}
    pos_ids = torch.tensor([3, 4, -1, 5])
    rows = cw_loss_in_batch(queries, table, pos_ids, **ids, reduction="none", **settings)
    assert rows[[0, 2, 3]].tolist() == [0, 0, 0] and rows[1] > 0
    mean = cw_loss_in_batch(queries, table, pos_ids, **ids, **settings)
    assert_near(mean, rows[1], torch.float64, "mean over live rows")
    assert not any(g[[0, 2, 3]].any() for g in _gradients(mean, queries))


def test_uniform_negatives_mixed_in(backend: str) -> None:
    """Many of them estimate the full softmax as well."""
    queries, table = _tables(5, 60, seed=3)
    pos_ids = torch.tensor([0, 7, 7, 20, 59])
    counts = torch.ones(60)
    full = cw_loss_full(queries, table, pos_ids, backend=backend, **SOFTMAX)
    mixed = {"item_counts": counts, "num_negatives": 20_000, "seed": 1, "estimate_full": True, "backend": backend}
    loss = cw_loss_in_batch(queries, table, pos_ids, **mixed, **SOFTMAX)
    assert (loss - full).abs() < 0.05
    for ours, truth in zip(_gradients(loss, queries, table), _gradients(full, queries, table), strict=True):
        assert F.cosine_similarity(ours.flatten(), truth.flatten(), dim=0) > 0.999


@pytest.mark.thorough
def test_compiles(kernels: None) -> None:
    queries, table = _tables(6, 50)
    ids = torch.tensor([2, 3, 4, 5, 6, 7])
    criterion = CWInBatchLoss(make_interactions(), estimate_full=True, **SOFTMAX)
    expected = criterion(queries, table, ids, query_ids=ids)
    found = torch.compile(criterion, fullgraph=True)(queries, table, ids, query_ids=ids)
    assert_near(found, expected, torch.float64, "loss")


def test_rows_of_padding_are_no_draws(backend: str) -> None:
    """With uniform negatives mixed in, the batch counts for as many as it has positives."""
    queries, table = _tables(16, 30)
    pos_ids = torch.randint(30, (16,), generator=generator(6))
    counts = torch.randint(1, 50, (30,), generator=generator(7))
    settings = {"item_counts": counts, "num_negatives": 7, "seed": 3, "backend": backend}
    expected = cw_loss_in_batch(queries[:8], table, pos_ids[:8], **settings)
    padded = torch.where(torch.arange(16) < 8, pos_ids, -1)
    found = cw_loss_in_batch(queries, table, padded, **settings)
    assert_near(found, expected, torch.float64, "loss")
    for ours, truth in zip(_gradients(found, queries, table), _gradients(expected, queries, table), strict=True):
        assert_near(ours, truth, torch.float64, "gradient")


def test_counts_may_be_shares(backend: str) -> None:
    queries, table = _tables(16, 30)
    pos_ids = torch.randint(30, (16,), generator=generator(6))
    counts = torch.randint(1, 50, (30,), generator=generator(7)).double()
    losses = [
        cw_loss_in_batch(queries, table, pos_ids, item_counts=counts * scale, num_negatives=7, seed=3, backend=backend)
        for scale in (1.0, 1e-6)
    ]
    assert_near(losses[1], losses[0], torch.float64, "loss")

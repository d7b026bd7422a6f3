"""How many negatives score above the row's threshold: against a count in a loop, for scores, embeddings and sampled."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPE_IDS, DTYPES, exact, generator, make_embeddings, make_scores
from drawing import histories, make_drawn, make_interactions
from levels import oracle_inputs
from torch import Tensor

from cw_ext import draw_negatives, sampled_cw_loss
from cw_ext.score_curve import ScoreCurve
from cw_ext.topk_threshold import TopKThreshold

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)


def _counted(scores: Tensor, threshold: Tensor, masked: Tensor | None = None) -> list[int]:
    """Rows of scores, one by one."""
    out = torch.zeros(scores.shape, dtype=torch.bool) if masked is None else masked.expand(scores.shape)
    return [
        sum(s > t and not m for s, m in zip(row, absent))
        for row, t, absent in zip(scores.double().tolist(), threshold.double().tolist(), out.tolist())
    ]


def _half_cosines(queries: Tensor, items: Tensor) -> Tensor:
    return 0.5 * F.cosine_similarity(queries.unsqueeze(1), items, dim=-1)


@each_dtype
@pytest.mark.parametrize("n", [1, 7, 16, 33, 1000])
def test_of_scores(backend: str, device: torch.device, dtype: torch.dtype, n: int) -> None:
    """A score that equals the threshold is not above it. The loss is the one without counts."""
    case = make_scores((6,), n, seed=n, log_q=True).to(dtype, device)
    case.neg[0] = (8 * case.neg[0]).round() / 8
    threshold = exact([0.125, -0.2, 0.0, 0.3, -1.0, 1.0]).to(dtype).to(device)
    case = replace(case, threshold=threshold)
    masked = case.log_q == -math.inf
    for reduction in ("none", "mean", "sum"):
        arguments = {"reduction": reduction, "prior": 0.1, "backend": backend}
        loss, above = case.loss(return_above=True, **arguments)
        assert torch.equal(loss, case.loss(**arguments))
        assert above.dtype == torch.int64 and above.shape == (6,) and above.device.type == device.type
        assert above.tolist() == _counted(case.neg.cpu(), threshold.cpu(), masked.cpu())
        assert not above.requires_grad


def test_leading_shapes_and_a_number_for_all(backend: str) -> None:
    for shape in ((), (1,), (3, 4), (0, 2)):
        case = make_scores(shape, 21, 2, seed=1)
        loss, above = case.loss(confidence_threshold=0.1, return_above=True, reduction="none", backend=backend)
        assert loss.shape == above.shape == shape
        assert torch.equal(above, (case.neg > 0.1).sum(-1))


def test_of_the_oracle(backend: str) -> None:
    """With a curve, whose −inf masks a negative out of the count."""
    case = replace(make_scores((5,), 30, seed=2, log_q=True), threshold=exact([-0.1, 0.0, 0.1, 0.2, -0.4]))
    knots = exact([0.0, 1.0, 0.5, -math.inf, -1.0])
    for on in ("score", "margin"):
        curve = ScoreCurve(-0.5, 0.5, knots, on)  # type: ignore[arg-type]
        _, above = case.loss(score_curve=curve, return_above=True, backend=backend)
        places = oracle.Curve(-0.5, 0.5, on)
        rows = [row._replace(knots=knots.tolist()) for row in oracle_inputs(case)]
        assert above.tolist() == [oracle.above(row, places) for row in rows]
        assert above.tolist() != [oracle.above(row) for row in rows], "the curve masks some"


def test_scores_that_are_not_finite(backend: str) -> None:
    """NaN is above nothing; +inf is above; a row without negatives counts none."""
    case = make_scores((4,), 5, seed=3)
    case = replace(
        case, neg=exact([[math.nan, 1, 1, -1, 1], [math.inf, 1, -1, -1, -1], [-math.inf, 1, 1, 1, 1], [1] * 5])
    )
    log_q = torch.zeros(4, 5, dtype=torch.float64)
    log_q[3] = -math.inf
    _, above = replace(case, log_q=log_q).loss(return_above=True, backend=backend)
    assert above.tolist() == [3, 2, 4, 0]


@each_dtype
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_of_embeddings(backend: str, device: torch.device, dtype: torch.dtype, shared: bool) -> None:
    """Padding counts for nothing. In less than fp64 a score within its roundings of β may be on either side."""
    case = make_embeddings(6, 40, 8, 11, 2, seed=4, padding=True, log_q=True, shared=shared).to(dtype)
    case = replace(case, threshold=exact([0.1, -0.2, 0.0, 0.3, -0.1, 0.2]).to(dtype))
    ids = case.neg_ids.expand(6, -1)
    scores = _half_cosines(case.queries.double(), case.items.double()[ids.clamp(min=0)])
    masked = (ids < 0) | (case.log_q == -math.inf) | (case.pos_ids < 0).unsqueeze(1)
    there = case.to(device=device)
    loss, above = there.loss(return_above=True, backend=backend)
    assert torch.equal(loss, there.loss(backend=backend))
    near = 0.0 if dtype == torch.float64 else 1e-5
    fewest = _counted(scores, case.threshold + near, masked)
    most = _counted(scores, case.threshold - near, masked)
    assert all(a <= b <= c for a, b, c in zip(fewest, above.tolist(), most)) and above[-1] == 0
    assert dtype != torch.float64 or above.tolist() == fewest


@pytest.mark.parametrize("settings", [{}, {"recompute": True}, {"shared": True}, {"distribution": "popularity"}])
def test_of_drawn_negatives(backend: str, device: torch.device, settings: dict[str, Any]) -> None:
    case = make_drawn("sampled", 6, seed=5, num_negatives=40, **settings)
    case = replace(case, settings=case.settings | {"seed": 5}, threshold=exact([0.1, -0.2, 0.0, 0.3, -0.1, 0.2]))
    shared = settings.get("shared", False)
    draws = {"seed": 5} | {k: v for k, v in settings.items() if k == "distribution"}
    ids = draw_negatives(None if shared else case.query_ids, case.interactions, 40, **draws).expand(6, -1)
    masked = torch.zeros(6, 40, dtype=torch.bool)
    if shared:
        known = [histories(case.interactions)[q] | {p} for q, p in zip(case.query_ids.tolist(), case.pos_ids.tolist())]
        masked = torch.tensor([[i in out for i in row] for row, out in zip(ids.tolist(), known)])
    scores = _half_cosines(case.queries, case.items[ids])
    there = case.to(device=device)
    loss, above = there.loss(return_above=True, backend=backend)
    assert torch.equal(loss, there.loss(backend=backend))
    assert above.tolist() == _counted(scores, case.threshold, masked)


def test_gradients_are_those_without_counts(backend: str) -> None:
    for case in (make_scores((5,), 9, 2, seed=6), make_embeddings(5, 9, m=2, seed=6)):
        plain, counting = case.leaves(), case.leaves()
        plain.loss(prior=0.1, backend=backend).backward()
        counting.loss(prior=0.1, return_above=True, backend=backend)[0].backward()
        for name, gradient in counting.gradients().items():
            assert torch.equal(gradient, plain.gradients()[name]), name


def test_compiled(kernels: None, backend: str) -> None:
    case = make_scores((5,), 40, seed=7).to(torch.float32)

    def function(threshold: Tensor) -> tuple[Tensor, Tensor]:
        return case.loss(confidence_threshold=threshold, return_above=True, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for value in (0.0, 0.3):
        threshold = torch.full((5,), value)
        assert torch.equal(compiled(threshold)[1], (case.neg > value).sum(-1))


def test_thresholds_learned_from_counts_are_the_first_k(backend: str) -> None:
    """Of fixed tables, over the items that a query does not know."""
    g = generator(8)
    interactions = make_interactions(20, 200, 300)
    queries, items = torch.randn(20, 8, generator=g), torch.randn(200, 8, generator=g)
    beta = TopKThreshold(20, 20, 200)
    query_ids = torch.arange(2, 20).repeat(2)  # but those without history, and with almost all of it
    pos_ids = torch.zeros_like(query_ids)
    for step in range(150):
        _, above = sampled_cw_loss(
            queries[query_ids],
            items,
            query_ids,
            pos_ids,
            interactions,
            50,
            seed=step,
            confidence_threshold=beta.threshold(query_ids),
            return_above=True,
            backend=backend,
        )
        beta.update(query_ids, above, 50)
    scores = 0.5 * F.normalize(queries) @ F.normalize(items).T
    for query in range(2, 20):
        unknown = [i for i in range(200) if i not in histories(interactions)[query]]
        share = (scores[query, unknown] > beta.thresholds[query]).double().mean().item()
        assert abs(share - 0.1) < 0.05


@pytest.mark.parametrize("value", [None, 1, "yes", torch.tensor(True)])
def test_bad_flags(backend: str, value: Any) -> None:
    for case in (make_scores(), make_embeddings()):
        with pytest.raises(TypeError, match="^return_above must be True or False, got"):
            case.loss(return_above=value, backend=backend)

"""What it costs to choose negatives by their scores.

Two comparisons: computing the scores against the forward pass of cw_loss_from_embeddings on the same ids, and a step
with negatives drawn by score against a step with as many negatives as there are candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import command, reporting
from benchmarks.step_ratios.inputs import Sizes, Step, forward_and_backward, make_generator, make_ids, make_tables
from benchmarks.step_ratios.ratios import clock, compare
from cw_ext import Interactions, candidate_scores, cw_loss_from_embeddings, draw_negatives
from cw_ext.samplers import Scored, softmax

# The demo's, about; Amazon-Health's; Gowalla's.
ITEMS = (1_200, 8_360, 40_988)
# Of the candidates of a step, how many are drawn by score.
DRAWN_SHARE = 10
# Known positives of a query, which the candidates leave out.
KNOWN = 40
TEMPERATURE = 0.1
SEED = 0


def measure(sizes: Sizes, catalogues: tuple[int, ...], rounds: int, now: Callable[[], float]) -> dict[str, Any]:
    """Make both comparisons for each size of the catalogue.

    Returns:
        A JSON-ready dict: the sizes, and for each of the ``"catalogues"`` its ``"items"``; under ``"scores"`` the
        scores against each forward pass from embeddings, and under ``"drawn by score"`` the step against each step
        from embeddings, as :func:`.ratios.compare` returns them.
    """

    def beside(steps: tuple[Step, dict[str, Step]]) -> dict[str, Any]:
        own, others = steps
        return {name: compare(clock(own, now), clock(step, now), rounds) for name, step in others.items()}

    found = []
    for items in command.progress(catalogues, unit="catalogue"):
        scores, steps = beside(score_steps(sizes, items)), beside(training_steps(sizes, items))
        found.append({"items": items, "scores": scores, "drawn by score": steps})
    return {
        "batch_size": sizes.batch_size,
        "dim": sizes.dim,
        "candidates": {"scores": sizes.many_negatives, "drawn by score": sizes.few_negatives},
        "catalogues": found,
    }


def score_steps(sizes: Sizes, items: int) -> tuple[Step, dict[str, Step]]:
    """Return candidate_scores, and by name the forward passes from embeddings with the same ids."""
    generator = make_generator()
    tables = make_tables(sizes, items, generator)
    pos_ids, ids = make_ids(sizes, sizes.many_negatives, items, generator)
    loss: Callable[[], Tensor] = partial(cw_loss_from_embeddings, *tables, pos_ids, ids, backend="fused")
    others = {"forward, with gradients": loss, "forward, without": torch.no_grad()(loss)}
    return partial(candidate_scores, *tables, ids, backend="fused"), others


def training_steps(sizes: Sizes, items: int) -> tuple[Step, dict[str, Step]]:
    """Return a step with a tenth of the candidates, drawn by score, and by name steps with as many negatives as there
    are candidates: ids that are there, and ids that are drawn in the step."""
    generator, rows = make_generator(), sizes.batch_size
    queries, table = make_tables(sizes, items, generator)
    known = torch.randint(items, (rows, KNOWN), generator=generator)
    query_ids, pos_ids = torch.arange(rows), known[:, 0].contiguous()
    history = Interactions(query_ids.repeat_interleave(KNOWN), known.flatten(), num_queries=rows, num_items=items)
    candidates = sizes.few_negatives
    sampler = Scored(
        history, max(1, candidates // DRAWN_SHARE), num_candidates=candidates, log_weight=softmax(TEMPERATURE)
    )

    def by_score() -> Tensor:
        drawn = sampler.draw(queries, table, query_ids, pos_ids, seed=SEED)
        return cw_loss_from_embeddings(queries, table, pos_ids, drawn.ids, neg_log_weights=drawn.log_weights)

    def uniform() -> Tensor:
        drawn = draw_negatives(query_ids, history, candidates, seed=SEED)
        return cw_loss_from_embeddings(queries, table, pos_ids, drawn)

    given = partial(cw_loss_from_embeddings, queries, table, pos_ids, draw_negatives(query_ids, history, candidates))
    own, *others = (forward_and_backward(loss, (queries, table)) for loss in (by_score, given, uniform))
    return own, dict(zip(("step, ids given", "step, ids drawn"), others, strict=True))


def describe(results: dict[str, Any]) -> str:
    """Return the results as a table: a row per catalogue and what something is compared with."""
    rows = []
    for what, candidates in results["candidates"].items():
        for catalogue in results["catalogues"]:
            for name, found in catalogue[what].items():
                milliseconds = [f"{1e3 * seconds:.2f}" for seconds in found["seconds"]]
                ratio = "{median:.2f} ({q25:.2f}-{q75:.2f})".format(**found["ratio"])
                rows.append([f"{what}, K={candidates} I={catalogue['items']}", name, *milliseconds, ratio])
    title = f"B={results['batch_size']} D={results['dim']}"
    return reporting.format_table([title, "beside", "ms", "that, ms", "ratio (quartiles)"], rows)

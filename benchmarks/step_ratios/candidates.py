"""What scores of given items cost: candidate_scores beside level 2's forward pass of the same ids."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common import reporting
from benchmarks.step_ratios.inputs import Sizes, Step, make_generator, make_ids, make_tables
from benchmarks.step_ratios.ratios import clock, compare
from cw_ext import candidate_scores, cw_loss_from_embeddings

# Of MovieLens-like catalogues, of Amazon-Health, and of Gowalla.
ITEMS = (1_200, 8_360, 40_988)


def measure(sizes: Sizes, catalogues: tuple[int, ...], rounds: int, now: Callable[[], float]) -> dict[str, Any]:
    """Compare candidate_scores with level 2's forward pass, with gradients and without.

    Returns:
        A JSON-ready dict: the sizes, and for each of the ``"catalogues"`` its ``"items"`` and, by what the scores are
        ``"beside"``, what :func:`.ratios.compare` returns for scores/forward.
    """
    found = []
    for items in tqdm(catalogues, unit="catalogue"):
        scores, others = make_steps(sizes, items)
        beside = {name: compare(clock(scores, now), clock(step, now), rounds) for name, step in others.items()}
        found.append({"items": items, "beside": beside})
    return {"batch_size": sizes.batch_size, "dim": sizes.dim, "candidates": sizes.many_negatives, "catalogues": found}


def make_steps(sizes: Sizes, items: int) -> tuple[Step, dict[str, Step]]:
    """Return candidate_scores, and by name what it is compared with."""
    generator = make_generator()
    tables = make_tables(sizes, items, generator)
    pos_ids, ids = make_ids(sizes, sizes.many_negatives, items, generator)
    loss: Callable[[], Tensor] = partial(cw_loss_from_embeddings, *tables, pos_ids, ids, backend="fused")
    others = {"forward, with gradients": loss, "forward, without": torch.no_grad()(loss)}
    return partial(candidate_scores, *tables, ids, backend="fused"), others


def describe(results: dict[str, Any]) -> str:
    """Return the results as a table: a row per catalogue and what it is compared with."""
    rows = []
    for catalogue in results["catalogues"]:
        for name, found in catalogue["beside"].items():
            milliseconds = [f"{1e3 * seconds:.2f}" for seconds in found["seconds"]]
            ratio = "{median:.2f} ({q25:.2f}-{q75:.2f})".format(**found["ratio"])
            rows.append([f"I={catalogue['items']}", name, *milliseconds, ratio])
    title = f"B={results['batch_size']} K={results['candidates']} D={results['dim']}"
    return reporting.format_table([title, "beside", "scores, ms", "that, ms", "scores/that (quartiles)"], rows)

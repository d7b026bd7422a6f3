"""A small fp64 batch of each level of the loss, for tests of what holds at all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cases import Case, make_embeddings, make_scores
from drawing import Drawn, make_drawn

ROWS = 6


def _scores(seed: int) -> Case:
    return make_scores((ROWS,), 19, 3, seed=seed, log_q=True, row_weights=True)


def _embeddings(seed: int, shared: bool = False) -> Case:
    sizes = (ROWS, 21, 8, 11, 3)
    return make_embeddings(*sizes, seed=seed, padding=True, log_q=True, row_weights=True, shared=shared)


def _drawn(kind: str, seed: int, **settings: Any) -> Drawn:
    case = make_drawn(kind, ROWS, m=3, seed=seed, padding=True, row_weights=True, **settings)
    return replace(case, settings=case.settings | ({} if kind == "full" else {"seed": 5}))


LEVELS: dict[str, Callable[[int], Any]] = {
    "scores": _scores,
    "embeddings": _embeddings,
    "shared": lambda seed: _embeddings(seed, shared=True),
    "sampled": lambda seed: _drawn("sampled", seed, num_negatives=19),
    "recomputed": lambda seed: _drawn("sampled", seed, num_negatives=19, recompute=True),
    "sampled-shared": lambda seed: _drawn("sampled", seed, num_negatives=19, shared=True),
    "in-batch": lambda seed: _drawn("in_batch", seed, num_negatives=8),
    "full": lambda seed: _drawn("full", seed),
}


def make_level(name: str, seed: int = 1) -> Any:
    """A batch of six rows, with extra positives, padding where there are ids, and row weights."""
    return LEVELS[name](seed)


each_level = pytest.mark.parametrize("level", LEVELS)

"""A small fp64 batch of each level of the loss, for tests of what holds at all of them; scores against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import oracle
import pytest
import torch
from cases import Case, Scores, assert_near, evaluate, exact, make_embeddings, make_scores
from drawing import Drawn, make_drawn
from torch import Tensor

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


# ---- scores against the oracle -------------------------------------------------------------------------------------

# Tensors of the scores loss by the oracle's names.
_NAMES = {"neg": "negatives", "extra": "extras"}


def oracle_inputs(case: Scores, prior: float = 0.0, confidence_threshold: float = 0.0) -> list[oracle.Inputs]:
    """One oracle row per row of a [B] case."""

    def at(tensor: Tensor | None, b: int, otherwise: object) -> Any:
        if tensor is None:
            return otherwise
        return (tensor[b] if tensor.dim() else tensor).tolist()

    knots = None if case.knots is None else case.knots.tolist()
    return [
        oracle.Inputs(
            pos=case.pos[b].item(),
            negatives=case.neg[b].tolist(),
            extras=at(case.extra, b, ()),
            log_q=at(case.log_q, b, None),
            prior=at(case.prior, b, prior),
            threshold=at(case.threshold, b, confidence_threshold),
            temperature=at(case.temperature, b, None),
            knots=knots,
        )
        for b in range(len(case.pos))
    ]


def assert_is_the_oracles(case: Scores, backend: str, **arguments: Any) -> None:
    """Loss of each row and every gradient, in fp64, against 60 digits."""
    result = evaluate(case, torch.ones(len(case.pos)), backend=backend, **arguments)
    curve = arguments.pop("score_curve", None)
    if curve is not None:
        arguments["score_curve"] = oracle.Curve(curve.low, curve.high, curve.on)
    rows = oracle_inputs(case, **{k: arguments.pop(k) for k in ("prior", "confidence_threshold") if k in arguments})
    assert_near(result.loss, exact([float(oracle.row(r, **arguments).loss) for r in rows]), torch.float64, "loss")
    gradients = [oracle.row_gradients(r, **arguments) for r in rows]
    for name, gradient in result.gradients.items():
        expected = exact([g[_NAMES.get(name, name)] for g in gradients])
        # A sum over the rows has the roundings of its terms.
        slack = 1e-14 * len(rows) * expected.abs().max().item()
        assert_near(gradient, expected.sum_to_size(gradient.shape), torch.float64, f"gradient of {name}", slack)

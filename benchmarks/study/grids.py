"""The hyper-parameters that are tried for each loss, as many for each, and how one of them is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.losses import LossOptions
from benchmarks.negatives import Negatives
from benchmarks.study.published import ELECTRONIC, GOWALLA, HEALTH
from benchmarks.study.runs import Run, Store
from benchmarks.trainer import TrainingConfig

LOSSES = (
    "bpr", "llpauc", "sl", "infonce", "dcl", "advinfonce", "bsl", "psl-tanh", "psl-atan", "psl-relu", "slk", "cw"
)  # fmt: skip
MODELS = ("mf", "lightgcn", "xsimgcl")

# What the protocol says for all runs, and an end to those that no longer improve.
PATIENCE = 5
_LR = {HEALTH: 0.1, ELECTRONIC: 0.01, GOWALLA: 0.1}
NEGATIVES = Negatives("uniform", 1000)
# On Health the search takes all items as negatives: some 1,200 for each row instead of 1,000 drawn from these, in a
# quarter of the time.
_SEARCH_NEGATIVES = {HEALTH: Negatives("full", None)}
SEARCHED = tuple(_SEARCH_NEGATIVES)
SEARCH_SEED = 0
# What is best for the others on MF serves them well on graphs. BPR's learning rate and weight decay do not.
SEARCHED_ON_EACH_MODEL = ("bpr",)


def config(dataset: str, model: str = "mf", **changes: Any) -> TrainingConfig:
    """Return the configuration that all losses have on a data set, with changes."""
    return replace(TrainingConfig(model=model, lr=_LR[dataset], patience=PATIENCE), **changes)


def _options(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return changes, {}


_TEMPERATURES = (0.05, 0.075, 0.1, 0.125, 0.15, 0.2)
# Six of each: (changes of the options, changes of the configuration).
_SOFTMAX = [_options(temperature=tau) for tau in _TEMPERATURES]
GRIDS: Mapping[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "bpr": [({}, {"lr": lr, "weight_decay": decay}) for lr in (0.01, 0.001) for decay in (0.0, 1e-5, 1e-4)],
    "llpauc": [
        ({"top_positives": alpha, "top_negatives": beta}, {"lr": 0.01, "weight_decay": decay})
        for alpha, decay in ((0.3, 1e-4), (0.7, 1e-4), (0.7, 1e-5))
        for beta in (0.01, 0.1)
    ],
    "sl": _SOFTMAX,
    "infonce": _SOFTMAX,
    "dcl": [_options(temperature=tau, prior=prior) for tau in (0.1, 0.125) for prior in (0.001, 0.003, 0.01)],
    "advinfonce": _SOFTMAX,
    "bsl": [
        _options(temperature=tau, positive_temperature=other) for tau in (0.1, 0.125) for other in (0.05, 0.1, 0.2)
    ],
    "psl-tanh": _SOFTMAX,
    "psl-atan": _SOFTMAX,
    "psl-relu": _SOFTMAX,
    "slk": [
        _options(temperature=tau, confidence_temperature=other) for tau in (0.1, 0.125) for other in (1.25, 1.5, 2.0)
    ],
    "cw": [
        _options(temperature=tau, confidence_temperature=other, **correction)
        for tau, other in ((0.1, 1.25), (0.125, 1.75), (0.125, 2.5))
        for correction in ({"prior": 0.0, "extra_positives": 0}, {"prior": 0.05})
    ],
}


def search_runs(dataset: str, loss: str, model: str = "mf") -> list[Run]:
    """Return the runs that a loss's hyper-parameters are chosen from, on MF for most losses whatever the model."""
    model = model if loss in SEARCHED_ON_EACH_MODEL else "mf"
    negatives = NEGATIVES if loss in ("bpr", "llpauc", "advinfonce") else _SEARCH_NEGATIVES[dataset]
    return [
        Run(
            dataset,
            loss,
            replace(LossOptions(negatives=negatives), **options),
            replace(config(dataset, model, seed=SEARCH_SEED), **changes),
        )
        for options, changes in GRIDS[loss]
    ]


def chosen(store: Store, dataset: str, loss: str, model: str = "mf") -> Run | None:
    """Return the run, with the protocol's negatives, of the best validation NDCG@20; None until all are done.

    Other models take what was chosen on MF, but for :data:`SEARCHED_ON_EACH_MODEL`.
    """
    runs = search_runs(dataset, loss, model)
    if not all(run in store for run in runs):
        return None
    done = [run for run in runs if "diverged" not in store[run]]
    best = max(done, key=lambda run: store[run]["best_validation"]["ndcg"])
    return replace(with_negatives(best, NEGATIVES), config=replace(best.config, model=model))


def with_negatives(run: Run, negatives: Negatives) -> Run:
    """Return the same run with other negatives."""
    return replace(run, options=replace(run.options, negatives=negatives))

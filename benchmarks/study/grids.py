"""The hyper-parameters tried for each loss, equally many for each, and how the best are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.study.published import ELECTRONIC, GOWALLA, HEALTH
from benchmarks.study.runs import Run, Store
from benchmarks.training.losses import LossOptions
from benchmarks.training.negatives import Negatives
from benchmarks.training.trainer import TrainingConfig

LOSSES = (
    "bpr", "llpauc", "sl", "infonce", "dcl", "advinfonce", "bsl", "psl-tanh", "psl-atan", "psl-relu", "slk", "cw"
)  # fmt: skip
MODELS = ("mf", "lightgcn", "xsimgcl")

# The protocol's settings for all runs, and a patience for those that no longer improve.
PATIENCE = 5
_LR = {HEALTH: 0.1, ELECTRONIC: 0.01, GOWALLA: 0.1}
NEGATIVES = Negatives("uniform", 1000)
# On Health the search takes all items as negatives: some 1,200 for each row instead of 1,000 drawn from these, in a
# third of the time.
_SEARCH_NEGATIVES = {HEALTH: Negatives("full", None)}
SEARCH_SEED = 0
# The others use on graphs what is best for them on MF.
SEARCHED_ON_EACH_MODEL: Mapping[str, tuple[str, ...]] = {HEALTH: ("bpr", "llpauc", "sl", "slk", "cw")}


def config(dataset: str, model: str = "mf", **changes: Any) -> TrainingConfig:
    """Return the configuration that all losses have on a data set, with changes."""
    return replace(TrainingConfig(model=model, lr=_LR[dataset], patience=PATIENCE), **changes)


def _options(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return changes, {}


# T of SL@20 and of CW with its thresholds: they come from passes over the catalogue here, as published.
REFRESH_EPOCHS = 5

# What the study's losses start from, whatever the defaults are now: kept results are found by these numbers.
START = LossOptions(
    negatives=NEGATIVES,
    prior=0.05,
    extra_positives=5,
    likely_positives=None,
    weighting="sigmoid",
    confidence_temperature=1.25,
)

# No prior, hence no draws for the correction.
UNCORRECTED: Mapping[str, Any] = {"prior": 0.0, "extra_positives": 0}

# Eight of each: (changes of the options, changes of the configuration). With one positive per row BSL's τ₁ only scales
# the loss, so that there is nothing but τ₂ to search.
_SOFTMAX = [_options(temperature=tau) for tau in (0.05, 0.075, 0.09, 0.1, 0.11, 0.125, 0.15, 0.2)]
GRIDS: Mapping[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    # With one negative per step it rises late, after longer halts than the patience: it goes through all epochs.
    "bpr": [
        ({}, {"lr": lr, "weight_decay": decay, "patience": None})
        for lr in (0.01, 0.001)
        for decay in (0.0, 1e-5, 1e-4, 2e-4)
    ],
    "llpauc": [
        ({"top_positives": alpha, "top_negatives": beta}, {"lr": 0.01, "weight_decay": decay})
        for alpha, beta, decay in (
            (0.1, 0.1, 1e-4),
            (0.3, 0.01, 1e-4),
            (0.3, 0.1, 1e-4),
            (0.3, 0.3, 1e-4),
            (0.7, 0.01, 1e-4),
            (0.7, 0.1, 1e-4),
            (0.7, 0.01, 1e-5),
            (0.7, 0.1, 1e-5),
        )
    ],
    "sl": _SOFTMAX,
    "infonce": _SOFTMAX,
    "dcl": [_options(temperature=tau, prior=prior) for tau in (0.1, 0.125) for prior in (0.001, 0.003, 0.01, 0.03)],
    "advinfonce": _SOFTMAX,
    "bsl": _SOFTMAX,
    "psl-tanh": _SOFTMAX,
    "psl-atan": _SOFTMAX,
    "psl-relu": _SOFTMAX,
    "slk": [
        _options(temperature=tau, confidence_temperature=other)
        for tau, other in (
            (0.075, 1.0), (0.075, 1.25), (0.1, 1.0), (0.1, 1.25), (0.1, 1.5), (0.1, 2.0), (0.125, 1.5), (0.125, 2.0)
        )
    ],
    "cw": [
        _options(temperature=tau, confidence_temperature=other, **correction)
        for tau, other in ((0.075, 1.25), (0.1, 1.25), (0.125, 1.75), (0.125, 2.5))
        for correction in (UNCORRECTED, {"prior": 0.05})
    ],
}  # fmt: skip


def _cw_tries(confidence_temperature: float, lower: float) -> list[dict[str, Any]]:
    uncorrected = {"confidence_temperature": confidence_temperature, **UNCORRECTED}
    return [
        {"confidence_temperature": confidence_temperature},
        uncorrected,
        {**uncorrected, "confidence_temperature": lower},
        {**uncorrected, "weighting": "linear"},
    ]


# An epoch of Gowalla takes 40 seconds of a core.
_SHORT = {"epochs": 50}
# Where a search like that would take too long: for SL, BSL, PSL and SL@20 what was published as best (PSL and SL@K
# papers; except for SL@20 on Gowalla, which has SL's learning rate and Health's T here, since .01 takes several times
# the epochs), for CW what is good on Health (on Gowalla with τ_c halved along with τ, as it is their ratio that
# counts in the gradient of the positive), with correction and without, and from there a lower τ_c and other weights.
# A single candidate is taken without trying it.
_OF_THEIR_OWN: Mapping[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]] = {
    (ELECTRONIC, "sl"): [({"temperature": 0.1}, {})],
    (ELECTRONIC, "bsl"): [({"temperature": 0.1}, {"lr": 0.1})],
    (ELECTRONIC, "psl-tanh"): [({"temperature": 0.1}, {})],
    (ELECTRONIC, "psl-relu"): [({"temperature": 0.1}, {})],
    (ELECTRONIC, "slk"): [({"temperature": 0.1, "confidence_temperature": 1.125, "refresh_epochs": 20}, {})],
    (ELECTRONIC, "cw"): [({"temperature": 0.1, **changes}, {}) for changes in _cw_tries(1.25, lower=1.0)],
    (GOWALLA, "sl"): [({"temperature": 0.05}, _SHORT)],
    (GOWALLA, "slk"): [({"temperature": 0.05, "confidence_temperature": 0.5}, _SHORT)],
    (GOWALLA, "cw"): [({"temperature": 0.05, **changes}, _SHORT) for changes in _cw_tries(0.625, lower=0.4)],
}


def search_runs(dataset: str, loss: str, model: str = "mf") -> list[Run]:
    """Return the runs that a loss's hyper-parameters are chosen from, on MF for many losses whatever the model."""
    model = model if loss in SEARCHED_ON_EACH_MODEL.get(dataset, ()) else "mf"
    negatives = NEGATIVES
    if loss not in ("bpr", "llpauc", "advinfonce"):
        negatives = _SEARCH_NEGATIVES.get(dataset, NEGATIVES)
    return [
        Run(
            dataset,
            loss,
            replace(START, **{"negatives": negatives, "refresh_epochs": REFRESH_EPOCHS, **options}),
            replace(config(dataset, model, seed=SEARCH_SEED), **changes),
        )
        for options, changes in _OF_THEIR_OWN.get((dataset, loss), GRIDS[loss])
    ]


def chosen(store: Store, dataset: str, loss: str, model: str = "mf") -> Run | None:
    """Return the run, with the protocol's negatives, of the best validation NDCG@20; None until all are done.

    A run without others to choose from need not be done. Other models take what was chosen on MF, except for
    :data:`SEARCHED_ON_EACH_MODEL`.
    """
    runs = search_runs(dataset, loss, model)
    if len(runs) > 1 and not all(run in store for run in runs):
        return None
    best = best_of(store, runs) if len(runs) > 1 else runs[0]
    return replace(with_negatives(best, NEGATIVES), config=replace(best.config, model=model))


def best_of(store: Store, runs: Sequence[Run]) -> Run:
    """Return the run of the best validation NDCG@20.

    Raises:
        RuntimeError: all of them diverged.
    """
    done = [run for run in runs if "diverged" not in store[run]]
    if not done:
        raise RuntimeError(f"{runs[0].loss} on {runs[0].dataset}: expected a run that converges, got none")
    return max(done, key=lambda run: store[run]["best_validation"]["ndcg"])


def with_negatives(run: Run, negatives: Negatives) -> Run:
    """Return the same run with other negatives."""
    return replace(run, options=replace(run.options, negatives=negatives))

"""The study's parts: which runs each of its questions takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.study import grids, searched
from benchmarks.study.grids import chosen, config, search_runs
from benchmarks.study.published import ELECTRONIC, GOWALLA, HEALTH, LOSS_NAMES
from benchmarks.study.runs import Run, Store
from benchmarks.training.losses import DEFAULT_TOP_K
from benchmarks.training.negatives import Negatives

# --- which loss ranks best ---

# (data set, model): the losses compared there, and with how many seeds. BSL, with one positive per row, is SL times a
# constant, which Adam undoes: with the same learning rate and temperature it comes out as SL does. On Electronic its
# published learning rate is not SL's.
COMPARED: dict[tuple[str, str], tuple[tuple[str, ...], int]] = {
    (HEALTH, "mf"): (grids.LOSSES, 5),
    (HEALTH, "lightgcn"): (grids.LOSSES, 5),
    (HEALTH, "xsimgcl"): (grids.LOSSES, 5),
    (ELECTRONIC, "mf"): (("bpr", "sl", "bsl", "psl-tanh", "psl-relu", "slk", "cw"), 3),
    (ELECTRONIC, "lightgcn"): (("sl", "psl-tanh", "slk", "cw"), 3),
    (GOWALLA, "mf"): (("sl", "slk", "cw"), 1),
}

# Further settings of a model on a data set: what is best for SL is used for all losses.
MODEL_TRIES: dict[tuple[str, str], tuple[dict[str, Any], ...]] = {
    (HEALTH, "xsimgcl"): tuple({"contrastive_weight": weight} for weight in (0.05, 0.1, 0.2)),
    (ELECTRONIC, "lightgcn"): tuple({"lr": lr} for lr in (0.01, 0.1)),
}


def model_tries(store: Store, dataset: str, model: str) -> list[Run]:
    """Return SL's runs with each of a model's settings to choose from; none until SL's own are known."""
    best = chosen(store, dataset, "sl", model)
    if best is None:
        return []
    return [replace(best, config=replace(best.config, **changes)) for changes in MODEL_TRIES.get((dataset, model), ())]


def model_settings(store: Store, dataset: str, model: str) -> dict[str, Any] | None:
    """Return a model's settings of the best validation NDCG@20; None until all are done."""
    if (dataset, model) not in MODEL_TRIES:
        return {}
    runs = model_tries(store, dataset, model)
    if not runs or not all(run in store for run in runs):
        return None
    return MODEL_TRIES[dataset, model][runs.index(grids.best_of(store, runs))]


def compared_runs(store: Store, dataset: str, model: str, loss: str) -> list[Run]:
    """Return a loss's runs, one per seed, with its hyper-parameters for the data set; none until they are known."""
    best, settings = chosen(store, dataset, loss, model), model_settings(store, dataset, model)
    if best is None or settings is None:
        return []
    best = replace(best, config=replace(best.config, **settings))
    return [best.with_seed(seed) for seed in range(COMPARED[dataset, model][1])]


def searches(store: Store) -> list[Run]:
    """Return the runs that hyper-parameters are chosen from, which other runs wait for."""
    runs = []
    for (dataset, model), (losses, _) in COMPARED.items():
        for loss in losses:
            tries = search_runs(dataset, loss, model)
            runs += tries if len(tries) > 1 else []
        runs += model_tries(store, dataset, model)
    return runs


def comparison(store: Store) -> list[Run]:
    """The search for each loss, then every loss on every model, seed by seed."""
    runs = searches(store)
    for (dataset, model), (losses, num_seeds) in COMPARED.items():
        of_losses = [compared_runs(store, dataset, model, loss) for loss in losses]
        runs += [runs_of_loss[seed] for seed in range(num_seeds) for runs_of_loss in of_losses if runs_of_loss]
    return runs


# --- CW in its stages ---

# The sweeps leave out sampling noise, and take a third of the time, with all items as negatives.
_SWEEP_NEGATIVES = Negatives("full", None)
_SWEEP_SEEDS = (0, 1, 2)
WEIGHTINGS = ("none", "sigmoid", "exponential", "linear")
CORRECTIONS: dict[str, Mapping[str, Any]] = {"no": grids.UNCORRECTED, "yes": {"prior": 0.05}}
CONFIDENCES: dict[str, dict[str, Any]] = {
    "none": {"confidence_temperature": None},
    "from 0": {"confidence_temperature": 1.25},
    "from top 20": {"confidence_temperature": 1.25, "confidence_top_k": 20, "refresh_epochs": grids.REFRESH_EPOCHS},
}
# What is swept, one at a time, around CW with all of its stages.
SWEEPS: dict[str, tuple[Any, ...]] = {
    "temperature": (0.05, 0.075, 0.1, 0.125, 0.15),
    "prior": (0.0, 0.01, 0.02, 0.05, 0.1, 0.2),
    "extra_positives": (0, 1, 2, 5, 10),
    "floor": (0.05, 0.1, 0.3, 0.5, 0.9),
    "weight_temperature": (0.025, 0.05, 0.1, 0.2, 0.4),
    "confidence_temperature": (0.75, 1.0, 1.25, 1.75, 2.5, 5.0),
}
_SWEEP_BASE = replace(grids.START, negatives=_SWEEP_NEGATIVES)


def stage_runs(weighting: str, correction: str, confidence: str) -> list[Run]:
    """Return CW's runs with these of its stages, one per seed."""
    options = replace(_SWEEP_BASE, weighting=weighting, **CORRECTIONS[correction], **CONFIDENCES[confidence])
    return [Run(HEALTH, "cw", options, config(HEALTH, seed=seed)) for seed in _SWEEP_SEEDS]


def sweep_runs(name: str, value: Any) -> list[Run]:
    """Return CW's runs with one hyper-parameter changed, one per seed."""
    return [
        Run(HEALTH, "cw", replace(_SWEEP_BASE, **{name: value}), config(HEALTH, seed=seed)) for seed in _SWEEP_SEEDS
    ]


# What the confidence does: as a constant in the gradient, and in its place a weaker pull on the positive.
_MECHANISMS: dict[str, dict[str, Any]] = {
    "SL": {"loss": "sl"},
    "SL, confidence": {"weighting": "none", **grids.UNCORRECTED},
    "SL, confidence without gradient": {"weighting": "none", **grids.UNCORRECTED, "confidence_detached": True},
    "SL, pull of the positive × 0.9": {"loss": "sl", "positive_temperature": 0.1 / 0.9},
    "SL, pull of the positive × 0.8": {"loss": "sl", "positive_temperature": 0.1 / 0.8},
    "SL, pull of the positive × 0.7": {"loss": "sl", "positive_temperature": 0.1 / 0.7},
}  # fmt: skip
# Elsewhere an epoch takes ten times as long: only the decisive ones, with one seed; SL's runs exist already.
MECHANISMS: dict[str, tuple[str, ...]] = {
    HEALTH: tuple(_MECHANISMS),
    ELECTRONIC: ("SL, confidence", "SL, pull of the positive × 0.8"),
}


def mechanism_runs(dataset: str, name: str) -> list[Run]:
    """Return the runs, one per seed, of one of the data set's :data:`MECHANISMS`."""
    changes = dict(_MECHANISMS[name])
    loss = changes.pop("loss", "cw")
    negatives, seeds = (_SWEEP_NEGATIVES, _SWEEP_SEEDS) if dataset == HEALTH else (grids.NEGATIVES, (0,))
    options = replace(_SWEEP_BASE, negatives=negatives, **changes)
    return [Run(dataset, loss, options, config(dataset, seed=seed)) for seed in seeds]


def stages(store: Store) -> list[Run]:
    """Every weighting with and without correction and confidence, what the confidence does, then the sweeps."""
    combined = [
        stage_runs(weighting, correction, confidence)
        for weighting in WEIGHTINGS
        for correction in CORRECTIONS
        for confidence in CONFIDENCES
    ]
    swept = [sweep_runs(name, value) for name, values in SWEEPS.items() for value in values]
    mechanisms = [mechanism_runs(dataset, name) for dataset, names in MECHANISMS.items() for name in names]
    every = combined + mechanisms + swept
    return [runs[index] for index in range(len(_SWEEP_SEEDS)) for runs in every if index < len(runs)]


# --- SL@20 with what CW has besides ---

# Around SL@20 with its own settings on each data set, of which its confidence is a part.
COMBINATIONS: dict[str, dict[str, Any]] = {
    "linear weights": {"weighting": "linear"},
    "exponential weights": {"weighting": "exponential"},
    "sigmoid weights": {"weighting": "sigmoid"},
    "sigmoid weights, correction": {"weighting": "sigmoid", "prior": 0.05, "extra_positives": 5},
}
COMBINED_DATASETS = (HEALTH, ELECTRONIC, GOWALLA)


def combination_runs(store: Store, dataset: str, name: str) -> list[Run]:
    """Return the run, seed 0, of one of :data:`COMBINATIONS`; none until SL@20's hyper-parameters are known."""
    best = chosen(store, dataset, "slk")
    if best is None:
        return []
    added = {"confidence_top_k": DEFAULT_TOP_K, **grids.UNCORRECTED, **COMBINATIONS[name]}
    return [replace(best, loss="cw", options=replace(best.options, **added))]


def combinations(store: Store) -> list[Run]:
    """Every combination on every data set."""
    return [
        run for dataset in COMBINED_DATASETS for name in COMBINATIONS for run in combination_runs(store, dataset, name)
    ]


# --- false negatives ---

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
NOISE_LOSSES = ("sl", "psl-tanh", "slk", "cw", "cw-known-prior")
_NOISE_SEEDS = (0, 1, 2)


def noise_runs(store: Store, loss: str, share: float) -> list[Run]:
    """Return a loss's runs with a share of false negatives, one per seed; none until its hyper-parameters are known.

    "cw-known-prior" is CW with that share as its prior, the others have the same hyper-parameters for all shares.
    """
    best = chosen(store, HEALTH, loss.removesuffix("-known-prior"))
    if best is None:
        return []
    options = best.options
    if loss == "cw-known-prior":
        options = replace(options, prior=share, extra_positives=5)
    return [
        replace(best, options=options, config=replace(best.config, false_negatives=share, seed=seed))
        for seed in _NOISE_SEEDS
    ]


def noise(store: Store) -> list[Run]:
    """Every loss with every share."""
    runs = [noise_runs(store, loss, share) for loss in NOISE_LOSSES for share in SHARES]
    return [of_seeds[index] for index in range(len(_NOISE_SEEDS)) for of_seeds in runs if of_seeds]


# --- false negatives, estimated ---


@dataclass(frozen=True)
class Contestant:
    """A loss with its own settings on Health, and what it does about false negatives.

    Attributes:
        loss: the loss.
        tries: changes of its options, of which those of the best validation NDCG@20 are taken.
        searched_with: the negatives of these tries.
    """

    loss: str
    tries: tuple[dict[str, Any], ...]
    searched_with: Negatives = Negatives("full", None)


def _estimated(prior: Any, strength: float = 1.0, **more: Any) -> dict[str, Any]:
    estimate = {"false_negative_family": "isotonic", "false_negative_strength": strength}
    return {"false_negative_prior": prior, **estimate, **more}


_BY_SCORE = (_estimated(0.003), _estimated(0.01), _estimated(0.03), _estimated(0.03, 0.5))
# The adapter needs negatives that are drawn for each row.
CONTESTANTS: dict[str, Contestant] = {
    "SL, 1 − p_FN": Contestant("sl", _BY_SCORE),
    "SL@20, 1 − p_FN": Contestant("slk", _BY_SCORE),
    "SL, adapter": Contestant(
        "sl",
        tuple(
            _estimated(prior, adapter_candidates=candidates)
            for prior, candidates in ((0.01, 16), (0.01, 64), (0.03, 64), (0.1, 64))
        ),
        grids.NEGATIVES,
    ),
    # They are in no row, but the correction's gradient still raises their scores.
    "CW, held-out positives": Contestant(
        "cw",
        tuple(
            {"prior": prior, "extra_positives": number, "held_out_positives": True}
            for prior, number in ((0.01, 5), (0.05, 5), (0.1, 5), (0.05, 20))
        ),
    ),
    "SL, 1 − p_FN, π estimated": Contestant("sl", (_estimated("auto"),)),
}
ESTIMATED_SHARES = (0.0, 0.1, 0.3, 0.5)
ESTIMATED_BESIDE = ("sl", "psl-tanh", "slk", "cw")


def contestant_tries(store: Store, name: str) -> list[Run]:
    """Return the runs, on the data as they are, that a contestant's settings are chosen from, as a loss's are; none
    until the loss's own are known."""
    contestant = CONTESTANTS[name]
    best = chosen(store, HEALTH, contestant.loss)
    if best is None:
        return []
    best = grids.with_negatives(best, contestant.searched_with)
    return [replace(best, options=replace(best.options, **changes)) for changes in contestant.tries]


def contestant_choice(store: Store, name: str) -> Run | None:
    """Return the run that was chosen; None until all are done. One without others need not be done."""
    tries = contestant_tries(store, name)
    if len(tries) < 2:
        return tries[0] if tries else None
    return grids.best_of(store, tries) if all(run in store for run in tries) else None


def contestant_runs(store: Store, name: str, share: float) -> list[Run]:
    """Return a contestant's runs with a share of false negatives, one per seed; none until its settings are known."""
    best = contestant_choice(store, name)
    if best is None:
        return []
    best = grids.with_negatives(best, grids.NEGATIVES)
    return [
        replace(best, config=replace(best.config, false_negatives=share, seed=seed)) for seed in _NOISE_SEEDS
    ]  # fmt: skip


def contestant_searches(store: Store) -> list[Run]:
    """Return the runs that the contestants' settings are chosen from."""
    every = [contestant_tries(store, name) for name in CONTESTANTS]
    return [run for tries in every if len(tries) > 1 for run in tries]


def estimated_runs(store: Store) -> dict[str, list[list[Run]]]:
    """Return the runs, one per seed, for each of :data:`ESTIMATED_SHARES`, by what a table calls the losses and the
    contestants."""
    losses = {
        LOSS_NAMES[loss]: [noise_runs(store, loss, share) for share in ESTIMATED_SHARES] for loss in ESTIMATED_BESIDE
    }
    contestants = {
        name: [contestant_runs(store, name, share) for share in ESTIMATED_SHARES] for name in CONTESTANTS
    }  # fmt: skip
    return losses | contestants


def estimated(store: Store) -> list[Run]:
    """The searches, then every contestant and the losses beside them with every share, seed by seed."""
    runs = [of_seeds for of_shares in estimated_runs(store).values() for of_seeds in of_shares if of_seeds]
    return contestant_searches(store) + [of_seeds[index] for index in range(len(_NOISE_SEEDS)) for of_seeds in runs]


# --- how many negatives ---

NUMBERS = (10, 30, 100, 300, 1000, 4000)
NUMBER_LOSSES = ("sl", "cw")
_NUMBER_SEEDS = {HEALTH: (0, 1, 2), ELECTRONIC: (0,)}
NUMBER_DATASETS = tuple(_NUMBER_SEEDS)
_LARGEST_NUMBER = {HEALTH: 4000, ELECTRONIC: 1000}


def number_runs(store: Store, dataset: str, loss: str, number: int) -> list[Run]:
    """Return a loss's runs with so many negatives, one per seed; none until its hyper-parameters are known."""
    best = chosen(store, dataset, loss)
    if best is None or number > _LARGEST_NUMBER[dataset]:
        return []
    run = grids.with_negatives(best, Negatives("uniform", number))
    return [run.with_seed(seed) for seed in _NUMBER_SEEDS[dataset]]


def numbers(store: Store) -> list[Run]:
    """Both losses with every number."""
    return [
        run
        for dataset in _NUMBER_SEEDS
        for loss in NUMBER_LOSSES
        for number in NUMBERS
        for run in number_runs(store, dataset, loss, number)
    ]


# --- the prior ---

_PRIOR_SEEDS = (0, 1, 2)


def prior_runs(store: Store, prior: Any) -> list[Run]:
    """Return CW's runs on Health with this prior, or "auto", one per seed; none until the others are known."""
    best = chosen(store, HEALTH, "cw")
    if best is None:
        return []
    run = replace(best, options=replace(best.options, prior=prior, extra_positives=5))
    return [run.with_seed(seed) for seed in _PRIOR_SEEDS]


PRIORS = ("auto", 0.0, 0.02, 0.05)


def priors(store: Store) -> list[Run]:
    """The estimated prior, and given ones beside it."""
    return [run for prior in PRIORS for run in prior_runs(store, prior)]


# --- negatives chosen by their scores ---

# A loss with its own settings on Health: which negatives it has, and what else changes. At the loss's own temperature
# scored negatives are those that its softmax weighs most; corrected, the mean gradient is that of all K.
_MILD = {"sampler_temperature": 0.375}  # three times SL's own
_CORRECTED = {"scored_corrected": True}
SAMPLED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "SL, 10 uniform": ("sl", "uniform:10", {}),
    "SL, 100 uniform": ("sl", "uniform:100", {}),
    **{
        f"SL, 10 of {number}{name}": ("sl", f"scored:10/{number}", changes)
        for number in (100, 1000)
        for name, changes in (
            ("", {}),
            (", mild", _MILD),
            (", corrected", _CORRECTED),
            (", mild, corrected", _MILD | _CORRECTED),
        )
    },
    "SL, 10 by chains, mild": ("sl", "chain:10", _MILD),
    "SL, as many as each epoch's scores suggest": ("sl", "auto:1000", {}),
}
_SAMPLED_SEEDS = (0, 1, 2)


def sampled_runs(store: Store, name: str) -> list[Run]:
    """Return the runs, one per seed, of one of :data:`SAMPLED`; none until the loss's hyper-parameters are known."""
    loss, negatives, changes = SAMPLED[name]
    best = chosen(store, HEALTH, loss)
    if best is None:
        return []
    run = grids.with_negatives(best, Negatives.parse(negatives))
    run = replace(run, options=replace(run.options, **changes))
    return [run.with_seed(seed) for seed in _SAMPLED_SEEDS]


def sampled(store: Store) -> list[Run]:
    """Every choice of negatives, seed by seed."""
    runs = [of_seeds for name in SAMPLED if (of_seeds := sampled_runs(store, name))]
    return [of_seeds[index] for index in range(len(_SAMPLED_SEEDS)) for of_seeds in runs]


PARTS: dict[str, Callable[[Store], Iterable[Run]]] = {
    "comparison": comparison,
    "stages": stages,
    "combinations": combinations,
    "noise": noise,
    "estimated": estimated,
    "numbers": numbers,
    "priors": priors,
    "samplers": sampled,
    "searched": searched.searched,
    "dial": searched.dialled,
    "candidates": searched.candidates,
}

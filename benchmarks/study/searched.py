"""Every loss with settings that are chosen by one rule, ``--auto``, and what they are compared on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.study import grids
from benchmarks.study.published import ELECTRONIC, GOWALLA, HEALTH, SHIFTED
from benchmarks.study.runs import Run, Store
from benchmarks.training.negatives import Negatives
from benchmarks.training.search_spaces import Setting, search_space
from benchmarks.training.trainer import TrainingConfig

LOSSES = ("sl", "slk", "cw", "bpr", "llpauc", "psl-relu", "talos")
DECISIVE = ("sl", "slk", "cw")


@dataclass(frozen=True)
class Contest:
    """Where losses are compared.

    Attributes:
        dataset, model: what is trained on, and what is trained.
        losses, seeds: those that are compared, and with how many seeds; the settings are chosen with seed 0.
        false_negatives: the share of the negatives that are held-out positives of their users; None for none.
    """

    dataset: str
    model: str
    losses: tuple[str, ...]
    seeds: int
    false_negatives: float | None = None


CONTESTS = (
    Contest(HEALTH, "mf", DECISIVE, 5),
    Contest(ELECTRONIC, "mf", DECISIVE, 3),
    Contest(GOWALLA, "mf", DECISIVE, 3),
    Contest(SHIFTED[HEALTH], "mf", DECISIVE, 3),
    Contest(HEALTH, "mf", DECISIVE, 3, false_negatives=0.3),
    Contest(HEALTH, "mf", LOSSES, 3),
    Contest(HEALTH, "lightgcn", DECISIVE, 5),
    Contest(SHIFTED[ELECTRONIC], "mf", DECISIVE, 3),
    Contest(HEALTH, "xsimgcl", DECISIVE, 5),
)

# An epoch takes seconds where the negatives of a batch are shared or, in a small catalogue, all items.
_NEGATIVES = {HEALTH: Negatives("full", None), SHIFTED[HEALTH]: Negatives("full", None)}
_SHARED, _PER_ROW = Negatives("shared", 1000), Negatives("uniform", 1000)
# So that a training takes minutes; an epoch of Gowalla has four times Electronic's rows.
_ELECTRONIC = {"epochs": 100}
_CONFIG: Mapping[str, Mapping[str, Any]] = {
    ELECTRONIC: _ELECTRONIC,
    SHIFTED[ELECTRONIC]: _ELECTRONIC,
    GOWALLA: {"epochs": 30, "batch_size": 2048},
}
# Only BPR's learning rate is searched. LLPAUC's is its authors'.
_LR = {"bpr": 0.01, "llpauc": 0.01}
PATIENCE = 5


def start(contest: Contest, loss: str) -> Run:
    """Return what the search of a loss's settings starts from."""
    negatives = _NEGATIVES.get(contest.dataset, _SHARED)
    if loss in ("bpr", "llpauc") or contest.false_negatives is not None:
        negatives = _PER_ROW
    config = TrainingConfig(model=contest.model, lr=_LR.get(loss, 0.1), patience=PATIENCE)
    config = replace(config, false_negatives=contest.false_negatives, **_CONFIG.get(contest.dataset, {}))
    # With the first of all that is tried.
    space = search_space(loss)
    first = Setting(replace(grids.START, negatives=negatives), config).changed(space.fixed)
    first = first.changed(space.stages[0].tries(first)[0])
    return Run(contest.dataset, loss, first.options, first.config, auto=True)


def search(contest: Contest, loss: str) -> Run:
    """Return the search of a loss's settings. False negatives get no separate search, since they are not known."""
    return start(replace(contest, false_negatives=None), loss)


def chosen(store: Store, contest: Contest, loss: str) -> Run | None:
    """Return a loss's run, seed 0, with the settings that its search chose; None until it is done or if it diverged."""
    found = search(contest, loss)
    if found not in store or "auto" not in store[found]:
        return None
    begin = start(contest, loss)
    setting = Setting(begin.options, begin.config).changed(store[found]["auto"]["chosen"])
    return replace(begin, options=setting.options, config=setting.config, auto=False)


def contest_runs(store: Store, contest: Contest, loss: str) -> list[Run]:
    """Return a loss's runs, one per seed; none until its settings are known."""
    best = chosen(store, contest, loss)
    return [] if best is None else [best.with_seed(seed) for seed in range(contest.seeds)]


# --- one dial: how strongly the positive is pulled ---

PULLS = (1.0, 0.9, 0.8, 0.7)
DIALLED = {HEALTH: 3, ELECTRONIC: 1}  # how many seeds


def dialled_runs(store: Store, dataset: str, loss: str, pull: float) -> list[Run]:
    """Return the runs of SL or CW with its chosen settings and another pull on the positive."""
    best = chosen(store, contest_of(dataset), loss)
    if best is None:
        return []
    own = None if pull == 1 else float(f"{best.options.temperature / pull:.6g}")
    best = replace(best, options=replace(best.options, positive_temperature=own))
    return [best.with_seed(seed) for seed in range(DIALLED[dataset])]


def contest_of(dataset: str, model: str = "mf") -> Contest:
    """Return the comparison on a data set as it is."""
    return next(c for c in CONTESTS if (c.dataset, c.model, c.false_negatives) == (dataset, model, None))


# --- candidates, on Health ---

_ESTIMATED = {"false_negative_prior": 0.01, "false_negative_family": "isotonic"}
# Around the chosen settings of a loss: (loss, changes of its options; a pull is relative to its temperature).
CANDIDATES: dict[str, tuple[str, dict[str, Any]]] = {
    "SL, 1 − p_FN": ("sl", _ESTIMATED),
    "SL, 1 − p_FN cross-fitted": ("sl", {**_ESTIMATED, "cross_fitted": True}),
    "SL, 1 − p_FN cross-fitted, pull × .8": ("sl", {**_ESTIMATED, "cross_fitted": True, "pull": 0.8}),
    "SL, falling pull, κ = .2": ("sl", {"falling_pull": 0.2}),
    "SL@20, 1 − p_FN cross-fitted": ("slk", {**_ESTIMATED, "cross_fitted": True}),
    "CW, by random walks": ("cw", {"likely_positives": "walks"}),
    "CW, linear weights": ("cw", {"weighting": "linear"}),
    "CW, sigmoid weights": ("cw", {"weighting": "sigmoid"}),
    "CW, 5 likely positives per row": ("cw", {"extra_positives": 5}),
    "CW, known further positives": ("cw", {"likely_positives": None}),
}
_CANDIDATE_SEEDS = 3


def candidate_runs(store: Store, name: str) -> list[Run]:
    """Return the runs of one of :data:`CANDIDATES`; none until its loss's settings are known."""
    loss, changes = CANDIDATES[name]
    best = chosen(store, contest_of(HEALTH), loss)
    if best is None or (loss == "cw" and not best.options.prior):
        return []
    changes = dict(changes)
    if (pull := changes.pop("pull", None)) is not None:
        changes["positive_temperature"] = float(f"{best.options.temperature / pull:.6g}")
    best = replace(best, options=replace(best.options, **changes))
    return [best.with_seed(seed) for seed in range(_CANDIDATE_SEEDS)]


# --- the parts ---


def searched(store: Store) -> list[Run]:
    """Every comparison: its searches, then its losses, seed by seed."""
    runs = []
    for contest in CONTESTS:
        runs += [search(contest, loss) for loss in contest.losses]
        of_losses = [contest_runs(store, contest, loss) for loss in contest.losses]
        runs += [of_loss[seed] for seed in range(contest.seeds) for of_loss in of_losses if of_loss]
    return runs


def dialled(store: Store) -> list[Run]:
    """SL and CW along the dial."""
    return [
        run
        for dataset in DIALLED
        for loss in ("sl", "cw")
        for pull in PULLS
        for run in dialled_runs(store, dataset, loss, pull)
    ]


def candidates(store: Store) -> list[Run]:
    """What else was tried."""
    return [run for name in CANDIDATES for run in candidate_runs(store, name)]


def searches(store: Store) -> list[Run]:
    """The runs that others wait for."""
    return [search(contest, loss) for contest in CONTESTS for loss in contest.losses]

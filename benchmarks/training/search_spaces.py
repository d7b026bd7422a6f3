"""What ``--auto`` tries for each loss: one stage after another, each around the best of the stage before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from benchmarks.training.losses import CONFIDENCE_RATIO, LOSSES, LossOptions
from benchmarks.training.trainer import TrainingConfig

Changes = Mapping[str, Any]  # values of fields of LossOptions, or of TrainingConfig
_CONFIG_FIELDS = {each.name for each in fields(TrainingConfig)}


class Setting(NamedTuple):
    """What a training takes besides data and the loss's name."""

    options: LossOptions
    config: TrainingConfig

    def changed(self, changes: Changes) -> Setting:
        """The same setting with other values of some fields."""
        config = {name: value for name, value in changes.items() if name in _CONFIG_FIELDS}
        options = {name: value for name, value in changes.items() if name not in _CONFIG_FIELDS}
        return Setting(replace(self.options, **options), replace(self.config, **config))


@dataclass(frozen=True)
class Stage:
    """Numbers that are chosen together.

    Attributes:
        tries: returns the changes to try, given the best setting so far; the simplest first, which in every stage but
            the first is that setting itself.
        chooses: names of the fields that are chosen, which must not be given with ``--auto``. A field of the
            configuration is not among them, since what is given is where its search starts.
    """

    tries: Callable[[Setting], Sequence[Changes]]
    chooses: tuple[str, ...] = ()


@dataclass(frozen=True)
class SearchSpace:
    """What is chosen for a loss.

    Attributes:
        stages: at least one.
        fixed: values that the search starts from, whatever is given.
    """

    stages: tuple[Stage, ...]
    fixed: Changes = field(default_factory=dict)

    @property
    def chooses(self) -> set[str]:
        """All fields that must not be given with ``--auto``."""
        return {*self.fixed, *(name for stage in self.stages for name in stage.chooses)}


# On the half cosine, a factor of √2 apart. The defaults come first, here and below.
TEMPERATURES = (0.1, 0.0707, 0.141, 0.05, 0.2)
_FINER = (1.0, 2**-0.25, 2**0.25)
CONFIDENCE_RATIOS = (CONFIDENCE_RATIO, 10.0, 15.0, 20.0)
PRIORS = (0.0, 0.01, 0.003, 0.03)
# Of CW, whose correction is made by likely positives.
CW_PRIORS = (0.1, 0.03, 0.01, 0.0)
# Of the pull on the positive, τ/τ⁺.
PULLS = (1.0, 0.9, 0.8)
_TOP_POSITIVES, _TOP_NEGATIVES = (0.7, 0.3, 0.1), (0.1, 0.01, 0.3)
_LR_FACTORS = (1.0, 0.1, 0.01)
_WEIGHT_DECAYS = (1e-5, 1e-4)


def _values(name: str, values: Sequence[Any]) -> Stage:
    return Stage(lambda best: [{name: value} for value in values], (name,))


def _rounded(value: float) -> float:
    """So that a setting can be typed in again."""
    return float(f"{value:.6g}")


def _temperatures(best: Setting) -> list[Changes]:
    return [{"temperature": value} for value in TEMPERATURES]


def _finer_temperatures(best: Setting) -> list[Changes]:
    return [{"temperature": _rounded(best.options.temperature * factor)} for factor in _FINER]


def _slk_temperatures(best: Setting) -> list[Changes]:
    """τ_w goes with τ: it is their ratio that counts in the gradient of the positive."""
    first = CONFIDENCE_RATIOS[0]
    return [{"temperature": value, "confidence_temperature": _rounded(first * value)} for value in TEMPERATURES]


def _confidences(best: Setting) -> list[Changes]:
    return [{"confidence_temperature": _rounded(ratio * best.options.temperature)} for ratio in CONFIDENCE_RATIOS]


def _corrected(prior: float) -> dict[str, Any]:
    likely = {"likely_positives": "auto", "extra_positives": 20}
    return {"prior": prior, **(likely if prior else {"likely_positives": None, "extra_positives": 0})}


def _corrections(best: Setting) -> list[Changes]:
    return [_corrected(prior) for prior in CW_PRIORS]


def _pulls(best: Setting) -> list[Changes]:
    """A weaker pull on the positive, which recommends more popular items."""
    tau = best.options.temperature
    return [{"positive_temperature": None if pull == 1 else _rounded(tau / pull)} for pull in PULLS]


def _learning_rates(best: Setting) -> list[Changes]:
    return [{"lr": _rounded(best.config.lr * factor)} for factor in _LR_FACTORS]


def _weight_decays(best: Setting) -> list[Changes]:
    given = best.config.weight_decay
    return [{"weight_decay": value} for value in (given, *(value for value in _WEIGHT_DECAYS if value != given))]


_TEMPERATURE = Stage(_temperatures, ("temperature",))
_SOFTMAX = SearchSpace((_TEMPERATURE, Stage(_finer_temperatures)))
_SPACES: Mapping[str, SearchSpace] = {
    "bpr": SearchSpace((Stage(_learning_rates), Stage(_weight_decays))),
    "llpauc": SearchSpace(
        (_values("top_positives", _TOP_POSITIVES), _values("top_negatives", _TOP_NEGATIVES)),
        {"top_negatives": _TOP_NEGATIVES[0]},
    ),
    # As published: with known positives.
    "dcl": SearchSpace(
        (_TEMPERATURE, _values("prior", PRIORS)),
        {"prior": PRIORS[0], "likely_positives": None, "extra_positives": 5},
    ),
    "slk": SearchSpace((Stage(_slk_temperatures, ("temperature", "confidence_temperature")), Stage(_confidences))),
    # The correction by likely positives; without it the loss is SL.
    "cw": SearchSpace(
        (_TEMPERATURE, Stage(_corrections), Stage(_pulls)),
        {
            **_corrected(CW_PRIORS[0]),
            "weighting": "none",
            "confidence_temperature": None,
            "positive_temperature": None,
        },
    ),
}


def search_space(loss_name: str) -> SearchSpace:
    """Return what is chosen for a loss: its temperature where nothing else is said.

    Raises:
        ValueError: an unknown name.
    """
    if loss_name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss_name!r}")
    return _SPACES.get(loss_name, _SOFTMAX)


def all_settings(loss_name: str, given: Setting) -> list[Setting]:
    """Return what is tried around the setting that the search starts from: all fields that it can choose are there."""
    space = search_space(loss_name)
    start = given.changed(space.fixed)
    return [start.changed(changes) for stage in space.stages for changes in stage.tries(start)]

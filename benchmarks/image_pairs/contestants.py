"""The losses that are compared, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.image_pairs.cvir import CVIR, TEDn
from benchmarks.image_pairs.fne import FNE
from benchmarks.image_pairs.methods import InBatch, Method, Setting
from benchmarks.image_pairs.posterior import Posterior
from cw_ext import presets
from cw_ext.parameters import LossArguments


class Contestant(NamedTuple):
    """A loss: its name in tables, and what trains with it."""

    label: str
    method: Callable[[Setting], Method]


def _arguments(make: Callable[[float, float, int], LossArguments]) -> Callable[[Setting], Method]:
    """The loss whose arguments `make` returns, given τ, π and the number of negatives."""

    def method(setting: Setting) -> Method:
        return InBatch(setting, make(setting.temperature, setting.prior, setting.negatives.shape[1]))

    return method


def _pucl(temperature: float, prior: float, negatives: int) -> LossArguments:
    # Of a row's 1 + N samples 1 + πN are positives, one of which is labelled: π of the unlabelled are left.
    positives = 1 + prior * negatives
    return presets.pucl(temperature, positives / (1 + negatives), 1 / positives)


# Arguments of the loss alone.
LOSSES = {
    "infonce": Contestant("InfoNCE", _arguments(lambda temperature, prior, negatives: presets.infonce(temperature))),
    "sl": Contestant("SL", _arguments(lambda temperature, prior, negatives: presets.sl(temperature))),
    "dcl": Contestant("DCL", _arguments(lambda temperature, prior, negatives: presets.dcl(temperature, prior))),
    "pucl": Contestant("PUCL", _arguments(_pucl)),
    "cw-weights": Contestant(
        "CW, weights alone", _arguments(lambda temperature, prior, negatives: presets.cw(temperature, 0.0))
    ),
    "cw": Contestant("CW", _arguments(lambda temperature, prior, negatives: presets.cw(temperature, prior))),
}
# InfoNCE with weights that are estimated as training goes.
ESTIMATED = {
    "cvir": Contestant("CVIR", CVIR),
    "tedn": Contestant("(TED)ⁿ", lambda setting: TEDn(setting, same_digit=False)),
    "tedn-same-digit": Contestant("(TED)ⁿ, pairs of a digit", lambda setting: TEDn(setting, same_digit=True)),
    "posterior": Contestant("1 − p_FN", lambda setting: Posterior(setting, strength=1.0)),
    "posterior-6": Contestant("(1 − p_FN)⁶", lambda setting: Posterior(setting, strength=6.0)),
    "fne": Contestant("FNE's weights", FNE),
}
CONTESTANTS = LOSSES | ESTIMATED
BASELINE = "infonce"

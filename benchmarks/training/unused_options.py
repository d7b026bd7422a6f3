"""Options of the training command that none of its losses can use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.training.losses import RankingLoss


class _Option(NamedTuple):
    flag: str
    needs: str  # what it acts on
    settings: tuple[str, ...]  # a loss that uses it has a value other than False for one of these
    among: Callable[[RankingLoss], bool] = lambda loss: True  # the losses where they mean this option


_WEIGHTS = "a loss of the softmax family"
_ESTIMATE = "--false-negative-prior and a loss of the softmax family"
# By the field of LossOptions.
OPTIONS = {
    "positive_temperature": _Option(
        "--positive-tau", f"{_WEIGHTS} other than bsl", ("positive_temperature",), lambda loss: loss.name != "bsl"
    ),
    "bsl_positive_temperature": _Option("--bsl-tau", "bsl", ("positive_temperature",), lambda loss: loss.name == "bsl"),
    "falling_pull": _Option("--falling-pull", "cw, sl or slk", ("falling_pull",)),
    "held_out_positives": _Option("--held-out-positives", "cw or dcl", ("held_out_positives",)),
    "likely_positives": _Option(
        "--likely-positives", "cw or dcl, with a prior and extra positives that are not held out", ("likely_positives",)
    ),
    "false_negative_prior": _Option("--false-negative-prior", _WEIGHTS, ("false_negative_prior",)),
    "false_negative_family": _Option("--false-negative-family", _ESTIMATE, ("false_negative_family",)),
    "false_negative_strength": _Option("--false-negative-strength", _ESTIMATE, ("false_negative_strength",)),
    "adapter_candidates": _Option("--adapter-candidates", _ESTIMATE, ("adapter_candidates",)),
    "cross_fitted": _Option("--cross-fitted", _ESTIMATE, ("cross_fitted",)),
    "sampler_temperature": _Option(
        "--sampler-tau", "--negatives scored:N/K, memory[:N] or chain[:N]", ("sampler_temperature", "chain_temperature")
    ),
    "scored_corrected": _Option("--scored-corrected", f"--negatives scored:N/K and {_WEIGHTS}", ("scored_corrected",)),
    "memory_pool": _Option("--memory-pool", "--negatives memory[:N]", ("memory_pool",)),
    "stage_prior": _Option("--stage-prior", "--negatives auto[:N]", ("stage_prior",)),
}


def refuse_unused(given: Mapping[str, Any], losses: Sequence[RankingLoss]) -> None:
    """Refuse what was asked for and would change nothing.

    Args:
        given: names in :data:`OPTIONS` that the command line has, with their values.
        losses: those to train with, at least one of which must use each.

    Raises:
        ValueError: the message contains the flag, what it needs and what came.
    """
    for name in given:
        flag, needs, settings, among = OPTIONS[name]
        users = [loss for loss in losses if among(loss)]
        if not any(loss.settings.get(key, False) is not False for loss in users for key in settings):
            came = ", ".join(f"{loss.name} with --negatives {loss.settings['negatives']}" for loss in losses)
            raise ValueError(f"{flag} needs {needs}, got {came}")

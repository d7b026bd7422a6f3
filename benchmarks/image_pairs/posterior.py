"""Negatives weighted by (1 − p_FN)^γ, where p_FN is the probability that a negative is really a match.

With γ = 1, each negative counts with its probability of being a true one. RRRA (arXiv 2508.11670) leaves γ as a
hyper-parameter.
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.image_pairs.methods import WARM_UP, Method, Setting
from cw_ext import FalseNegatives, ScoreCurve, cw_loss, presets


class Posterior(Method):
    """InfoNCE with the weights of FalseNegatives, estimated again before each epoch. It is given π.

    Args:
        setting: what it is given. The positives of the estimate are its held-out pairs of different images of a digit,
            as the false negatives are, and not the two views of an image, which are more alike. These need labels.
        strength: γ.
    """

    def __init__(self, setting: Setting, strength: float) -> None:
        super().__init__(setting)
        self.strength = strength
        self.curve: ScoreCurve | None = None

    def start_epoch(self, epoch: int, encoder: nn.Module) -> None:
        """See :meth:`Method.start_epoch`."""
        if epoch < WARM_UP:
            return
        scores = self.setting.held_out_scores(encoder)
        estimate = FalseNegatives.fit(scores.same_digit, scores.negatives, self.setting.prior)
        self.curve = estimate.curve(strength=self.strength)

    def loss(self, queries: Tensor, items: Tensor) -> Tensor:
        """See :meth:`Method.loss`."""
        scores = self.setting.scores(queries, items)
        arguments = presets.infonce(self.setting.temperature)
        return cw_loss(scores.positives, scores.negatives, score_curve=self.curve, **arguments)

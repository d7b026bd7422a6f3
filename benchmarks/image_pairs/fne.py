"""FNE's weights: how likely a negative is a true match, from two normal densities learned during training.

arXiv 2308.04380 (LuminosityX/FNE), which draws one negative per row by these weights, from a queue of 8,224, for a
triplet loss. Here they are weights of a batch's negatives in InfoNCE.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.image_pairs.methods import Method, Setting
from benchmarks.image_pairs.pairs import BATCH
from cw_ext import cw_loss, presets
from cw_ext.samplers import fne

# The authors' values: a negative that scores so far below the mean match is left out, and the densities count once they
# are of more matches than this.
MARGIN, ENOUGH = 0.2, 200


class Moments:
    """Cosines of an epoch's sure matches and of their hardest negatives, both taken to be normal."""

    def __init__(self) -> None:
        self.matches, self.hardest = torch.empty(0), torch.empty(0)

    def add(self, cosines: Tensor) -> None:
        """Take in a batch.

        Args:
            cosines: [B, B], row b's positive on the diagonal, −inf where a column is none of its negatives. A pair
                counts as a sure match where each finds the other as its best.
        """
        positions = torch.arange(len(cosines))
        sure = (cosines.argmax(0) == positions) & (cosines.argmax(1) == positions)
        others = cosines.clone().fill_diagonal_(-math.inf)
        hardest = torch.cat([others.amax(1)[sure], others.amax(0)[sure]])
        self.matches = torch.cat([self.matches, cosines.diagonal()[sure]])
        self.hardest = torch.cat([self.hardest, hardest[hardest.isfinite()]])

    def log_weights(self, cosines: Tensor, pos_cosines: Tensor) -> Tensor | None:
        """FNE's log weights of negatives [B, N] whose rows have the positives [B]; None while there is no match."""
        if len(self.matches) == 0:
            return None
        mean = self.matches.mean().item()
        if len(self.matches) > ENOUGH:
            densities = (mean, self.matches.std().item(), self.hardest.mean().item(), self.hardest.std().item())
        else:
            densities = (mean, 1.0, mean, 1.0)  # equal: no negative is a possible match
        return fne(densities, MARGIN)(cosines, pos_cosines)


class FNE(Method):
    """InfoNCE with FNE's weights, from the second epoch on."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.moments = Moments()
        self.warm_up = True

    def start_epoch(self, epoch: int, encoder: nn.Module) -> None:
        """See :meth:`Method.start_epoch`."""
        self.moments = Moments()
        self.warm_up = epoch == 0

    def loss(self, queries: Tensor, items: Tensor) -> Tensor:
        """See :meth:`Method.loss`."""
        scores = self.setting.scores(queries, items)
        weights = None if self.warm_up else self._log_weights(scores.positives.detach(), scores.negatives.detach())
        arguments = presets.infonce(self.setting.temperature)
        return cw_loss(scores.positives, scores.negatives, neg_log_weights=weights, **arguments)

    def _log_weights(self, positives: Tensor, negatives: Tensor) -> Tensor | None:
        # FNE's constants are for cosines; the loss sees half of them.
        pos_cosines, cosines = 2 * positives, 2 * negatives
        whole = cosines.new_full((BATCH, BATCH), -math.inf).scatter_(1, self.setting.negatives, cosines)
        self.moments.add(whole.diagonal_scatter(pos_cosines))
        return self.moments.log_weights(cosines, pos_cosines)

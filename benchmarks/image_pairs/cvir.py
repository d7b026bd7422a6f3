"""CVIR and (TED)ⁿ, which leave out as many of the highest-scoring negatives as are estimated to be false.

Garg, Wu, Smola, Balakrishnan and Lipton, "Mixture proportion estimation and PU learning: a modern approach", NeurIPS
2021, arXiv 2111.00980. They do binary classification, and rank all unlabeled samples together, once per epoch. Here
each row is ranked separately in every step, since a ranking loss only compares scores within a row."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.image_pairs.methods import WARM_UP, Method, Setting
from cw_ext import cw_loss, presets
from cw_ext.false_negatives import cvir_log_weights
from cw_ext.prior import estimate_prior

# Of an estimate, so that each row keeps a negative.
HIGHEST_PRIOR = 0.95


class CVIR(Method):
    """InfoNCE without the πN highest-scoring negatives of each row. It is given π."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.prior = setting.prior

    def loss(self, queries: Tensor, items: Tensor) -> Tensor:
        """See :meth:`Method.loss`."""
        scores = self.setting.scores(queries, items)
        log_weights = cvir_log_weights(scores.negatives.detach(), self.prior)
        arguments = presets.infonce(self.setting.temperature)
        return cw_loss(scores.positives, scores.negatives, neg_log_weights=log_weights, **arguments)


class TEDn(CVIR):
    """(TED)ⁿ: estimates π by BBE before each epoch, and leaves out as many. It is not given π.

    Args:
        setting: what it is given; the estimate is from the scores of its held-out pairs.
        same_digit: whether the positives of the estimate are pairs of different images of a digit, as the false
            negatives are, and not the two views of an image, which are more alike. These need labels.
    """

    def __init__(self, setting: Setting, same_digit: bool) -> None:
        super().__init__(setting)
        self.same_digit = same_digit
        self.prior = 0.0

    def start_epoch(self, epoch: int, encoder: nn.Module) -> None:
        """See :meth:`Method.start_epoch`."""
        if epoch < WARM_UP:
            return
        scores = self.setting.held_out_scores(encoder)
        positives = scores.same_digit if self.same_digit else scores.positives
        self.estimated_prior = estimate_prior(positives, scores.negatives).prior
        self.prior = min(self.estimated_prior, HIGHEST_PRIOR)

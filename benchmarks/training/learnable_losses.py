"""Losses with parameters, which are trained together with the model, or against it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training.negatives import Batch


class LearningLoss(nn.Module, ABC):
    """A loss of a batch, a scalar, with parameters that the trainer updates after each step."""

    @abstractmethod
    def optimizer(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """Return what updates the parameters, given the model's learning rate and weight decay."""

    def learners(self, epoch: int) -> tuple[bool, bool]:
        """Whether the model and the loss learn in this epoch, counted from 1."""
        return True, True

    def after_step(self) -> None:
        """Put the parameters back into their ranges."""


def _scores(queries: Tensor, items: Tensor, ids: Tensor) -> Tensor:
    """Inner products [B, N] of each query and its items. All items are scored, which is faster than a gather of
    [B, N, D] up to some N·D/4 items."""
    return (queries @ items.T).gather(1, ids)


def _cosines(queries: Tensor, items: Tensor, ids: Tensor) -> Tensor:
    return _scores(F.normalize(queries, dim=1), F.normalize(items, dim=1), ids)


def _pos_and_neg_ids(batch: Batch) -> Tensor:
    """The positive's id and the negatives', [B, 1 + N], to be scored at once."""
    return torch.cat([batch.pos_ids.unsqueeze(1), batch.neg_ids], dim=1)


class AdvInfoNCE(LearningLoss):
    """InfoNCE whose negatives an adversary weighs (Zhang et al., NeurIPS 2023, arXiv 2310.18700).

    −log e^{p/τ} / (e^{p/τ} + K·Σ_j δ_j e^{n_j/τ}) with cosines p and n_j. The hardness δ is N times the softmax, over a
    row's negatives, of the cosines of the adversary's own embeddings. In every ``adversary_every``-th epoch the
    adversary raises the loss and the model rests, in the others it is the other way round.

    Args:
        num_users, num_items, dim: sizes of the adversary's embeddings, which are drawn from N(0, 1).
        generator: source of the draws.
        temperature: τ on the half cosine, half of the paper's.
        adversary_every: see above, at least 2.
    """

    NEGATIVE_WEIGHT = 64.0  # K
    ADVERSARY_LR = 5e-5

    def __init__(
        self, num_users: int, num_items: int, dim: int, generator: torch.Generator, temperature: float,
        adversary_every: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.temperature, self.adversary_every = temperature, adversary_every
        self.users = nn.Parameter(torch.randn(num_users, dim, generator=generator))
        self.items = nn.Parameter(torch.randn(num_items, dim, generator=generator))

    def optimizer(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.ADVERSARY_LR, weight_decay=weight_decay, maximize=True)

    def learners(self, epoch: int) -> tuple[bool, bool]:
        adversary = epoch % self.adversary_every == 0
        return not adversary, adversary

    def forward(self, batch: Batch) -> Tensor:
        scores = _cosines(batch.queries, batch.items, _pos_and_neg_ids(batch))
        margins = (scores[:, 1:] - scores[:, :1]) / (2 * self.temperature)  # [B, N]
        hardness = F.log_softmax(_cosines(F.embedding(batch.query_ids, self.users), self.items, batch.neg_ids), dim=1)
        log_mass = torch.logsumexp(hardness + margins, dim=1) + math.log(batch.neg_ids.shape[1])
        return F.softplus(log_mass + math.log(self.NEGATIVE_WEIGHT)).mean()


class LowerLeftPartialAUC(LearningLoss):
    """The lower-left partial AUC, LLPAUC: the area where the share of positives is at most α and that of negatives
    at most β (Shi et al., WWW 2024, arXiv 2403.00844), on scores σ(inner product).

    A game of a, b, s⁻ and the model, which lower −s⁺ − mean r(−ℓ⁺ − s⁺)/α + s⁻ + mean r(ℓ⁻ − s⁻)/β − γ², with s⁺ and
    γ; here r(x) = log(1 + e^{κx})/κ, ℓ⁺ = (p − a)² − 2(1 + γ)p and ℓ⁻ = (n − b)² + 2(1 + γ)n. Multipliers hold γ above
    −a and b − 1.

    s⁺ and γ descend like all others, as in the implementation behind published numbers, whose authors report that
    training fails where they ascend, as in the paper.

    Args:
        top_positives: α in (0, 1].
        top_negatives: β in (0, 1].
    """

    SHARPNESS = 5.0  # κ

    def __init__(self, top_positives: float, top_negatives: float) -> None:
        super().__init__()
        self.top_positives, self.top_negatives = top_positives, top_negatives
        start = {"a": 1.0, "b": 0.0, "s_pos": 0.5, "s_neg": 0.5, "gamma": 0.0, "multiplier_a": 0.5, "multiplier_b": 0.5}
        for name, value in start.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))

    def optimizer(self, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        fast = [self.s_pos, self.s_neg, self.gamma]
        slow = [self.a, self.b, self.multiplier_a, self.multiplier_b]
        groups: Iterable[dict[str, Any]] = [{"params": slow}, {"params": fast, "lr": 2 * lr}]
        return torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def after_step(self) -> None:
        self.a.clamp_(0, 1)
        self.b.clamp_(0, 1)
        self.s_pos.clamp_(-1, 4)
        self.s_neg.clamp_(0, 5)
        self.gamma.clamp_(max(-self.a.item(), self.b.item() - 1), 1)

    def forward(self, batch: Batch) -> Tensor:
        scores = torch.sigmoid(_scores(batch.queries, batch.items, _pos_and_neg_ids(batch)))
        pos, neg = scores[:, :1], scores[:, 1:]
        slope = 2 * (1 + self.gamma)
        pos_loss = (pos - self.a) ** 2 - slope * pos
        neg_loss = (neg - self.b) ** 2 + slope * neg
        pos_part = F.softplus(-pos_loss - self.s_pos, beta=self.SHARPNESS).mean() / self.top_positives
        neg_part = F.softplus(neg_loss - self.s_neg, beta=self.SHARPNESS).mean() / self.top_negatives
        loss = -self.s_pos - pos_part + self.s_neg + neg_part - self.gamma**2
        bounds = self.multiplier_a * (self.a + self.gamma) + self.multiplier_b * (self.gamma + 1 - self.b)
        return loss + bounds

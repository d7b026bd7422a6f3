"""How likely a negative is a false one, estimated from scores, and the weights that the loss gets from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.training.adapter import Adapter, teach
from benchmarks.training.positives import HeldOutPositives
from cw_ext import FalseNegatives, ScoreCurve
from cw_ext.prior import estimate_prior

Family = Literal["normal", "isotonic"]
FAMILIES = get_args(Family)
MOST_CANDIDATES = 64
# So that some weight is left to every negative, however sure the estimate is.
LARGEST_PRIOR, _LARGEST_PROBABILITY = 0.9, 0.95
# Negatives scored for each validation item, which makes a smooth sample.
_UNLABELED_PER_POSITIVE = 50
_ROWS_PER_BLOCK = 4096  # of such scores, to bound what they gather

Tables = tuple[Tensor, Tensor]  # of the users and of the items, whose inner products are the scores
Draw = Callable[[Tensor, int, torch.Generator], Tensor]  # users [B], N, generator: items [B, N] drawn as negatives


@dataclass(frozen=True)
class Estimate:
    """How a loss's negatives are weighed by (1 − p_FN)^γ, with p_FN the estimated probability of a false negative.

    Attributes:
        prior: π, the share of positives among the negatives, in [0, 1), or "auto": Best Bin Estimation each time.
        family: of the densities, as of :class:`cw_ext.FalseNegatives`.
        strength: γ > 0.
        candidates: None to take p_FN as a function of the score. A number, from 1 to 64, to have an
            :class:`~benchmarks.training.adapter.Adapter` tell false negatives among so many of a row's hardest ones.
        cross_fitted: whether the positives are what the epoch before left out of its rows, by
            :class:`~benchmarks.training.positives.Folds`, rather than the validation items.
    """

    prior: float | Literal["auto"]
    family: Family = "normal"
    strength: float = 1.0
    candidates: int | None = None
    cross_fitted: bool = False

    def __post_init__(self) -> None:
        if self.prior != "auto" and not 0 <= self.prior < 1:
            raise ValueError(f"false_negative_prior must be in [0, 1) or 'auto', got {self.prior}")
        if self.family not in FAMILIES:
            raise ValueError(f"false_negative_family must be one of {', '.join(FAMILIES)}, got {self.family!r}")
        if not 0 < self.strength < math.inf:
            raise ValueError(f"false_negative_strength must be finite and > 0, got {self.strength}")
        if self.candidates is not None and not 1 <= self.candidates <= MOST_CANDIDATES:
            raise ValueError(f"adapter_candidates must be in [1, {MOST_CANDIDATES}], got {self.candidates}")
        if self.cross_fitted and self.candidates is not None:
            raise ValueError(
                "cross_fitted must be False with an adapter, which learns from items that are in no epoch's rows, got "
                f"{self.candidates} adapter_candidates"
            )

    def curve(self, positive_scores: Tensor, unlabeled_scores: Tensor) -> tuple[ScoreCurve, float]:
        """The log weight by score, and the prior that it rests on.

        Args:
            positive_scores: of positives that training has not used, any shape.
            unlabeled_scores: of items drawn as the negatives are, any shape.
        """
        prior = self.prior
        if prior == "auto":
            prior = min(estimate_prior(positive_scores, unlabeled_scores).prior, LARGEST_PRIOR)
        found = FalseNegatives.fit(positive_scores, unlabeled_scores, prior, family=self.family)
        curve = found.curve(strength=self.strength)
        least = self.strength * math.log(1 - _LARGEST_PROBABILITY)
        return replace(curve, log_weights=curve.log_weights.clamp(min=least)), prior


@dataclass(frozen=True)
class Unseen:
    """Positives that training has not seen, such as the validation items, to compare with items drawn as its negatives
    are.

    Attributes:
        users, items: int64 pairs, each [P].
        draw: of the negatives.
    """

    users: Tensor
    items: Tensor
    draw: Draw

    def scores(self, score: Callable[[Tensor, Tensor], Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scores of the positives [P, 1], and of some negatives for each [P, N].

        Args:
            score: of users [B] and items [B, N], returns [B, N].
            generator: of the negatives.
        """
        drawn = self.draw(self.users, _UNLABELED_PER_POSITIVE, generator)
        blocks = zip(self.users.split(_ROWS_PER_BLOCK), drawn.split(_ROWS_PER_BLOCK), strict=True)
        return score(self.users, self.items.unsqueeze(1)), torch.cat([score(*block) for block in blocks])


def inner_products(tables: Tables) -> Callable[[Tensor, Tensor], Tensor]:
    """The scores of users [B] and items [B, N], as :meth:`Unseen.scores` takes them."""
    return lambda users, ids: torch.einsum("bd,bnd->bn", tables[0][users], F.embedding(ids, tables[1]))


class EstimatedWeights:
    """The weights of a run's negatives, estimated again for each epoch.

    Args:
        estimate: how.
        held_out: what an adapter learns; None without one.
        dim: length of an embedding.
        generator: of what an adapter starts from.

    Attributes:
        prior: the one that the weights rest on; 0 before the first estimate.
    """

    def __init__(
        self,
        estimate: Estimate,
        held_out: HeldOutPositives | None,
        dim: int,
        generator: torch.Generator,
    ) -> None:
        self._estimate, self._held_out = estimate, held_out
        self._adapter = None if estimate.candidates is None else Adapter(dim, generator)
        self._curve: ScoreCurve | None = None
        self.prior = 0.0

    @torch.no_grad()
    def refresh(self, tables: Tables, unseen: Unseen, generator: torch.Generator) -> None:
        """Estimate the weights by scores, on the half cosine, or by an adapter that learns on before.

        Args:
            tables: with rows of length 1.
            unseen: what the estimate rests on.
            generator: of all draws.
        """
        if self._adapter is None:
            users, items = tables
            scores = unseen.scores(inner_products((users, items / 2)), generator)
        else:
            teach(self._adapter, tables, self._held_out, unseen.draw, generator)
            scores = unseen.scores(lambda users, ids: self._adapter(tables[0][users], tables[1], ids), generator)
        self._curve, self.prior = self._estimate.curve(*scores)

    def of_batch(
        self, queries: Tensor, items: Tensor, neg_ids: Tensor | None
    ) -> tuple[ScoreCurve | None, Tensor | None]:
        """A batch's ``score_curve`` and ``neg_log_weights``; None for both before the first estimate."""
        if self._adapter is None or self._curve is None:
            return self._curve, None
        tables = (queries.detach(), items.detach())
        return None, self._adapter.log_weights(*tables, neg_ids, self._estimate.candidates, self._curve)

    def state_dict(self) -> dict[str, Any]:
        """What lasts from one epoch to the next: an adapter."""
        if self._adapter is None:
            return {}
        return {"adapter": self._adapter.state_dict(), "optimizer": self._adapter.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was called, at the end of an epoch."""
        if self._adapter is not None:
            self._adapter.load_state_dict(state["adapter"])
            self._adapter.optimizer.load_state_dict(state["optimizer"])

"""Where the negatives of a training batch come from: the values of --negatives, and the calls of cw_ext for each."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cw_ext import (
    Interactions,
    ScoreCurve,
    cw_loss_from_embeddings,
    cw_loss_full,
    cw_loss_in_batch,
    draw_negatives,
    sampled_cw_loss,
)

Kind = Literal["uniform", "popularity", "shared", "in-batch", "mixed", "full", "auto", "scored", "memory", "chain"]
# Each row has its own negatives, which can be drawn before the loss.
PER_ROW = ("uniform", "popularity")
# A sampler of :mod:`benchmarks.training.samplers` draws them before the loss, by their scores.
BY_SCORE = ("scored", "memory", "chain")
# Their number can be chosen: the others take what the batch or the catalogue has.
NUMBERED = (*PER_ROW, "shared", "mixed", "auto", *BY_SCORE)
# What the number is where it can be left out.
_DEFAULT_NUMBERS = {"auto": 1000, "memory": 1, "chain": 1}
SYNTAX = "N, uniform:N, popularity:N, shared:N, in-batch, mixed:N, full, auto[:N], scored:N/K, memory[:N] or chain[:N]"
POPULARITY_EXPONENT = 0.75


class Batch(NamedTuple):
    """What a loss gets from a training step."""

    queries: Tensor  # [B, D], a user's embedding per row
    items: Tensor  # [num_items, D]
    query_ids: Tensor  # int64 [B], the users
    pos_ids: Tensor  # int64 [B]
    extra_pos_ids: Tensor | None  # int64 [B, M], extra positives, −1 where a user has none
    interactions: Interactions  # the known positives of all users
    seed: Tensor  # int64 [], for the draws of this step
    neg_ids: Tensor | None = None  # int64 [B, N], where the negatives were drawn before the loss
    thresholds: Tensor | None = None  # [B], the score of the user's K-th item, where the loss needs it
    prior: float | None = None  # the share of positives among the negatives, where it is estimated
    # Estimated weights of negatives against false ones: by score, or of each drawn one; None until the first estimate.
    score_curve: ScoreCurve | None = None
    neg_log_weights: Tensor | None = None  # [B, N]
    num_negatives: int | None = None  # how many to draw, where the number changes from epoch to epoch

    @property
    def positive_scores(self) -> Tensor:
        """The half cosines of the rows and their positives [B]."""
        return F.cosine_similarity(self.queries, F.embedding(self.pos_ids, self.items)) / 2


@dataclass(frozen=True)
class Negatives:
    """Which negatives a loss has.

    Attributes:
        kind: "uniform" and "popularity" are drawn for each row, "shared" once for all rows; "in-batch" are the other
            rows' positives, "mixed" these and some drawn for all rows; "full" is the whole catalogue. Known positives
            of a row's user are left out of all of them, and popular ones weighted down by log Q. "auto" are uniform,
            as many as each epoch's scores suggest; "scored", "memory" and "chain" are chosen by their scores, as
            :class:`cw_ext.samplers.Scored`, ``Memory`` and ``Chain`` do.
        number: N, how many are drawn, at least 1 ("auto": at most); None for the kinds that draw none.
        candidates: K, how many uniform ones the scored are drawn from, at least 1; None for the other kinds.
    """

    kind: Kind = "uniform"
    number: int | None = 1000
    candidates: int | None = None

    def __post_init__(self) -> None:
        numbered = self.kind in NUMBERED
        if (self.candidates is not None) != (self.kind == "scored") or (self.kind == "scored" and self.candidates < 1):
            raise ValueError(f"negatives must be {SYNTAX}, got kind {self.kind!r} with K={self.candidates}")
        if not (numbered or self.kind in ("in-batch", "full")) or (self.number is not None) != numbered:
            raise ValueError(f"negatives must be {SYNTAX}, got kind {self.kind!r} with number {self.number}")
        if numbered and self.number < 1:
            raise ValueError(f"negatives must be {SYNTAX}, N a whole number of at least 1, got N={self.number}")

    @classmethod
    def parse(cls, spec: str) -> Negatives:
        """Parse --negatives; a number alone means that many uniform ones.

        Raises:
            ValueError: the text is not of :data:`SYNTAX`.
        """
        match = re.fullmatch(r"(?:([a-z-]+):)?([0-9]+)(?:/([0-9]+))?|([a-z-]+)", spec)
        try:
            if match is None:
                raise ValueError
            kind, number, candidates, alone = match.groups()
            if alone:
                return cls(alone, _DEFAULT_NUMBERS.get(alone))
            return cls(kind or "uniform", int(number), None if candidates is None else int(candidates))
        except ValueError:
            raise ValueError(f"expected {SYNTAX}, N and K whole numbers of at least 1, got {spec!r}") from None

    def __str__(self) -> str:
        number = "" if self.number is None else f":{self.number}"
        return self.kind + number + ("" if self.candidates is None else f"/{self.candidates}")

    def check_drawable(self, interactions: Interactions) -> None:
        """Refuse, before training, users for whom nothing can be drawn.

        Raises:
            ValueError: there is such a user; the message has the first.
        """
        if self.kind in (*PER_ROW, "auto", *BY_SCORE):
            users = torch.arange(interactions.num_queries, device=interactions.device)
            interactions.check_has_negatives(users, "popularity" if self.kind == "popularity" else "uniform")

    def draw(self, query_ids: Tensor, interactions: Interactions, seed: Tensor) -> Tensor:
        """The ids, int64 [B, N], that the loss draws with the same seed (:data:`PER_ROW` only)."""
        return draw_negatives(
            query_ids,
            interactions,
            self.number,
            seed=seed,
            distribution=self.kind,
            popularity_exponent=POPULARITY_EXPONENT,
        )

    def cw_loss(self, batch: Batch, **loss: Any) -> Tensor:
        """The CW loss of a batch with these negatives, drawn inside unless the batch contains them.

        Args:
            batch: of one training step.
            **loss: keyword arguments that all of cw_ext's losses have.
        """
        tables = (batch.queries, batch.items)
        loss |= {"extra_pos_ids": batch.extra_pos_ids, "score_curve": batch.score_curve}
        if batch.neg_ids is not None:
            log_weights = batch.neg_log_weights
            if self.kind == "popularity":
                table = batch.interactions.popularity(POPULARITY_EXPONENT)
                log_q = table.log_weights.to(batch.queries.dtype)[batch.neg_ids]
                log_weights = log_q if log_weights is None else log_q + log_weights
            return cw_loss_from_embeddings(*tables, batch.pos_ids, batch.neg_ids, neg_log_weights=log_weights, **loss)
        match self.kind:
            case "full":
                known = {"query_ids": batch.query_ids, "interactions": batch.interactions}
                return cw_loss_full(*tables, batch.pos_ids, **known, **loss)
            case "in-batch" | "mixed":
                known = {"query_ids": batch.query_ids, "interactions": batch.interactions}
                drawn = {"num_negatives": self.number or 0, "seed": batch.seed}
                return cw_loss_in_batch(*tables, batch.pos_ids, **known, **drawn, **loss)
            case _:
                known = (batch.query_ids, batch.pos_ids, batch.interactions)
                popular = {"distribution": "popularity", "popularity_exponent": POPULARITY_EXPONENT}
                drawn = {"seed": batch.seed, "shared": self.kind == "shared"}
                drawn |= popular if self.kind == "popularity" else {}
                return sampled_cw_loss(*tables, *known, batch.num_negatives or self.number, **drawn, **loss)


def negatives_argument(text: str) -> Negatives:
    """Parse the value of a command's --negatives."""
    try:
        return Negatives.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None

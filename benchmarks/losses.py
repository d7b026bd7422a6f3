"""The losses that a benchmark can train with, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F

from cw_ext import cw_loss_from_embeddings, presets


@dataclass(frozen=True)
class LossOptions:
    """Hyper-parameters of the losses; each loss takes those it knows and leaves the others.

    Attributes:
        temperature: τ on the half cosine, so half of a value published for the cosine. PSL's formula has the
            half cosine in it, so its published values stand.
        prior: share π of sampled negatives that are positives (cw, dcl).
        extra_positives: further positives per row for the correction (cw, dcl).
        confidence_temperature: τ_c of the confidence in the positive, on the half cosine; None for none (cw).
        backend: "auto", "fused" or "reference", for every loss of the softmax family.
    """

    temperature: float = 0.1
    prior: float = 0.05
    extra_positives: int = 5
    confidence_temperature: float | None = 1.25
    backend: str = "auto"


class BatchLoss(Protocol):
    """A training loss of one batch, as a scalar.

    Args:
        queries: user embeddings [B, D], one row per positive.
        items: table of all item embeddings [num_items, D].
        pos_ids: int64 item ids [B].
        neg_ids: int32 item ids [B, N].
        extra_pos_ids: int64 item ids [B, M], -1 where a user has none; or None.
    """

    def __call__(
        self,
        queries: torch.Tensor,
        items: torch.Tensor,
        pos_ids: torch.Tensor,
        neg_ids: torch.Tensor,
        extra_pos_ids: torch.Tensor | None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class RankingLoss:
    """A loss and what training with it needs to know.

    Attributes:
        name: its key in :data:`LOSSES`.
        function: the loss of a batch.
        similarity: how embeddings trained with it score an item, and thus rank it.
        settings: the hyper-parameters that it uses, for tables and result files.
        max_negatives: how many negatives per row it can use; None for any number.
        extra_positives: how many further positives per row it wants.
    """

    name: str
    function: BatchLoss
    similarity: Literal["cosine", "dot"]
    settings: dict[str, Any]
    max_negatives: int | None = None
    extra_positives: int = 0


def bpr_loss(
    queries: torch.Tensor,
    items: torch.Tensor,
    pos_ids: torch.Tensor,
    neg_ids: torch.Tensor,
    extra_pos_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bayesian personalised ranking: mean softplus(s_neg - s_pos), inner products (Rendle et al., UAI 2009).

    Takes the first column of neg_ids only; otherwise as :class:`BatchLoss`.
    """
    margins = F.embedding(neg_ids[:, 0], items) - F.embedding(pos_ids, items)  # [B, D]
    return F.softplus((queries * margins).sum(-1)).mean()


def _bpr(options: LossOptions) -> RankingLoss:
    return RankingLoss("bpr", bpr_loss, "dot", settings={}, max_negatives=1)


def _softmax_family(
    name: str, arguments: dict[str, Any], options: LossOptions, extra_positives: int = 0
) -> RankingLoss:
    def function(
        queries: torch.Tensor,
        items: torch.Tensor,
        pos_ids: torch.Tensor,
        neg_ids: torch.Tensor,
        extra_pos_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        return cw_loss_from_embeddings(
            queries,
            items,
            pos_ids,
            neg_ids,
            extra_pos_ids=extra_pos_ids,
            similarity="half_cosine",
            backend=options.backend,
            **arguments,
        )

    settings = {**arguments, "extra_positives": extra_positives, "backend": options.backend}
    return RankingLoss(name, function, "cosine", settings, extra_positives=extra_positives)


def _cw(options: LossOptions) -> RankingLoss:
    arguments = presets.cw(options.temperature, options.prior, options.confidence_temperature)
    return _softmax_family("cw", arguments, options, options.extra_positives)


def _dcl(options: LossOptions) -> RankingLoss:
    return _softmax_family("dcl", presets.dcl(options.temperature, options.prior), options, options.extra_positives)


def _psl(surrogate: str) -> Callable[[LossOptions], RankingLoss]:
    return lambda options: _softmax_family(f"psl-{surrogate}", presets.psl(options.temperature, surrogate), options)


LOSSES: dict[str, Callable[[LossOptions], RankingLoss]] = {
    "bpr": _bpr,
    "sl": lambda options: _softmax_family("sl", presets.sl(options.temperature), options),
    "infonce": lambda options: _softmax_family("infonce", presets.infonce(options.temperature), options),
    "dcl": _dcl,
    "psl-tanh": _psl("tanh"),
    "psl-atan": _psl("atan"),
    "psl-relu": _psl("relu"),
    "cw": _cw,
}


def build_loss(name: str, options: LossOptions = LossOptions()) -> RankingLoss:
    """Return the loss of that name, after a trial call that brings up bad hyper-parameters before training.

    Raises:
        ValueError: an unknown name, or a hyper-parameter out of its range.
        RuntimeError: backend "fused" without compiled kernels.
    """
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    if options.extra_positives < 0:
        raise ValueError(f"extra_positives must be at least 0, got {options.extra_positives}")
    loss = LOSSES[name](options)
    ids = torch.zeros(1, 1, dtype=torch.int64)
    loss.function(torch.ones(1, 1), torch.ones(1, 1), ids[0], ids, None)
    return loss

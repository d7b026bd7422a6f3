"""The losses that a benchmark can train with, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from benchmarks.negatives import PER_ROW, Batch, Negatives
from cw_ext import Interactions, presets


@dataclass(frozen=True)
class LossOptions:
    """Hyper-parameters of the losses; each loss takes those it knows and leaves the others.

    Attributes:
        temperature: τ on the half cosine, so half of a value published for the cosine. PSL's formula has the
            half cosine in it, so its published values stand.
        prior: share π of sampled negatives that are positives (cw, dcl).
        extra_positives: further positives per row for the correction (cw, dcl).
        confidence_temperature: τ_c of the confidence in the positive, on the half cosine; None for none (cw).
        negatives: which negatives a row has; bpr takes one of those drawn for it.
        backend: "auto", "fused" or "reference", for every loss of the softmax family. With the reference, negatives of
            each row's own are drawn before the loss (by the kernels, where there are any), as a user of plain PyTorch
            does; they are those that the fused loss draws.
    """

    temperature: float = 0.1
    prior: float = 0.05
    extra_positives: int = 5
    confidence_temperature: float | None = 1.25
    negatives: Negatives = Negatives()
    backend: str = "auto"


BatchLoss = Callable[[Batch], torch.Tensor]  # a scalar


@dataclass(frozen=True)
class RankingLoss:
    """A loss and what training with it needs to know.

    Attributes:
        name: its key in :data:`LOSSES`.
        function: the loss of a batch.
        similarity: how embeddings trained with it score an item, and thus rank it.
        settings: the hyper-parameters that it uses, for tables and result files.
        negatives: which it has.
        takes_ids: whether a batch has to bring the negatives, as the loss does not draw them itself.
        extra_positives: how many further positives per row it wants.
    """

    name: str
    function: BatchLoss
    similarity: Literal["cosine", "dot"]
    settings: dict[str, Any]
    negatives: Negatives
    takes_ids: bool = False
    extra_positives: int = 0


def bpr_loss(batch: Batch) -> torch.Tensor:
    """Bayesian personalised ranking: mean softplus(s_neg - s_pos), inner products (Rendle et al., UAI 2009).

    Takes the first column of neg_ids only.
    """
    margins = F.embedding(batch.neg_ids[:, 0], batch.items) - F.embedding(batch.pos_ids, batch.items)  # [B, D]
    return F.softplus((batch.queries * margins).sum(-1)).mean()


def _bpr(options: LossOptions) -> RankingLoss:
    if options.negatives.kind not in PER_ROW:
        raise ValueError(
            f"negatives of bpr must be drawn for each row, uniform:N or popularity:N, got {options.negatives}"
        )
    one = Negatives(options.negatives.kind, 1)
    return RankingLoss("bpr", bpr_loss, "dot", {"negatives": str(one)}, one, takes_ids=True)


def _softmax_family(
    name: str, arguments: dict[str, Any], options: LossOptions, extra_positives: int = 0
) -> RankingLoss:
    negatives, backend = options.negatives, options.backend

    def function(batch: Batch) -> torch.Tensor:
        return negatives.cw_loss(batch, similarity="half_cosine", backend=backend, **arguments)

    settings = {
        **arguments, "extra_positives": extra_positives, "negatives": str(negatives), "backend": backend
    }  # fmt: skip
    takes_ids = backend == "reference" and negatives.kind in PER_ROW
    return RankingLoss(name, function, "cosine", settings, negatives, takes_ids, extra_positives)


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
    loss.function(_trial_batch(loss))
    return loss


def _trial_batch(loss: RankingLoss) -> Batch:
    """A row of a user who knows one of two items."""
    ids, seed = torch.arange(2), torch.tensor(0)
    interactions = Interactions(ids, ids, num_queries=2, num_items=2)
    neg_ids = loss.negatives.draw(ids[:1], interactions, seed) if loss.takes_ids else None
    return Batch(torch.ones(1, 1), torch.ones(2, 1), ids[:1], ids[:1], None, interactions, seed, neg_ids)

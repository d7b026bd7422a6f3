"""The losses that a benchmark can train with, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.training.estimates import Estimate, Family
from benchmarks.training.falling_pull import with_falling_pull
from benchmarks.training.learnable_losses import AdvInfoNCE, LowerLeftPartialAUC
from benchmarks.training.negatives import BY_SCORE, PER_ROW, Batch, Negatives
from benchmarks.training.positives import LIKELY, Likely
from benchmarks.training.samplers import SRNS_TEMPERATURE, SamplerOptions
from benchmarks.training.talos import KINDS as TALOS_KINDS
from benchmarks.training.talos import Talos
from benchmarks.training.topk_thresholds import LearnedThresholds
from cw_ext import Interactions, presets

DEFAULT_TOP_K = 20
# τ_w/τ of slk.
CONFIDENCE_RATIO = 12.5
# Kinds of negatives that are a uniform sample of all items, or all of them.
COUNTED = ("uniform", "shared", "full")
# Losses whose correction uses extra positives.
CORRECTED = ("cw", "dcl")
# Losses whose pull on the positive can fall with the row's loss.
FALLING = ("cw", "sl", "slk")


@dataclass(frozen=True)
class LossOptions:
    """Hyper-parameters of the losses; each loss ignores those it does not have.

    Attributes:
        temperature: τ on the half cosine, so half of a value published for the cosine. PSL's formula uses
            the half cosine, so its published values hold as they are. BSL's τ₂, of the negatives.
        positive_temperature: τ⁺, a temperature of the positive's own, on the half cosine, as of
            :func:`cw_ext.cw_loss`; None for none (the softmax family but bsl).
        falling_pull: κ in (0, 1), as of :func:`benchmarks.training.falling_pull.with_falling_pull`; None for none
            (cw, sl, slk).
        bsl_positive_temperature: τ₁ (bsl).
        prior: share π of sampled negatives that are positives, or "auto": estimated at each validation, and 0 until
            the first (cw, dcl).
        extra_positives: extra positives per row for the correction (cw, dcl).
        held_out_positives: whether these come from a tenth of each user's training items, which is in no row (cw, dcl).
            Training still raises their scores: the correction's gradient does.
        likely_positives: whether these are items that the user does not know and probably likes, as
            :class:`cw_ext.LikelyPositives` finds them, and how; None for known ones. Without a prior, without extra
            positives and with held-out ones it changes nothing (cw, dcl).
        weighting, weight_temperature, floor: of the weights and the correction, as of :func:`cw_ext.cw_loss` (cw).
        confidence_temperature: τ_c of the confidence in the positive, on the half cosine; None for none (cw), or for
            12.5 times `temperature` (slk's τ_w).
        confidence_detached: whether the confidence is a constant in the gradient (cw).
        confidence_top_k: K of the score that the confidence is measured from, that of a user's K-th item; None for
            a score of 0 (cw; slk's and talos's K, which is 20 for None).
        refresh_epochs: T, epochs from one pass over the catalogue that estimates these scores to the next; None to
            learn them from the negatives of each step, without a pass (cw, slk, talos).
        top_positives, top_negatives: α and β of the lower-left partial AUC (llpauc).
        adversary_every: the adversary learns in epochs that this divides, the model in the others (advinfonce).
        false_negative_prior, false_negative_family, false_negative_strength, adapter_candidates, cross_fitted: the
            fields of an :class:`~benchmarks.training.estimates.Estimate`, made again for each epoch from the second on,
            whose weights the negatives get; no prior for no such weights (the softmax family; cw and dcl without a
            prior).
        negatives: which negatives a row has; bpr takes one of those drawn for it.
        sampler_temperature: τ of the softmax by which scored negatives, chains and memories are drawn; None for
            `temperature`. On inner products (bpr) it is required, except for a memory, which has SRNS' 10.
        scored_corrected: whether scored negatives are weighed by one over the weight that they were drawn by, so that
            the loss has its uniform target again (the softmax family).
        memory_pool: items in a user's pool, of which a memory of negatives is drawn; at most as many as there are.
        stage_prior: share of the negatives that are positives, from which the number of "auto" ones is found for each
            epoch, or "auto": estimated too.
        backend: "auto", "fused" or "reference", for every loss of the softmax family. With the reference, negatives of
            each row's own are drawn before the loss (by the kernels, where there are any), as a user of plain PyTorch
            does; they are those that the fused loss draws.
    """

    temperature: float = 0.1
    positive_temperature: float | None = None
    falling_pull: float | None = None
    bsl_positive_temperature: float = 0.1
    prior: float | Literal["auto"] = 0.1
    extra_positives: int = 20
    held_out_positives: bool = False
    likely_positives: Likely | None = "auto"
    weighting: str = "none"
    weight_temperature: float | None = None
    floor: float = 0.3
    confidence_temperature: float | None = None
    confidence_detached: bool = False
    confidence_top_k: int | None = None
    refresh_epochs: int | None = None
    top_positives: float = 0.7
    top_negatives: float = 0.1
    adversary_every: int = 5
    false_negative_prior: float | Literal["auto"] | None = None
    false_negative_family: Family = "normal"
    false_negative_strength: float = 1.0
    adapter_candidates: int | None = None
    cross_fitted: bool = False
    negatives: Negatives = Negatives()
    sampler_temperature: float | None = None
    scored_corrected: bool = False
    memory_pool: int = 128
    stage_prior: float | Literal["auto"] = 0.001
    backend: str = "auto"


class Thresholds(NamedTuple):
    """The scores of a pass over the catalogue that a loss measures its confidence from, and how often it is made."""

    k: int
    refresh_epochs: int


BatchLoss = Callable[[Batch], torch.Tensor]  # a scalar


@dataclass(frozen=True)
class RankingLoss:
    """A loss, and what the trainer has to know about it.

    Attributes:
        name: its key in :data:`LOSSES`.
        build: returns the loss of a batch, given the number of users, of items, the embeddings' length, and a
            generator of what the loss starts from. A module if it has a state, a
            :class:`~benchmarks.training.learnable_losses.LearningLoss` if it learns by gradients.
        similarity: how embeddings trained with it score an item, and thus rank it.
        settings: the hyper-parameters that it uses, for tables and result files.
        negatives: which kind it uses, and how many.
        takes_ids: whether a batch must contain the negatives, since the loss does not draw them itself.
        extra_positives: how many extra positives per row it needs.
        likely_positives: how these are found, where they are not known ones.
        thresholds: what ``Batch.thresholds`` must be; None if it needs none.
        estimates_prior: whether it needs ``Batch.prior``.
        estimate: where its negatives' weights come from, ``Batch.score_curve`` or, with an adapter,
            ``Batch.neg_log_weights``; None if it has none.
        sampler: how its negatives are chosen by their scores; None where they are not. It takes what that draws as
            ``Batch.neg_ids``, and their weights as ``Batch.neg_log_weights``.
        holds_out: whether a tenth of each user's training items must be in no row: it has its extra positives from
            these, or an adapter learns them.
        initial_std: standard deviation of the embeddings that training starts from, given a table's rows and columns.
    """

    name: str
    build: Callable[[int, int, int, torch.Generator], BatchLoss]
    similarity: Literal["cosine", "dot"]
    settings: dict[str, Any]
    negatives: Negatives
    takes_ids: bool = False
    extra_positives: int = 0
    likely_positives: Likely | None = None
    thresholds: Thresholds | None = None
    estimates_prior: bool = False
    estimate: Estimate | None = None
    sampler: SamplerOptions | None = None
    holds_out: bool = False
    initial_std: Callable[[int, int], float] = lambda rows, columns: 1.0


def bpr_loss(batch: Batch) -> torch.Tensor:
    """Bayesian personalised ranking: mean softplus(s_neg - s_pos), inner products (Rendle et al., UAI 2009).

    Takes the first column of neg_ids only.
    """
    margins = F.embedding(batch.neg_ids[:, 0], batch.items) - F.embedding(batch.pos_ids, batch.items)  # [B, D]
    return F.softplus((batch.queries * margins).sum(-1)).mean()


def _per_row(name: str, options: LossOptions) -> Negatives:
    if options.negatives.kind not in PER_ROW:
        raise ValueError(
            f"negatives of {name} must be drawn for each row, uniform:N or popularity:N, got {options.negatives}"
        )
    return options.negatives


def _sampler(
    negatives: Negatives, similarity: Literal["half_cosine", "dot"], options: LossOptions
) -> SamplerOptions | None:
    if negatives.kind not in BY_SCORE:
        return None
    temperature = options.sampler_temperature
    if temperature is None and similarity == "half_cosine":
        temperature = options.temperature
    elif temperature is None and negatives.kind == "memory":
        temperature = SRNS_TEMPERATURE
    elif temperature is None:
        raise ValueError(
            f"sampler_temperature (--sampler-tau) must be given for {negatives} on inner products, got None"
        )
    corrected = options.scored_corrected and similarity == "half_cosine"  # bpr has no weights
    return SamplerOptions(negatives, similarity, temperature, options.memory_pool, corrected)


def _bpr(options: LossOptions) -> RankingLoss:
    given = options.negatives if options.negatives.kind in BY_SCORE else _per_row("bpr", options)
    one = replace(given, number=1)
    sampler = _sampler(one, "dot", options)
    return RankingLoss(
        "bpr",
        lambda *sizes: bpr_loss,
        "dot",
        {"negatives": str(one), **(sampler.settings if sampler else {})},
        one,
        takes_ids=sampler is None,
        sampler=sampler,
        initial_std=lambda rows, columns: math.sqrt(2 / (rows + columns)),  # Glorot's, as for published numbers
    )


def _advinfonce(options: LossOptions) -> RankingLoss:
    arguments = {"temperature": options.temperature, "adversary_every": options.adversary_every}
    if options.adversary_every < 2:
        raise ValueError(f"adversary_every must be at least 2, got {options.adversary_every}")
    if not 0 < options.temperature < math.inf:
        raise ValueError(f"temperature must be finite and > 0, got {options.temperature}")
    negatives = _per_row("advinfonce", options)
    return RankingLoss(
        "advinfonce",
        lambda *sizes: AdvInfoNCE(*sizes, **arguments),
        "cosine",
        {**arguments, "negatives": str(negatives)},
        negatives,
        takes_ids=True,
    )


def _llpauc(options: LossOptions) -> RankingLoss:
    arguments = {"top_positives": options.top_positives, "top_negatives": options.top_negatives}
    for name, share in arguments.items():
        if not 0 < share <= 1:
            raise ValueError(f"{name} must be in (0, 1], got {share}")
    negatives = _per_row("llpauc", options)
    return RankingLoss(
        "llpauc",
        lambda *sizes: LowerLeftPartialAUC(**arguments),
        "dot",
        {**arguments, "negatives": str(negatives)},
        negatives,
        takes_ids=True,
        initial_std=lambda rows, columns: 0.01,  # as its authors'
    )


def _softmax_family(
    name: str,
    arguments: dict[str, Any],
    options: LossOptions,
    *,
    extra_positives: int = 0,
    top_k: int | None = None,
    scale: float = 1.0,
) -> RankingLoss:
    negatives, backend = options.negatives, options.backend
    pull = options.falling_pull if name in FALLING else None
    if pull is not None and not 0 < pull < 1:
        raise ValueError(f"falling_pull must be in (0, 1), got {pull}")
    estimates_prior = arguments.get("prior") == "auto"
    thresholds = _thresholds(top_k, options)
    estimate = _estimate(name, arguments, options)
    has_adapter = estimate is not None and estimate.candidates is not None
    held_out_positives, likely_positives = _extra_positives_from(name, options, extra_positives, arguments)

    def with_given(batch: Batch, **given: Any) -> Any:
        if estimates_prior:
            given["prior"] = batch.prior
        return negatives.cw_loss(batch, similarity="half_cosine", backend=backend, **{**arguments, **given})

    loss = with_given if pull is None else with_falling_pull(with_given, pull, options.temperature)

    def function(batch: Batch) -> torch.Tensor:
        return loss(batch) if scale == 1 else scale * loss(batch)

    build = _from_top_k(loss, top_k, thresholds, negatives) if top_k is not None else lambda *sizes: function

    settings = {
        **arguments, "extra_positives": extra_positives, "negatives": str(negatives), "backend": backend
    }  # fmt: skip
    if pull is not None:
        settings |= {"falling_pull": pull}
    if top_k is not None:
        settings |= {"confidence_top_k": top_k}
    if thresholds is not None:
        settings |= {"refresh_epochs": thresholds.refresh_epochs}
    if held_out_positives:
        settings |= {"held_out_positives": True}
    elif extra_positives and arguments.get("prior"):
        settings |= {"likely_positives": likely_positives}
    sampler = _sampler(negatives, "half_cosine", options)
    if sampler is not None:
        settings |= sampler.settings
    if negatives.kind == "auto":
        settings |= {"stage_prior": _stage_prior(options)}
    if estimate is not None:
        settings |= {
            "false_negative_prior": estimate.prior,
            "false_negative_family": estimate.family,
            "false_negative_strength": estimate.strength,
            "adapter_candidates": estimate.candidates,
        }
        if estimate.cross_fitted:
            settings |= {"cross_fitted": True}
    return RankingLoss(
        name,
        build,
        "cosine",
        settings,
        negatives,
        takes_ids=has_adapter or (backend == "reference" and negatives.kind in PER_ROW),
        extra_positives=extra_positives,
        likely_positives=likely_positives,
        thresholds=thresholds,
        estimates_prior=estimates_prior,
        estimate=estimate,
        sampler=sampler,
        holds_out=held_out_positives or has_adapter,
    )


def _extra_positives_from(
    name: str, options: LossOptions, number: int, arguments: dict[str, Any]
) -> tuple[bool, Likely | None]:
    """Whether the extra positives are held out of the rows, and how they are found where they are likely ones."""
    if name not in CORRECTED:
        return False, None
    if options.likely_positives not in (None, *LIKELY):
        raise ValueError(f"likely_positives must be one of {', '.join(LIKELY)}, got {options.likely_positives!r}")
    corrected = number and arguments["prior"]
    if options.held_out_positives and not corrected:
        raise ValueError(
            f"held_out_positives of {name} need extra_positives and a prior, got {number} and {arguments['prior']}"
        )
    return (
        options.held_out_positives,
        options.likely_positives if corrected and not options.held_out_positives else None,
    )


def _stage_prior(options: LossOptions) -> float | str:
    if options.stage_prior != "auto" and not 0 <= options.stage_prior < 1:
        raise ValueError(f"stage_prior must be in [0, 1) or 'auto', got {options.stage_prior}")
    return options.stage_prior


def _estimate(name: str, arguments: dict[str, Any], options: LossOptions) -> Estimate | None:
    if options.false_negative_prior is None:
        if options.adapter_candidates is not None:
            raise ValueError("adapter_candidates need a false_negative_prior, got None")
        return None
    if arguments.get("prior"):  # false negatives would be taken out twice
        raise ValueError(f"prior of {name} must be 0 with a false_negative_prior, got {arguments['prior']}")
    if options.adapter_candidates is not None:
        _per_row(f"{name} with an adapter", options)
    return Estimate(
        options.false_negative_prior,
        options.false_negative_family,
        options.false_negative_strength,
        options.adapter_candidates,
        options.cross_fitted,
    )


def _thresholds(k: int | None, options: LossOptions) -> Thresholds | None:
    """Those of passes over the catalogue; None where there are none or the loss learns them itself."""
    if k is None:
        return None
    for name, value in (("confidence_top_k", k), ("refresh_epochs", options.refresh_epochs)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if options.refresh_epochs is not None:
        return Thresholds(k, options.refresh_epochs)
    if options.negatives.kind not in COUNTED:
        raise ValueError(
            f"refresh_epochs must be given with {options.negatives} negatives, since the score of a user's K-th best "
            f"item is learned from {', '.join(COUNTED)} ones only, got None"
        )
    return None


def _from_top_k(
    loss: Callable[..., Any], k: int, thresholds: Thresholds | None, negatives: Negatives
) -> Callable[..., BatchLoss]:
    """How a loss is built that is called with a batch and the score of each user's K-th item."""

    def build(num_users: int, num_items: int, *_: Any) -> BatchLoss:
        if thresholds is not None:
            return lambda batch: loss(batch, confidence_threshold=batch.thresholds)
        return LearnedThresholds(loss, k, num_users, num_items, negatives.number)

    return build


def _own_positive_temperature(options: LossOptions) -> dict[str, Any]:
    return {} if options.positive_temperature is None else {"positive_temperature": options.positive_temperature}


def _top_k(options: LossOptions) -> int:
    return DEFAULT_TOP_K if options.confidence_top_k is None else options.confidence_top_k


def _slk(options: LossOptions) -> RankingLoss:
    confidence_temperature = options.confidence_temperature
    if confidence_temperature is None:
        confidence_temperature = CONFIDENCE_RATIO * options.temperature
    elif not confidence_temperature > 0:
        raise ValueError(f"confidence_temperature of slk must be > 0, got {confidence_temperature}")
    arguments = presets.slk(options.temperature, confidence_temperature) | _own_positive_temperature(options)
    return _softmax_family("slk", arguments, options, top_k=_top_k(options))


def _talos(options: LossOptions) -> RankingLoss:
    negatives, k = options.negatives, _top_k(options)
    if negatives.kind not in TALOS_KINDS:
        raise ValueError(f"negatives of talos must be of the kinds {', '.join(TALOS_KINDS)}, got {negatives}")
    thresholds = _thresholds(k, options)
    settings = {"temperature": options.temperature, "confidence_top_k": k, "negatives": str(negatives)}
    if thresholds is not None:
        settings |= {"refresh_epochs": thresholds.refresh_epochs}
    return RankingLoss(
        "talos",
        _from_top_k(Talos(options.temperature, negatives, options.backend), k, thresholds, negatives),
        "cosine",
        settings | {"backend": options.backend},
        negatives,
        takes_ids=negatives.kind == "uniform",
        thresholds=thresholds,
    )


def _first_prior(options: LossOptions) -> float:
    """What a preset takes: "auto" is this package's own."""
    return 0.0 if options.prior == "auto" else options.prior


def _cw(options: LossOptions) -> RankingLoss:
    if options.confidence_top_k is not None and options.confidence_temperature is None:
        raise ValueError("confidence_temperature must be > 0 where confidence_top_k is given, got None")
    arguments = presets.cw(options.temperature, _first_prior(options), options.confidence_temperature)
    arguments |= {
        "prior": options.prior,
        "weighting": options.weighting,
        "weight_temperature": options.weight_temperature,
        "floor": options.floor,
        **_own_positive_temperature(options),
    }
    if options.confidence_detached:
        return _detached_cw(arguments, options)
    return _softmax_family(
        "cw", arguments, options, extra_positives=options.extra_positives, top_k=options.confidence_top_k
    )


def _detached_cw(arguments: dict[str, Any], options: LossOptions) -> RankingLoss:
    """CW whose confidence weights the rows as a constant, without a gradient."""
    tau = arguments["confidence_temperature"]
    if tau is None or options.confidence_top_k is not None or options.falling_pull is not None:
        raise ValueError(
            "confidence_detached needs a confidence_temperature, and no confidence_top_k or falling_pull, "
            f"got {tau}, {options.confidence_top_k} and {options.falling_pull}"
        )
    loss = _softmax_family("cw", arguments | {"confidence_temperature": None}, options,
                           extra_positives=options.extra_positives)  # fmt: skip

    def function(batch: Batch) -> torch.Tensor:
        confidence = torch.sigmoid(batch.positive_scores.detach() / tau)
        given = arguments | {"confidence_temperature": None, "row_weights": confidence}
        return options.negatives.cw_loss(batch, similarity="half_cosine", backend=options.backend, **given)

    settings = loss.settings | {"confidence_temperature": tau, "confidence_detached": True}
    return replace(loss, build=lambda *sizes: function, settings=settings)


def _dcl(options: LossOptions) -> RankingLoss:
    arguments = presets.dcl(options.temperature, _first_prior(options)) | {"prior": options.prior}
    arguments |= _own_positive_temperature(options)
    return _softmax_family("dcl", arguments, options, extra_positives=options.extra_positives)


def _bsl(options: LossOptions) -> RankingLoss:
    positive = options.bsl_positive_temperature
    if not 0 < positive < math.inf:
        raise ValueError(f"bsl_positive_temperature must be finite and > 0, got {positive}")
    loss = _softmax_family("bsl", presets.bsl(options.temperature), options, scale=options.temperature / positive)
    # Under the name that results have had from the first.
    return replace(loss, settings=loss.settings | {"positive_temperature": positive})


def _of_preset(name: str, preset: Callable[[float], presets.SLArguments]) -> Callable[[LossOptions], RankingLoss]:
    """A loss that is a preset of the temperature and nothing else."""
    return lambda options: _softmax_family(
        name, preset(options.temperature) | _own_positive_temperature(options), options
    )


def _psl(surrogate: str) -> Callable[[LossOptions], RankingLoss]:
    return _of_preset(f"psl-{surrogate}", lambda temperature: presets.psl(temperature, surrogate))


LOSSES: dict[str, Callable[[LossOptions], RankingLoss]] = {
    "bpr": _bpr,
    "llpauc": _llpauc,
    "sl": _of_preset("sl", presets.sl),
    "infonce": _of_preset("infonce", presets.infonce),
    "dcl": _dcl,
    "advinfonce": _advinfonce,
    "bsl": _bsl,
    "psl-tanh": _psl("tanh"),
    "psl-atan": _psl("atan"),
    "psl-relu": _psl("relu"),
    "slk": _slk,
    "talos": _talos,
    "cw": _cw,
}


def build_loss(name: str, options: LossOptions = LossOptions()) -> RankingLoss:
    """Return the loss of that name, after a trial call that detects bad hyper-parameters before training.

    Raises:
        ValueError: an unknown name, or a hyper-parameter out of its range.
        RuntimeError: backend "fused" without compiled kernels.
    """
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    if options.extra_positives < 0:
        raise ValueError(f"extra_positives must be at least 0, got {options.extra_positives}")
    loss = LOSSES[name](options)
    loss.build(2, 2, 1, torch.Generator())(_trial_batch(loss))
    return loss


def _trial_batch(loss: RankingLoss) -> Batch:
    """A row of a user who knows one of two items."""
    ids, seed = torch.arange(2), torch.tensor(0)
    interactions = Interactions(ids, ids, num_queries=2, num_items=2)
    neg_ids = loss.negatives.draw(ids[:1], interactions, seed) if loss.takes_ids else None
    if loss.sampler is not None:
        neg_ids = ids[:1].unsqueeze(1)
    known = (interactions, seed, neg_ids, torch.zeros(1), 0.0)
    return Batch(torch.ones(1, 1), torch.ones(2, 1), ids[:1], ids[:1], None, *known)

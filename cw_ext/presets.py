"""Other losses as arguments of this one: each returns keyword arguments for `cw_loss` and its other forms.

A wrong argument raises TypeError or ValueError; the message contains it.

>>> cw_loss(pos_scores, neg_scores, **presets.infonce(temperature=0.1))
>>> CWLoss(**presets.dcl(temperature=0.1, prior=0.05), reduction="sum")

The same loss needs the same scores. Where scores are computed here, from embeddings, a preset also sets how:
`similarity`, "half_cosine" (the default), "cosine" or "dot". The temperature is on its scale, and may be a tensor, but
not in `hcl` and `bsl`.

>>> cw_loss_from_embeddings(queries, items, pos_ids, neg_ids, **presets.sl(5.0, similarity="dot"))
"""

from __future__ import annotations

from typing import Literal, TypedDict, TypeVar, cast

from torch import Tensor

from cw_ext import checks
from cw_ext.embedding_batch import Similarity, check_similarity
from cw_ext.parameters import LossArguments, Surrogate, Weighting, resolve

Margin = float | Literal["lowest"] | None

# What each preset sets, and nothing else, so that a type checker accepts other arguments beside it. The similarity is
# left out, as the loss on scores has none.


class SLArguments(TypedDict):
    weighting: Weighting
    temperature: float | Tensor


class InfoNCEArguments(SLArguments):
    include_positive: bool


class PUCLArguments(InfoNCEArguments):
    prior: float


class DCLArguments(PUCLArguments):
    min_margin: float | None


class HCLArguments(DCLArguments):
    weight_temperature: float
    detach_weights: bool
    normalize_weights: bool


class PSLArguments(SLArguments):
    surrogate: Surrogate


class SLKArguments(SLArguments):
    confidence_temperature: float


class CWArguments(SLArguments):
    prior: float
    confidence_temperature: float | None


_Arguments = TypeVar("_Arguments", bound=SLArguments)


def _checked(arguments: _Arguments, similarity: Similarity | None = None) -> _Arguments:
    resolve(cast(LossArguments, arguments))
    if similarity is None:
        return arguments
    check_similarity(similarity)
    return cast(_Arguments, {**arguments, "similarity": similarity})


def _lowest_margin(min_margin: Margin, similarity: Similarity | None) -> float | None:
    if not isinstance(min_margin, str) or min_margin != "lowest":
        return min_margin  # anything else is checked by resolve()
    if similarity == "dot":
        raise ValueError(
            "min_margin must be a number or None with similarity='dot', whose margins have no lowest, got 'lowest'"
        )
    return -2.0 if similarity == "cosine" else -1.0


def sl(temperature: float | Tensor = 0.1, *, similarity: Similarity | None = None) -> SLArguments:
    """Sampled softmax: log Σ_j exp(d_j/τ) (the softmax loss, SL; Wu et al., 2022, arXiv 2201.02327)."""
    arguments: SLArguments = {"weighting": "none", "temperature": temperature}
    return _checked(arguments, similarity)


def infonce(temperature: float | Tensor = 0.1, *, similarity: Similarity | None = None) -> InfoNCEArguments:
    """InfoNCE: −log e^{s⁺/τ} / (e^{s⁺/τ} + Σ_j e^{s_j/τ}) (van den Oord et al., 2018, arXiv 1807.03748)."""
    arguments: InfoNCEArguments = {"weighting": "none", "temperature": temperature, "include_positive": True}
    return _checked(arguments, similarity)


def dcl(
    temperature: float | Tensor = 0.1,
    prior: float = 0.1,
    min_margin: Margin = "lowest",
    *,
    similarity: Similarity | None = None,
) -> DCLArguments:
    """Debiased contrastive loss (Chuang et al., 2020, arXiv 2007.00224, eq. 8).

    Without extra positives the anchor's own positive is the sample of E_{p⁺}, the paper's M = 1.

    Args:
        temperature: τ.
        prior: τ⁺.
        min_margin: where the paper floors the corrected mass. "lowest": at the smallest margin that the scores allow,
            −1 for the half cosine (and where no similarity is given), −2 for the cosine, none for "dot". The paper's
            floor, e^{−1/τ} on the scale of the scores, is this one for a positive with the highest possible score.
            None: the relative floor of this package.
        similarity: see above.
    """
    arguments: DCLArguments = {
        "weighting": "none",
        "temperature": temperature,
        "prior": prior,
        "min_margin": _lowest_margin(min_margin, similarity),
        "include_positive": True,
    }
    return _checked(arguments, similarity)


def pucl(
    temperature: float | Tensor = 0.1,
    prior: float = 0.1,
    label_frequency: float = 0.5,
    *,
    similarity: Similarity | None = None,
) -> PUCLArguments:
    """Positive-unlabeled contrastive loss (Wang et al., 2024, arXiv 2401.08690).

    The unlabeled samples are those left after removing the labeled positives, so positives are the share
    α(1 − c)/(1 − αc) of them; with c → 0 this is DCL's correction. The floor is this package's relative one.

    Args:
        temperature: τ.
        prior: α in [0, 1), the share of positives among all samples.
        label_frequency: c in [0, 1], the probability that a positive is labeled.
        similarity: see above.
    """
    if not 0 <= checks.number("prior", prior, "a number in [0, 1)") < 1:
        raise ValueError(f"prior must be in [0, 1), got {prior}")
    if not 0 <= checks.number("label_frequency", label_frequency, "a number in [0, 1]") <= 1:
        raise ValueError(f"label_frequency must be in [0, 1], got {label_frequency}")
    arguments: PUCLArguments = {
        "weighting": "none",
        "temperature": temperature,
        "prior": prior * (1 - label_frequency) / (1 - prior * label_frequency),
        "include_positive": True,
    }
    return _checked(arguments, similarity)


def hcl(
    temperature: float = 0.1,
    prior: float = 0.1,
    concentration: float = 1.0,
    min_margin: Margin = "lowest",
    *,
    similarity: Similarity | None = None,
) -> HCLArguments:
    """Hard-negative contrastive loss (Robinson et al., 2021, arXiv 2010.04592, eq. 4 and 5).

    Args:
        temperature: τ, a number.
        prior: τ⁺.
        concentration: β > 0: negatives are weighted by exp(β·s_j/τ), so harder ones count more.
        min_margin: as in :func:`dcl`.
        similarity: see above.
    """
    checks.number("temperature", temperature, "a number > 0 (weight_temperature is made of it)")
    if checks.number("concentration", concentration, "a number > 0 (0 is dcl)") <= 0:
        raise ValueError(f"concentration must be > 0 (0 is dcl), got {concentration}")
    arguments: HCLArguments = {
        **dcl(temperature, prior, _lowest_margin(min_margin, similarity)),
        "weighting": "exponential",
        "weight_temperature": -temperature / concentration,
        "detach_weights": False,
        "normalize_weights": True,
    }
    return _checked(arguments, similarity)


def psl(temperature: float | Tensor = 0.1, surrogate: Surrogate = "tanh") -> PSLArguments:
    """Pairwise softmax loss: log Σ_j σ(d_j)^{1/τ}, σ in tanh d + 1, atan d + 1, relu(d + 1) (Yang et al., 2024,
    arXiv 2411.00163). Its margins are those of the half cosine."""
    arguments: PSLArguments = {"weighting": "none", "temperature": temperature, "surrogate": surrogate}
    return _checked(arguments)


def bsl(negative_temperature: float = 0.1, *, similarity: Similarity | None = None) -> SLArguments:
    """Bilateral softmax loss (Wu et al., 2024, arXiv 2312.12882) with one positive per row.

    There it is (τ₂/τ₁)·SL(τ₂), with τ₂ the temperature of the negatives. This preset is SL(τ₂); multiply by the
    constant τ₂/τ₁ yourself, if needed: it only scales the learning rate.
    """
    checks.positive_number("negative_temperature", negative_temperature)
    return sl(negative_temperature, similarity=similarity)


def slk(
    temperature: float | Tensor = 0.1,
    quantile_temperature: float = 1.25,
    *,
    similarity: Similarity | None = None,
) -> SLKArguments:
    """SL@K: σ((s⁺ − β)/τ_w)·SL(τ) (Yang et al., KDD 2025, arXiv 2508.05673), up to the factor 2 of this package's
    confidence, which only scales the learning rate.

    β is the query's K-th highest score, one per row, and passed as `confidence_threshold`; 0 if it is not.
    :class:`cw_ext.TopKThreshold` learns it from the counts of the step itself, without a pass over the catalogue:

    >>> beta = TopKThreshold(num_queries, k=20, num_items=num_items)
    >>> loss, above = cw_loss_from_embeddings(
    ...     queries, items, pos_ids, neg_ids, **presets.slk(0.1, 1.25),
    ...     confidence_threshold=beta.threshold(query_ids), return_above=True,
    ... )
    >>> loss.backward()
    >>> beta.update(query_ids, above, num_negatives=neg_ids.shape[1])

    Args:
        temperature: τ.
        quantile_temperature: τ_w, on the scale of the scores, so half of a value published for the cosine.
        similarity: see above.
    """
    checks.positive_number("quantile_temperature", quantile_temperature)
    arguments: SLKArguments = {**sl(temperature), "confidence_temperature": quantile_temperature}
    return _checked(arguments, similarity)


def cw(
    temperature: float | Tensor = 0.1,
    prior: float = 0.0,
    confidence_temperature: float | None = None,
    *,
    similarity: Similarity | None = None,
) -> CWArguments:
    """The CW loss with sigmoid weights, ρ = τ (arXiv 2601.04291).

    Args:
        temperature: τ.
        prior: π of the correction; 0 for none. A prior goes together with further positives of the row's query, drawn
            from :class:`cw_ext.LikelyPositives` and given as `extra_pos_ids`: start with π = .1 and 20 of them.
            Positives that training uses do not serve, the row's own, which is taken where no others are given, least
            of all. The correction takes them for a sample of the positives among the negatives, but training has
            pushed their scores up, so it takes out too much. With likely positives the loss ranked better without
            these weights: give `prior=0.1, weighting="none"` in place of the preset.
        confidence_temperature: τ_c of the confidence in the positive; None for none. It has to be found for each data
            set.
        similarity: see above.
    """
    arguments: CWArguments = {
        "weighting": "sigmoid",
        "temperature": temperature,
        "prior": prior,
        "confidence_temperature": confidence_temperature,
    }
    return _checked(arguments, similarity)

"""Other published losses as settings of this one.

Each preset returns keyword arguments for :func:`cw_ext.cw_loss`, its other forms and the modules:

>>> import torch
>>> from cw_ext import CWLoss, cw_loss, cw_loss_from_embeddings, presets
>>> pos_scores = torch.tensor([0.4, 0.1])
>>> neg_scores = torch.tensor([[0.3, -0.2], [0.2, -0.4]])
>>> loss = cw_loss(pos_scores, neg_scores, **presets.infonce(0.1))
>>> criterion = CWLoss(**presets.dcl(0.1, prior=0.05), reduction="sum")

A loss is only the same on the same scores. Where cw_ext computes the scores from embeddings, give the preset the
`similarity` of that loss: "dot", "cosine" or, if you give none, "half_cosine". The temperature is on the scale of these
scores. Except in `hcl` and `bsl`, it may be a tensor.

>>> queries, items = torch.randn(2, 8), torch.randn(20, 8)
>>> pos_ids = torch.tensor([3, 5])
>>> neg_ids = torch.tensor([[1, 2], [8, 9]])
>>> loss = cw_loss_from_embeddings(
...     queries, items, pos_ids, neg_ids, **presets.sl(5.0, similarity="dot")
... )

A wrong argument raises a TypeError or ValueError that names it.
"""

from __future__ import annotations

from typing import Literal, TypedDict, TypeVar, cast

from torch import Tensor

from cw_ext import checks
from cw_ext.embedding_batch import Similarity, check_similarity
from cw_ext.parameters import LossArguments, Surrogate, Weighting, resolve

Margin = float | Literal["lowest"] | None

# Exactly what each preset sets, so that a type checker accepts other arguments next to it. The similarity is left out,
# as the loss on scores has none.


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
            "min_margin must be a number or None with similarity='dot', whose margins have no lower bound, got 'lowest'"
        )
    return -2.0 if similarity == "cosine" else -1.0


def sl(temperature: float | Tensor = 0.1, *, similarity: Similarity | None = None) -> SLArguments:
    """Sampled softmax, the softmax loss SL: log Σ_j exp(d_j/τ) (Wu et al., 2022, arXiv 2201.02327).

    Args:
        temperature: τ.
        similarity: "half_cosine", "cosine" or "dot", for losses that compute the scores.

    Example:
        >>> from cw_ext import presets
        >>> presets.sl(0.2, similarity="cosine")
        {'weighting': 'none', 'temperature': 0.2, 'similarity': 'cosine'}
    """
    arguments: SLArguments = {"weighting": "none", "temperature": temperature}
    return _checked(arguments, similarity)


def infonce(temperature: float | Tensor = 0.1, *, similarity: Similarity | None = None) -> InfoNCEArguments:
    """InfoNCE: −log e^{s⁺/τ} / (e^{s⁺/τ} + Σ_j e^{s_j/τ}) (van den Oord et al., 2018, arXiv 1807.03748).

    This is the cross-entropy of the positive among itself and its negatives.

    Args:
        temperature: τ.
        similarity: "half_cosine", "cosine" or "dot", for losses that compute the scores.

    Example:
        >>> import torch
        >>> import torch.nn.functional as F
        >>> from cw_ext import cw_loss, presets
        >>> pos_scores = torch.tensor([0.4, 0.1])
        >>> neg_scores = torch.tensor([[0.3, -0.2], [0.2, -0.4]])
        >>> loss = cw_loss(pos_scores, neg_scores, **presets.infonce(0.1))
        >>> logits = torch.cat([pos_scores.unsqueeze(1), neg_scores], 1) / 0.1
        >>> first = torch.zeros(2, dtype=torch.int64)
        >>> torch.allclose(loss, F.cross_entropy(logits, first))
        True
    """
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

    Without extra positives the row's own positive estimates E_{p⁺}, the paper's M = 1.

    Args:
        temperature: τ.
        prior: τ⁺.
        min_margin: the floor of the corrected mass. "lowest": at the smallest margin that the scores allow, −1 for the
            half cosine (also if you give no similarity) and −2 for the cosine; "dot" has no such margin. The paper's
            floor, e^{−1/τ} on the scale of the scores, equals this one for a positive with the highest possible score.
            A number: at that margin. None: the relative `floor` of this package.
        similarity: "half_cosine", "cosine" or "dot", for losses that compute the scores.

    Example:
        >>> from cw_ext import presets
        >>> presets.dcl(0.2, prior=0.05, similarity="cosine")["min_margin"]
        -2.0
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

    The unlabeled samples are those left after removing the labeled positives, so the share of positives among them is
    α(1 − c)/(1 − αc). With c → 0 this is the correction of DCL. The floor is this package's relative one.

    Args:
        temperature: τ.
        prior: α in [0, 1), the share of positives among all samples.
        label_frequency: c in [0, 1], the probability that a positive is labeled.
        similarity: "half_cosine", "cosine" or "dot", for losses that compute the scores.

    Example:
        >>> from cw_ext import presets
        >>> settings = presets.pucl(prior=0.2, label_frequency=0.5)
        >>> print(f"{settings['prior']:.3f}")
        0.111
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
        concentration: β > 0. Negatives are weighted by exp(β·s_j/τ), so that harder ones count more.
        min_margin: as for :func:`dcl`.
        similarity: "half_cosine", "cosine" or "dot", for losses that compute the scores.

    Example:
        >>> import torch
        >>> from cw_ext import cw_loss, presets
        >>> pos_scores = torch.tensor([0.4, 0.1])
        >>> neg_scores = torch.tensor([[0.3, -0.2], [0.2, -0.4]])
        >>> settings = presets.hcl(0.1, prior=0.01, concentration=0.5)
        >>> loss = cw_loss(pos_scores, neg_scores, **settings)
    """
    checks.number("temperature", temperature, "a number > 0 (weight_temperature is computed from it)")
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
    """Pairwise softmax loss: log Σ_j σ(d_j)^{1/τ}, where σ(d) is tanh d + 1, atan d + 1 or relu(d + 1) (Yang et al.,
    2024, arXiv 2411.00163).

    Its margins are those of the half cosine.

    Args:
        temperature: τ.
        surrogate: "tanh", "atan" or "relu".

    Example:
        >>> import torch
        >>> from cw_ext import cw_loss, presets
        >>> pos_scores = torch.tensor([0.4, 0.1])
        >>> neg_scores = torch.tensor([[0.3, -0.2], [0.2, -0.4]])
        >>> loss = cw_loss(pos_scores, neg_scores, **presets.psl(0.1, "atan"))
    """
    arguments: PSLArguments = {"weighting": "none", "temperature": temperature, "surrogate": surrogate}
    return _checked(arguments)


def bsl(negative_temperature: float = 0.1, *, similarity: Similarity | None = None) -> SLArguments:
    """Bilateral softmax loss (Wu et al., 2024, arXiv 2312.12882) with one positive per row.

    With one positive it is (τ₂/τ₁)·SL(τ₂), where τ₂ is the temperature of the negatives. This preset is SL(τ₂). The
    constant factor τ₂/τ₁ only scales the learning rate; multiply by it yourself if you need it.

    Args:
        negative_temperature: τ₂, a number.
        similarity: "half_cosine", "cosine" or "dot", for losses that compute the scores.

    Example:
        >>> from cw_ext import presets
        >>> presets.bsl(0.2) == presets.sl(0.2)
        True
    """
    checks.positive_number("negative_temperature", negative_temperature)
    return sl(negative_temperature, similarity=similarity)


def slk(
    temperature: float | Tensor = 0.1,
    quantile_temperature: float = 1.25,
    *,
    similarity: Similarity | None = None,
) -> SLKArguments:
    """SL@K: σ((s⁺ − β)/τ_w)·SL(τ) (Yang et al., KDD 2025, arXiv 2508.05673).

    The confidence of this package has a factor of 2, which only scales the learning rate.

    β is the K-th highest score of the query. Pass it as `confidence_threshold`, one value per row; else it is 0.
    :class:`cw_ext.TopKThreshold` learns it from counts that each training step returns, without a pass over the
    catalogue.

    Args:
        temperature: τ.
        quantile_temperature: τ_w, on the scale of the scores: for ½·cosine, half of a value published for the cosine.
        similarity: "half_cosine", "cosine" or "dot", for losses that compute the scores.

    Example:
        >>> import torch
        >>> from cw_ext import TopKThreshold, cw_loss_from_embeddings, presets
        >>> queries = torch.randn(4, 8, requires_grad=True)
        >>> items = torch.randn(50, 8, requires_grad=True)
        >>> query_ids, pos_ids = torch.arange(4), torch.randint(50, (4,))
        >>> neg_ids = torch.randint(50, (4, 10))
        >>> beta = TopKThreshold(num_queries=8, k=20, num_items=50)
        >>> loss, above = cw_loss_from_embeddings(
        ...     queries, items, pos_ids, neg_ids, **presets.slk(0.1, 1.25),
        ...     confidence_threshold=beta.threshold(query_ids), return_above=True,
        ... )
        >>> loss.backward()
        >>> beta.update(query_ids, above, num_negatives=neg_ids.shape[1])
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

    A prior needs extra positives of the row's query, `extra_pos_ids`, drawn from :class:`cw_ext.LikelyPositives`. Start
    with π = 0.1 and 20 of them. Positives that training uses will not do, and least of all the row's own, which is used
    if you give no others. The correction treats them as a sample of the positives among the negatives, but training has
    pushed their scores up, so the correction takes away too much.

    With likely positives the loss ranked better without the sigmoid weights. So instead of this preset, give
    ``prior=0.1, weighting="none"``.

    Args:
        temperature: τ.
        prior: π of the correction; 0 for none.
        confidence_temperature: τ_c of the confidence in the positive; None for none. Tune it for each data set.
        similarity: "half_cosine", "cosine" or "dot", for losses that compute the scores.

    Example:
        >>> from cw_ext import presets
        >>> presets.cw(0.1)
        {'weighting': 'sigmoid', 'temperature': 0.1, 'prior': 0.0, 'confidence_temperature': None}
    """
    arguments: CWArguments = {
        "weighting": "sigmoid",
        "temperature": temperature,
        "prior": prior,
        "confidence_temperature": confidence_temperature,
    }
    return _checked(arguments, similarity)

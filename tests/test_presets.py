"""Each preset against its own paper's formula, written out here in fp64 from the paper's symbols."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import assert_near, exact, generator
from torch import Tensor

from cw_ext import CWEmbeddingLoss, CWLoss, TopKThreshold, cw_loss, cw_loss_from_embeddings, presets

TAU = 0.2
N = 12


def _cosines() -> tuple[Tensor, Tensor, Tensor]:
    """s⁺ [6], s_j [6, N], s_k [6, 4]: cosines, leaves of their own."""
    g = generator(31)
    draw = lambda *size: (2 * torch.rand(size, generator=g, dtype=torch.float64) - 1) * 0.9  # noqa: E731
    return tuple(t.requires_grad_() for t in (draw(6).abs(), draw(6, N), draw(6, 4)))


def _equal(
    preset: dict[str, Any],
    formula: Callable[..., Tensor],
    backend: str,
    *,
    extras: bool = False,
    scale: float = 1.0,
) -> None:
    """The same rows and the same gradients."""
    pos, neg, extra = _cosines()
    further = extra if extras else None
    found = scale * cw_loss(pos, neg, extra_pos_scores=further, reduction="none", backend=backend, **preset)
    expected = formula(pos, neg, extra) if extras else formula(pos, neg)
    assert_near(found, expected, torch.float64, "loss")
    inputs = (pos, neg, extra) if extras else (pos, neg)
    weights = torch.randn(6, generator=generator(32), dtype=torch.float64)
    gradients = [torch.autograd.grad(loss, inputs, weights) for loss in (found, expected)]
    for name, a, b in zip(("pos", "neg", "extra"), *gradients):
        assert_near(a, b, torch.float64, f"gradient of {name}")


def test_sl(backend: str) -> None:
    """log Σ_j exp(d_j/τ), d = s_j − s⁺."""
    _equal(presets.sl(TAU), lambda p, n: ((n - p[:, None]) / TAU).exp().sum(1).log(), backend)


def test_infonce(backend: str) -> None:
    """The cross-entropy of the positive among itself and the negatives."""

    def formula(p: Tensor, n: Tensor) -> Tensor:
        logits = torch.cat((p[:, None], n), 1) / TAU
        return F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64), reduction="none")

    _equal(presets.infonce(TAU), formula, backend)


def _dcl(p: Tensor, n: Tensor, v: Tensor, prior: float) -> tuple[Tensor, Tensor]:
    """Chuang et al., eq. 7 and 8: (the loss with the unfloored estimate g, g) for f = s/τ."""
    g = ((n / TAU).exp().mean(1) - prior * (v / TAU).exp().mean(1)) / (1 - prior)
    positive = (p / TAU).exp()
    return -(positive / (positive + N * g)).log(), g


@pytest.mark.parametrize("m", ["own", "further"])
def test_dcl_where_its_floor_does_not_bind(backend: str, m: str) -> None:
    prior = 0.002

    def formula(p: Tensor, n: Tensor, v: Tensor | None = None) -> Tensor:
        loss, g = _dcl(p, n, p[:, None] if v is None else v, prior)
        assert (g > torch.e ** (-1 / TAU)).all()
        return loss

    # The paper floors g at e^{−1/τ}; as a margin that is −1 − s⁺ ≥ −2 for cosines.
    _equal(presets.dcl(TAU, prior, min_margin=-2.0), formula, backend, extras=m == "further")


def test_dcl_where_the_floor_binds(backend: str) -> None:
    """This package's form of DCL's floor, on the margins and before the division by τ⁻: e^{m/τ}/(1 − τ⁺)."""
    prior, least = 0.6, -0.8

    def formula(p: Tensor, n: Tensor, v: Tensor) -> Tensor:
        scale = (-p[:, None] / TAU).exp()
        difference = ((n / TAU).exp() * scale).mean(1) - prior * ((v / TAU).exp() * scale).mean(1)
        floor = torch.tensor(least / TAU, dtype=torch.float64).exp()
        assert 0 < (difference < floor).sum() < 6, "the case has rows on both sides"
        g = torch.maximum(difference, floor) / (1 - prior)
        return -(1 / (1 + N * g)).log()

    _equal(presets.dcl(TAU, prior, min_margin=least), formula, backend, extras=True)
    pos, neg, extra = _cosines()
    preset = presets.dcl(TAU, prior, min_margin=least)
    loss = cw_loss(pos, neg, extra_pos_scores=extra, reduction="none", backend=backend, **preset)
    bound = loss == loss.mode().values  # every bound row has the same loss, log(1 + N·floor)
    loss.sum().backward()
    assert bound.any() and not pos.grad[bound].any() and not neg.grad[bound].any() and not extra.grad[bound].any()


@pytest.mark.parametrize("label_frequency", [0.0, 0.3, 0.9, 1.0])
def test_pucl(backend: str, label_frequency: float) -> None:
    """Wang et al.: E_{x⁻} = (1 − αc)/(1 − α)·E_u − α(1 − c)/(1 − α)·E_⁺, u the unlabeled samples."""
    alpha, c = 0.004, label_frequency

    def formula(p: Tensor, n: Tensor, v: Tensor) -> Tensor:
        unlabeled, positives = (n / TAU).exp().mean(1), (v / TAU).exp().mean(1)
        negatives = (1 - alpha * c) / (1 - alpha) * unlabeled - alpha * (1 - c) / (1 - alpha) * positives
        assert (negatives > 0.3 * unlabeled).all()
        anchor = (p / TAU).exp()
        return -(anchor / (anchor + N * negatives)).log()

    _equal(presets.pucl(TAU, alpha, label_frequency), formula, backend, extras=True)


def test_pucl_without_labels_is_dcl() -> None:
    a, b = presets.pucl(TAU, 0.2, 0.0), presets.dcl(TAU, 0.2, min_margin=None)
    pos, neg, _ = _cosines()
    assert torch.equal(cw_loss(pos, neg, backend="reference", **a), cw_loss(pos, neg, backend="reference", **b))


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_hcl(backend: str, beta: float) -> None:
    """The authors' code: imp = exp(β·s/τ), reweighted = Σ(imp·e^{s/τ}) / mean(imp), and the debiased Ng."""
    prior = 0.01

    def formula(p: Tensor, n: Tensor) -> Tensor:
        neg, pos = (n / TAU).exp(), (p / TAU).exp()
        imp = (beta * neg.log()).exp()
        reweighted = (imp * neg).sum(-1) / imp.mean(-1)
        ng = (-prior * N * pos + reweighted) / (1 - prior)
        assert (ng > N * torch.e ** (-1 / TAU)).all()
        return -(pos / (pos + ng)).log()

    _equal(presets.hcl(TAU, prior, beta, min_margin=-2.0), formula, backend)


@pytest.mark.parametrize(("surrogate", "sigma"), [("tanh", torch.tanh), ("atan", torch.atan), ("relu", None)])
def test_psl(backend: str, surrogate: Any, sigma: Callable[[Tensor], Tensor] | None) -> None:
    """LSE_j(σ(d/2)/τ), σ(x) = ln(tanh x + 1), ln(atan x + 1) or ln relu(x + 1), d between cosines."""

    def formula(p: Tensor, n: Tensor) -> Tensor:
        half = (n - p[:, None]) / 2
        value = torch.relu(half + 1) if sigma is None else sigma(half) + 1
        return torch.logsumexp(value.log() / TAU, 1)

    pos, neg, _ = _cosines()
    preset = presets.psl(TAU, surrogate)
    found = cw_loss(pos / 2, neg / 2, reduction="none", backend=backend, **preset)
    expected = formula(pos, neg)
    assert_near(found, expected, torch.float64)
    gradients = [torch.autograd.grad(loss.sum(), (pos, neg)) for loss in (found, expected)]
    for a, b in zip(*gradients):
        assert_near(a, b, torch.float64)


def test_bsl(backend: str) -> None:
    """−ln[e^{p/τ₁} / (Σ_j e^{n_j/τ₂})^{τ₂/τ₁}] is (τ₂/τ₁)·SL(τ₂) where a row has one positive."""
    tau_1, tau_2 = 0.3, 0.15

    def formula(p: Tensor, n: Tensor) -> Tensor:
        return -((p / tau_1).exp() / (n / tau_2).exp().sum(1) ** (tau_2 / tau_1)).log()

    _equal(presets.bsl(tau_2), formula, backend, scale=tau_2 / tau_1)


def _sl_at_k(p: Tensor, n: Tensor, beta: Tensor | float, tau_w: float = 2.5) -> Tensor:
    """Yang et al., 2025: σ((s⁺ − β)/τ_w)·SL, of cosines."""
    softmax_loss = ((n - p[:, None]) / TAU).exp().sum(1).log()
    return softmax_loss / (1 + (-(p - beta) / tau_w).exp())


# β of each row, or one for all.
@pytest.mark.parametrize("beta", [0.0, 0.3, torch.tensor([0.6, -0.2, 0.0, 0.9, 0.1, -0.9], dtype=torch.float64)])
def test_slk(backend: str, beta: Tensor | float) -> None:
    """The confidence is twice the paper's σ."""
    preset = presets.slk(TAU, 2.5) | {"confidence_threshold": beta}
    _equal(preset, lambda p, n: _sl_at_k(p, n, beta), backend, scale=0.5)


def test_slk_on_half_cosines_takes_half_of_everything(backend: str) -> None:
    """The scores, both temperatures and β; the gradient of a half cosine is twice that of the cosine."""
    pos, neg, _ = _cosines()
    beta = torch.linspace(-0.5, 0.8, 6, dtype=torch.float64)
    half = (pos / 2, neg / 2)
    preset = presets.slk(TAU / 2, 1.25) | {"confidence_threshold": beta / 2}
    found = 0.5 * cw_loss(*half, reduction="none", backend=backend, **preset)
    expected = _sl_at_k(pos, neg, beta)
    assert_near(found, expected, torch.float64)
    of_half = torch.autograd.grad(found.sum(), half)
    for a, b in zip(of_half, torch.autograd.grad(expected.sum(), (pos, neg))):
        assert_near(a, 2 * b, torch.float64)


def test_slk_without_a_threshold_is_that_of_score_0_and_of_its_published_temperature() -> None:
    pos, neg, _ = _cosines()
    given = cw_loss(pos / 2, neg / 2, reduction="none", backend="reference", **presets.slk())
    assert_near(given, 2 * _sl_at_k(pos, neg, 0.0, tau_w=2.5), torch.float64)


@pytest.mark.parametrize("name", ["sl", "infonce", "dcl", "pucl", "psl", "slk", "cw"])
def test_a_temperature_that_is_learned(backend: str, name: str) -> None:
    """The number's loss, and the slope between two numbers' losses."""
    pos, neg, _ = _cosines()
    tau = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)

    def loss(temperature: Tensor | float) -> Tensor:
        arguments = getattr(presets, name)(temperature) | {"detach_weights": False}
        return cw_loss(pos / 2, neg / 2, backend=backend, **arguments)

    found = loss(tau)
    found.backward()
    step = 1e-6
    assert_near(found, loss(TAU), torch.float64)
    torch.testing.assert_close(tau.grad, (loss(TAU + step) - loss(TAU - step)) / (2 * step), rtol=1e-7, atol=1e-7)


def test_the_example_of_slk_learns_the_threshold() -> None:
    """The step of its docstring, twice: SL@K with the β before it, and then one update by the scores above it."""
    g = generator(5)
    queries, items = (torch.randn(rows, 5, generator=g).requires_grad_() for rows in (6, 50))
    ids = {"pos_ids": torch.randint(50, (6,), generator=g), "neg_ids": torch.randint(50, (6, 40), generator=g)}
    names = {
        "presets": presets, "TopKThreshold": TopKThreshold, "cw_loss_from_embeddings": cw_loss_from_embeddings,
        "queries": queries, "items": items, "query_ids": torch.tensor([4, 0, 2, 7, 1, 3]), **ids,
    }  # fmt: skip
    examples = doctest.DocTestParser().get_examples(str(presets.slk.__doc__))
    start = next(i for i, example in enumerate(examples) if "TopKThreshold(" in example.source)
    make, *step = examples[start:]
    exec(make.source, names)
    unit, others = F.normalize(queries, dim=1), F.normalize(items, dim=1)
    pos, neg = (unit * others[ids["pos_ids"]]).sum(1), (unit.unsqueeze(1) * others[ids["neg_ids"]]).sum(2)
    thresholds = torch.zeros(8)
    for update in range(2):
        of_rows = thresholds[names["query_ids"]]
        for example in step:
            exec(example.source, names)
        expected = torch.sigmoid((pos - 2 * of_rows) / 2.5) * torch.logsumexp((neg - pos[:, None]) / 0.2, 1)
        torch.testing.assert_close(names["loss"], 2 * expected.mean())
        # 40 of 50 items hold 16 of the first 20.
        above = (neg / 2 > of_rows[:, None]).sum(1)
        thresholds[names["query_ids"]] += 0.05 / math.sqrt(update + 1) * ((above - 16) / 16)
        torch.testing.assert_close(names["beta"].thresholds, thresholds)


def test_cw(backend: str) -> None:
    """The default family: sigmoid weights with ρ = τ, detached, and a correction with floor .3."""
    prior = 0.05

    def formula(p: Tensor, n: Tensor, v: Tensor) -> Tensor:
        d, e = (n - p[:, None]) / TAU, (v - p[:, None]) / TAU
        a = (torch.sigmoid(-d).detach() * d.exp()).mean(1)
        c = (torch.sigmoid(-e).detach() * e.exp()).mean(1)
        return (N * torch.maximum(a - prior * c, 0.3 * a) / (1 - prior)).log()

    _equal(presets.cw(TAU, prior), formula, backend, extras=True)


def test_cw_by_default_needs_no_further_positives(backend: str) -> None:
    def weights_alone(p: Tensor, n: Tensor) -> Tensor:
        d = (n - p[:, None]) / TAU
        return (torch.sigmoid(-d).detach() * d.exp()).sum(1).log()

    _equal(presets.cw(TAU), weights_alone, backend)


def test_presets_fit_the_modules(backend: str) -> None:
    pos, neg, _ = _cosines()
    for preset in (
        presets.sl(),
        presets.infonce(),
        presets.dcl(),
        presets.pucl(),
        presets.hcl(),
        presets.psl(),
        presets.slk(),
        presets.cw(),
    ):
        loss = CWLoss(**preset, reduction="sum", backend=backend)(pos, neg)
        assert_near(loss, cw_loss(pos, neg, **preset, reduction="sum", backend=backend), torch.float64)
        CWEmbeddingLoss(**preset)


SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "half_cosine": lambda q, x: F.cosine_similarity(q, x, dim=-1) / 2,
    "cosine": lambda q, x: F.cosine_similarity(q, x, dim=-1),
    "dot": lambda q, x: (q * x).sum(-1),
}


@pytest.mark.parametrize("similarity", SCORES)
@pytest.mark.parametrize(
    "preset",
    [
        presets.sl,
        presets.infonce,
        lambda **s: presets.dcl(prior=0.002, min_margin=-0.7, **s),
        presets.pucl,
        lambda **s: presets.hcl(prior=0.002, min_margin=-0.7, **s),
        presets.bsl,
        presets.slk,
        presets.cw,
    ],
    ids=["sl", "infonce", "dcl", "pucl", "hcl", "bsl", "slk", "cw"],
)
def test_a_similarity_makes_it_the_loss_on_those_scores(
    backend: str, preset: Callable[..., dict[str, Any]], similarity: str
) -> None:
    """With the default similarity it is another loss."""
    g = generator(33)
    q, items = (torch.randn(size, 5, generator=g, dtype=torch.float64) for size in (6, 20))
    pos_ids, neg_ids = torch.randint(20, (6,), generator=g), torch.randint(20, (6, N), generator=g)
    score = SCORES[similarity]
    expected = cw_loss(score(q, items[pos_ids]), score(q.unsqueeze(1), items[neg_ids]), backend="reference", **preset())
    batch = (q, items, pos_ids, neg_ids)
    found = cw_loss_from_embeddings(*batch, backend=backend, **preset(similarity=similarity))
    assert_near(found, expected, torch.float64)
    without = cw_loss_from_embeddings(*batch, backend=backend, **preset())
    assert torch.allclose(without, expected) == (similarity == "half_cosine")


@pytest.mark.parametrize("preset", [presets.dcl, presets.hcl])
def test_the_lowest_margin_goes_by_the_similarity(preset: Callable[..., dict[str, Any]]) -> None:
    assert preset()["min_margin"] == preset(similarity="half_cosine")["min_margin"] == -1
    assert preset(similarity="cosine")["min_margin"] == -2
    assert preset(similarity="dot", min_margin=None)["min_margin"] is None
    with pytest.raises(ValueError, match="min_margin must be a number or None with similarity='dot'.*got 'lowest'"):
        preset(similarity="dot")


def test_scores_have_no_similarity() -> None:
    pos, neg, _ = _cosines()
    with pytest.raises(TypeError, match="unknown loss argument 'similarity'"):
        cw_loss(pos, neg, **presets.sl(similarity="dot"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: presets.sl(similarity="euclidean"), "similarity must be one of 'half_cosine', .*got 'euclidean'"),
        (lambda: presets.pucl(prior=1.0), r"prior must be in \[0, 1\), got 1.0"),
        (lambda: presets.pucl(label_frequency=1.5), r"label_frequency must be in \[0, 1\], got 1.5"),
        (lambda: presets.hcl(concentration=0.0), r"concentration must be > 0 .*got 0.0"),
    ],
)
def test_bad_arguments(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_pucl_prior_by_counting() -> None:
    """Of 1000, 200 are positives and 120 of those labeled and taken out: 80 positives among 880."""
    found = presets.pucl(prior=0.2, label_frequency=0.6)["prior"]
    assert_near(exact(found), exact(80 / 880), torch.float64)

"""Random valid calls of every function: the kernels against the fp64 reference, and rows against what others hold.

A result may be off by its dtype's tolerance. Where it is off by more, the call may be an ill-conditioned one: A − πC of
nearly nothing, a floor about to bind, a negative at a kink. What the numbers' own roundings do to the truth is then
found by moving them: the reference on inputs that are off by a few roundings of the type computed in, several times.
The furthest of those results is the bound for any.

More examples than the suite's few: CW_EXT_TEST_EXAMPLES, as in strategies.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from cases import Embeddings, Result, Scores, generator, loss_dtype, tolerance
from drawing import Drawn, histories
from hypothesis import given
from hypothesis import strategies as st
from strategies import Call, WithoutHistory, drawn_calls, embedding_calls, fuzzing, score_calls
from torch import Tensor

from cw_ext import draw_negatives, reference
from cw_ext.parameters import DEFAULTS, LossArguments, RowParameters, resolve
from cw_ext.row_values import CurveInputs, RowValues
from cw_ext.score_curve import ScoreCurve, curve_log_weights

# By how many roundings the numbers are moved. The tolerance is how many there may be in a result.
_MOVES = (2, 2, 4, 4, 8, 8, 16, 16, 32, 32)


# ---- calls and results ---------------------------------------------------------------------------------------------


def _leaves(case: Any, names: tuple[str, ...]) -> Any:
    """The case's tensors as leaves with the strides that they have, of which the named ones want gradients."""
    tensors = {f.name: getattr(case, f.name) for f in fields(case) if isinstance(getattr(case, f.name), Tensor)}
    return replace(case, **{name: t.detach().requires_grad_(name in names) for name, t in tensors.items()})


@dataclass(frozen=True)
class _Found(Result):
    """With the counts, where the call asks for them."""

    above: Tensor | None = None


def _result(call: Call, leaves: Any, loss: Tensor) -> Result:
    if loss.requires_grad:
        loss.backward(call.grad_output().to(loss))
    found = {name: getattr(leaves, name) for name in call.names}
    return Result(loss.detach(), {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in found.items()})


def _settings(call: Call) -> dict[str, Any]:
    """Where the arguments of a level beyond the loss's own are."""
    return call.case.settings if isinstance(call.case, Drawn) else call.arguments


def _loss_arguments(call: Call) -> LossArguments:
    return {name: value for name, value in call.arguments.items() if name in DEFAULTS}  # type: ignore[return-value]


def _fused(call: Call, device: torch.device | str = "cpu") -> _Found:
    leaves = _leaves(call.case.to(device=device), call.names)
    found = leaves.loss(backend="fused", **call.arguments)
    loss, above = found if call.arguments["return_above"] else (found, None)
    result = _result(call, leaves, loss)
    return _Found(result.loss, result.gradients, above)


def _truth(call: Call) -> Result:
    """The fp64 reference on the rounded inputs; of drawn and shared negatives, on ids and weights made by hand."""
    leaves = _leaves(_by_hand(call.case).to(torch.float64), call.names)
    arguments = {k: v for k, v in call.arguments.items() if k not in ("sparse_grad", "return_above")}
    if isinstance(call.case, Drawn):
        arguments["similarity"] = call.case.settings["similarity"]
    return _result(call, leaves, leaves.loss(backend="reference", **arguments))


def _by_hand(case: Scores | Embeddings | Drawn) -> Scores | Embeddings:
    """An embeddings call with each row's negatives, [B, N], and their log weights; a scores call as it is."""
    if isinstance(case, Scores):
        return case
    rows = len(case.queries)
    if isinstance(case, Embeddings):
        return replace(case, neg_ids=case.neg_ids.expand(rows, -1)) if case.neg_ids.dim() == 1 else case
    ids, log_q = _negatives(case)
    shared = case.kind != "sampled" or case.settings["shared"]
    if shared:
        known = histories(case.interactions)
        for b, (query, positive) in enumerate(zip(case.query_ids.tolist(), case.pos_ids.tolist())):
            left_out = {positive} | (set() if isinstance(case, WithoutHistory) else known[query])
            log_q[b, torch.isin(ids[b], torch.tensor(sorted(left_out)))] = -math.inf
    rest = (case.extra_ids, log_q, case.prior, case.threshold, case.row_weights, case.temperature, case.knots)
    return Embeddings(case.queries, case.items, case.pos_ids, ids, *rest)


def _negatives(case: Drawn) -> tuple[Tensor, Tensor]:
    """Ids and log weights, [B, N] each, before rows leave any out."""
    rows, given, counts = len(case.queries), case.settings, case.interactions.item_counts.double()
    if case.kind == "full":
        ids = torch.arange(len(case.items)).expand(rows, -1)
        return ids, torch.zeros(ids.shape, dtype=torch.float64)
    if case.kind == "sampled":
        names = ("seed", "distribution", "popularity_exponent", "popularity_smoothing", "first_row", "candidates")
        of = {name: given[name] for name in names}
        query_ids = None if given["shared"] else case.query_ids
        ids = draw_negatives(query_ids, case.interactions, given["num_negatives"], **of).expand(rows, -1)
        popular = given["distribution"] == "popularity" and given["log_q_correction"]
        exponent = given["popularity_exponent"] if popular else 0.0
        # Ids of rows of padding are none where nothing is left to draw.
        return ids, -exponent * (counts[ids] + given["popularity_smoothing"]).clamp(min=1e-9).log()
    columns, uniform = case.pos_ids.long(), given["num_negatives"]
    if uniform:
        drawn = draw_negatives(None, case.interactions, uniform, seed=given["seed"], candidates=given["candidates"])
        columns = torch.cat([columns, drawn])
    elif not rows:  # a table of ids must have a column
        columns = torch.zeros(1, dtype=torch.int64)
    log_q = torch.zeros((rows, len(columns)), dtype=torch.float64)
    chosen = torch.ones(len(counts), dtype=torch.bool)
    if given["candidates"] is not None:
        chosen = torch.zeros(len(counts), dtype=torch.bool).index_fill(0, _candidate_ids(given["candidates"]), True)
    if given["log_q_correction"] and rows:
        found = counts[columns.clamp(min=0)]
        found[:rows] = found[:rows].clamp(min=1)
        positives = (case.pos_ids >= 0).sum()  # padding brings no negative
        share = positives * found / counts.sum().clamp(min=1) + uniform / chosen.double().sum()
        share = share / (positives + uniform).clamp(min=1)
        log_q -= share.log()
    log_q[:, ~chosen[columns.clamp(min=0)]] = -math.inf
    return columns.expand(rows, -1), log_q


def _candidate_ids(candidates: Tensor) -> Tensor:
    return candidates.nonzero().squeeze(1) if candidates.dtype == torch.bool else candidates


# ---- what roundings do to the truth --------------------------------------------------------------------------------


def _moved_parameters(p: RowParameters, tau: Tensor, moved: Callable[[float], float]) -> RowParameters:
    """The numbers for all rows, but for τ, with which ρ is moved."""
    changes: dict[str, Any] = {"floor": min(1.0, moved(p.floor))}
    if p.weight_temperature is not None:
        changes["weight_temperature"] = moved(p.weight_temperature)
    if p.min_margin is not None:  # m/τ is compared with a logarithm, which is off by eps and by eps of its own size
        changes["min_margin"] = moved(p.min_margin) + (moved(1.0) - 1) * tau.detach()
    if p.confidence_temperature is not None:
        changes["confidence_temperature"] = moved(p.confidence_temperature)
    if p.positive_temperature is not None:
        changes["positive_temperature"] = moved(p.positive_temperature)
    return p._replace(**changes)


def _scores_of(case: Embeddings, similarity: str, noise: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """(pos [B], neg [B, N], extra [B, M], log_q [B, N]), each score from numbers with roundings of their own.

    Vectors of norm 1 are moved, not those that were given: the normalization would take that away from the gradient.
    """
    ids = [case.pos_ids.unsqueeze(-1), case.neg_ids, *([] if case.extra_ids is None else [case.extra_ids])]
    together = torch.cat([i.long() for i in ids], -1)  # [B, 1 + N + M]
    n = case.neg_ids.shape[-1]
    padding = (case.neg_ids < 0) | (case.pos_ids < 0).unsqueeze(-1)
    given = torch.zeros(padding.shape, dtype=torch.float64) if case.log_q is None else case.log_q.expand(padding.shape)
    log_q = given.masked_fill(padding, -math.inf)
    absent = together < 0
    absent[:, 1 : n + 1] |= log_q == -math.inf

    def unit(x: Tensor) -> Tensor:
        size = 1.0 if similarity == "dot" else torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True)
        return reference.unit_rows(x, similarity) + noise(x) * (x / size).nan_to_num(0.0)

    copies = unit(case.items[together.clamp(min=0)].masked_fill(absent.unsqueeze(-1), 0.0))
    queries = unit(case.queries).unsqueeze(1)
    scores = reference.SCORE_SCALE[similarity] * (queries * copies).sum(-1)
    pos, neg, extra = scores[:, 0], scores[:, 1 : n + 1], scores[:, n + 1 :]
    return pos, neg, extra.masked_fill(absent[:, n + 1 :], -math.inf), log_q


def _moved_truth(call: Call, roundings: int, seed: int) -> Result:
    """The reference's formula with all that is rounded in the kernels moved by a few roundings, up or down."""
    g = generator(seed)
    eps = roundings * torch.finfo(loss_dtype(call.dtype)).eps

    def noise(x: Tensor) -> Tensor:
        return eps * (2.0 * torch.randint(2, x.shape, generator=g) - 1)

    def moved(x: float) -> float:
        return x * (1 + float(noise(torch.zeros(()))))

    leaves = _leaves(_by_hand(call.case).to(torch.float64), call.names)
    options = resolve(_loss_arguments(call))
    if isinstance(leaves, Scores):
        pos, neg, extra, log_q = leaves.pos, leaves.neg, leaves.extra, leaves.log_q
    else:
        pos, neg, extra, log_q = _scores_of(leaves, _settings(call)["similarity"], noise)

    # Margins in place of scores, as they are exact.
    here = pos.detach()

    def row_noise(x: Tensor) -> Tensor:
        """Of each element, and of the sum that the row's gradients are."""
        return noise(x) + noise(x[..., :1])

    def margin(scores: Tensor) -> Tensor:
        d = scores - here.unsqueeze(-1)
        return d * (1 + row_noise(d))

    def of_rows(given: Tensor | None, otherwise: Any) -> Tensor:
        return torch.as_tensor(otherwise if given is None else given, dtype=torch.float64).expand(pos.shape)

    log_q = torch.zeros_like(neg) if log_q is None else log_q.expand(neg.shape)
    if options.score_curve is not None:
        log_q = log_q + _on_moved_curve(options.score_curve, leaves.knots, neg, here, noise)
    log_q = log_q + (1 + log_q.detach().abs().nan_to_num(posinf=0.0)) * noise(log_q)
    prior = of_rows(leaves.prior, options.prior)
    prior = (prior * (1 + noise(prior))).clamp(0.0, 1 - eps)
    threshold = of_rows(leaves.threshold, options.confidence_threshold)
    above = threshold - here
    above = above * (1 + noise(above)) + noise(above) * threshold.detach()
    # τ and ρ are moved together and ρ alone, for the kernels round 1/τ, 1/ρ and 1/τ − 1/ρ.
    tau = of_rows(leaves.temperature, options.temperature) * moved(1.0)
    if leaves.temperature is not None:
        tau = tau * (1 + noise(tau))
    p = _moved_parameters(options.row, tau, moved)
    rho_alone = moved(1.0)

    exact_weight, exact_surrogate, exact_positive = reference.log_weight, reference.log_surrogate, reference.of_positive
    weights_of = iter((log_q, torch.zeros(())))

    def log_weight(d: Tensor, temperature: Tensor, p: RowParameters) -> Tensor:
        return exact_weight(d, temperature * rho_alone, p)

    def log_surrogate(d: Tensor, temperature: Tensor, p: RowParameters) -> Tensor:
        """φ(d) of the negatives, then of the extra positives, off by roundings of what it is added to, too, and of
        the 1 that a surrogate adds. The gradient of log q is a difference of shares, one of which has those of φ."""
        through = next(weights_of)
        through = (through - through.detach()).nan_to_num(0.0)
        size = torch.ones_like(d) if p.surrogate == "exp" else torch.ones_like(d) + 1 / temperature
        if p.normalize_weights:  # ω is in numerator and denominator, whose roundings are not the same
            log_omega = log_weight(d.detach() if p.detach_weights else d, temperature, p)
            size = size + log_omega.abs().nan_to_num(posinf=0.0)
        return exact_surrogate(d, temperature, p) + (size + through) * row_noise(d)

    def of_positive(loss: Tensor, d: Tensor, tau: Tensor, threshold: Tensor, p: RowParameters) -> Tensor:
        """s⁺(1/τ − 1/τ⁺) of s⁺ itself, c of its distance from the threshold."""
        loss = exact_positive(
            loss * (1 + noise(loss)), pos * (1 + noise(pos)), tau, threshold, p._replace(confidence_temperature=None)
        )
        return exact_positive(loss, d, tau, threshold, p._replace(positive_temperature=None))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "log_weight", log_weight)
        patch.setattr(reference, "log_surrogate", log_surrogate)
        patch.setattr(reference, "of_positive", of_positive)
        further, values = None if extra is None else margin(extra), RowValues(prior, above, tau)
        rows, live, _ = reference.rows(pos - here, margin(neg), further, log_q, values, CurveInputs(), p)
    rows = rows + (1 + rows.abs()) * noise(rows) * live
    return _result(call, leaves, _reduced(rows, live, leaves.row_weights, options.reduction, noise))


def _on_moved_curve(
    curve: ScoreCurve, knots: Tensor, neg: Tensor, pos: Tensor, noise: Callable[[Tensor], Tensor]
) -> Tensor:
    """The log weights [..., N], of places that are off by roundings of their own and of the curve's ends."""
    x = (neg - pos.unsqueeze(-1) if curve.on == "margin" else neg).detach()
    x = x + noise(x) * (x.abs().nan_to_num(posinf=0.0) + abs(curve.low) + abs(curve.high))
    return curve_log_weights(x, knots.expand(*x.shape[:-1], -1), curve.low, curve.high)


def _reduced(
    rows: Tensor, live: Tensor, weights: Tensor | None, reduction: str, noise: Callable[[Tensor], Tensor]
) -> Tensor:
    """A weighted mean's sums of weights and of weighted losses have roundings of their own."""
    if weights is None or reduction != "mean":
        return reference.reduce(rows, live, weights, reduction)
    above, below = (weights + noise(rows) * weights.detach() for _ in range(2))
    total, weight = reference.reduce(rows, live, above, "sum"), torch.where(live, below, 0.0).sum()
    return total / torch.where(weight == 0, 1, weight)


# ---- comparisons ---------------------------------------------------------------------------------------------------


def _by_row(x: Tensor, lead: int) -> Tensor:
    """[rows, what a row has]: an item's gradient, a row's loss. A tensor for all rows is one row."""
    x = x.detach().double()
    if x.dim() < lead or x.numel() == 0:
        return x.reshape(1, -1)
    return x.reshape(math.prod(x.shape[:lead]), -1) if lead else x.reshape(1, -1)


def _largest(x: Tensor) -> Tensor:
    return x.abs().nan_to_num(nan=0.0, posinf=math.inf).amax(1)


class _Moved:
    """How far the moved truths are from the truth, and so a result may be: found when it is asked for."""

    def __init__(self, call: Call, truth: Result) -> None:
        self.call, self.truth, self.results = call, truth, list[Result]()

    def distance(self, of: Callable[[Result], Tensor], lead: int) -> Tensor:
        """By row."""
        if not self.results:
            self.results = [_moved_truth(self.call, roundings, seed) for seed, roundings in enumerate(_MOVES)]
        dtype = loss_dtype(self.call.dtype)
        truth = _by_row(of(self.truth), lead)
        # Or as many as a sum has terms, whose roundings add up where the terms are the same.
        allowed = max(tolerance(dtype) / torch.finfo(dtype).eps, self.call.terms)
        distances = (_largest(_by_row(of(moved), lead) - truth) for moved in self.results)
        return torch.stack([d * (allowed / roundings) for d, roundings in zip(distances, _MOVES)]).amax(0)


@dataclass(frozen=True)
class _OwnErrors:
    """What is lost on either side, for any conditioning."""

    relative: float
    absolute: float

    @classmethod
    def of(cls, call: Call, loss: Tensor) -> _OwnErrors:
        p = resolve(_loss_arguments(call)).row
        tau = call.arguments["temperature"] if call.case.temperature is None else call.case.temperature.double()
        tau = float(torch.as_tensor(tau).min()) if call.row_shape.numel() else 1.0
        rho = (tau if p.weighting == "sigmoid" else 1.0) if p.weight_temperature is None else p.weight_temperature
        slope = 1 + 1 / tau + 1 / abs(rho)
        rounding = torch.finfo(torch.float64).eps
        # The truth's logsumexp rounds the sum's logarithm, which its gradient takes the exponential of.
        relative = 4 * rounding * slope * _largest_score(call.case)
        # A negative's share of the row may be below the smallest number; it comes times a slope and at most 1/ε.
        absolute = 4 * torch.finfo(loss_dtype(call.dtype)).smallest_normal * slope / p.floor
        if p.confidence_temperature is not None and loss.numel():
            # The truth takes 1 − σ for the slope of a confidence σ.
            absolute += 32 * rounding * (1 + _largest(loss.reshape(1, -1)).item()) / p.confidence_temperature
        return cls(relative, absolute)


def _largest_score(case: Scores | Embeddings | Drawn) -> float:
    """Of those that are finite, or what bounds them."""

    def largest(x: Tensor | None) -> float:
        return 0.0 if x is None or not x.numel() else x.double().nan_to_num(0.0, 0.0, 0.0).abs().max().item()

    if isinstance(case, Scores):
        return max(map(largest, (case.pos, case.neg, case.extra)))
    return 1 + case.queries.shape[1] * largest(case.queries) * largest(case.items)


def _assert_near(
    what: str,
    found: Tensor,
    expected: Tensor,
    smallest: float,
    own: _OwnErrors,
    distance: Callable[[], Tensor],
    lead: int,
) -> None:
    """Row by row, in units of the row's largest value, or of `smallest` where that is more."""
    dtype = found.dtype
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if not found.numel():
        return
    limit = torch.finfo(dtype).max  # beyond it lies what the dtype has no number for
    found, expected = (_by_row(x, lead).clamp(-limit, limit) for x in (found, expected))
    assert torch.equal(found.isnan(), expected.isnan()), f"{what}: NaN in other places than expected"
    error = _largest(found - expected)
    info = torch.finfo(dtype)
    allowed = (tolerance(dtype) + own.relative) * _largest(expected).clamp(min=smallest)
    allowed += info.smallest_normal * info.eps + own.absolute
    if (error <= allowed).all():
        return
    allowed = allowed + distance()
    worst = int((error - allowed).argmax())
    assert (error <= allowed).all(), (
        f"{what}, row {worst}: error {error[worst]:.3g}, allowed {allowed[worst]:.3g}\n"
        f"found {found[worst]}\nexpected {expected[worst]}"
    )


def _assert_counts(call: Call, above: Tensor) -> None:
    """Of the scores that the level has exactly; of computed ones, those near the threshold count either way."""
    case = _by_hand(call.case).to(torch.float64)
    near, dtype = 0.0, loss_dtype(call.dtype)
    if isinstance(case, Scores):
        neg, log_q = case.neg, torch.zeros_like(case.neg) if case.log_q is None else case.log_q
    else:
        _, neg, _, log_q = _scores_of(case, _settings(call)["similarity"], torch.zeros_like)
        near = tolerance(dtype) * _largest_score(call.case)
    threshold = call.arguments["confidence_threshold"] if case.threshold is None else case.threshold
    threshold = torch.as_tensor(threshold).to(dtype).double().unsqueeze(-1)
    there = log_q > -math.inf
    least, most = (((neg > threshold + off) & there).sum(-1) for off in (near, -near))
    assert above.dtype == torch.int64 and above.shape == call.row_shape
    assert ((least <= above.cpu()) & (above.cpu() <= most)).all(), f"{above}, expected {least} to {most}"


def _assert_right(call: Call, found: _Found) -> None:
    """The result against the truth: values, and dtypes, shapes and layouts."""
    if found.above is not None:
        _assert_counts(call, found.above)
    truth = _truth(call)
    moved = _Moved(call, truth)
    lead = len(call.row_shape)
    assert found.loss.dtype == loss_dtype(call.dtype)
    of_loss = lead if call.arguments["reduction"] == "none" else 0
    own = _OwnErrors.of(call, truth.loss)
    _assert_near("loss", found.loss, truth.loss, 1.0, own, lambda: moved.distance(lambda r: r.loss, of_loss), of_loss)
    assert found.gradients.keys() == truth.gradients.keys()
    for name, gradient in found.gradients.items():
        given = getattr(call.case, name)
        assert gradient.dtype == given.dtype, f"{name}'s gradient has dtype {gradient.dtype}"
        sparse = name == "items" and _settings(call).get("sparse_grad", False)
        assert gradient.is_sparse == sparse, f"{name}'s gradient has layout {gradient.layout}"
        if sparse:
            assert gradient.is_coalesced()
            gradient = gradient.to_dense()

        of = 0 if name == "knots" else lead  # a curve has no rows

        def distance(name: str = name, of: int = of) -> Tensor:
            return moved.distance(lambda r: r.gradients[name], of)

        _assert_near(f"gradient of {name}", gradient.cpu(), truth.gradients[name], 0.0, own, distance, of)


# ---- values --------------------------------------------------------------------------------------------------------

each_negatives = pytest.mark.parametrize("shared", [False, True], ids=["per-row", "shared"])
each_kind = pytest.mark.parametrize("kind", ["sampled", "in_batch", "full"])


@fuzzing(60)
@given(call=score_calls())
def test_scores(kernels: None, device: torch.device, call: Call) -> None:
    _assert_right(call, _fused(call, device))


@each_negatives
@fuzzing(40)
@given(data=st.data())
def test_embeddings(kernels: None, device: torch.device, shared: bool, data: st.DataObject) -> None:
    call = data.draw(embedding_calls(shared=shared))
    _assert_right(call, _fused(call, device))


@each_kind
@fuzzing(40)
@given(data=st.data())
def test_found_negatives(kernels: None, device: torch.device, kind: str, data: st.DataObject) -> None:
    call = data.draw(drawn_calls(kind))
    _assert_right(call, _fused(call, device))


# ---- what a row holds is nothing to the others ---------------------------------------------------------------------


def _extremes(dtype: torch.dtype) -> st.SearchStrategy[float]:
    """Numbers, and what is none. What overflows the dtype is infinite in it."""
    info = torch.finfo(dtype)
    numbers = [0.0, info.smallest_normal / 4, info.smallest_normal, 1e4, 1e30, info.max]
    return st.sampled_from([math.nan, math.inf, -math.inf, *numbers, *(-x for x in numbers)])


def _plant(call: Call, name: str, place: tuple[int, ...], value: float) -> Call:
    tensor = getattr(call.case, name).clone()
    tensor[place] = value
    return replace(call, case=replace(call.case, **{name: tensor}))


def _assert_same_rows(before: Result, after: Result, same: Tensor) -> None:
    """Bit for bit, in the loss and in gradients that have these rows."""
    assert torch.equal(after.loss[same], before.loss[same])
    for name in after.gradients.keys() - {"items", "knots"}:
        found, expected = after.gradients[name], before.gradients[name]
        if found.shape[:1] == same.shape and (name != "log_q" or found.dim() == 2):
            assert torch.equal(found[same], expected[same]), name


@fuzzing(60)
@given(data=st.data())
def test_extreme_scores_in_a_row(kernels: None, device: torch.device, data: st.DataObject) -> None:
    call = data.draw(score_calls(planted=True))
    names = [name for name in ("pos", "neg", "extra") if (t := getattr(call.case, name)) is not None and t.numel()]
    name = data.draw(st.sampled_from(names))
    place = tuple(data.draw(st.integers(0, size - 1)) for size in getattr(call.case, name).shape)
    planted = _plant(call, name, place, data.draw(_extremes(call.dtype)))
    before, after = _fused(call, device), _fused(planted, device)
    row = torch.arange(len(call.case.pos)) == place[0]
    _assert_same_rows(before, after, ~row)
    # The row itself, where its scores are in the range of the contract.
    value = getattr(planted.case, name)[place].item()
    if math.isfinite(value) and abs(value) > 1e4:
        return
    expected = _truth(planted).loss
    assert torch.equal(after.loss.isnan(), expected.isnan())
    if not expected.isnan().any():
        _assert_right(planted, after)


def _touched(call: Call, name: str, at: int) -> tuple[Tensor, Tensor]:
    """The rows [B] that read row `at` of a tensor, and the items [I] that one of those rows names."""
    case = _by_hand(call.case)
    live = case.pos_ids >= 0
    ids = [case.pos_ids.unsqueeze(-1), case.neg_ids] + ([] if case.extra_ids is None else [case.extra_ids])
    if name == "queries":
        rows = torch.arange(len(live)) == at
    else:
        negative = case.neg_ids == at
        if case.log_q is not None:
            negative &= case.log_q.expand(negative.shape) > -math.inf
        rows = (case.pos_ids == at) | negative.any(1)
        if case.extra_ids is not None:
            rows |= (case.extra_ids == at).any(1)
    items = torch.zeros(len(case.items), dtype=torch.bool)
    named = torch.cat([i.long() for i in ids], 1)[rows & live].flatten()
    items[named[named >= 0]] = True
    return rows & live, items


@pytest.mark.parametrize("kind", ["per-row", "shared", "sampled", "in_batch", "full"])
@fuzzing(25)
@given(data=st.data())
def test_extreme_embeddings_in_a_row(kernels: None, device: torch.device, kind: str, data: st.DataObject) -> None:
    """A query's are its own row's; an item's are those rows' that have it as more than a masked negative."""
    embeddings = kind in ("per-row", "shared")
    calls = embedding_calls(shared=kind == "shared", planted=True) if embeddings else drawn_calls(kind, planted=True)
    call = data.draw(calls)
    name = data.draw(st.sampled_from(["queries", "items"]))
    place = tuple(data.draw(st.integers(0, size - 1)) for size in getattr(call.case, name).shape)
    planted = _plant(call, name, place, data.draw(_extremes(call.dtype)))
    before, after = _fused(call, device), _fused(planted, device)
    rows, items = _touched(call, name, place[0])
    _assert_same_rows(before, after, ~rows)
    if "items" in call.names:
        found, expected = (r.gradients["items"].to_dense()[~items] for r in (after, before))
        assert torch.equal(found, expected)
    if math.isnan(getattr(planted.case, name)[place].item()):
        truth = _truth(planted).loss
        assert torch.equal(after.loss.isnan(), truth.isnan())

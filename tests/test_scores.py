"""The kernels from scores against the fp64 reference: every parameter, size, shape, stride and dtype."""

from __future__ import annotations

import math

import pytest
import torch
from cases import (
    DTYPE_IDS,
    DTYPES,
    VARIANTS,
    Scores,
    against_truth,
    assert_near,
    evaluate,
    exact,
    generator,
    make_scores,
)

from cw_ext import cw_loss

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)


def _weights(*shape: int) -> torch.Tensor:
    """A grad_output for reduction="none"."""
    return torch.randn(shape, generator=generator(99), dtype=torch.float64)


@each_dtype
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter(kernels: None, device: torch.device, variant: str, dtype: torch.dtype) -> None:
    arguments = VARIANTS[variant]
    against_truth(make_scores((6,), 19, seed=1), dtype, device, _weights(6), **arguments)
    full = make_scores((6,), 37, 3, seed=2, log_q=True, row_weights=True)
    against_truth(full, dtype, device, _weights(6), **arguments)


@each_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(kernels: None, device: torch.device, reduction: str, dtype: torch.dtype) -> None:
    case = make_scores((6,), 19, 2, seed=3, log_q=True, row_weights=True)
    against_truth(case, dtype, device, reduction=reduction, prior=0.1)


@each_dtype
@pytest.mark.parametrize("variant", ["confidence", "floor-binds", "min-margin-binds", "everything"])
def test_prior_and_threshold_per_row(kernels: None, device: torch.device, variant: str, dtype: torch.dtype) -> None:
    case = make_scores((6,), 19, 2, seed=4)
    rows = torch.arange(6, dtype=torch.float64)
    case = Scores(case.pos, case.neg, case.extra, prior=rows / 8, threshold=(rows - 3) / 5)
    arguments = {k: v for k, v in VARIANTS[variant].items() if k not in ("prior", "confidence_threshold")}
    against_truth(case, dtype, device, _weights(6), **arguments)


@pytest.mark.parametrize("value", [0.15, exact(0.15), torch.full((3, 2), 0.15)], ids=["float", "0-d", "fp32"])
def test_one_prior_for_all_rows_is_the_same_in_each_form(backend: str, value: float | torch.Tensor) -> None:
    case = make_scores((3, 2), 5)
    expected = case.loss(prior=0.15, confidence_temperature=1.0, confidence_threshold=0.15, backend="reference")
    loss = case.loss(prior=value, confidence_temperature=1.0, confidence_threshold=value, backend=backend)
    assert_near(loss, expected, torch.float32 if torch.is_tensor(value) else torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sizes(kernels: None, device: torch.device, dtype: torch.dtype) -> None:
    """Around every vector width, and long rows."""
    for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 1000, 4099):
        m = n % 5
        case = make_scores((3,), n, m, seed=n, log_q=n % 2 == 0)
        against_truth(case, dtype, device, _weights(3), prior=0.1)
    against_truth(make_scores((3,), 9, 70, seed=7), dtype, device, _weights(3), prior=0.1)


@pytest.mark.parametrize("weighting", ["sigmoid", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_whole_rows(kernels: None, device: torch.device, dtype: torch.dtype, weighting: str) -> None:
    """Without external weights: rows in whole vectors and with a rest, for one warp, several and many, and a row too
    long for CUDA's shared memory. All but the last two give a mean, whose gradient forward divides by the rows."""
    for n in (8, 64, 512, 520, 1024, 1032, 4096, 4100, 8191, 16384, 60000):
        case = make_scores((3,), n, n % 3, seed=n)
        weight = _weights(3) if n > 10000 else None
        against_truth(case, dtype, device, weight, prior=0.1, weighting=weighting)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_score_of_many(kernels: None, device: torch.device, value: float) -> None:
    """NaN and +inf make their row NaN, wherever in it they are, and no other; −inf is a negative without mass."""
    n = 2048
    for j in (0, 5, 1023, n - 1):
        case = make_scores((3,), n, 2, seed=j).to(torch.float32)
        case.neg[1, j] = value
        weight = torch.ones(3)
        truth = evaluate(case.to(torch.float64), weight, backend="reference")
        fused = evaluate(case.to(device=device), weight.to(device), backend="fused")
        assert_near(fused.loss, truth.loss, torch.float32)
        whole = [0, 1, 2] if value == -math.inf else [0, 2]
        for name, gradient in fused.gradients.items():
            assert_near(gradient[whole], truth.gradients[name][whole], torch.float32, name)


@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (2, 1, 3), (300,)])
def test_leading_shapes(kernels: None, device: torch.device, shape: tuple[int, ...]) -> None:
    case = make_scores(shape, 11, 2, seed=5, log_q=True, row_weights=True)
    against_truth(case, torch.float32, device, _weights(*shape), prior=0.1)
    against_truth(case, torch.float32, device, prior=0.1, reduction="mean")


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_rows(backend: str, device: torch.device, shape: tuple[int, ...], reduction: str) -> None:
    case = make_scores(shape, 4, 2, log_q=True, row_weights=True).to(torch.float32, device)
    leaves = case.leaves()
    loss = leaves.loss(reduction=reduction, backend=backend)
    assert loss.shape == (shape if reduction == "none" else ())
    assert loss.dtype == torch.float32 and loss.sum().item() == 0
    loss.sum().backward()
    assert all(g.shape == getattr(case, name).shape for name, g in leaves.gradients().items())


def test_strides(backend: str, device: torch.device) -> None:
    """The same numbers, laid out in other ways."""
    case = make_scores((4, 6), 9, 3, seed=6, log_q=True, row_weights=True).to(torch.float32, device)
    expected = evaluate(case, _weights(4, 6).to(device), prior=0.1, backend=backend)

    def transposed(t: torch.Tensor) -> torch.Tensor:
        return t.transpose(0, -1).contiguous().transpose(0, -1)

    def sliced(t: torch.Tensor) -> torch.Tensor:
        return torch.stack((t, t.flip(0)), -1).flatten(-2)[..., ::2]

    def offset(t: torch.Tensor) -> torch.Tensor:
        """Off the alignment that a vector load would like."""
        return torch.cat((t.new_zeros(1), t.flatten()))[1:].view(t.shape)

    for layout in (transposed, sliced, offset):
        leaves = case.leaves()
        moved = leaves.map(layout)
        moved.loss(prior=0.1, backend=backend, reduction="none").backward(_weights(4, 6).to(device, torch.float32))
        for name, gradient in leaves.gradients().items():
            assert_near(gradient, expected.gradients[name], torch.float32, f"{layout.__name__} {name}")


def test_expanded_inputs(backend: str, device: torch.device) -> None:
    """Inputs of stride 0: the gradient is the sum over what they were expanded to."""
    case = make_scores((4,), 9, 2, seed=8).to(torch.float32, device)
    pos = case.pos[:1].clone().requires_grad_()
    neg = case.neg[:1].clone().requires_grad_()
    extra = case.extra[1:2].clone().requires_grad_()
    loss = cw_loss(
        pos.expand(4),
        neg.expand(4, 9),
        extra_pos_scores=extra.expand(4, 2),
        prior=0.1,
        backend=backend,
        reduction="sum",
    )
    loss.backward()
    one = Scores(case.pos[:1], case.neg[:1], case.extra[1:2])
    expected = evaluate(one, prior=0.1, backend="reference", reduction="sum")
    assert_near(loss, 4 * expected.loss, torch.float32)
    for name, leaf in (("pos", pos), ("neg", neg), ("extra", extra)):
        assert_near(leaf.grad, 4 * expected.gradients[name], torch.float32, name)


@pytest.mark.parametrize("shape", [(9,), (1, 9), (6, 9), (4, 1, 9), (1, 6, 9)])
def test_log_weights_broadcast(backend: str, device: torch.device, shape: tuple[int, ...]) -> None:
    case = make_scores((4, 6), 9, seed=9).to(device=device)
    small = torch.randn(shape, generator=generator(10), dtype=torch.float64)
    small[..., 2] = -math.inf
    small = small.to(device).requires_grad_()
    full = small.detach().expand(4, 6, 9).clone().requires_grad_()
    losses = [
        cw_loss(case.pos, case.neg, neg_log_weights=w, backend=b) for w, b in ((small, backend), (full, "reference"))
    ]
    for loss in losses:
        loss.backward()
    assert_near(losses[0], losses[1], torch.float64)
    assert_near(small.grad, full.grad.sum_to_size(shape), torch.float64)


@each_dtype
def test_dtypes_that_come_back(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """The loss in fp64 or fp32; each gradient in the dtype of its own input, independent of the others."""
    case = make_scores((3,), 5, 2, log_q=True, row_weights=True).to(dtype, device)
    other = torch.float32 if dtype != torch.float32 else torch.float64
    leaves = Scores(
        case.pos,
        case.neg,
        case.extra,
        case.log_q.to(other),
        torch.full((3,), 0.1, dtype=other, device=device),
        torch.zeros(3, dtype=other, device=device),
        case.row_weights.to(other),
    ).leaves()
    loss = leaves.loss(confidence_temperature=1.0, backend=backend)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    loss.backward()
    for name, gradient in leaves.gradients().items():
        assert gradient.dtype == (dtype if name in ("pos", "neg", "extra") else other), name


def test_gradients_of_some_inputs_only(backend: str, device: torch.device) -> None:
    """What needs no gradient changes nothing for what does."""
    case = make_scores((4,), 9, 3, seed=11, log_q=True, row_weights=True).to(device=device)
    arguments = {"backend": backend, "prior": 0.1, "detach_weights": False}
    all_of_them = evaluate(case, _weights(4).to(device), **arguments)
    for name in all_of_them.gradients:
        one = evaluate(case, _weights(4).to(device), names=[name], **arguments)
        assert one.gradients.keys() == {name}
        assert torch.equal(one.gradients[name], all_of_them.gradients[name])
        assert torch.equal(one.loss, all_of_them.loss)
    with torch.no_grad():
        assert torch.equal(case.loss(reduction="none", **arguments), all_of_them.loss)


def test_inputs_are_left_as_they_were(backend: str, device: torch.device) -> None:
    case = make_scores((4,), 9, 3, seed=12, log_q=True, row_weights=True).to(torch.float32, device)
    before = case.map(torch.clone)
    evaluate(case, _weights(4).to(device), backend=backend, prior=0.1)
    for name in ("pos", "neg", "extra", "log_q", "row_weights"):
        assert torch.equal(getattr(case, name), getattr(before, name)), name


@pytest.mark.parametrize("weights", [torch.tensor([1, 0, 2, 1]), torch.tensor([True, False, True, True])])
def test_row_weights_need_not_be_floats(backend: str, weights: torch.Tensor) -> None:
    case = make_scores((4,), 9, seed=13)
    losses = case.loss(reduction="none", backend="reference")
    mean = cw_loss(case.pos, case.neg, row_weights=weights, backend=backend)
    assert_near(mean, (weights * losses).sum() / weights.sum(), torch.float64)


def test_one_live_negative_and_none(backend: str, device: torch.device) -> None:
    """A row whose other negatives are masked equals one without them; a row with all masked is left out."""
    case = make_scores((4,), 9, 2, seed=14).to(device=device)
    log_q = torch.full((4, 9), -math.inf, dtype=torch.float64, device=device)
    log_q[0, 3], log_q[1, 0], log_q[2, 8] = 0.0, 0.7, -0.7
    leaves = Scores(case.pos, case.neg, case.extra, log_q).leaves()
    loss = leaves.loss(prior=0.05, backend=backend, reduction="none")
    live = case.neg[[0, 1, 2], [3, 0, 8]].unsqueeze(1)
    expected = Scores(case.pos[:3], live, case.extra[:3])
    assert_near(loss[:3], expected.loss(prior=0.05, backend="reference", reduction="none"), torch.float64)
    assert loss[3] == 0
    assert_near(leaves.loss(prior=0.05, backend=backend), loss[:3].mean(), torch.float64)
    loss.sum().backward()
    for name, gradient in leaves.gradients().items():
        assert not gradient[3].any(), name
    assert (leaves.neg.grad != 0).sum() == 3

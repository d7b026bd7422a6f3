"""The loss of two tensors of scores and nothing else has its own way through Python: to the bits of the general way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cw_ext
from cw_ext import functional, plain_scores

pytestmark = pytest.mark.cpu_kernels

SETTINGS: dict[str, Any] = {
    "defaults": {},
    "sum": {"reduction": "sum", "prior": 0.1},
    "none": {"reduction": "none", "weighting": "linear", "temperature": 0.2},
    "through": {"detach_weights": False, "include_positive": True, "confidence_temperature": 0.5},
}


def _scores(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Of 7 rows; one has no mass, so that the mean has to be divided by 6."""
    generator = torch.Generator().manual_seed(4)
    pos, neg = torch.randn(7, generator=generator), torch.randn(7, 33, generator=generator)
    neg[2] = -torch.inf
    return pos.to(dtype).requires_grad_(), neg.to(dtype).requires_grad_()


def _in_general(pos: Tensor, neg: Tensor, **arguments: Any) -> Tensor:
    """Two leading dimensions take the general way."""
    return cw_ext.cw_loss(pos[None], neg[None], backend="fused", **arguments)


@pytest.fixture
def no_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        raise AssertionError("the general way")

    monkeypatch.setattr(functional, "resolve", refused)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("factor", [1.0, -2.5])
def test_the_same_bits(kernels: None, name: str, dtype: torch.dtype, factor: float) -> None:
    results = []
    for function in (cw_ext.cw_loss, _in_general):
        pos, neg = _scores(dtype)
        loss = function(pos, neg, **SETTINGS[name])
        (factor * loss.flatten()).sum().backward(retain_graph=True)
        first = [pos.grad, neg.grad]
        pos.grad = neg.grad = None
        (factor * loss.flatten()).sum().backward()  # this one may write to what was saved
        results.append([loss.flatten(), *first, pos.grad, neg.grad])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(results[0][1], results[0][3]) and torch.equal(results[0][2], results[0][4])


@pytest.mark.parametrize("wanted", ["pos", "neg", "both", "none"])
def test_gradients_of_one_of_them(kernels: None, no_other_way: None, wanted: str) -> None:
    given = dict(zip(("pos", "neg"), _scores()))
    expected = torch.autograd.grad(
        cw_ext.cw_loss(*given.values(), backend="fused") * 3, [*given.values()], retain_graph=True
    )
    for name, tensor in given.items():
        tensor.requires_grad_(wanted in (name, "both"))
    loss = cw_ext.cw_loss(*given.values(), backend="fused")
    assert loss.requires_grad == (wanted != "none")
    if wanted != "none":
        (3 * loss).backward()
    for (name, tensor), gradient in zip(given.items(), expected):
        if wanted in (name, "both"):
            assert torch.equal(tensor.grad, gradient)
        else:
            assert tensor.grad is None


def test_without_grad_mode(kernels: None, no_other_way: None) -> None:
    with torch.no_grad():
        loss = cw_ext.cw_loss(*_scores(), backend="fused")
    assert not loss.requires_grad
    assert torch.equal(loss, cw_ext.cw_loss(*_scores(), backend="fused").detach())


def test_written_to_before_backward(kernels: None, no_other_way: None) -> None:
    pos, neg = _scores()
    scores = neg * 1
    loss = cw_ext.cw_loss(pos, scores)
    scores.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_parameters_and_autocast(kernels: None, no_other_way: None) -> None:
    pos, neg = _scores()
    expected = cw_ext.cw_loss(pos, neg)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cw_ext.cw_loss(nn.Parameter(pos.detach()), nn.Parameter(neg.detach())), expected)


class _Mine(Tensor):
    pass


@pytest.mark.parametrize("kind", ["subclass", "half", "shape", "above", "reference", "temperature", "unhashable"])
def test_what_goes_the_general_way(kernels: None, kind: str) -> None:
    pos, neg = (x.detach() for x in _scores())
    arguments: dict[str, Any] = {}
    match kind:
        case "subclass":
            neg = neg.as_subclass(_Mine)
        case "half":
            pos, neg = pos.bfloat16(), neg.bfloat16()
        case "shape":
            pos, neg = pos[None], neg[None]
        case "above":
            arguments = {"return_above": True}
        case "reference":
            arguments = {"backend": "reference"}
        case "temperature":
            arguments = {"temperature": torch.tensor(0.1)}
        case "unhashable":
            arguments = {"weighting": ["none"]}
    assert plain_scores.loss(pos, neg, arguments) is None  # type: ignore[arg-type]


def test_a_flag_is_no_number(kernels: None) -> None:
    """Though they are equal, and the checked arguments of earlier calls are kept."""
    pos, neg = (x.detach() for x in _scores())
    assert plain_scores.loss(pos, neg, {"include_positive": True}) is not None
    with pytest.raises(TypeError, match="include_positive must be True or False, got 1"):
        cw_ext.cw_loss(pos, neg, include_positive=1)  # type: ignore[arg-type]

"""torch.utils.checkpoint around a model with its loss: what is computed again in backward is what was computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recommender import CRITERIA, Recommender, make_batch, make_recommender, training_step
from torch import Tensor
from torch.utils.checkpoint import checkpoint

DRAWN = ("sampled", "popularity", "shared", "mixed")
REENTRANT = pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
ROWS, N = 9, 7


def _checkpointed(model: Recommender, use_reentrant: bool, **settings: Any) -> Callable[..., Tensor]:
    """The model, from the queries on, in a checkpoint: the reentrant kind needs an input that requires gradients."""

    def forward(users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        anchor = torch.zeros((), requires_grad=True)
        part = lambda anchor, *batch: model(*batch) + anchor  # noqa: E731
        return checkpoint(part, anchor, users, positives, negatives, use_reentrant=use_reentrant, **settings)

    return forward


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit for bit: the same kernels on the same numbers."""
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@REENTRANT
@pytest.mark.parametrize("name", CRITERIA)
def test_loss_and_gradients(backend: str, name: str, use_reentrant: bool) -> None:
    """Negatives that are drawn are drawn again the same, as checkpoint() restores torch's generator."""
    model = make_recommender(name, backend)
    batch = make_batch(ROWS, N)
    expected = training_step(model, model, *batch)
    assert expected["users.weight"].abs().sum() > 0 and expected["items.weight"].abs().sum() > 0
    _assert_equal(training_step(model, _checkpointed(model, use_reentrant), *batch), expected)


@pytest.mark.parametrize("name", DRAWN)
def test_the_generator_is_what_brings_the_negatives_back(kernels: None, name: str) -> None:
    """Without its state others are drawn in backward, and the gradients are not those of the loss."""
    model = make_recommender(name)
    batch = make_batch(ROWS, N)
    expected = training_step(model, model, *batch)
    found = training_step(model, _checkpointed(model, False, preserve_rng_state=False), *batch)
    assert torch.equal(found["loss"], expected["loss"])
    assert not torch.equal(found["items.weight"], expected["items.weight"])


@pytest.mark.parametrize("name", CRITERIA)
def test_a_second_backward(kernels: None, name: str) -> None:
    """With the graph retained, twice the gradients."""
    model = make_recommender(name)
    batch = make_batch(ROWS, N)
    expected = training_step(model, model, *batch)
    model.zero_grad()
    torch.manual_seed(88)
    loss = _checkpointed(model, use_reentrant=False)(*batch)
    loss.backward(retain_graph=True)
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, 2 * expected[parameter_name]), parameter_name


@pytest.mark.parametrize("name", CRITERIA)
def test_what_is_saved_can_be_moved_away(kernels: None, name: str) -> None:
    """torch's hooks on saved tensors: what comes back is a copy, which backward may write to."""
    model = make_recommender(name)
    batch = make_batch(ROWS, N)
    expected = training_step(model, model, *batch)
    with torch.autograd.graph.save_on_cpu():
        found = training_step(model, model, *batch)
    _assert_equal(found, expected)

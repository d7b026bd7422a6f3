"""MovieLens-100K as the sequences that the adapters' tests train on, and what those tests share."""

from __future__ import annotations

import pytest
import torch
from cases import assert_near
from torch import Tensor, nn

from benchmarks.common.data import DataError, movielens_100k_file


def sequences(num_users: int) -> tuple[list[list[int]], int]:
    """The items of the first users, each user's in the order of time, numbered from 0; and how many items there are.

    Skips the test where the data set is not installed.
    """
    try:
        lines = movielens_100k_file().read_text(encoding="utf-8").splitlines()[1:]
    except DataError as error:
        pytest.skip(str(error))
    rows = sorted((line.split("\t") for line in lines), key=lambda row: float(row[3]))
    users: dict[str, list[int]] = {}
    items: dict[str, int] = {}
    for user, item, *_ in rows:
        if user in users or len(users) < num_users:
            users.setdefault(user, []).append(items.setdefault(item, len(items)))
    return list(users.values()), len(items)


def assert_same_loss(actual: tuple[Tensor, nn.Module], expected: tuple[Tensor, nn.Module]) -> None:
    """Two losses, each with the model that it trains, are equal in fp32, and so are the models' gradients."""
    (loss, model), (expected_loss, expected_model) = actual, expected
    assert_near(loss, expected_loss, torch.float32, "loss")
    loss.backward()
    expected_loss.backward()
    assert_near(_gradients(model), _gradients(expected_model), torch.float32, "gradients")


def _gradients(model: nn.Module) -> Tensor:
    """All of them in one vector: some parameters' are 0 up to roundings, whose size only the others show."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]
    together = torch.cat([g.flatten() for g in gradients])
    assert together.abs().max() > 0, "expected gradients, got none"
    return together

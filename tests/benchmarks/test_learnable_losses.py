"""Losses with parameters of their own: who learns when, in which direction, and within which ranges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_cases import load_blocks, record_batches

from benchmarks.common.data import InteractionData
from benchmarks.training.learnable_losses import AdvInfoNCE, LearningLoss, LowerLeftPartialAUC
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.negatives import Batch, Negatives
from benchmarks.training.trainer import Trainer, TrainingConfig


@pytest.fixture
def blocks(tmp_path: Path) -> InteractionData:
    return load_blocks(tmp_path)


def make_trainer(data: InteractionData, name: str, lr: float = 0.01, weight_decay: float = 0.0, **options) -> Trainer:
    """All in fp64, in which the effect of a small step shows."""
    loss = build_loss(name, LossOptions(negatives=Negatives("uniform", 8), **options))
    run = Trainer(data, loss, TrainingConfig(dim=8, lr=lr, weight_decay=weight_decay, epochs=6, batch_size=64))
    run.model.double()
    learning_loss(run).double()
    return run


def learning_loss(run: Trainer) -> LearningLoss:
    assert isinstance(run._function, LearningLoss)
    return run._function


def values(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def step(run: Trainer) -> tuple[Batch, float]:
    """Take a step of the next epoch; return its batch, and the loss before it."""
    own = learning_loss(run)
    batches = record_batches(run)
    before = run.train_step(run.shuffled_batches()[0])
    run._function = own
    return batches[0][1], before


@torch.no_grad()
def loss_now(run: Trainer, batch: Batch) -> float:
    """The loss of a batch with the model and the own parameters of now."""
    users, items = run.model()
    return run._function(batch._replace(queries=users[batch.query_ids], items=items)).item()


# --- AdvInfoNCE ---


@pytest.mark.parametrize("adversary_every", [2, 3, 5])
def test_adversary_and_model_learn_in_turn_and_against_each_other(blocks, monkeypatch, adversary_every):
    monkeypatch.setattr(AdvInfoNCE, "ADVERSARY_LR", 0.01)
    run = make_trainer(blocks, "advinfonce", adversary_every=adversary_every)
    for epoch in range(1, 2 * adversary_every + 1):
        run.epoch = epoch - 1
        adversary, model = values(learning_loss(run)), values(run.model)
        batch, before = step(run)
        moved = [
            [not torch.equal(a, b) for a, b in zip(earlier, values(module), strict=True)]
            for earlier, module in ((adversary, learning_loss(run)), (model, run.model))
        ]
        if epoch % adversary_every == 0:
            assert moved == [[True, True], [False, False]]
            assert loss_now(run, batch) > before
        else:
            assert moved == [[False, False], [True, True]]
            assert loss_now(run, batch) < before


def test_each_epoch_trains_one_of_the_two(blocks, monkeypatch):
    monkeypatch.setattr(AdvInfoNCE, "ADVERSARY_LR", 0.01)
    run = make_trainer(blocks, "advinfonce", adversary_every=2)
    model, adversary = [values(run.model)], [values(learning_loss(run))]
    for _ in range(4):
        run._train_epoch()
        run.epoch += 1
        model.append(values(run.model))
        adversary.append(values(learning_loss(run)))
    moved = [
        [not torch.equal(a[0], b[0]) for a, b in zip(states, states[1:], strict=False)] for states in (model, adversary)
    ]
    assert moved == [[True, False, True, False], [False, True, False, True]]


def test_the_adversary_is_drawn_after_the_model_and_with_its_seed(blocks):
    runs = [make_trainer(blocks, name) for name in ("advinfonce", "llpauc")]
    generator = torch.Generator().manual_seed(0)
    for rows, table in zip((60, 56, 60, 56), [*values(runs[0].model), *values(learning_loss(runs[0]))], strict=True):
        assert torch.equal(table, torch.randn(rows, 8, generator=generator).double())
    # The other one takes nothing from the generator.
    after_model = torch.Generator().manual_seed(0)
    for rows in (60, 56):
        torch.randn(rows, 8, generator=after_model)
    assert torch.equal(runs[0].generator.get_state(), generator.get_state())
    assert torch.equal(runs[1].generator.get_state(), after_model.get_state())


def test_weight_decay_pulls_the_adversary_to_0_too(blocks, monkeypatch):
    monkeypatch.setattr(AdvInfoNCE, "ADVERSARY_LR", 0.01)
    run = make_trainer(blocks, "advinfonce", weight_decay=1e6, adversary_every=2)
    run.epoch = 1
    before = values(learning_loss(run))
    step(run)
    for old, new in zip(before, values(learning_loss(run)), strict=True):
        assert (new.abs() < old.abs())[old.abs() > 0.02].all()


# --- LLPAUC ---


RANGES = {"a": (0, 1), "b": (0, 1), "s_pos": (-1, 4), "s_neg": (0, 5)}


def parameters(run: Trainer) -> dict[str, float]:
    return {name: value.item() for name, value in learning_loss(run).named_parameters()}


def test_parameters_stay_in_their_ranges(blocks):
    run = make_trainer(blocks, "llpauc", lr=3.0)
    visited: dict[str, set[float]] = {name: set() for name in parameters(run)}
    for _ in range(5):
        for indices in run.shuffled_batches():
            run.train_step(indices)
            now = parameters(run)
            for name, (low, high) in RANGES.items():
                assert low <= now[name] <= high
            assert max(-now["a"], now["b"] - 1) <= now["gamma"] <= 1
            for name, value in now.items():
                visited[name].add(value)
    ends = {name: visited[name] & set(RANGES[name]) for name in RANGES}
    assert all(ends.values()), "steps are so large that each parameter gets to an end"


@pytest.mark.parametrize("start", [-50.0, 50.0])
def test_parameters_out_of_range_come_to_its_ends(start):
    loss = LowerLeftPartialAUC(0.7, 0.1)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.fill_(start)
    loss.after_step()
    found = {name: value.item() for name, value in loss.named_parameters()}
    end = 0 if start < 0 else 1
    expected = {name: bounds[end] for name, bounds in RANGES.items()}
    # With a = b = 0 the lower end of gamma is max(-0, 0 - 1).
    expected |= {"gamma": (0, 1)[end], "multiplier_a": start, "multiplier_b": start}
    assert found == expected


def test_the_lower_end_of_gamma_is_that_of_a_and_b():
    loss = LowerLeftPartialAUC(0.7, 0.1)
    for a, b, expected in ((0.25, 0.5, -0.25), (1.0, 0.5, -0.5), (1.0, 0.0, -1.0)):
        with torch.no_grad():
            for name, value in (("a", a), ("b", b), ("gamma", -3.0)):
                getattr(loss, name).fill_(value)
        loss.after_step()
        assert loss.gamma.item() == expected


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_all_parameters_descend_some_twice_as_fast(blocks, weight_decay):
    lr = 1e-3
    run = make_trainer(blocks, "llpauc", lr=lr, weight_decay=weight_decay)
    model, before = values(run.model), parameters(run)
    step(run)
    now = parameters(run)
    gradients = {name: value.grad.item() for name, value in learning_loss(run).named_parameters()}
    for name, gradient in gradients.items():
        # Adam's first step is the learning rate against the sign of the gradient.
        rate = 2 * lr if name in ("s_pos", "s_neg", "gamma") else lr
        gradient += weight_decay * before[name]
        expected = before[name] - rate * (1 if gradient > 0 else -1)
        if name in RANGES:
            expected = min(max(expected, RANGES[name][0]), RANGES[name][1])
        assert now[name] == pytest.approx(expected, abs=1e-6)
    assert all(not torch.equal(a, b) for a, b in zip(model, values(run.model), strict=True))


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("llpauc", {"top_positives": 0.0}, r"top_positives must be in \(0, 1\], got 0.0"),
        ("llpauc", {"top_negatives": 1.5}, r"top_negatives must be in \(0, 1\], got 1.5"),
        ("llpauc", {"top_negatives": float("nan")}, r"top_negatives must be in \(0, 1\], got nan"),
        ("advinfonce", {"adversary_every": 1}, "adversary_every must be at least 2, got 1"),
        ("advinfonce", {"temperature": 0.0}, "temperature must be finite and > 0, got 0.0"),
        ("advinfonce", {"temperature": float("inf")}, "temperature must be finite and > 0, got inf"),
        ("advinfonce", {"negatives": Negatives("shared", 8)}, "negatives of advinfonce must be drawn for each row"),
        ("llpauc", {"negatives": Negatives("full", None)}, "negatives of llpauc must be drawn for each row"),
    ],
)
def test_bad_values_are_refused(name, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_loss(name, LossOptions(**options))

"""The example of two encoders: one process or several, and what becomes of its temperature."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import assert_near
from torch import Tensor
from torchrun import process_of_group, torchrun

pytest.importorskip("sklearn", reason="the images are those of scikit-learn")

from benchmarks.image_pairs.pairs import load_split  # noqa: E402
from examples import two_towers  # noqa: E402
from examples.two_towers import Pairs, TwoTowers, recall, train  # noqa: E402

pytestmark = pytest.mark.cpu_kernels


def made_up() -> Pairs:
    """A few images, of which each is in two pairs or three; three processes have unequal shares of the last batch."""
    generator = torch.Generator().manual_seed(0)
    views = [torch.rand(131, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)]
    return Pairs(torch.arange(131) % 50, *views)


def trained() -> tuple[list[float], dict[str, Tensor]]:
    model = TwoTowers(seed=1, temperature=0.2).double()
    return train(made_up(), model, epochs=3, seed=2), model.state_dict()


@pytest.mark.parametrize("processes", [3, pytest.param(2, marks=pytest.mark.thorough)])
def test_several_processes_learn_what_one_learns(processes: int, tmp_path: Path) -> None:
    losses, state = trained()
    torchrun(__file__, tmp_path, processes=processes)
    found_losses, found_state = torch.load(tmp_path / "trained.pt")
    # Roundings grow from step to step.
    torch.testing.assert_close(found_losses, losses, rtol=1e-8, atol=0)
    for name, value in state.items():
        torch.testing.assert_close(found_state[name], value, rtol=1e-6, atol=1e-8, msg=name)


def test_a_bound_keeps_what_a_free_temperature_loses() -> None:
    split, generator = load_split(0), torch.Generator().manual_seed(0)
    seen, new = (Pairs.of(split, images, generator) for images in (split.train.repeat(2), split.test))
    found = {}
    for lowest in (0.1, 0.0):
        model = TwoTowers(seed=0, lowest=lowest)
        train(seen, model, epochs=30, seed=0)
        found[lowest] = model.log_temperature.exp().item(), recall(new, model)
    assert found[0.1][0] == pytest.approx(0.1)
    assert found[0.0][0] < 0.05
    assert found[0.0][1] < found[0.1][1] - 0.05


def test_a_temperature_at_its_bound_can_rise() -> None:
    model = TwoTowers(seed=0, temperature=0.05, lowest=0.1)
    model.keep_bound()
    assert_near(model.log_temperature.exp(), torch.tensor(0.1), torch.float32, "raised to the bound")
    *_, temperature = model(torch.rand(3, 8, 8), torch.rand(3, 8, 8))
    temperature.backward()
    assert model.log_temperature.grad > 0


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert two_towers.main(["--epochs", "1"]) == 0
    assert "recall@10 of" in capsys.readouterr().out
    torchrun(two_towers.__file__, "--epochs", "1")


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        result = trained()
        if rank == 0:
            torch.save(result, folder / "trained.pt")

"""The example that trains on a table spread over processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchrun import process_of_group, torchrun

from examples import row_sharded

pytestmark = pytest.mark.cpu_kernels


def test_the_example_learns_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    torchrun(__file__, tmp_path, processes=2)
    torchrun(__file__, tmp_path, processes=3)
    found = [torch.load(tmp_path / f"{processes}.pt") for processes in (2, 3)]
    for losses in found:
        assert losses[-1] < losses[0] - 0.05
    assert found[1][0] < found[0][0] - 0.05, "the second run began anew"


def test_without_torchrun_it_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        row_sharded.main([])
    assert error.value.code == 2 and "start this program with torchrun" in capsys.readouterr().err


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        world = torch.distributed.get_world_size()
        losses = row_sharded.train(folder, num_users=50, num_items=100, steps=20)
        if rank == 0:
            torch.save(losses, folder / f"{world}.pt")

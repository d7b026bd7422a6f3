"""Save and restore a training run, so that an interrupted run goes on as if it had not been interrupted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.common import reporting


class Resumable(Protocol):
    """A training run whose state can be saved and restored."""

    def identity(self) -> dict[str, Any]:
        """What tells this run from others: only a checkpoint with the same can be loaded."""

    def state_dict(self) -> dict[str, Any]:
        """All that the run goes on from."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where :meth:`state_dict` was called."""


class CheckpointError(ValueError):
    """A checkpoint that does not belong to the run, or is damaged."""


def save(trainer: Resumable, path: Path) -> None:
    """Write the run's state, whole or not at all.

    Raises:
        OSError: the file cannot be written; the message contains it.
    """
    with reporting.written_whole(path) as unfinished:
        try:
            torch.save({"run": trainer.identity(), "state": trainer.state_dict()}, unfinished)
        except RuntimeError as error:  # torch's for a full disk, whose message is about positions in the file
            raise OSError(f"{path}: expected space for a checkpoint, got: {reporting.first_line(error)}") from None


def is_of_any(path: Path, runs: Iterable[dict[str, Any]]) -> bool:
    """Whether the file is a checkpoint of one of the runs, each given by its trainer's identity."""
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True)["run"]) in runs
    except Exception:  # torch has errors of many types for a damaged file
        return False


def load(trainer: Resumable, path: Path, device: str) -> None:
    """Bring a trainer, made for the same run, to where the file was written; tensors are loaded to the device.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or of other data, another loss or configuration.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        run, state = dict(checkpoint["run"]), checkpoint["state"]
    except Exception as error:  # torch has errors of many types for a damaged file
        raise _damaged(path, error) from None
    for part, expected in trainer.identity().items():
        found = run.get(part)
        if found == expected:
            continue
        if isinstance(expected, dict) and isinstance(found, dict):
            name = next(name for name in {**expected, **found} if _value(expected, name) != _value(found, name))
            part, expected, found = f"{part} {name}", _value(expected, name), _value(found, name)
        raise CheckpointError(f"{path}: expected a checkpoint with {part} {expected}, got {found}")
    try:
        trainer.load_state_dict(state)
    except Exception as error:
        raise _damaged(path, error) from None


def _value(values: dict[str, Any], name: str) -> Any:
    return values.get(name, "nothing")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected a checkpoint of a training run, got another or a damaged file "
        f"({type(error).__name__}: {reporting.first_line(error)}); remove it to start from scratch"
    )

"""Checkpoints of a module with row-sharded tables, and of its optimizers, for any number of processes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from cw_ext.collectives import ProcessGroup
from cw_ext.distributed.checkpoint_state import (
    as_optimizer_takes_it,
    check_same,
    local,
    module_state,
    optimizer_state,
    packed,
    room_for_state,
    settings_of,
    unpacked,
)
from cw_ext.together import number_of, raise_in_all

_T = TypeVar("_T")


def save_checkpoint(
    folder: str | os.PathLike[str],
    module: nn.Module,
    optimizers: Optimizer | Sequence[Optimizer] = (),
    *,
    extra: Any = None,
    process_group: ProcessGroup | None = None,
) -> None:
    """Save a module with row-sharded tables, and its optimizers. All processes must call this together.

    It uses torch.distributed.checkpoint. Each process writes its rows of each :class:`RowShardedTable`, and the
    optimizer's state of these rows. Tensors that all processes share are written once. The folder appears when
    everything is written, so a checkpoint is complete or does not exist. A failed save leaves FOLDER.incomplete.

    >>> import pathlib, tempfile
    >>> import torch
    >>> import torch.distributed as dist
    >>> from cw_ext.distributed import RowShardedTable, load_checkpoint, save_checkpoint
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun starts more
    >>> tables = torch.nn.ModuleDict({"user": RowShardedTable(100, 8), "item": RowShardedTable(300, 8)})
    >>> optimizer = torch.optim.SparseAdam(tables.parameters())
    >>> folder = tempfile.TemporaryDirectory()
    >>> save_checkpoint(pathlib.Path(folder.name, "after-15"), tables, optimizer, extra={"steps": 15})
    >>> load_checkpoint(pathlib.Path(folder.name, "after-15"), tables, optimizer)
    {'steps': 15}
    >>> dist.destroy_process_group()
    >>> folder.cleanup()

    Args:
        folder: the folder to write. It must not exist yet, and all processes must see the same file system.
        module: a module with any number of tables. Its other parameters and buffers must be equal on all processes.
        optimizers: of the module's parameters. Their state for a table may have one number per element, and single
            numbers for the whole table.
        extra: anything else to save, equal on all processes: numbers, strings, tensors, and lists and dictionaries of
            these.
        process_group: the processes that hold the module. None is the default group of all processes.

    Raises:
        FileExistsError: the folder exists.
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
        torch.distributed.checkpoint.CheckpointException: a process cannot write.
    """
    folder = Path(folder)
    incomplete = folder.with_name(folder.name + ".incomplete")

    def prepare() -> dict[str, Any]:
        if folder.exists():
            raise FileExistsError(f"folder must not exist yet, got {folder}")
        state = module_state(module)
        for place, optimizer in enumerate(_several(optimizers)):
            state |= optimizer_state(place, optimizer, module)
        state["extra"] = packed("extra", extra)
        return state

    def make_folder() -> None:
        if dist.get_rank(process_group) == 0:
            shutil.rmtree(incomplete, ignore_errors=True)
            incomplete.mkdir(parents=True)

    def put_in_place() -> None:
        if dist.get_rank(process_group) == 0:
            incomplete.rename(folder)

    state = _together(prepare, process_group)
    _check_same_folder(folder, process_group)
    _together(make_folder, process_group)
    save(state, storage_writer=FileSystemWriter(incomplete), process_group=process_group)
    _together(put_in_place, process_group)


def load_checkpoint(
    folder: str | os.PathLike[str],
    module: nn.Module,
    optimizers: Optimizer | Sequence[Optimizer] = (),
    *,
    process_group: ProcessGroup | None = None,
) -> Any:
    """Load a checkpoint of :func:`save_checkpoint`, with any number of processes. All must call this together.

    Training continues as if it had not stopped: the optimizers get their settings and their state back, even before
    their first step. Only load files that you trust: as with torch.load(weights_only=False), they can run code.

    >>> import pathlib, tempfile
    >>> import torch
    >>> import torch.distributed as dist
    >>> from cw_ext.distributed import RowShardedTable, load_checkpoint, save_checkpoint
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun starts more
    >>> folder = tempfile.TemporaryDirectory()
    >>> trained, table = RowShardedTable(300, 8), RowShardedTable(300, 8)
    >>> save_checkpoint(pathlib.Path(folder.name, "trained"), trained)
    >>> load_checkpoint(pathlib.Path(folder.name, "trained"), table)
    >>> torch.equal(table.weight, trained.weight)
    True
    >>> dist.destroy_process_group()
    >>> folder.cleanup()

    Args:
        folder: the folder of the checkpoint.
        module: with the same names and shapes as the saved one. Each process gets its rows of the tables.
        optimizers: as many as were saved, in the same order, with the same classes and groups of parameters. Or none,
            to load only the module.
        process_group: as in :func:`save_checkpoint`.

    Returns:
        What was saved as `extra`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
            Nothing has been changed.
        torch.distributed.checkpoint.CheckpointException: a file is missing or damaged. A part may be loaded already.
    """
    folder = Path(folder)

    def prepare() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        if not (folder / ".metadata").is_file():
            raise FileNotFoundError(f"folder must hold a checkpoint of save_checkpoint, got {folder}")
        saved = FileSystemReader(folder).read_metadata()
        of_module = module_state(module)
        check_same(of_module, saved)
        of_optimizers = [room_for_state(place, module, saved) for place in range(len(_several(optimizers)))]
        if of_optimizers and f"optimizers.{len(of_optimizers)}.settings" in saved.state_dict_metadata:
            raise ValueError(f"optimizers must be as many as were saved, got only {len(of_optimizers)} of them")
        return of_module, of_optimizers

    of_module, of_optimizers = _together(prepare, process_group)
    _check_same_folder(folder, process_group)
    # Read first what decides whether the rest fits.
    small = {"extra": None} | {f"optimizers.{place}.settings": None for place in range(len(of_optimizers))}
    _read(folder, small, process_group)
    settings = [unpacked(small[f"optimizers.{place}.settings"]) for place in range(len(of_optimizers))]

    def check() -> None:
        for optimizer, saved in zip(_several(optimizers), settings):
            own = settings_of(optimizer, module)
            if (own["class"], own["groups"]) != (saved["class"], saved["groups"]):
                raise ValueError(
                    f"optimizers must have the classes and the parameters that were saved, {saved['class']} of "
                    f"{saved['groups']}, got {own['class']} of {own['groups']}"
                )

    _together(check, process_group)
    tensors = of_module | {key: value for state in of_optimizers for key, value in state.items()}
    _read(folder, tensors, process_group)
    module.load_state_dict({key.removeprefix("module."): local(tensors[key]) for key in of_module})
    for place, (optimizer, saved) in enumerate(zip(_several(optimizers), settings)):
        loaded = {key: local(tensors[key]) for key in of_optimizers[place]}
        optimizer.load_state_dict(as_optimizer_takes_it(place, saved, loaded))
    return unpacked(small["extra"])


def _together(step: Callable[[], _T], group: ProcessGroup | None) -> _T:
    """Do a step on each process. If one raises an error, all do. None continues before all have done it."""
    error, result = None, None
    try:
        result = step()
    except (OSError, RuntimeError, TypeError, ValueError) as caught:
        error = caught
    told: list[Any] = [0] * dist.get_world_size(group)
    dist.all_gather_object(told, 0 if error is None else number_of(error), group=group)
    raise_in_all(error, told)
    return result  # type: ignore[return-value]


def _check_same_folder(folder: Path, group: ProcessGroup | None) -> None:
    """Two complete folders may exist: a process may not see the latest one yet."""
    told: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, folder.name, group=group)
    if len({*told}) > 1:
        raise ValueError(f"folder must be the same in all processes, got {', '.join(told)}")


def _several(optimizers: Optimizer | Sequence[Optimizer]) -> Sequence[Optimizer]:
    several = [optimizers] if isinstance(optimizers, Optimizer) else [*optimizers]
    for optimizer in several:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizers must be a torch.optim.Optimizer or a sequence of them, got {type(optimizer).__name__}"
            )
    return several


def _read(folder: Path, state: dict[str, Any], process_group: ProcessGroup | None) -> None:
    load(state, storage_reader=FileSystemReader(folder), process_group=process_group)

"""Checkpoints of a module with row-sharded tables, and of its optimizers, for any number of processes."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cw_ext.collectives import ProcessGroup
from cw_ext.distributed.table import RowShardedTable
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
    """Save a module, whose tables each process holds a part of, and its optimizers. All processes call this together.

    By torch.distributed.checkpoint: every process writes its rows of each :class:`RowShardedTable` and of the
    optimizer's state for them; of what all have alike one process writes each tensor. The folder appears when all is
    written, so that there is a whole checkpoint or none. What is left of a save that failed is in FOLDER.incomplete.

    Args:
        folder: where to; it must not exist, and all processes must see the same one.
        module: with any number of tables, and other parameters and buffers, which must be alike in all processes.
        optimizers: of the module's parameters. For a table's rows they may hold a number per element, and per table.
        extra: what else to keep, of the first process: numbers, strings, tensors, lists and dictionaries of them.
        process_group: all processes that hold the module; None: the default group.

    Raises:
        FileExistsError: the folder exists.
        TypeError, ValueError: the message contains the argument, what was expected and what came.
        torch.distributed.checkpoint.CheckpointException: a process cannot write.
    """
    folder = Path(folder)
    incomplete = folder.with_name(folder.name + ".incomplete")

    def prepare() -> dict[str, Any]:
        if folder.exists():
            raise FileExistsError(f"folder must not exist yet, got {folder}")
        state = _module_state(module)
        for place, optimizer in enumerate(_several(optimizers)):
            state |= _optimizer_state(place, optimizer, module)
        state["extra"] = _packed("extra", extra)
        return state

    def make_folder() -> None:
        if dist.get_rank(process_group) == 0:
            shutil.rmtree(incomplete, ignore_errors=True)
            incomplete.mkdir(parents=True)

    def put_in_place() -> None:
        if dist.get_rank(process_group) == 0:
            incomplete.rename(folder)

    state = _together(prepare, process_group)
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
    """Load what :func:`save_checkpoint` saved, by any number of processes. All processes call this together.

    Training goes on as if it had not stopped: the optimizers get their settings and their state, also where they have
    made none yet. Only load what you trust: as with torch.load(weights_only=False), a file can run code.

    Args:
        folder: of save_checkpoint.
        module: with the same names and shapes; each process gets its rows of the tables.
        optimizers: as many as were saved, in the same order, of the same classes with the same groups of parameters.
        process_group: as in save_checkpoint.

    Returns:
        What was saved as `extra`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        TypeError, ValueError: the message contains the argument, what was expected and what came; nothing is changed.
        torch.distributed.checkpoint.CheckpointException: a file is missing or damaged; part may be loaded.
    """
    folder = Path(folder)

    def prepare() -> tuple[dict[str, Any], list[dict[str, Any]]]:
        if not (folder / ".metadata").is_file():
            raise FileNotFoundError(f"folder must hold a checkpoint of save_checkpoint, got {folder}")
        saved = FileSystemReader(folder).read_metadata()
        of_module = _module_state(module)
        _check_same(of_module, saved)
        of_optimizers = [_room_for_state(place, module, saved) for place in range(len(_several(optimizers)))]
        if f"optimizers.{len(of_optimizers)}.settings" in saved.state_dict_metadata:
            raise ValueError(f"optimizers must be as many as were saved, got only {len(of_optimizers)}")
        return of_module, of_optimizers

    of_module, of_optimizers = _together(prepare, process_group)
    # What decides whether the rest fits is read first.
    small = {"extra": None} | {f"optimizers.{place}.settings": None for place in range(len(of_optimizers))}
    _read(folder, small, process_group)
    settings = [_unpacked(small[f"optimizers.{place}.settings"]) for place in range(len(of_optimizers))]

    def check() -> None:
        for optimizer, saved in zip(_several(optimizers), settings):
            own = _settings(optimizer, module)
            if (own["class"], own["groups"]) != (saved["class"], saved["groups"]):
                raise ValueError(
                    f"optimizers must be of the classes and the parameters that were saved, {saved['class']} of "
                    f"{saved['groups']}, got {own['class']} of {own['groups']}"
                )

    _together(check, process_group)
    tensors = of_module | {key: value for state in of_optimizers for key, value in state.items()}
    _read(folder, tensors, process_group)
    module.load_state_dict({key.removeprefix("module."): _local(tensors[key]) for key in of_module})
    for place, (optimizer, saved) in enumerate(zip(_several(optimizers), settings)):
        loaded = {key: _local(tensors[key]) for key in of_optimizers[place]}
        optimizer.load_state_dict(_as_optimizer_takes_it(place, saved, loaded))
    return _unpacked(small["extra"])


def _together(step: Callable[[], _T], group: ProcessGroup | None) -> _T:
    """Do a step in each process; what one raises, all raise. None of them goes on before all have done it."""
    error, result = None, None
    try:
        result = step()
    except (OSError, RuntimeError, TypeError, ValueError) as caught:
        error = caught
    told: list[Any] = [0] * dist.get_world_size(group)
    dist.all_gather_object(told, 0 if error is None else number_of(error), group=group)
    raise_in_all(error, told)
    return result  # type: ignore[return-value]


def _several(optimizers: Optimizer | Sequence[Optimizer]) -> Sequence[Optimizer]:
    several = [optimizers] if isinstance(optimizers, Optimizer) else [*optimizers]
    for optimizer in several:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizers must be torch.optim.Optimizer, got {type(optimizer).__name__}")
    return several


def _tables(module: nn.Module) -> dict[str, RowShardedTable]:
    """The tables in the module, by the names of their weights."""
    return {
        f"{name}.weight".removeprefix("."): part
        for name, part in module.named_modules(remove_duplicate=False)
        if isinstance(part, RowShardedTable)
    }


def _module_state(module: nn.Module) -> dict[str, Any]:
    """Tensors by name, which share the module's memory, and those of tables whole; else what _unpacked() reads."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    tables = _tables(module)
    state: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        whole = tables[name].whole() if name in tables else value
        state[f"module.{name}"] = whole if isinstance(value, Tensor) else _packed(name, value)
    return state


def _names(optimizer: Optimizer, module: nn.Module) -> list[list[str]]:
    """The names of the parameters of each group."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]
    if any(name is None for group in groups for name in group):
        raise ValueError("optimizers must be of parameters of the module, got one that is not among them")
    return groups  # type: ignore[return-value]


def _settings(optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    return {
        "class": type(optimizer).__name__,
        "groups": _names(optimizer, module),
        "param_groups": optimizer.state_dict()["param_groups"],
    }


def _optimizer_state(place: int, optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    settings, tables = _settings(optimizer, module), _tables(module)
    names = [name for group in settings["groups"] for name in group]
    state = {f"optimizers.{place}.settings": _packed("optimizers", settings)}
    for number, values in optimizer.state_dict()["state"].items():
        name = names[number]
        for key, value in values.items():
            if name in tables and isinstance(value, Tensor) and value.dim():
                if value.shape != tables[name].weight.shape:
                    raise ValueError(
                        f"optimizers must hold numbers per element, or one, for the rows of a table; {key!r} of "
                        f"{type(optimizer).__name__} has shape {tuple(value.shape)} for {name}, whose own rows have "
                        f"shape {tuple(tables[name].weight.shape)}"
                    )
                value = tables[name].whole(value)
            elif not isinstance(value, Tensor):
                value = _packed("optimizers", value)
            state[f"optimizers.{place}.state.{name}.{key}"] = value
    return state


def _room_for_state(place: int, module: nn.Module, saved: Metadata) -> dict[str, Any]:
    """Tensors to read an optimizer's state into: a new optimizer has none, so the checkpoint says what there is."""
    if f"optimizers.{place}.settings" not in saved.state_dict_metadata:
        raise ValueError(f"optimizers must be as many as were saved, {place}, got more")
    parameters, tables = dict(module.named_parameters()), _tables(module)
    room: dict[str, Any] = {}
    prefix = f"optimizers.{place}.state."
    for key, found in saved.state_dict_metadata.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix).rpartition(".")[0]
        if name not in parameters:
            raise ValueError(f"module must have the parameters that were saved, got none called {name}")
        device = parameters[name].device
        if not isinstance(found, TensorStorageMetadata):
            room[key] = None
        elif name in tables and len(found.size):
            rows = torch.empty_like(tables[name].weight, dtype=found.properties.dtype)
            room[key] = tables[name].whole(rows)
        else:
            room[key] = torch.empty(found.size, dtype=found.properties.dtype, device=device)
    return room


def _as_optimizer_takes_it(place: int, settings: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    names = [name for group in settings["groups"] for name in group]
    numbers = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in loaded.items():
        name, _, entry = key.removeprefix(f"optimizers.{place}.state.").rpartition(".")
        state.setdefault(numbers[name], {})[entry] = value
    return {"state": state, "param_groups": settings["param_groups"]}


def _check_same(of_module: dict[str, Any], saved: Metadata) -> None:
    """The module has the tensors that were saved."""
    there = {key: value for key, value in saved.state_dict_metadata.items() if key.startswith("module.")}
    if different := sorted(of_module.keys() ^ there.keys()):
        name, has = different[0].removeprefix("module."), different[0] in of_module
        raise ValueError(f"module must have what was saved, got one {'with' if has else 'without'} {name}")
    for key, found in there.items():
        own = of_module[key]
        if isinstance(found, TensorStorageMetadata) and isinstance(own, Tensor) and own.shape != found.size:
            name = key.removeprefix("module.")
            raise ValueError(f"module must have {name} of shape {tuple(found.size)}, as saved, got {tuple(own.shape)}")


def _read(folder: Path, state: dict[str, Any], process_group: ProcessGroup | None) -> None:
    load(state, storage_reader=FileSystemReader(folder), process_group=process_group)


def _packed(name: str, value: Any) -> bytes:
    """What torch.distributed.checkpoint would otherwise take apart, in one piece."""
    file = io.BytesIO()
    torch.save(value, file)
    try:
        _unpacked(file.getvalue())
    except Exception as error:
        raise TypeError(f"{name} must hold numbers, strings, tensors and containers of them only: {error}") from None
    return file.getvalue()


def _unpacked(value: Any) -> Any:
    return torch.load(io.BytesIO(value), weights_only=True)


def _local(value: Any) -> Any:
    """This process's part of what was read."""
    if isinstance(value, DTensor):
        return value.to_local()
    return _unpacked(value) if isinstance(value, bytes) else value

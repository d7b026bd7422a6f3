"""The contents of a checkpoint: a module's and its optimizers' tensors by name, with row-sharded tables as a whole."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from cw_ext.distributed.table import RowShardedTable


def _tables(module: nn.Module) -> dict[str, RowShardedTable]:
    """The tables in the module, by the names of their weights."""
    return {
        f"{name}.weight".removeprefix("."): part
        for name, part in module.named_modules(remove_duplicate=False)
        if isinstance(part, RowShardedTable)
    }


def module_state(module: nn.Module) -> dict[str, Any]:
    """Tensors by name, which share the module's memory, with whole tables. Other values are packed for unpacked()."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    tables = _tables(module)
    state: dict[str, Any] = {}
    for name, value in module.state_dict().items():
        whole = tables[name].whole() if name in tables else value
        state[f"module.{name}"] = whole if isinstance(value, Tensor) else packed(name, value)
    return state


def _names(optimizer: Optimizer, module: nn.Module) -> list[list[str]]:
    """The names of the parameters of each group."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]
    if any(name is None for group in groups for name in group):
        raise ValueError("optimizers must have only parameters of the module, got one that the module does not have")
    return groups  # type: ignore[return-value]


def settings_of(optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    return {
        "class": type(optimizer).__name__,
        "groups": _names(optimizer, module),
        "param_groups": optimizer.state_dict()["param_groups"],
    }


def optimizer_state(place: int, optimizer: Optimizer, module: nn.Module) -> dict[str, Any]:
    settings, tables = settings_of(optimizer, module), _tables(module)
    names = [name for group in settings["groups"] for name in group]
    state = {f"optimizers.{place}.settings": packed("optimizers", settings)}
    for number, values in optimizer.state_dict()["state"].items():
        name = names[number]
        for key, value in values.items():
            if name in tables and isinstance(value, Tensor) and value.dim():
                if value.shape != tables[name].weight.shape:
                    raise ValueError(
                        "optimizers must have one number per element of a table, or one for all of it, got "
                        f"{key!r} of {type(optimizer).__name__} with shape {tuple(value.shape)} for {name}, whose rows "
                        f"on this process have shape {tuple(tables[name].weight.shape)}"
                    )
                value = tables[name].whole(value)
            elif not isinstance(value, Tensor):
                value = packed("optimizers", value)
            state[f"optimizers.{place}.state.{name}.{key}"] = value
    return state


def room_for_state(place: int, module: nn.Module, saved: Metadata) -> dict[str, Any]:
    """Tensors to read an optimizer's state into. A new optimizer has none, so the checkpoint decides."""
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
            raise ValueError(f"module must have the parameters that were saved, got none with the name {name}")
        device = parameters[name].device
        if not isinstance(found, TensorStorageMetadata):
            room[key] = None
        elif name in tables and len(found.size):
            rows = torch.empty_like(tables[name].weight, dtype=found.properties.dtype)
            room[key] = tables[name].whole(rows)
        else:
            room[key] = torch.empty(found.size, dtype=found.properties.dtype, device=device)
    return room


def as_optimizer_takes_it(place: int, settings: dict[str, Any], loaded: dict[str, Any]) -> dict[str, Any]:
    names = [name for group in settings["groups"] for name in group]
    numbers = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in loaded.items():
        name, _, entry = key.removeprefix(f"optimizers.{place}.state.").rpartition(".")
        state.setdefault(numbers[name], {})[entry] = value
    return {"state": state, "param_groups": settings["param_groups"]}


def check_same(of_module: dict[str, Any], saved: Metadata) -> None:
    """The module has the tensors that were saved."""
    there = {key: value for key, value in saved.state_dict_metadata.items() if key.startswith("module.")}
    if different := sorted(of_module.keys() ^ there.keys()):
        name, has = different[0].removeprefix("module."), different[0] in of_module
        raise ValueError(f"module must have the entries that were saved, got one {'with' if has else 'without'} {name}")
    for key, found in there.items():
        own = of_module[key]
        if isinstance(found, TensorStorageMetadata) and isinstance(own, Tensor) and own.shape != found.size:
            name = key.removeprefix("module.")
            raise ValueError(f"module must have {name} of shape {tuple(found.size)}, as saved, got {tuple(own.shape)}")


def packed(name: str, value: Any) -> bytes:
    """What torch.distributed.checkpoint would otherwise take apart, in one piece."""
    file = io.BytesIO()
    torch.save(value, file)
    try:
        unpacked(file.getvalue())
    except Exception as error:
        raise TypeError(f"{name} must hold numbers, strings, tensors and containers of them only: {error}") from None
    return file.getvalue()


def unpacked(value: Any) -> Any:
    return torch.load(io.BytesIO(value), weights_only=True)


def local(value: Any) -> Any:
    """This process's part of what was read."""
    if isinstance(value, DTensor):
        return value.to_local()
    return unpacked(value) if isinstance(value, bytes) else value

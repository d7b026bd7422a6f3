"""Makes sure that all processes of a group make the same call of the in-batch loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cw_ext.collectives import Parts, ProcessGroup, check_process_group, hash_of, tell_all
from cw_ext.embedding_batch import EmbeddingBatch
from cw_ext.parameters import FLAGS_AND_CHOICES
from cw_ext.together import number_of, raise_in_all

# Copies of one table differ by rounding only, other vectors by far more. These many columns are enough to tell.
_ALIKE = 1e-3
_COLUMNS = 16
_Prepared = TypeVar("_Prepared", bound=tuple[Any, ...])


def in_all_processes(
    prepare: Callable[[], _Prepared], process_group: ProcessGroup, queries: Tensor, settings: dict[str, Any]
) -> tuple[_Prepared, Parts]:
    """(what `prepare` returns, how many rows each process has), or an error in all processes.

    Args:
        prepare: checks the arguments, and returns the EmbeddingBatch, the known positives, the LogWeights and more.
        queries: as the user gave them.
        settings: what must be the same in all processes, besides the form of the vectors.

    Raises:
        Exception: what `prepare` raised here. All other processes raise the same class, or RuntimeError for a class
            that no argument check raises, and name the process that raised it.
        ValueError: the calls differ.
    """
    check_process_group(process_group)
    in_training = torch.is_grad_enabled()
    error, prepared, batch = None, None, None
    try:
        prepared = prepare()
        batch = prepared[0]
    except Exception as caught:
        error = caught
    settings |= {
        "D": batch and batch.queries.shape[1],
        "dtype": batch and str(batch.queries.dtype).removeprefix("torch."),
        "reduction": batch and batch.options.reduction,
        "similarity": batch and batch.similarity,
        "row_weights given": batch and batch.row_weights is not None,
    }
    # Numbers may differ between processes, as temperature and prior may between rows.
    settings |= {name: batch and getattr(batch.options.row, name) for name in FLAGS_AND_CHOICES}
    # If these need gradients, the processes wait for one another in backward.
    with_gradient = {
        "queries require": batch and batch.queries,
        "items require": batch and batch.items,
        "row_weights require": batch and batch.row_weights,
        "temperature requires": batch and batch.row_values.temperature,
    }
    settings |= {
        f"{name} a gradient": in_training and isinstance(value, Tensor) and value.requires_grad
        for name, value in with_gradient.items()
    }
    # If each process counted only its own data, the log-Q correction would silently be wrong.
    counts = prepared and prepared[2].counts
    settings["sum of the item counts"] = counts and counts[1][0].item()
    rows = number_of(error) if batch is None and error is not None else batch.rows  # type: ignore[union-attr]
    device = queries.device if isinstance(queries, Tensor) else torch.device("cpu")
    told = tell_all([rows, *map(hash_of, settings.values())], device, process_group)
    raise_in_all(error, [int(numbers[0]) for numbers in told])
    here = dist.get_rank(process_group)
    for rank, numbers in enumerate(told):
        for (name, value), mine, other in zip(settings.items(), told[here][1:], numbers[1:]):
            if mine != other:
                raise ValueError(
                    f"process_group needs the same call in all its processes, got {name}: {value} in process {here} "
                    f"and another value in process {rank}"
                )
    assert prepared is not None
    return prepared, Parts(process_group, [int(numbers[0]) for numbers in told])


def check_same_table(batch: EmbeddingBatch, parts: Parts) -> None:
    """Refuses, in all processes, tables that differ: the same id would mean another item in each process.

    Raises:
        ValueError: the tables differ.
    """
    table = batch.items.detach()
    count, columns = len(table), min(_COLUMNS, table.shape[1])
    # Elements rather than their sum, which similar vectors could share.
    some = table.new_zeros(3, columns) if count == 0 else table[[0, count // 2, count - 1], :columns]
    own = torch.cat([some.flatten().double(), some.new_tensor([count], dtype=torch.float64)])
    found = Parts(parts.group, [1] * parts.world).gather(own.unsqueeze(0))
    values, counts = found[:, :-1], found[:, -1]
    differs = (values - values[0]).abs() > _ALIKE * values[0].abs().max()  # no if one is NaN
    if differs.any() or (counts != counts[0]).any():
        raise ValueError(
            "items must be the same table in all processes of process_group, got different ones. For vectors that "
            "each process encodes, give item_ids [I], which item of the catalogue each row of items is; if rows have "
            "no such ids, cw_ext.distributed.row_numbers(len(items), process_group) makes some"
        )

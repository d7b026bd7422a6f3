"""What the arguments of the in-batch loss may be together, in one process and over many."""

from __future__ import annotations

import math
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from cw_ext import checks
from cw_ext.collectives import Parts, ProcessGroup, check_process_group, hash_of, tell_all
from cw_ext.compiling import uncompiled
from cw_ext.embedding_batch import EmbeddingBatch
from cw_ext.interactions import Candidates, Interactions
from cw_ext.known_positives import check_item_count

# Tables that all processes hold alike differ by roundings only, sums of other vectors by far more.
_ALIKE = 1e-3


def check_form(
    batch: EmbeddingBatch,
    *,
    item_ids: Tensor | None,
    num_negatives: int,
    candidates: object,
    estimate_full: bool,
    symmetric: bool,
    process_group: ProcessGroup | None,
    gather_gradients: bool,
    ring: bool,
    sparse_grad: bool,
) -> None:
    """Refuse arguments that cannot act together."""
    if item_ids is not None:
        checks.has_dtype("item_ids", item_ids, checks.INTEGER)
        checks.matches("item_ids", item_ids, "queries", batch.queries, dtype=False)
        checks.has_shape("item_ids", item_ids, (batch.items.shape[0],), "one id per row of items")
    if process_group is not None:
        check_process_group(process_group)
    row = batch.options.row

    def refuse(name: str, got: object, needed: str) -> NoReturn:
        raise ValueError(f"{name} needs {needed}, got {got}")

    if num_negatives and (item_ids is not None or ring or symmetric):
        name = "item_ids" if item_ids is not None else "ring=True" if ring else "symmetric=True"
        refuse(name, num_negatives, "num_negatives=0, as uniform negatives need the whole catalogue in each direction")
    if symmetric:
        if estimate_full:
            refuse("symmetric=True", True, "estimate_full=False")
        if candidates is not None:
            refuse("symmetric=True", type(candidates).__name__, "candidates=None")
        if row.return_above:
            refuse("symmetric=True", True, "return_above=False")
        if sparse_grad:
            refuse("symmetric=True", True, "sparse_grad=False, and an nn.Embedding with sparse=False")
    if not gather_gradients and (process_group is None or item_ids is None):
        missing = "process_group" if process_group is None else "item_ids"
        refuse("gather_gradients=False", f"no {missing}", "process_group and item_ids")
    if ring and process_group is None:
        refuse("ring=True", None, "process_group")
    if ring and row.normalize_weights:
        refuse("ring=True", True, "normalize_weights=False")
    if ring and batch.options.score_curve is not None:
        refuse("ring=True", batch.options.score_curve, "score_curve=None")
    if sparse_grad and process_group is not None and (item_ids is not None or ring):
        form = "item_ids" if item_ids is not None else "ring=True"
        refuse(f"process_group with {form}", True, "sparse_grad=False, and an nn.Embedding with sparse=False")


def catalogue_size(
    batch: EmbeddingBatch,
    item_ids: Tensor | None,
    interactions: Interactions | None,
    item_counts: Tensor | None,
    candidates: Tensor | Candidates | None,
) -> int:
    """How many items there are, and that `item_ids` are below it; 0 where nothing says how many there are."""
    if item_ids is None:
        if interactions is not None:
            check_item_count(batch, interactions)
        return batch.items.shape[0]
    size = 0
    if interactions is not None:
        size = interactions.num_items
    elif isinstance(item_counts, Tensor):
        size = item_counts.numel()
    elif isinstance(candidates, Candidates):
        size = candidates.is_candidate.numel()
    elif isinstance(candidates, Tensor):
        if candidates.dtype != torch.bool:
            raise ValueError(
                "candidates with item_ids must be a mask, a value per item of the catalogue, or come with interactions "
                f"or item_counts, which tell how many items there are, got {candidates.dtype} ids"
            )
        size = candidates.numel()
    checks.ids_in_range("item_ids", item_ids, size or 2**62, padding=False)
    return size


def parts_of(batch: EmbeddingBatch, process_group: ProcessGroup, **settings: object) -> Parts:
    """The processes' numbers of rows. All of them must have made the same call.

    Args:
        settings: what must be the same, beside the vectors' form.

    Raises:
        ValueError: on all processes, if their calls differ.
    """
    queries, items = batch.queries, batch.items
    in_training = torch.is_grad_enabled()
    settings |= {
        "D": queries.shape[1],
        "dtype": str(queries.dtype).removeprefix("torch."),
        "queries require a gradient": in_training and queries.requires_grad,
        "items require a gradient": in_training and items.requires_grad,
        "reduction": batch.options.reduction,
    }
    told = tell_all([batch.rows, *map(hash_of, settings.values())], queries.device, process_group)
    for rank, numbers in enumerate(told):
        for (name, value), here, there in zip(settings.items(), told[dist.get_rank(process_group)][1:], numbers[1:]):
            if here != there:
                raise ValueError(
                    f"process_group needs the same call in all its processes, got {name}: {value} in process "
                    f"{dist.get_rank(process_group)} and another in process {rank}"
                )
    return Parts(process_group, [int(numbers[0]) for numbers in told])


@uncompiled
def ids_of_all(batch: EmbeddingBatch, ids: Tensor) -> Tensor:
    """The ids [ΣB] of all processes' positives, which point into a table that all of them have.

    Raises:
        ValueError: the tables are not alike.
    """
    group = batch.process_group
    assert group is not None
    parts = parts_of(batch, group, form="a table that all processes hold alike")
    table = batch.items.detach()
    count = len(table)
    some = table[[0, count // 2, count - 1]].double() if count else table.double()
    told = tell_all([count, some.sum().item(), some.abs().sum().item()], table.device, group)
    for number, total, size in told:
        if number != count or (math.isfinite(total) and abs(total - told[0][1]) > _ALIKE * size):
            raise ValueError(
                "items must be the same table on all processes of process_group, got different ones. For vectors that "
                "each process encodes, give item_ids [I], which item of the catalogue each row of items is; where rows "
                "have no such ids, cw_ext.distributed.row_numbers(len(items), process_group) makes some"
            )
    return parts.gather(ids)

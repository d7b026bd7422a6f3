"""Which arguments of the in-batch loss go together."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from cw_ext import checks
from cw_ext.collectives import ProcessGroup, check_process_group
from cw_ext.embedding_batch import EmbeddingBatch
from cw_ext.interactions import Candidates, Interactions
from cw_ext.known_positives import check_item_count


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
    """Refuses arguments that do not work together."""
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
    """How many items there are, or 0 if no argument tells. Checks that `item_ids` are below that number."""
    if item_ids is None:
        if interactions is not None:
            check_item_count(batch, interactions, "; for items that a batch encodes, give item_ids")
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
                "candidates with item_ids must be a mask, one value per item of the catalogue, or come with "
                f"interactions or item_counts, which tell how many items there are, got {candidates.dtype} ids"
            )
        size = candidates.numel()
    # As int64, since the bound for an unknown number of items does not fit into int32.
    checks.ids_in_range("item_ids", item_ids.long(), size or 2**62, padding=False)
    return size

"""The loss with drawn negatives on a table that is split over processes."""

from __future__ import annotations

from typing import Protocol, Unpack, runtime_checkable

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from cw_ext import checks
from cw_ext.autocast import floating_input, without_autocast
from cw_ext.collectives import ProcessGroup, hash_of, tell_all
from cw_ext.compiling import uncompiled
from cw_ext.embedding_batch import EmbeddingBatch, Similarity, embedding_batch, loss_of_ids
from cw_ext.excluded_pairs import Side, left_out_items
from cw_ext.interactions import Candidates, Interactions
from cw_ext.negative_sampling import (
    Distribution,
    check_first_row,
    check_interactions,
    check_query_ids,
    draw,
    draws_of,
)
from cw_ext.parameters import REDUCTIONS, LossArguments, documents_loss_arguments
from cw_ext.reference_sampling import Draws
from cw_ext.together import number_of, raise_in_all


@runtime_checkable
class ShardedTable(Protocol):
    """What the loss needs from a table. :class:`RowShardedTable` has it; a table of another library can have it too."""

    num_rows: int
    dim: int
    process_group: ProcessGroup

    @property
    def weight(self) -> Tensor:
        """The rows that this process holds, [any number, D]. Their dtype and device are the table's."""

    def __call__(self, *ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the distinct rows [U, D] of some ids, and the ids' places among them (−1 stays −1)."""


# The kernels do the work, and the communication depends on the ids: nothing here is left to compile.
@uncompiled
@documents_loss_arguments
def sampled_cw_loss(
    queries: Tensor,
    table: ShardedTable,
    query_ids: Tensor,
    pos_ids: Tensor,
    interactions: Interactions,
    num_negatives: int,
    *,
    seed: int | Tensor | None = None,
    first_row: int | None = None,
    distribution: Distribution = "uniform",
    popularity_exponent: float = 0.75,
    popularity_smoothing: float = 0.0,
    candidates: Tensor | Candidates | None = None,
    log_q_correction: bool = True,
    shared: bool = False,
    extra_pos_ids: Tensor | None = None,
    row_weights: Tensor | None = None,
    similarity: Similarity = "half_cosine",
    **loss: Unpack[LossArguments],
) -> Tensor:
    """The CW loss ("Correct and Weight", arXiv 2601.04291) with drawn negatives, on a table split over processes.

    This is :func:`cw_ext.sampled_cw_loss` for several processes. Each process has its own rows of the batch. It draws
    their negatives, fetches each row of the table that it needs once, and computes the loss of its rows. If all
    processes have the same seed, together they compute what one process would compute for the whole batch, which is
    their rows in the order of the ranks. All processes of the table's group must call this, and backward, together. A
    process may have no rows (B = 0).

    >>> import torch
    >>> import torch.distributed as dist
    >>> from cw_ext import Interactions
    >>> from cw_ext.distributed import RowShardedTable, sampled_cw_loss
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun starts more
    >>> known = Interactions([0, 0, 1], [5, 2, 7], num_queries=2, num_items=300)
    >>> table = RowShardedTable(300, 16)
    >>> queries, query_ids, pos_ids = torch.randn(2, 16), torch.tensor([0, 1]), torch.tensor([5, 7])
    >>> loss = sampled_cw_loss(queries, table, query_ids, pos_ids, known, 50, seed=0)
    >>> loss.backward()  # fills table.weight.grad
    >>> dist.destroy_process_group()

    Each distinct row that another process holds costs 8 bytes for its id, 4·D bytes for the row in fp32, and in
    backward 4·D bytes for its gradient. There are up to B·(1 + N) such rows; with `shared` at most B + N.

    Args:
        queries: [B, D], one row per positive, already gathered; fp16, bf16, fp32 or fp64.
        table: a :class:`RowShardedTable` with one row per item of `interactions`, in the dtype of `queries`, or another
            module that implements :class:`ShardedTable`.
        query_ids: [B], int32 or int64, rows of `interactions`. A row's negatives are never known positives of its
            query. A row of padding may have −1.
        pos_ids: [B], int32 or int64, rows of the table. −1 is padding: the row is left out and draws nothing.
        interactions: all known positives, on each process, on the device of `queries`.
        num_negatives: N in [1, 2^32], draws per row, with replacement.
        seed: as in :func:`cw_ext.sampled_cw_loss`. With the same seed on all processes they draw as one process would.
            None takes a different seed on each process.
        first_row: row b draws what row first_row + b would. None is the number of rows on the processes before this
            one.
        distribution, popularity_exponent, popularity_smoothing, candidates, log_q_correction: as in
            :func:`cw_ext.sampled_cw_loss`.
        shared: draw one set of N negatives for all rows of a process; with one seed, the same set on all processes.
            Each row leaves out its own positive and its known positives.
        extra_pos_ids: [B, M], extra positives of the same query for the correction. −1 is padding.
        row_weights: [B], a weight for each row.
        similarity: as in :func:`cw_ext.cw_loss_from_embeddings`.
        **loss: see below. `reduction` must be the same on all processes, and is over the whole batch: see Returns.

    Returns:
        With reduction="mean" a scalar whose mean over the processes is the mean over the whole batch. It is R times
        the sum over this process's rows, divided by the number (or the weight) of the live rows of all R processes.
        With "sum" the sum over this process's rows, with "none" these rows' losses, [B]. Gradients of the table, and
        of a model under DistributedDataParallel, are means over the processes of the gradients of what each returns.
        With "mean" they are the gradients of the mean over the whole batch.

    Raises:
        TypeError, ValueError, IndexError: the message names the argument, what was expected, and what it
            got. If one process raises, all do. The others raise the same class, and their message names that process.
        RuntimeError: backend="fused", but the kernels cannot run.
    """
    if not isinstance(table, ShardedTable):
        raise TypeError(f"table must be a cw_ext.distributed.RowShardedTable, got {type(table).__name__}")
    group, error, told = table.process_group, None, [0, 0, 0]
    settings = {
        "num_negatives": num_negatives,
        "distribution": distribution,
        "shared": shared,
        "log_q_correction": log_q_correction,
        "similarity": similarity,
    }
    try:  # all checks of this process's arguments, before any process waits for another
        batch = _batch(queries, table, pos_ids, extra_pos_ids, row_weights, similarity, loss)
        checks.flags(log_q_correction=log_q_correction, shared=shared)
        if first_row is not None:
            check_first_row(first_row, batch.rows)
        with without_autocast(batch.device):
            _check_ids(batch, table, query_ids, interactions)
            draws = draws_of(
                None if shared else query_ids,
                interactions,
                num_negatives,
                seed,
                first_row or 0,
                distribution,
                popularity_exponent,
                popularity_smoothing,
                candidates,
                pos_ids=pos_ids,
                log_weights_dtype=batch.dtype if log_q_correction else None,
            )
        told = [batch.rows, REDUCTIONS.index(batch.options.reduction), int(hash_of(settings))]
    except (IndexError, TypeError, ValueError, RuntimeError) as caught:
        error, told = caught, [number_of(caught), 0, 0]
    of_all = [[int(number) for number in numbers] for numbers in tell_all(told, table.weight.device, group)]
    raise_in_all(error, [rows for rows, *_ in of_all])
    if len({reduction for _, reduction, _ in of_all}) > 1:
        given = ", ".join(repr(REDUCTIONS[reduction]) for _, reduction, _ in of_all)
        raise ValueError(f"reduction must be the same in all processes, got {given}")
    if len({of_settings for *_, of_settings in of_all}) > 1:
        raise ValueError(f"{', '.join(settings)} must be the same in all processes, got {settings} in this one")
    if first_row is None and not shared:
        draws = draws._replace(first_row=sum(rows for rows, *_ in of_all[: dist.get_rank(group)]))
    with without_autocast(batch.device):
        return _loss(batch._replace(process_group=group), table, draws, query_ids, interactions, shared)


def _batch(
    queries: Tensor,
    table: ShardedTable,
    pos_ids: Tensor,
    extra_pos_ids: Tensor | None,
    row_weights: Tensor | None,
    similarity: Similarity,
    loss: LossArguments,
) -> EmbeddingBatch:
    """Check the arguments. A row of zeros stands in for the rows that are not fetched yet."""
    like = floating_input("queries", queries)
    of_table = floating_input("table", table.weight.detach()[:0])
    checks.matches("table", of_table, "queries", like)
    if queries.dim() == 2 and queries.shape[1] != table.dim:
        raise ValueError(f"table must have rows of queries' D = {queries.shape[1]}, got D = {table.dim}")
    stand_in = of_table.new_zeros((1, table.dim))
    return embedding_batch(queries, stand_in, pos_ids, extra_pos_ids, row_weights, similarity, loss)


def _check_ids(batch: EmbeddingBatch, table: ShardedTable, query_ids: Tensor, interactions: Interactions) -> None:
    check_interactions(interactions, "queries", batch.queries)
    if table.num_rows != interactions.num_items:
        raise ValueError(
            f"table must have one row per item of interactions, {interactions.num_items}, got {table.num_rows}"
        )
    check_query_ids(query_ids, interactions, batch.pos_ids)
    for name, ids in (("pos_ids", batch.pos_ids), ("extra_pos_ids", batch.extra_ids)):
        checks.ids_in_range(name, ids, table.num_rows)


def _loss(
    batch: EmbeddingBatch,
    table: ShardedTable,
    draws: Draws,
    query_ids: Tensor,
    interactions: Interactions,
    shared: bool,
) -> Tensor:
    """Draw, fetch and compute."""
    if batch.rows:
        drawn = draw(draws, 1 if shared else batch.rows, interactions.num_items, batch.fused)
        neg_ids = drawn[0] if shared else drawn
    else:  # without rows there is nothing to fetch
        neg_ids = batch.pos_ids.new_full((1,), -1)
    extra = [] if batch.extra_ids is None else [batch.extra_ids]
    rows, (pos, neg, *extra) = table(batch.pos_ids, neg_ids, *extra)
    rows = floating_input("table", rows)
    if not len(rows):  # only padding; but the kernels need a row
        rows = F.pad(rows, (0, 0, 0, 1))

    log_q = None
    if draws.log_weights is not None and batch.rows:
        log_q = draws.log_weights[neg_ids.long()].expand(batch.rows, -1)
    left_out = None
    if shared:
        of_rows, among = Side(batch.pos_ids.long(), query_ids.long()), Side(neg_ids.long(), None)
        left_out = left_out_items(of_rows, among, interactions, neg, len(rows)).history(batch.rows)
    batch = batch._replace(items=rows, pos_ids=pos, extra_ids=extra[0] if extra else None)
    return loss_of_ids(batch, neg, log_q, sparse_grad=False, exclude=shared, history=left_out)

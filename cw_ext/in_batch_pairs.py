"""The in-batch loss on pairs of vectors: encoded items, both directions, several processes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cw_ext.autocast import without_autocast
from cw_ext.collectives import Parts, gathered, sum_over_processes
from cw_ext.embedding_batch import EmbeddingBatch, rows_of_ids
from cw_ext.estimate_full import count_items_left, loss_over_all_items, without_positive
from cw_ext.excluded_pairs import Pairs, Side, left_out_items, left_out_queries
from cw_ext.in_batch_weights import LogWeights
from cw_ext.interactions import Interactions
from cw_ext.op_inputs import Losses
from cw_ext.reference_sampling import history_of
from cw_ext.ring import Direction, ring_rows


class PairBatch(NamedTuple):
    """A batch and what is known about its pairs."""

    batch: EmbeddingBatch
    item_ids: Tensor | None  # [I], the item of each row of the table; None: row i is item i
    query_ids: Tensor | None  # [B]
    known: Interactions | None
    of_items: LogWeights
    of_queries: LogWeights | None  # if both directions are wanted
    num_items: int  # of the catalogue; 0 if not known
    gather_gradients: bool
    numbers: Side | None = None  # this process's pairs, if they are renumbered

    @property
    def symmetric(self) -> bool:
        return self.of_queries is not None

    def side(self) -> Side:
        """The item and query numbers of this process's pairs."""
        if self.numbers is not None:
            return self.numbers
        pos_ids = self.batch.pos_ids.long()
        valid = pos_ids >= 0
        if self.item_ids is None:
            items = pos_ids
        elif len(self.item_ids):
            items = torch.where(valid, self.item_ids.long()[pos_ids.clamp(min=0)], -1)
        else:
            items = torch.full_like(pos_ids, -1)
        queries = None if self.query_ids is None else torch.where(valid, self.query_ids.long(), -1)
        return Side(items, queries)

    def knowing_its_pairs(self, parts: Parts | None) -> PairBatch:
        """A copy whose known positives are the pairs of the whole batch, with numbers that are rows of these."""
        own = self.side()
        assert own.queries is not None
        whole = own if parts is None else Side(parts.gather(own.items), parts.gather(own.queries))
        assert whole.queries is not None
        valid = whole.items >= 0
        if not valid.any():
            return self
        items, item_rows = torch.unique(whole.items[valid], return_inverse=True)
        queries, query_rows = torch.unique(whole.queries[valid], return_inverse=True)
        known = Interactions(query_rows, item_rows, num_queries=len(queries), num_items=len(items))
        padding = own.items < 0
        numbers = [
            torch.searchsorted(*x).masked_fill(padding, -1) for x in ((items, own.items), (queries, own.queries))
        ]
        return self._replace(known=known, numbers=Side(*numbers))

    def vectors(self) -> Tensor:
        """[B, D], each row's positive. A padded row has an arbitrary vector, which is not used."""
        items = self.batch.items
        # Not items[…], which in backward adds on several threads, in an order that varies from run to run.
        return items.index_select(0, self.batch.pos_ids.clamp(min=0)) if len(items) else items


def query_weights(batch: EmbeddingBatch, known: Interactions | None, log_q_correction: bool) -> LogWeights:
    """The log weights of queries as negatives."""
    if not log_q_correction:
        return LogWeights(None, None, 0, batch.dtype)
    if known is None or known.keep_counts:
        got = "none" if known is None else "interactions with keep_counts=True"
        raise ValueError(
            "symmetric=True with log_q_correction=True needs query_ids and interactions of distinct pairs, which tell "
            f"how often each query occurs, got {got}; or switch the correction off with log_q_correction=False"
        )
    counts = known.starts.diff()
    bounds = torch.stack([counts.sum(), counts[counts > 0].min() if len(known) else counts.sum()]).double()
    return LogWeights((counts, bounds), None, known.num_queries, batch.dtype)


def loss_of_pairs(
    pairs: PairBatch, parts: Parts | None, *, estimate_full: bool, ring: bool, sparse_grad: bool
) -> Tensor:
    """The loss in one process or, with `parts`, over those of the batch's group."""
    with without_autocast(pairs.batch.device):
        if pairs.symmetric and pairs.known is None and pairs.query_ids is not None:
            pairs = pairs.knowing_its_pairs(parts)
        batch = pairs.batch
        of_negatives = without_positive(batch) if estimate_full else _by_row(batch)
        if ring:
            assert parts is not None
            directions = _around(pairs._replace(batch=of_negatives), parts)
        else:
            directions = _gathered(pairs._replace(batch=of_negatives), parts, sparse_grad)
        if estimate_full:
            history = (
                None if pairs.known is None or pairs.query_ids is None else history_of(pairs.query_ids, pairs.known)
            )
            left = count_items_left(pairs.side().items, pairs.num_items, history, pairs.known)
            return loss_over_all_items(batch, directions[0], left)
        if not pairs.symmetric:
            loss = batch.reduced(directions[0].loss, directions[0].live)
            return (loss, directions[0].above) if batch.options.row.return_above else loss  # type: ignore[return-value]
        forth, back = (batch.reduced(rows.loss, rows.live) for rows in directions)
        return (forth + back) / 2


def _by_row(batch: EmbeddingBatch) -> EmbeddingBatch:
    """The batch without a reduction, for one loss per row."""
    return batch._replace(options=batch.options._replace(reduction="none"))


def _rows(
    batch: EmbeddingBatch, neg_ids: Tensor, log_q: Tensor | None, left_out: Pairs, sparse_grad: bool = False
) -> Losses:
    """The rows' losses with shared negatives [N], rows of the batch's table."""
    if not neg_ids.numel():
        return _no_rows(batch)
    log_q = None if log_q is None else log_q.expand(batch.rows, -1)
    history = left_out.history(batch.rows)
    return rows_of_ids(batch, neg_ids, log_q, sparse_grad=sparse_grad, exclude=True, history=history)


def _no_rows(batch: EmbeddingBatch) -> Losses:
    """The losses of a batch without candidates, which has no rows either, with gradients of 0."""
    # DistributedDataParallel also waits for the gradient of a temperature.
    leaves = [batch.queries, batch.items, batch.curve.curve, *batch.row_values]
    zero = torch.stack([x.sum().to(batch.dtype) for x in leaves if isinstance(x, Tensor)]).sum() * 0
    none = torch.zeros(0, dtype=torch.int64, device=zero.device)
    return Losses(zero.expand(0), none.bool(), none)


def _gathered(pairs: PairBatch, parts: Parts | None, sparse_grad: bool) -> list[Losses]:
    """The losses with the candidates of this process, or of all processes, in one table."""
    batch, own = pairs.batch, pairs.side()
    count, first = (batch.rows, 0) if parts is None else (parts.total, parts.first)
    whole = own
    if parts is not None:
        whole = Side(parts.gather(own.items), None if own.queries is None else parts.gather(own.queries))
    in_batch = (whole.items >= 0).sum()
    places = torch.where(whole.items >= 0, torch.arange(count, device=own.items.device), -1)
    own_places = places[first : first + batch.rows]

    log_q = pairs.of_items.of(whole.items, in_batch, count)
    if parts is None:
        neg_ids = batch.pos_ids.long()
        left_out = left_out_items(own, own, pairs.known, neg_ids, batch.items.shape[0])
        forth = _rows(batch, neg_ids, log_q, left_out, sparse_grad)
    else:
        table, extra_ids = gathered(pairs.vectors(), parts, pairs.gather_gradients), batch.extra_ids
        if extra_ids is not None:
            extra_ids = torch.where(extra_ids >= 0, extra_ids.long() + count, -1)
            table = torch.cat([table, batch.items])
        left_out = left_out_items(own, whole, pairs.known, places, len(table))
        forth = _rows(batch._replace(items=table, pos_ids=own_places, extra_ids=extra_ids), places, log_q, left_out)
    if pairs.of_queries is None:
        return [forth]

    # Another product, not the first one's columns: one matrix of scores for both was slower (benchmarks/NOTES.md).
    table = batch.queries if parts is None else gathered(batch.queries, parts, pairs.gather_gradients)
    log_q = None if whole.queries is None else pairs.of_queries.of(whole.queries, in_batch, count)
    left_out = left_out_queries(own, whole, pairs.known, places, count)
    back = batch._replace(queries=pairs.vectors(), items=table, pos_ids=own_places, extra_ids=None)
    return [forth, _rows(back, places, log_q, left_out)]


def _around(pairs: PairBatch, parts: Parts) -> list[Losses]:
    """The losses with the candidates of one process at a time."""
    batch, own = pairs.batch, pairs.side()
    assert batch.process_group is not None
    in_batch = sum_over_processes((own.items >= 0).sum(), batch.process_group)
    vectors = pairs.vectors()
    forth = Direction(
        parts,
        pairs.gather_gradients,
        own,
        lambda part: left_out_items(own, part, pairs.known, *_places(part)),
        lambda part: pairs.of_items.of(part.items, in_batch, len(part.items)),
    )
    found = [ring_rows(forth, batch, vectors, vectors)]
    if pairs.of_queries is not None:
        of_queries = pairs.of_queries
        back = Direction(
            parts,
            pairs.gather_gradients,
            own,
            lambda part: left_out_queries(own, part, pairs.known, *_places(part)),
            lambda part: None if part.queries is None else of_queries.of(part.queries, in_batch, len(part.items)),
        )
        found.append(ring_rows(back, batch._replace(queries=vectors, extra_ids=None), batch.queries, batch.queries))
    return found


def _places(part: Side) -> tuple[Tensor, int]:
    """The candidates of a part by their position in it."""
    count = len(part.items)
    return torch.where(part.items >= 0, torch.arange(count, device=part.items.device), -1), count

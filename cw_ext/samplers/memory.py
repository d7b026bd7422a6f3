"""Hard negatives from a memory, with a preference for those whose scores vary: SRNS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from cw_ext import checks
from cw_ext.candidate_scores import candidate_scores
from cw_ext.embedding_batch import Similarity, check_similarity
from cw_ext.interactions import Interactions
from cw_ext.samplers.base import Batch, SamplerBase, gumbel, random_numbers
from cw_ext.samplers.protocol import Negatives
from cw_ext.samplers.query_state import (
    check_loaded,
    distinct_items,
    first_of_each,
    known_positives,
    state_rows,
    uniform_items,
)

# Keys of places that a memory is not extended by. They are above the random numbers.
_PADDING, _TAKEN = 2**31, 2**32


class Memory(SamplerBase):
    """Draws hard negatives whose scores vary from epoch to epoch: SRNS (arXiv 2009.03376; dingjingtao/SRNS).

    The authors found that the scores of false negatives vary less than those of true negatives.

    >>> import torch
    >>> from cw_ext import Interactions, cw_loss_from_embeddings, samplers
    >>> known = Interactions([0, 0, 1], [5, 2, 7], num_queries=2, num_items=300)
    >>> users, items = torch.nn.Embedding(2, 16), torch.nn.Embedding(300, 16)
    >>> query_ids, pos_ids = torch.tensor([0, 1]), torch.tensor([5, 7])
    >>> sampler = samplers.Memory(known, 1, similarity="dot")
    >>> queries = users(query_ids)
    >>> ids, _ = sampler.draw(queries, items, query_ids, pos_ids)
    >>> loss = cw_loss_from_embeddings(queries, items, pos_ids, ids, similarity="dot")  # then a step of the optimizer
    >>> sampler.update(queries, items, query_ids, pos_ids, epoch=0, seed=0)

    Each query has a pool of unknown items, and a memory of some of these. `draw` returns the items of the memory with
    the highest σ(s_j − s⁺) + α_t·std, where std is the deviation of σ(s_j − s⁺) over the epochs. `update` adds random
    items of the pool to the memory. Then it draws from them the items to keep, as many as before: one by one without
    replacement, each with probability ∝ exp(s/temperature).

    SRNS makes the pool of every epoch five epochs ahead, and keeps all scores of each item from then on. At its size
    this takes about 35 times the memory of this sampler. Here one part in `window` of a query's pool is renewed each
    epoch, except for the items in the memory, and moments replace the scores: the mean and variance over the epochs
    that an item has been in the pool. From the epoch `window` on, the newest epoch has the weight 1/window. Each epoch
    counts once for a query, by its first row in the first batch that has the query.

    NaN scores are left out of the moments, and items with such scores are neither kept nor drawn. If too few others
    remain, the memory stays as it was. A row with too few items to draw ends with −1. If the positive's score or all
    scores are NaN, the row draws the first items of its memory, so that its loss is NaN and not 0. When a state is
    loaded, items that have become known positives are replaced by other unknown items, without moments.

    The state_dict has these buffers, with a row per query and one for padding:

    - pool: int32 [Q + 1, pool]; −1 is padding.
    - kept: int32 [Q + 1, size], the memory, as places in the pool, in the order in which they were drawn.
    - mean, variance: fp32 [Q + 1, pool], of σ(s_j − s⁺).
    - counts: uint8 [Q + 1, pool], the number of epochs in the moments, at most `window`.
    - last_epoch: int32 [Q + 1], the latest epoch in the moments; −1 if none.
    - epoch: int64 [], the epoch of the latest update.

    Args:
        interactions: the known positives, which are never drawn.
        num_negatives: N in [1, size].
        size: the number of items in a query's memory.
        extension: the number of items added to the memory before it is drawn again.
        temperature: > 0, on the scale of the scores. Towards 0 the hardest items are kept. SRNS uses 10 for inner
            products. For ½·cosine, use about the temperature of the loss: with 10 all items would be nearly as likely.
        deviation: α ≥ 0 after the warm-up; α_t = α·min(1, epoch / warm_up).
        warm_up: in epochs, ≥ 1.
        window: in epochs, in [1, 255].
        pool: the number of items in a query's pool, ≥ size + extension; 13 bytes each. They are distinct at first.
            Renewed items are drawn with replacement. A query with at most this many unknown items keeps all of them.
        similarity: the score, as for :func:`cw_ext.cw_loss_from_embeddings`. SRNS uses inner products, "dot".
        seed: for the first pool, as for :func:`cw_ext.draw_negatives`.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
    """

    pool: Tensor
    kept: Tensor
    mean: Tensor
    variance: Tensor
    counts: Tensor
    last_epoch: Tensor
    epoch: Tensor

    def __init__(
        self,
        interactions: Interactions,
        num_negatives: int = 1,
        *,
        size: int = 8,
        extension: int = 64,
        temperature: float = 10.0,
        deviation: float = 5.0,
        warm_up: int = 50,
        window: int = 5,
        pool: int = 128,
        similarity: Similarity = "half_cosine",
        seed: int | Tensor | None = None,
    ) -> None:
        """Checks and stores the arguments. The class describes them."""
        super().__init__(interactions, num_negatives)
        for name, value in (("size", size), ("extension", extension), ("warm_up", warm_up)):
            checks.whole_number(name, value, 1)
        checks.whole_number("window", window, 1, 255)
        checks.whole_number("pool", pool, 1)
        if pool < size + extension:
            raise ValueError(f"pool must be at least size + extension = {size + extension}, got {pool}")
        if num_negatives > size:
            raise ValueError(f"num_negatives must be at most size = {size}, got {num_negatives}")
        check_similarity(similarity)
        self.size, self.extension, self.warm_up, self.window = size, extension, warm_up, window
        self.temperature = checks.positive_number("temperature", temperature)
        self.deviation = checks.non_negative_number("deviation", deviation)
        self.similarity = similarity
        items = distinct_items(interactions, pool, seed)
        rows, device = len(items), items.device
        self.register_buffer("pool", items)
        self.register_buffer("kept", torch.arange(size, dtype=torch.int32, device=device).repeat(rows, 1))
        self.register_buffer("mean", torch.zeros(rows, pool, device=device))
        self.register_buffer("variance", torch.zeros(rows, pool, device=device))
        self.register_buffer("counts", torch.zeros(rows, pool, dtype=torch.uint8, device=device))
        self.register_buffer("last_epoch", torch.full((rows,), -1, dtype=torch.int32, device=device))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64, device=device))

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        """Keep the moments in fp32, even if the model is cast."""
        super()._apply(fn, recurse)
        self.mean, self.variance = self.mean.float(), self.variance.float()
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        check_loaded(state, prefix + "pool", self.interactions.num_items, "an item of interactions")
        check_loaded(state, prefix + "kept", self.pool.shape[1], "a place in the pool")
        super()._load_from_state_dict(state, prefix, *args)
        known = known_positives(self.pool, self.interactions)
        if known.any():
            # Always with the same seed, so that loading a state twice gives the same result.
            self.pool = torch.where(known, uniform_items(self.interactions, self.pool.shape[1], 0), self.pool)
            for name in ("mean", "variance", "counts"):
                setattr(self, name, getattr(self, name).masked_fill(known, 0))

    def extra_repr(self) -> str:
        return f"{self.num_negatives}, size={self.size}, extension={self.extension}, pool={self.pool.shape[1]}"

    def _draw(self, batch: Batch) -> Negatives:
        rows = state_rows(batch.query_ids, self.interactions.num_queries)
        places = self.kept[rows].long()
        ids = self.pool[rows].gather(1, places)
        _, value = self._scores(batch, ids)
        alpha = self.deviation * (self.epoch / self.warm_up).clamp(max=1.0)
        value = value + alpha * self.variance[rows].gather(1, places).sqrt()
        lost = (value.isnan() | (ids < 0)).all(1, keepdim=True)
        value = torch.where(lost, -torch.arange(self.size, device=value.device).double(), value)
        value, order = _lowest_if(ids < 0, value).topk(self.num_negatives, dim=1)
        return Negatives(torch.where(value == -torch.inf, -1, ids.gather(1, order)).long(), None)

    @torch.no_grad()
    def update(
        self,
        queries: Tensor,
        items: Tensor | nn.Embedding,
        query_ids: Tensor,
        pos_ids: Tensor,
        *,
        epoch: int = 0,
        seed: int | Tensor | None = None,
    ) -> None:
        """See :meth:`Sampler.update`. If a query has several rows in the batch, its first row counts.

        Raises:
            TypeError, ValueError, IndexError: as for `draw`, or the epoch is not a whole number ≥ 0.
        """
        checks.whole_number("epoch", epoch, 0, 2**31 - 1)
        batch = self._batch(queries, items, query_ids, pos_ids, seed)
        if batch.rows == 0:
            return
        rows = state_rows(batch.query_ids, self.interactions.num_queries)
        is_new = self.last_epoch[rows] < epoch
        before = self.kept[rows].long()
        ids, counts = self._renewed(batch, rows, before, is_new, epoch)
        scores, value = self._scores(batch, ids)
        kept = self._drawn_anew(before, scores, ids, batch.seed)
        moments = self._moments(rows, counts, torch.where(is_new.unsqueeze(1), value, torch.nan))

        # Nothing is written before all of it has been computed.
        first = first_of_each(rows)
        self.pool[rows], self.kept[rows] = ids[first], kept[first].int()
        self.mean[rows], self.variance[rows], self.counts[rows] = (tensor[first] for tensor in moments)
        self.last_epoch[rows] = self.last_epoch[rows].clamp(min=epoch)
        self.epoch.fill_(epoch)

    def _renewed(self, batch: Batch, rows: Tensor, kept: Tensor, is_new: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """The pool's items and their counts, both [B, pool], with the part of the epoch renewed."""
        ids, counts = self.pool[rows], self.counts[rows]
        pool, known = ids.shape[1], self.interactions.starts
        query = batch.query_ids.clamp(min=0).long()
        has_others = self.interactions.num_items - (known[query + 1] - known[query]) > pool
        renews = is_new & (self.last_epoch[rows] >= 0) & has_others & (batch.query_ids >= 0)
        part = slice(pool * (epoch % self.window) // self.window, pool * (epoch % self.window + 1) // self.window)
        if part.start == part.stop:
            return ids, counts
        stays = torch.zeros_like(ids, dtype=torch.bool).scatter_(1, kept, True)[:, part] | ~renews.unsqueeze(1)
        others = self._uniform_ids(batch, part.stop - part.start)
        ids[:, part] = torch.where(stays, ids[:, part], others)
        counts[:, part] = counts[:, part] * stays
        return ids, counts

    def _drawn_anew(self, kept: Tensor, scores: Tensor, ids: Tensor, seed: Tensor) -> Tensor:
        """Places [B, size] of the next memory after `kept`, from scores and ids [B, pool]."""
        numbers = random_numbers(seed, ids.shape[0], 2 * ids.shape[1]).view(-1, 2, ids.shape[1])
        # The lowest random numbers extend it.
        order = numbers[:, 0].long().masked_fill_(ids < 0, _PADDING).scatter_(1, kept, _TAKEN)
        candidate = (order <= _lowest(order, self.extension)) | (order == _TAKEN)
        scores = _lowest_if(~candidate | (ids < 0), scores)
        # Relative to the highest, so that differences stay finite at low temperatures.
        highest = scores.amax(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
        keys = (scores - highest) / self.temperature + gumbel(numbers[:, 1], scores.dtype)
        # If nothing else is left, the memory as it was, from its first item on.
        keys_before = keys.gather(1, kept)
        last_resort = torch.finfo(keys.dtype).min * torch.linspace(
            0.5, 1, self.size, dtype=keys.dtype, device=keys.device
        )
        keys.scatter_(1, kept, torch.where(keys_before == -torch.inf, last_resort, keys_before))
        return keys.topk(self.size, dim=1).indices

    def _moments(self, rows: Tensor, counts: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next mean, variance and counts [B, pool] of `rows` after a value [B, pool]. NaN changes nothing."""
        has_value = ~value.isnan()
        new_counts = counts.clamp(max=self.window - 1) + 1  # so that 8 bits hold it
        rate = has_value / new_counts
        mean, variance = self.mean[rows], self.variance[rows]
        change = torch.where(has_value, value.float() - mean, 0.0)
        move = rate * change
        return mean + move, (1 - rate) * (variance + move * change), torch.where(has_value, new_counts, counts)

    def _scores(self, batch: Batch, ids: Tensor) -> tuple[Tensor, Tensor]:
        """s_j [B, K], and σ(s_j − s⁺) in fp64, where large scores round to 1 much later."""
        scores = candidate_scores(batch.queries, batch.items, ids, similarity=self.similarity)
        pos_ids = batch.pos_ids.unsqueeze(1)
        pos_scores = candidate_scores(batch.queries, batch.items, pos_ids, similarity=self.similarity)
        return scores, (scores.double() - pos_scores.double()).sigmoid()


def _lowest_if(absent: Tensor, values: Tensor) -> Tensor:
    """Replace values of absent items, and NaN, with −inf."""
    return torch.where(absent | values.isnan(), -torch.inf, values)


def _lowest(order: Tensor, count: int) -> Tensor:
    """The highest of the `count` lowest values of each row, [B, 1]."""
    if order.device.type == "cpu":  # much faster than topk, but not allowed by CUDA's deterministic algorithms
        return order.kthvalue(count, dim=1, keepdim=True).values
    return order.topk(count, dim=1, largest=False).values.amax(1, keepdim=True)

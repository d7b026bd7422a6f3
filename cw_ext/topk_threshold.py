"""The score that an item needs to be among a query's first K, learned during training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cw_ext import checks

# The largest move, in steps. A threshold that is far too low rises quickly, while counts at the right threshold are
# hardly ever cut off.
_LARGEST_MOVE = 4.0
# A query's steps shrink to this share of the first, and no further, as its scores keep changing.
_LAST_STEP = 0.1


class TopKThreshold(nn.Module):
    """Learns, for each query, the score that only the K best of its unknown items exceed.

    This is the β of SL@K, see :func:`cw_ext.presets.slk`. It is learned without a pass over the catalogue, by
    stochastic quantile regression (Robbins & Monro, 1951; Talos, arXiv 2601.19276, eq. for L_q), from the number of
    negatives that score above β, which the loss counts in the same pass. Each update moves β up if more than the share
    k/num_items of the negatives scored above it, and down if fewer did.

    The negatives must be drawn uniformly, per row or shared, or be all items: popular negatives would shift the
    quantile. Known positives are never drawn, so they do not count among the K, just as in a ranking of new items. The
    estimate of SL@K differs in this: it ranks all items.

    Args:
        num_queries: how many queries have a threshold, Q.
        k: K, 1 ≤ k < num_items.
        num_items: how many items the negatives are drawn from.
        step: the first step, on the scale of the scores. Later steps shrink with the square root of the query's
            updates, down to a tenth of it. The default suits ½·cosine; otherwise use about a third of the standard
            deviation of a query's scores.

    Attributes:
        thresholds: β [Q], fp32, 0 at first; a buffer, saved in the state_dict.
        updates: [Q], int64, how many updates each query has had; a buffer, saved in the state_dict.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.

    Example:
        One training step of SL@20 with 10 sampled negatives:

        >>> import torch
        >>> from cw_ext import Interactions, TopKThreshold, presets, sampled_cw_loss
        >>> users = torch.nn.Embedding(3, 16)
        >>> items = torch.nn.Embedding(50, 16)
        >>> user_ids = torch.tensor([0, 1, 2])
        >>> pos_ids = torch.tensor([10, 11, 42])
        >>> known = Interactions(user_ids, pos_ids, num_queries=3, num_items=50)
        >>> beta = TopKThreshold(num_queries=3, k=20, num_items=50)
        >>> loss, above = sampled_cw_loss(
        ...     users(user_ids), items, user_ids, pos_ids, known, 10, **presets.slk(),
        ...     confidence_threshold=beta.threshold(user_ids), return_above=True,
        ... )
        >>> loss.backward()
        >>> beta.update(user_ids, above, num_negatives=10)
    """

    thresholds: Tensor
    updates: Tensor

    def __init__(self, num_queries: int, k: int, num_items: int, *, step: float = 0.05) -> None:
        """Checks and stores the arguments. The class describes them."""
        super().__init__()
        checks.whole_number("num_queries", num_queries, 1)
        checks.whole_number("num_items", num_items, 2)
        checks.whole_number("k", k, 1, num_items - 1)
        self.k, self.num_items = k, num_items
        self.step = checks.positive_number("step", step)
        self.register_buffer("thresholds", torch.zeros(num_queries))
        self.register_buffer("updates", torch.zeros(num_queries, dtype=torch.int64))

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> TopKThreshold:
        """Keeps the thresholds in fp32 when a model is cast: half precision would lose their last steps."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.thresholds = self.thresholds.float()
        return self

    def extra_repr(self) -> str:
        return f"{len(self.thresholds)}, k={self.k}, num_items={self.num_items}, step={self.step}"

    def threshold(self, query_ids: Tensor) -> Tensor:
        """β of each row, for `confidence_threshold`.

        Args:
            query_ids: [B], int32 or int64. −1 is padding, with the threshold 0.

        Returns:
            [B] in fp32, without gradient. It is a copy, which later updates do not change.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
            IndexError: an id out of range, on the CPU.
        """
        self._check_ids(query_ids)
        return torch.where(query_ids < 0, 0.0, self.thresholds[query_ids.clamp(min=0)])

    @torch.no_grad()
    def update(self, query_ids: Tensor, above: Tensor, num_negatives: int | Tensor) -> None:
        """Update the thresholds of a batch, after its training step.

        A query that occurs several times is updated once, with the counts of all its rows.

        Args:
            query_ids: [B], the ids given to :meth:`threshold`. −1 is padding.
            above: [B], int32 or int64, how many of the row's negatives scored above its threshold.
            num_negatives: how many negatives there were; an integer or, if some are masked out, [B]. A row with 0 is
                left out. A row whose positive is padding counts no negative, so it needs 0 here or the query id −1.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
            IndexError: an id out of range, on the CPU.
        """
        self._check_ids(query_ids)
        counted = self._counted(query_ids, above, num_negatives)
        counts = torch.stack([above, counted]).to(self.thresholds.dtype)
        counts = torch.where(query_ids < 0, 0.0, counts)

        # Rows of one query side by side, and their counts added up at the first. No id is read back, and
        # no more is allocated than the batch needs.
        ids, order = query_ids.clamp(min=0).long().sort()
        first = torch.ones_like(ids, dtype=torch.bool)
        first[1:] = ids[1:] != ids[:-1]
        group = first.cumsum(0) - 1
        found, number = torch.zeros_like(counts).index_add_(1, group, counts[:, order])[:, group]

        first = first & (number > 0)
        expected = number * (self.k / self.num_items)
        # In units of the expected count, or of 1 if less than one negative is expected: its variance is at most 1.
        move = ((found - expected) / expected.clamp(min=1.0)).clamp(max=_LARGEST_MOVE)
        step = self.step * (self.updates[ids] + 1).rsqrt().clamp(min=_LAST_STEP)
        self.thresholds.index_add_(0, ids, torch.where(first, step * move, 0.0))
        self.updates.index_add_(0, ids, first.long())

    def _check_ids(self, query_ids: Tensor) -> None:
        checks.has_dtype("query_ids", query_ids, checks.INTEGER)
        checks.matches("query_ids", query_ids, "the thresholds", self.thresholds, dtype=False)
        if query_ids.dim() != 1:
            raise ValueError(f"query_ids must have shape [B], got {tuple(query_ids.shape)}")
        checks.ids_in_range("query_ids", query_ids, len(self.thresholds))

    def _counted(self, query_ids: Tensor, above: Tensor, num_negatives: int | Tensor) -> Tensor:
        """How many negatives each row has, [B]. Checks the counts; their values where `ids_in_range` checks values."""
        rows = tuple(query_ids.shape)
        if isinstance(num_negatives, Tensor):
            checks.has_dtype("num_negatives", num_negatives, checks.INTEGER)
            checks.matches("num_negatives", num_negatives, "query_ids", query_ids, dtype=False)
            checks.has_shape("num_negatives", num_negatives, rows, "one count per row")
        else:
            checks.whole_number("num_negatives", num_negatives, 1)
            num_negatives = torch.full_like(query_ids, num_negatives)
        checks.has_dtype("above", above, checks.INTEGER)
        checks.matches("above", above, "query_ids", query_ids, dtype=False)
        checks.has_shape("above", above, rows, "one count per row")
        if above.device.type == "cpu" and not torch.compiler.is_compiling():
            bad = (above < 0) | (above > num_negatives)
            if bad.any():
                got, of = above[bad][0].item(), num_negatives[bad][0].item()
                raise ValueError(f"above must be in [0, num_negatives], got {got} with num_negatives = {of}")
        return num_negatives

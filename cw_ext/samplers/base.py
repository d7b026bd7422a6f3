"""What all samplers share: the checks of a batch, and random numbers that are the same on every device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from cw_ext import checks, extension
from cw_ext.autocast import floating_input
from cw_ext.interactions import Interactions
from cw_ext.item_table import item_table
from cw_ext.negative_sampling import (
    check_interactions,
    check_query_ids,
    check_seed,
    draw,
    draws_of,
    seed_tensor,
    uniform_draws,
)
from cw_ext.samplers.protocol import Negatives

# Random numbers are draws from the largest possible catalogue. So their resolution is 2³¹ − 1.
NUMBERS = 2**31 - 1
# Combined with the seed for random numbers, so that they are independent of the candidates drawn with the seed.
_OTHER_SEED = 0x6A09E667F3BCC908


class Batch(NamedTuple):
    """A batch whose arguments have been checked, without gradient."""

    queries: Tensor  # [B, D]
    items: Tensor  # [I, D]
    query_ids: Tensor  # [B], −1 in every row of padding
    pos_ids: Tensor  # [B]
    seed: Tensor  # int64 []
    given_query_ids: Tensor  # as they were given

    @property
    def rows(self) -> int:
        return self.queries.shape[0]


class SamplerBase(nn.Module):
    """A sampler without state."""

    num_negatives: int

    def __init__(self, interactions: Interactions, num_negatives: int) -> None:
        super().__init__()
        check_interactions(interactions, "interactions", None)
        checks.num_negatives(num_negatives)
        self.interactions, self.num_negatives = interactions, num_negatives

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        """The interactions move along with the state."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.interactions = self.interactions.to(fn(torch.empty(0, device=self.interactions.device)).device)
        return self

    @torch.no_grad()
    def draw(
        self,
        queries: Tensor,
        items: Tensor | nn.Embedding,
        query_ids: Tensor,
        pos_ids: Tensor,
        *,
        seed: int | Tensor | None = None,
    ) -> Negatives:
        """See :meth:`Sampler.draw`.

        Raises:
            TypeError, ValueError: an argument is invalid, or all items are known positives of a query. The message
                names the argument, what was expected, and what it got.
            IndexError: an id is out of range (checked on the CPU).
        """
        return self._draw(self._batch(queries, items, query_ids, pos_ids, seed))

    def _draw(self, batch: Batch) -> Negatives:
        raise NotImplementedError

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
        """Do nothing, as this sampler has no state."""

    def _batch(
        self,
        queries: Tensor,
        items: Tensor | nn.Embedding,
        query_ids: Tensor,
        pos_ids: Tensor,
        seed: int | Tensor | None,
    ) -> Batch:
        table = floating_input("items", item_table(items)[0])
        queries = floating_input("queries", queries)
        known = self.interactions
        checks.embeddings(queries, table, pos_ids, None)
        check_interactions(known, "queries", queries)
        if table.shape[0] != known.num_items:
            raise ValueError(
                f"items must have one row per item of interactions, {known.num_items}, got {table.shape[0]}"
            )
        check_query_ids(query_ids, known, pos_ids, padding=True)
        checks.ids_in_range("pos_ids", pos_ids, known.num_items)
        check_seed(seed, known.device)
        known.check_has_negatives(query_ids, "uniform", pos_ids=pos_ids)
        own = torch.where(pos_ids < 0, -1, query_ids)
        return Batch(queries.detach(), table.detach(), own, pos_ids, seed_tensor(seed, known.device), query_ids)

    def _uniform_ids(self, batch: Batch, count: int) -> Tensor:
        """int32 [B, count] of items that are not known positives, with replacement. −1 in rows of padding."""
        draws = draws_of(batch.query_ids, self.interactions, count, batch.seed)
        return draw(draws, batch.rows, self.interactions.num_items, fused(batch.seed))


def random_numbers(seed: Tensor, rows: int, count: int, first_row: int = 0) -> Tensor:
    """int32 [rows, count], uniform in [0, NUMBERS), on the device of the seed; those of row b as of first_row + b."""
    draws = uniform_draws(count, seed ^ _OTHER_SEED, seed.device, None)._replace(first_row=first_row)
    return draw(draws, rows, NUMBERS, fused(seed))


def few_random_numbers(seed: Tensor, rows: int, count: int) -> Tensor:
    """Similar random numbers, faster for few per row. Those of a row do not depend on the number of rows."""
    return random_numbers(seed, 1, max(1, rows * count))[0, : rows * count].view(rows, count)


def fractions(numbers: Tensor) -> Tensor:
    """Random numbers as fp64 in (0, 1)."""
    return (numbers.double() + 0.5) / NUMBERS


def gumbel(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Random numbers with a standard Gumbel distribution.

    Sorting by log w + gumbel is the same as drawing one by one without replacement, each time with probability ∝ w.
    """
    # −log(1 − u) keeps the digits of small u, which become the largest values, even in fp32.
    u = ((numbers.to(dtype) + 0.5) / NUMBERS).clamp(max=1 - torch.finfo(dtype).eps)
    return -(-(-u).log1p()).log()


def fused(tensor: Tensor) -> bool:
    """Whether the kernels run on the tensor's device."""
    return extension.use_kernels("auto", tensor.device.type)

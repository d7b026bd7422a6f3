"""Items that queries would probably like, found without a model: what a correction takes its further positives from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cw_ext import checks
from cw_ext.interactions import Interactions
from cw_ext.negative_sampling import check_interactions, check_seed, seed_tensor
from cw_ext.samplers.base import few_random_numbers, fractions

# Most numbers of a dense block of columns, and of what is made of it.
_BLOCK = 2**24


@dataclass(frozen=True, eq=False, repr=False)  # a comparison of tensors is not a bool
class LikelyPositives:
    """For each query, the unknown items that it would most probably like, each with a probability to be drawn.

    The correction of the CW loss, log(A − πC), needs further positives of the row's query: a sample of the items that
    it likes. Known positives that training uses are no such sample, since training has pushed their scores up. These
    here are none of the known ones: they are items that go together with them in the interactions of all queries, found
    in closed form, before training. Drawn for each row and given as `extra_pos_ids`, they have their part taken out of
    the negatives, and their scores are raised until the floor of the correction binds.

    Made by :meth:`by_regression`, for catalogues of up to some ten thousand items, or by :meth:`by_walks`, for larger
    ones. In both, a query's items of the highest scores s are kept, and drawn with probability ∝ max(s, 0)^power.

    Attributes:
        ids: int32 [num_queries, K], the most probable first; −1 where a query has fewer items with a score above 0.
        probabilities: fp32 [num_queries, K], the rows sum to 1; 0 where there is no item.

    >>> likely = LikelyPositives.by_walks(interactions)
    >>> extra_pos_ids = likely.draw(query_ids, 20, seed=step)
    >>> sampled_cw_loss(queries, items, query_ids, pos_ids, interactions, 1000, prior=0.1, extra_pos_ids=extra_pos_ids)
    """

    ids: Tensor
    probabilities: Tensor

    @classmethod
    def by_regression(
        cls, interactions: Interactions, number: int = 20, *, penalty: float = 100.0, power: float = 2.0
    ) -> LikelyPositives:
        """By EASE (Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, arXiv 1905.03375).

        Each item is predicted from the others by ridge regression over all queries: with G = XᵀX and P = (G + λI)⁻¹ the
        scores are XB, B_ij = −P_ij/P_jj for i ≠ j and 0 on the diagonal (eq. 8). Takes time ∝ num_items³ and three
        tables of num_items² fp32 numbers, 1.2 GB for 10,000 items and 120 GB for 100,000.

        Args:
            interactions: the known positives X, each counted once. Of training only.
            number: K ≥ 1, at most this many items per query.
            penalty: λ > 0. About a hundred; more gives more popular items.
            power: > 0.

        Raises:
            TypeError, ValueError: the message contains the argument, what was expected and what came. So many items
                that their tables do not fit into the memory of the interactions' device are refused before any is made;
                a penalty is refused that is too small for G + λI to be inverted.
        """
        _check(interactions, number, power)
        checks.positive_number("penalty", penalty)
        _check_tables_fit(interactions)
        by_query, by_item = _matrices(interactions)
        places = torch.arange(interactions.num_items, device=interactions.device)
        gram = torch.cat([by_item @ block for block in _dense_columns(by_query, places, len(by_query))], dim=1)
        gram.diagonal().add_(penalty)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            inverse = torch.cholesky_inverse(factor)
        if failed or not inverse.diagonal().isfinite().all():
            raise ValueError(f"penalty must be larger, or G + penalty·I has no inverse in fp32, got {penalty}")
        del gram, factor
        weights = inverse.div_(-inverse.diagonal().clone())  # of item i, in row i, for item j
        weights.fill_diagonal_(0)
        transposed = weights.T.contiguous()
        return cls._of(interactions, number, power, lambda block: transposed @ block, interactions.num_items)

    @classmethod
    def by_walks(
        cls, interactions: Interactions, number: int = 20, *, popularity_exponent: float = 0.35, power: float = 4.0
    ) -> LikelyPositives:
        """By RP3β (Paudel et al., "Updatable, accurate, diverse, and scalable recommendations for interactive
        applications", ACM TiiS 7(1), 2017), with its α = ½.

        The score of an item j is the probability of a random walk from the query over one of its items to another query
        and on to j, each step's probability to the power ½, divided by the β-th power of how many queries know j. No
        table between items is made. It takes time ∝ num_queries · number of pairs, so it is for up to some hundred
        thousand queries, and memory for some queries' scores at a time.

        Args:
            interactions: the known positives, each counted once. Of training only.
            number: K ≥ 1, at most this many items per query.
            popularity_exponent: β ≥ 0. More gives less popular items.
            power: > 0.

        Raises:
            TypeError, ValueError: the message contains the argument, what was expected and what came.
        """
        _check(interactions, number, power)
        if checks.number("popularity_exponent", popularity_exponent, "a number of at least 0") < 0:
            raise ValueError(f"popularity_exponent must be at least 0, got {popularity_exponent}")
        by_query, by_item = _matrices(interactions)
        counts = torch.bincount(interactions.items, minlength=interactions.num_items).clamp(min=1)
        counts = counts.float().unsqueeze(1)
        to_query, to_item = counts.rsqrt(), interactions.starts.diff().clamp(min=1).float().rsqrt().unsqueeze(1)
        less_popular = counts**-popularity_exponent

        def score(block: Tensor) -> Tensor:
            # The first step has the same probability for all items of a query.
            return (by_item @ ((by_query @ (block * to_query)) * to_item)) * less_popular

        return cls._of(interactions, number, power, score, max(interactions.num_items, interactions.num_queries))

    @classmethod
    def _of(
        cls, interactions: Interactions, number: int, power: float, score: Callable[[Tensor], Tensor], rows: int
    ) -> LikelyPositives:
        """The highest scores, computed from known items [I, queries] as ones, by way of matrices with so many rows."""
        count = min(number, interactions.num_items)
        ids, weights = [], []
        _, by_item = _matrices(interactions)
        queries = torch.arange(interactions.num_queries, device=interactions.device)
        for block in _dense_columns(by_item, queries, rows):
            scores = score(block).masked_fill_(block > 0, 0.0)
            highest, items = scores.topk(count, dim=0)
            ids.append(items.T.int().masked_fill_(highest.T <= 0, -1))
            # Relative to the highest, so that no power of a small score is 0 for all of a query's items.
            weights.append((highest / highest[:1].clamp(min=torch.finfo(highest.dtype).tiny)).T.clamp(min=0) ** power)
        weight = torch.cat(weights)
        return cls(torch.cat(ids), weight / weight.sum(1, keepdim=True).clamp(min=1.0))

    @torch.no_grad()
    def draw(self, query_ids: Tensor, number: int, *, seed: int | Tensor | None = None) -> Tensor:
        """Draw items for each row, with replacement.

        Args:
            query_ids: int32 or int64 [B]; −1 is padding.
            number: M ≥ 1.
            seed: a number ≥ 0, or an int64 tensor without dimensions; the same items for the same seed, also on another
                device. Drawn from torch's generator if None.

        Returns:
            int64 [B, M] for `extra_pos_ids`; −1 in rows of padding and of queries that have no likely item.

        Raises:
            TypeError, ValueError: the message contains the argument, what was expected and what came.
            IndexError: an id out of range, on the CPU.
        """
        checks.whole_number("number", number, 1, checks.MOST_DRAWS)
        checks.has_dtype("query_ids", query_ids, (torch.int32, torch.int64))
        if query_ids.dim() != 1 or query_ids.device != self.ids.device:
            got = f"shape {tuple(query_ids.shape)} on {query_ids.device}"
            raise ValueError(f"query_ids must have shape [B], on {self.ids.device}, got {got}")
        checks.ids_in_range("query_ids", query_ids, len(self.ids))
        check_seed(seed, self.ids.device)
        seed = seed_tensor(seed, self.ids.device)
        rows = query_ids.long().clamp(min=0)
        sums = self.probabilities[rows].double().cumsum(1)
        target = fractions(few_random_numbers(seed, len(rows), number)) * sums[:, -1:]
        places = torch.searchsorted(sums, target, right=True).clamp_(max=self.ids.shape[1] - 1)
        drawn = self.ids[rows].gather(1, places).long()
        return drawn.masked_fill_(query_ids.unsqueeze(1) < 0, -1)

    def to(self, device: torch.device | str) -> LikelyPositives:
        """The same on another device."""
        return LikelyPositives(self.ids.to(device), self.probabilities.to(device))

    def __repr__(self) -> str:
        return f"LikelyPositives({self.ids.shape[1]} items for each of {len(self.ids)} queries)"


def _check(interactions: Interactions, number: int, power: float) -> None:
    check_interactions(interactions, "interactions", None)
    checks.whole_number("number", number, 1)
    checks.positive_number("power", power)


def _check_tables_fit(interactions: Interactions) -> None:
    """Before they are made: the system may kill the process rather than refuse it the memory."""
    memory = _memory(interactions.device)
    if memory is not None and interactions.num_items > (most := math.isqrt(memory // (3 * 4))):
        raise ValueError(
            f"interactions must have a num_items of at most {most} for by_regression, which needs three tables of "
            f"num_items² fp32 numbers in {memory / 1e9:.0f} GB of memory, got {interactions.num_items}; by_walks needs "
            "none"
        )


def _memory(device: torch.device) -> int | None:
    """How many bytes the device has in all; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _matrices(interactions: Interactions) -> tuple[Tensor, Tensor]:
    """The known pairs as ones in sparse matrices [num_queries, num_items] and [num_items, num_queries], fp32."""
    items = interactions.items.long()
    queries = torch.arange(interactions.num_queries, device=items.device).repeat_interleave(interactions.starts.diff())
    ones = torch.ones(len(items), dtype=torch.float32, device=items.device)
    shape = (interactions.num_queries, interactions.num_items)
    by_query = torch.sparse_coo_tensor(torch.stack([queries, items]), ones, shape, check_invariants=True).coalesce()
    return by_query, by_query.T.coalesce()


def _dense_columns(matrix: Tensor, columns: Tensor, rows: int) -> Iterator[Tensor]:
    """The columns of a sparse matrix, some at a time, as dense ones.

    Args:
        rows: of the tallest matrix made of them.
    """
    for some in columns.split(max(1, _BLOCK // rows)):
        yield matrix.index_select(1, some).to_dense()

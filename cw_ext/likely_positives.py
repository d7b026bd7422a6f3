"""Items that queries would probably like, found without training a model: extra positives for the correction."""

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

# The most numbers in a dense block of columns, and in what is computed from it.
_BLOCK = 2**24


@dataclass(frozen=True, eq=False, repr=False)  # a comparison of tensors is not a bool
class LikelyPositives:
    """For each query, new items that it would most probably like, to draw as extra positives.

    The correction of the CW loss, log(A − πC), needs extra positives of the row's query: a sample of the items that the
    query likes. Known positives are not such a sample, as training has already raised their scores. Likely positives
    are not among the known ones. They occur together with them in the interactions of all queries, and are found before
    training, without a model. Draw some for each row and pass them as `extra_pos_ids`. The correction then removes
    their share from the negatives, and raises their scores until its floor binds.

    Make them with :meth:`by_regression` for catalogues of up to about ten thousand items, or with :meth:`by_walks` for
    larger ones. Both keep the items with the highest scores s of each query, and draw them with probability
    ∝ max(s, 0)^power.

    >>> import torch
    >>> from cw_ext import Interactions, LikelyPositives, sampled_cw_loss
    >>> users = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 3])
    >>> liked = torch.tensor([0, 1, 0, 1, 0, 2, 3, 4, 1])
    >>> known = Interactions(users, liked, num_queries=4, num_items=5)
    >>> likely = LikelyPositives.by_walks(known, number=2)
    >>> likely.ids.tolist()  # users 0 and 1 would like item 2, then item 4; −1: user 2 has only one item
    [[2, 4], [2, 4], [1, -1], [0, -1]]
    >>> extra = likely.draw(users, 3, seed=0)  # three for each row of the batch
    >>> queries, items = torch.randn(9, 8), torch.randn(5, 8)
    >>> loss = sampled_cw_loss(queries, items, users, liked, known, 50, prior=0.1, extra_pos_ids=extra)

    Attributes:
        ids: int32 [num_queries, min(K, num_items)], the most probable item first. −1 where a query has fewer items with
            a score above 0.
        probabilities: fp32, in the shape of `ids`. 0 where there is no item. A row with an item sums to 1.
    """

    ids: Tensor
    probabilities: Tensor

    @classmethod
    def by_regression(
        cls, interactions: Interactions, number: int = 20, *, penalty: float = 100.0, power: float = 2.0
    ) -> LikelyPositives:
        """Find likely positives by ridge regression: EASE.

        (Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, arXiv 1905.03375.) Each item is
        predicted from the others by ridge regression over all queries. With G = XᵀX and P = (G + λI)⁻¹ the scores are
        XB, with B_ij = −P_ij/P_jj for i ≠ j and 0 on the diagonal (eq. 8). The time grows with num_items³. Memory holds
        three tables of num_items² fp32 numbers: 1.2 GB for 10,000 items and 120 GB for 100,000.

        Args:
            interactions: the known positives X, each counted once. Use the training data only.
            number: K ≥ 1, the most items kept per query.
            penalty: λ > 0, about a hundred. A larger penalty gives more popular items.
            power: > 0. A larger power draws the most probable items more often.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
                This includes more items than the memory of the interactions' device has room for (checked before any
                table is made), and a penalty too small for the inverse of G + λI.

        >>> from cw_ext import Interactions, LikelyPositives
        >>> known = Interactions([0, 0, 1, 1, 2], [0, 1, 0, 2, 0], num_queries=3, num_items=3)
        >>> LikelyPositives.by_regression(known, number=1, penalty=1.0).ids.tolist()
        [[2], [1], [1]]
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
            raise ValueError(
                f"penalty must be large enough for G + penalty·I to have an inverse in fp32, got {penalty}"
            )
        del gram, factor
        weights = inverse.div_(-inverse.diagonal().clone())  # of item i, in row i, for item j
        weights.fill_diagonal_(0)
        transposed = weights.T.contiguous()
        return cls._of(interactions, number, power, lambda block: transposed @ block, interactions.num_items)

    @classmethod
    def by_walks(
        cls, interactions: Interactions, number: int = 20, *, popularity_exponent: float = 0.35, power: float = 4.0
    ) -> LikelyPositives:
        """Find likely positives by random walks: RP3β, with its α = ½.

        (Paudel et al., "Updatable, accurate, diverse, and scalable recommendations for interactive applications", ACM
        TiiS 7(1), 2017.) The score of an item j is the probability of a random walk from the query to one of its items,
        to another query and on to j, with each step's probability to the power ½. It is divided by the number of
        queries of j to the power β. There is no table between items. The time grows with num_queries · number of pairs,
        so use it for up to a few hundred thousand queries. Memory holds the scores of a few queries at a time.

        Args:
            interactions: the known positives, each counted once. Use the training data only.
            number: K ≥ 1, the most items kept per query.
            popularity_exponent: β ≥ 0. A larger exponent gives less popular items.
            power: > 0. A larger power draws the most probable items more often.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
        """
        _check(interactions, number, power)
        checks.non_negative_number("popularity_exponent", popularity_exponent)
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
        """Keep the highest scores. `score` computes them from the known items as ones, [I, queries].

        Args:
            rows: of the tallest matrix that `score` makes.
        """
        count = min(number, interactions.num_items)
        ids, weights = [], []
        _, by_item = _matrices(interactions)
        queries = torch.arange(interactions.num_queries, device=interactions.device)
        for block in _dense_columns(by_item, queries, rows):
            scores = score(block).masked_fill_(block > 0, 0.0)
            highest, items = scores.topk(count, dim=0)
            ids.append(items.T.int().masked_fill_(highest.T <= 0, -1))
            # Relative to the highest, so that no power of small scores is 0 for all items of a query.
            weights.append((highest / highest[:1].clamp(min=torch.finfo(highest.dtype).tiny)).T.clamp(min=0) ** power)
        weight = torch.cat(weights)
        return cls(torch.cat(ids), weight / weight.sum(1, keepdim=True).clamp(min=1.0))

    @torch.no_grad()
    def draw(self, query_ids: Tensor, number: int, *, seed: int | Tensor | None = None) -> Tensor:
        """Draw likely positives for each row of a batch, with replacement.

        Args:
            query_ids: int32 or int64 [B]; −1 is padding.
            number: M ≥ 1, draws per row.
            seed: an integer in [0, 2^63), or an int64 tensor without dimensions. The same seed draws the same items, on
                any device. None takes a seed from torch's generator.

        Returns:
            int64 [B, M] for `extra_pos_ids`. −1 in rows of padding and of queries without a likely item.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
            IndexError: an id is out of range (checked on the CPU).
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
        """The same likely positives on another device."""
        return LikelyPositives(self.ids.to(device), self.probabilities.to(device))

    def __repr__(self) -> str:
        return f"LikelyPositives({self.ids.shape[1]} items for each of {len(self.ids)} queries)"


def _check(interactions: Interactions, number: int, power: float) -> None:
    check_interactions(interactions, "interactions", None)
    checks.whole_number("number", number, 1)
    checks.positive_number("power", power)


def _check_tables_fit(interactions: Interactions) -> None:
    """Check before they are made: the system may kill the process instead of refusing the memory."""
    memory = _memory(interactions.device)
    if memory is not None and interactions.num_items > (most := math.isqrt(memory // (3 * 4))):
        raise ValueError(
            f"interactions must have a num_items of at most {most} for by_regression, which needs three tables of "
            f"num_items² fp32 numbers in {memory / 1e9:.0f} GB of memory, got {interactions.num_items}; by_walks needs "
            "none"
        )


def _memory(device: torch.device) -> int | None:
    """The total number of bytes of the device; None if the system does not tell."""
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
    """The columns of a sparse matrix as dense ones, a few at a time.

    Args:
        rows: of the tallest matrix computed from them.
    """
    for some in columns.split(max(1, _BLOCK // rows)):
        yield matrix.index_select(1, some).to_dense()

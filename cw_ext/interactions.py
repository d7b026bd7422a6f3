"""The known positives of each query, so that no known positive is drawn as a negative."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from cw_ext import checks, files
from cw_ext.alias_table import ONE, Popularity, popularity_table
from cw_ext.candidates import CandidateItems
from cw_ext.scipy_matrix import load_npz, nonzeros

DISTRIBUTIONS = ("uniform", "popularity")

_INTEGER = {
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64
}  # fmt: skip
_LARGEST_ITEM_COUNT = 2**31 - 1
# A weight's logarithm is cut off here, so that every item that occurs has a mass, for any exponent.
_SMALLEST_LOG_WEIGHT = -700.0
_LOG = logging.getLogger("cw_ext")

Ids = Tensor | np.ndarray | Sequence[int]


class Interactions:
    """The known positives of each query: the items that each user has interacted with, as sorted pairs in CSR form.

    Build it once from the training data. The functions that draw negatives take it and never draw a known positive of
    the row's query.

    >>> from cw_ext import Interactions
    >>> known = Interactions([0, 1, 0], [5, 7, 2], num_queries=2, num_items=10)  # user 0 likes 5 and 2, user 1 likes 7
    >>> known
    Interactions(num_queries=2, num_items=10, pairs=3, device='cpu')
    >>> known.items[known.starts[0] : known.starts[1]].tolist()  # of user 0
    [2, 5]

    Attributes:
        num_queries: query ids are in [0, num_queries).
        num_items: item ids are in [0, num_items).
        starts: int64 [num_queries + 1]. The items of query q are items[starts[q]:starts[q + 1]].
        items: int32 [number of distinct pairs], increasing within each query.
        item_counts: int64 [num_items], the number of queries of each item; with keep_counts, its number of events.
        num_events: the number of pairs that were given, with repeated pairs counted each time.
        keep_counts: whether item_counts counts events.
        most_per_query: the length of the longest history; 0 if all are empty.
        num_occurring: the number of items with at least one interaction.
        count_bounds: fp64 [2], the sum of item_counts and the smallest count that is not 0.
        query_labels: a sorted numpy array [num_queries], the file's id of each row, if the file's ids were renumbered.
            None if the ids are the row numbers.
        item_labels: the same for the items.
        source: for interactions from a file, one line that describes what was read and what was left out.
    """

    num_queries: int
    num_items: int
    starts: Tensor
    items: Tensor
    item_counts: Tensor
    num_events: int
    keep_counts: bool
    most_per_query: int
    num_occurring: int
    count_bounds: Tensor
    query_labels: np.ndarray | None = None
    item_labels: np.ndarray | None = None
    source: str | None = None
    # What messages call an item, and how its tables are made.
    _item = "item"
    _maker = "interactions"

    def __init__(
        self, query_ids: Ids, item_ids: Ids, *, num_queries: int, num_items: int, keep_counts: bool = False
    ) -> None:
        """Sort the pairs by query and item, and keep repeated pairs once.

        The result is on the device of `query_ids` if that is a tensor, else on the CPU.

        Args:
            query_ids, item_ids: [P] each, P ≥ 0: tensors of any integer dtype, numpy arrays or lists. Pair k is
                (query_ids[k], item_ids[k]). The order does not matter.
            num_queries, num_items: the numbers of queries and items, at least 1; num_items at most 2³¹ − 1.
            keep_counts: let item_counts count repeated pairs each time, for data where plays or purchases repeat.
                Popularity draws and the log-Q correction of in-batch negatives then follow events instead of pairs.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected, and what it got.
            IndexError: an id is out of range. The message names its position.
        """
        checks.flags(keep_counts=keep_counts)
        self.keep_counts = keep_counts
        self.num_queries = _size("num_queries", num_queries)
        self.num_items = _size("num_items", num_items)
        if self.num_items > _LARGEST_ITEM_COUNT:
            raise ValueError(f"num_items must be at most 2**31 - 1, got {num_items}")
        if self.num_queries * self.num_items >= 2**63:  # the pairs are numbered
            raise ValueError(f"num_queries * num_items must be below 2**63, got {num_queries} * {num_items}")
        device = query_ids.device if isinstance(query_ids, Tensor) else torch.device("cpu")
        if isinstance(item_ids, Tensor) and item_ids.device != device:
            raise ValueError(f"item_ids must be on the device of query_ids, {device}, got {item_ids.device}")
        query_ids = _ids("query_ids", query_ids)
        item_ids = _ids("item_ids", item_ids)
        if len(query_ids) != len(item_ids):
            raise ValueError(f"item_ids must have the length of query_ids, {len(query_ids)}, got {len(item_ids)}")
        queries = _in_range("query_ids", query_ids, self.num_queries).to(device)
        items = _in_range("item_ids", item_ids, self.num_items).to(device)

        self.num_events = len(queries)
        events = items
        pairs = torch.unique(queries * self.num_items + items)  # sorted, too
        queries, items = pairs // self.num_items, pairs % self.num_items
        self.items = items.int()
        self.item_counts = torch.bincount(events if keep_counts else items, minlength=self.num_items)
        lengths = torch.bincount(queries, minlength=self.num_queries)
        self.starts = torch.zeros(self.num_queries + 1, dtype=torch.int64, device=device)
        torch.cumsum(lengths, 0, out=self.starts[1:])
        # Read back once, so that no batch has to wait for the device to check whether there is something to draw.
        self.most_per_query = int(lengths.max())
        self.num_occurring = int((self.item_counts > 0).sum())
        self.count_bounds = count_bounds(self.item_counts)
        self._tables: dict[tuple[float, float], Popularity] = {}
        self._candidates = WeakTensorKeyDictionary()

    @classmethod
    def from_scipy(cls, matrix: Any, *, keep_counts: bool = False) -> Interactions:
        """Make interactions from the non-zero values of a sparse matrix.

        Args:
            matrix: any scipy.sparse matrix or array [num_queries, num_items]. A value that is not zero is a positive,
                whatever its size. As usual in scipy, entries at the same position are summed first.
            keep_counts: read the values, whole numbers ≥ 0, as numbers of events for item_counts.

        Raises:
            TypeError: not a scipy.sparse matrix.
            ValueError: not two dimensions, a dimension of size 0, or values that cannot be counts.

        >>> import scipy.sparse
        >>> from cw_ext import Interactions
        >>> plays = scipy.sparse.csr_array([[0, 3, 1], [2, 0, 0]])
        >>> Interactions.from_scipy(plays, keep_counts=True).item_counts.tolist()
        [2, 3, 1]
        """
        checks.flags(keep_counts=keep_counts)
        query_ids, item_ids, values, shape = nonzeros(matrix)
        made = cls(query_ids, item_ids, num_queries=shape[0], num_items=shape[1], keep_counts=keep_counts)
        # Values may be ratings as well as counts, but a position that occurs twice is a repeated pair.
        made.num_events = max(len(made), int(np.count_nonzero(matrix.tocoo().data)))
        if keep_counts:
            made._count(item_ids, values)
        return made

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        num_queries: int | None = None,
        num_items: int | None = None,
        user_column: str | int | None = None,
        item_column: str | int | None = None,
        rating_column: str | int | None = None,
        label_column: str | int | None = None,
        split_column: str | int | None = None,
        separator: str | None = None,
        format: files.Format | None = None,
        encoding: str | None = None,
        min_rating: float | None = None,
        renumber: bool | None = None,
        keep_counts: bool = False,
    ) -> Interactions:
        """Read the positives from a file. Its users become the queries.

        The content decides how the file is read. It can be:

        - a table with a header: columns with common names such as `user_id` or `customer` are found in any order, and
          so are RecBole's `user_id:token`;
        - a table of two columns without a header, or of more columns if you give their numbers;
        - MovieLens ratings, LightGCN lists, SNAP check-ins, or MIND's behaviors.tsv (the clicks of impressions and
          histories);
        - JSON lines, parquet, or an .npz file written by scipy.sparse.save_npz.

        Columns of text can be separated by tabs, commas, semicolons, bars, `::` or blanks. Text can be compressed with
        gzip, bzip2 or xz. Lines at the top that begin with `#` and a blank are skipped; a header with common names is
        recognised there, too. Two columns of integers need nothing else installed. Other files need polars
        (`pip install "polars>=2"`), and an .npz file needs scipy.

        Integer ids are used as row numbers. Ids are renumbered in sorted order if they are strings, or if the largest
        integer is above 2²⁰ and there would be more than 100 rows per distinct id. `query_labels` and `item_labels`
        then hold the file's ids, and `query_rows` and `item_rows` return the row of an id.

        Args:
            path: the file.
            num_queries, num_items: the numbers of queries and items; the ids are then row numbers. By default the
                largest id + 1, the number of distinct ids if they are renumbered, or the shape of the matrix.
            user_column, item_column: the name of the column, or its number from 0.
            rating_column: by default a column such as `rating`. Used only with `min_rating`.
            label_column: by default a column such as `label` or `is_click`. Only rows with a value above 0 are
                positives.
            split_column: by default a column named `split`, with the values train, valid and test. Only the rows of
                train are read.
            separator: between the columns of a text: a character, "::", "tab" or "blanks". By default the one that
                gives the most columns.
            format: "table" or "lightgcn", for files that could be either.
            encoding: of a text, such as "latin-1". None means UTF-8.
            min_rating: ratings below it are not positives. None keeps every rating.
            renumber: True renumbers all ids, False none. None decides as described above.
            keep_counts: let item_counts count a pair as often as the file has it (not for .npz: see `from_scipy`).

        Raises:
            OSError: the file cannot be read; FileNotFoundError if it does not exist.
            ValueError: the content is none of the above (the message names the file and the line or the columns), an
                argument does not apply to this kind of file, or the file is empty and the numbers of queries and items
                are not given.
            IndexError: an id is not below `num_queries` or `num_items`.
            ImportError: polars or scipy is needed and not installed.

        >>> import pathlib, tempfile
        >>> from cw_ext import Interactions
        >>> folder = tempfile.TemporaryDirectory()
        >>> orders = pathlib.Path(folder.name, "orders.csv")
        >>> _ = orders.write_text("customer,sku,price\\nann,tea,3\\nbob,tea,3\\nann,jam,2\\n")
        >>> known = Interactions.from_file(orders)
        >>> known
        Interactions(num_queries=2, num_items=2, pairs=3, device='cpu')
        >>> known.item_labels.tolist(), known.item_rows(["tea", "jam"]).tolist()
        (['jam', 'tea'], [1, 0])
        >>> known.source
        '3 positives of 2 users and 2 items: columns customer, sku'
        >>> folder.cleanup()
        """
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be a str or os.PathLike, got {type(path).__name__}")
        checks.flags(keep_counts=keep_counts)
        if renumber is not None and not isinstance(renumber, bool):
            raise TypeError(f"renumber must be True, False or None, got {type(renumber).__name__}")
        for name, size in (("num_queries", num_queries), ("num_items", num_items)):
            if size is not None:
                _size(name, size)
        path = Path(path)
        reading = files.Reading(
            user_column, item_column, rating_column, label_column, split_column, format, encoding, min_rating, separator
        )
        if path.suffix == ".npz":
            reading.refuse_all(path, "an .npz")
            if renumber:
                raise ValueError(f"{path}: renumber=True does not apply to an .npz, whose ids are rows")
            if keep_counts:
                raise ValueError(f"{path}: keep_counts=True does not apply to an .npz; load it and use from_scipy")
            query_ids, item_ids, shape = load_npz(path)
            queries, items = (
                files.Rows(query_ids, shape[0] if num_queries is None else num_queries, None),
                files.Rows(item_ids, shape[1] if num_items is None else num_items, None),
            )
            source = f"{len(query_ids)} positives of a matrix {shape}"
        else:
            table = files.read_interactions(path, reading).training_part()
            if not len(table.lines) and (num_queries is None or num_items is None):
                raise ValueError(f"{path}: expected interactions, or num_queries and num_items, got {table.summary}")
            queries = files.number(path, table, table.users, "query", num_queries, renumber)
            items = files.number(path, table, table.items, "item", num_items, renumber)
            source = table.summary
        made = cls(queries.rows, items.rows, num_queries=queries.size, num_items=items.size, keep_counts=keep_counts)
        made.query_labels, made.item_labels, made.source = queries.labels, items.labels, source
        _LOG.info("%s: %s", path, source)
        return made

    def query_rows(self, ids: Any) -> Tensor:
        """The row numbers of queries, from their ids in the file.

        Args:
            ids: a sequence or an array of integers or strings, as in the file.

        Returns:
            int64, with the shape of `ids`, on the CPU.

        Raises:
            KeyError: no query has such an id.
        """
        return _rows("query", ids, self.query_labels, self.num_queries)

    def item_rows(self, ids: Any) -> Tensor:
        """The row numbers of items, from their ids in the file. Otherwise the same as `query_rows`."""
        return _rows("item", ids, self.item_labels, self.num_items)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.starts.device

    def to(self, device: torch.device | str | int) -> Interactions:
        """The same interactions on another device; this object itself if it is already there.

        Raises:
            TypeError, ValueError: not a device.
        """
        # Unlike Tensor.to, no dtype and no other tensor, which would change the ids.
        if not isinstance(device, torch.device):
            device = _device(device)
        starts = self.starts.to(device)
        if starts is self.starts:
            return self
        moved = copy.copy(self)
        moved.starts, moved.items, moved.item_counts = starts, self.items.to(device), self.item_counts.to(device)
        moved.count_bounds = self.count_bounds.to(device)
        return moved

    def popularity(self, exponent: float, smoothing: float = 0.0) -> Popularity:
        """A table for drawing items with probability proportional to (item_counts + smoothing) ** exponent.

        The functions that draw call this for you. You only need it before torch.compile, to build the table once. The
        table is kept.

        Args:
            exponent: a number ≥ 0. With 0, all items that can be drawn are equally likely.
            smoothing: a number ≥ 0. With 0, items without interactions are never drawn.

        Raises:
            TypeError, ValueError: a number is invalid, or there are no interactions and no smoothing.
            RuntimeError: the first call is inside torch.compile.
        """
        checks.non_negative_number("exponent", exponent)
        checks.non_negative_number("smoothing", smoothing)
        self._check_any_occurs(smoothing)
        key = exponent, smoothing = float(exponent), float(smoothing)
        if key not in self._tables:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    "torch.compile cannot build a popularity table; before compiling, call once "
                    f"{self._maker}.popularity({exponent}{f', {smoothing}' if smoothing else ''})"
                )
            counts = self.item_counts.double() + smoothing
            logs = (exponent * (counts / counts.max()).log()).clamp(min=_SMALLEST_LOG_WEIGHT)
            table = popularity_table(torch.where(counts > 0, logs.exp(), 0.0))
            self._tables[key] = self._with_known_shares(table)
        return self._tables[key]

    def candidates(self, candidates: Tensor | Candidates) -> Candidates:
        """Prepare the items that may be drawn as negatives, for the `candidates` argument of the functions that draw.

        The result is kept while the tensor exists, and prepared again after you write to the tensor. Writes through
        numpy or `.data` cannot be detected: make a new tensor instead.

        Args:
            candidates: a mask, bool [num_items], or ids, int32 or int64 [C], in any order; repeated ids count once. On
                the device of the interactions. A result of this method is returned as it is.

        Raises:
            TypeError, ValueError, IndexError: the tensor is invalid, or leaves no candidate.
            RuntimeError: the first call is inside torch.compile.

        >>> import torch
        >>> from cw_ext import Interactions, draw_negatives
        >>> known = Interactions([0, 0], [1, 4], num_queries=1, num_items=6)
        >>> in_stock = known.candidates(torch.tensor([1, 2, 3]))
        >>> in_stock
        Candidates(3 of 6 items)
        >>> drawn = draw_negatives(torch.tensor([0]), known, 100, seed=0, candidates=in_stock)
        >>> drawn.unique().tolist()  # in stock and not a known positive
        [2, 3]
        """
        if isinstance(candidates, Candidates):
            if candidates.interactions is not self:
                raise ValueError(
                    "candidates must be prepared by the same interactions, got some of other interactions; call "
                    "interactions.candidates(mask_or_ids) again"
                )
            return candidates
        checks.is_tensor("candidates", candidates)
        if torch.compiler.is_compiling() or candidates.is_inference():
            return Candidates(candidates, self)  # which raises; or it is unknown whether the tensor is written to
        version, kept = self._candidates.get(candidates, (None, None))
        made: Candidates = kept if version == candidates._version else Candidates(candidates, self)
        self._candidates[candidates] = (candidates._version, made)
        return made

    def check_has_negatives(
        self,
        query_ids: Tensor,
        distribution: str,
        *,
        popularity_smoothing: float = 0.0,
        pos_ids: Tensor | None = None,
    ) -> None:
        """Raise an error for queries whose known positives are all the items that could be drawn.

        The ids are read only if such a query exists. So there is usually no wait for the device.

        Args:
            query_ids: any shape, int32 or int64, on this device, in [0, num_queries), or −1 for padding.
            distribution: "uniform" draws from all items. "popularity" draws from the items with interactions, or from
                all items with smoothing.
            popularity_smoothing: a number ≥ 0.
            pos_ids: with the shape of query_ids, or None. Rows with −1 are padding.

        Raises:
            ValueError: there is such a query (the message names the first one), or there are no interactions to compute
                popularity from.
            TypeError, IndexError: query_ids are invalid (their range is checked only if they are read).
        """
        checks.choice("distribution", distribution, DISTRIBUTIONS)
        checks.has_dtype("query_ids", query_ids, checks.INTEGER)
        checks.matches("query_ids", query_ids, "interactions", self.starts, dtype=False)
        if distribution == "popularity":
            self._check_any_occurs(popularity_smoothing)
        uniform = distribution == "uniform" or popularity_smoothing > 0
        drawable = self.num_items if uniform else self.num_occurring
        if self.most_per_query < drawable:
            return
        checks.ids_in_range("query_ids", query_ids, self.num_queries)
        drawn_for = query_ids >= 0 if pos_ids is None else (query_ids >= 0) & (pos_ids >= 0)
        ids = query_ids[drawn_for].long()
        full = ids[self.starts[ids + 1] - self.starts[ids] >= drawable]
        if full.numel():
            raise ValueError(
                f"query_ids: query {full[0].item()} has all {drawable} {self._item}s{'' if uniform else ' that occur'} "
                "as known positives, so no negative can be drawn for it"
            )

    def __len__(self) -> int:
        """The number of distinct pairs."""
        return self.items.numel()

    def __repr__(self) -> str:
        sizes = f"num_queries={self.num_queries}, num_items={self.num_items}, pairs={len(self)}"
        return f"{type(self).__name__}({sizes}, device='{self.device}')"

    def __getstate__(self) -> dict[str, Any]:
        # Tables and candidates are quick to make again, on the device of the copy.
        return {name: value for name, value in self.__dict__.items() if name not in ("_tables", "_candidates")}

    def _count(self, item_ids: np.ndarray, values: np.ndarray) -> None:
        """Use the values of a matrix as numbers of events."""
        wrong = (values < 0) | (values != np.floor(values)) | (values > 2**53)
        if wrong.any():
            raise ValueError(f"matrix must hold whole numbers ≥ 0 with keep_counts=True, got {values[wrong][0]}")
        counts = np.bincount(item_ids, weights=values, minlength=self.num_items)
        self.item_counts = torch.from_numpy(counts.astype(np.int64))
        self.count_bounds = count_bounds(self.item_counts)
        self.num_events = int(values.sum(dtype=np.float64))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_tables": {}, "_candidates": WeakTensorKeyDictionary()}
        if "num_events" not in state:  # from 0.1.0, which did not count events
            self.keep_counts, self.num_events = False, len(self)
        if "count_bounds" not in state:  # pickled before there was one
            self.count_bounds = count_bounds(self.item_counts)

    def _check_any_occurs(self, smoothing: float) -> None:
        if self.num_occurring == 0 and smoothing == 0:
            raise ValueError(
                f"no {self._item} occurs in any interaction, so none can be drawn by popularity without smoothing"
            )

    def _with_known_shares(self, table: Popularity) -> Popularity:
        """The table, with the shares of the known items if those of one query have half of the whole or more."""
        shares = table.cumulative.diff(prepend=table.cumulative.new_zeros(1))
        sums = torch.zeros(len(self) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(shares[self.items], 0, out=sums[1:])
        of_queries = sums[self.starts].diff()
        return table._replace(known_shares=sums) if 2 * int(of_queries.max()) >= self.num_items * ONE else table


class Candidates(CandidateItems):
    """The items that may be drawn as negatives. Made by :meth:`Interactions.candidates`.

    Use it if some items cannot be recommended, for example because they are out of stock or not sold in a market.

    Negatives are drawn as if the candidates were the whole catalogue. So known positives that are not candidates cost
    nothing.

    >>> import torch
    >>> from cw_ext import Interactions
    >>> known = Interactions([0, 0], [1, 4], num_queries=1, num_items=6)
    >>> in_stock = known.candidates(torch.tensor([False, True, True, True, False, False]))
    >>> len(in_stock), in_stock.ids.tolist()
    (3, [1, 2, 3])

    Attributes:
        ids: int32 [C], the candidates, distinct and increasing.
        is_candidate: bool [num_items].
        interactions: the interactions that the candidates were prepared for.
        known: those pairs of the interactions whose item is a candidate, with the item's position in `ids`.
    """

    def __init__(self, candidates: Tensor, interactions: Interactions) -> None:
        """Use interactions.candidates() instead. It describes the arguments, and keeps the result."""
        super().__init__(candidates, interactions.num_items, "interactions", interactions.starts)
        self.interactions = interactions
        places = self.is_candidate.cumsum(0).int() - 1
        kept = self.is_candidate[interactions.items]
        known = copy.copy(interactions)
        known._item, known._maker = "candidate", "interactions.candidates(candidates)"
        known.num_items = len(self)
        known.starts = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])[interactions.starts]
        known.items = places[interactions.items[kept]]
        known.item_counts = interactions.item_counts[self.ids]
        known.count_bounds = count_bounds(known.item_counts)
        known.most_per_query = int(known.starts.diff().max())
        known.num_occurring = int((known.item_counts > 0).sum())
        self.known = known
        self._tables: dict[tuple[float, float], Popularity] = {}

    def popularity(self, exponent: float, smoothing: float = 0.0) -> Popularity:
        """The table of :meth:`Interactions.popularity` for the candidates only.

        It draws positions in `ids`. Its `log_weights` are by item id.
        """
        table = self.known.popularity(exponent, smoothing)
        key = float(exponent), float(smoothing)
        if key not in self._tables:
            log_weights = table.log_weights.new_zeros(self.interactions.num_items)
            log_weights[self.ids] = table.log_weights
            self._tables[key] = table._replace(log_weights=log_weights)
        return self._tables[key]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": {}}  # as Interactions has it


def count_bounds(item_counts: Tensor) -> Tensor:
    """fp64 [2]: the sum of the counts, and the smallest that is not 0, or 1. Reads all items: not for every step."""
    counts = item_counts.double()
    least = torch.where(counts > 0, counts, math.inf).amin()
    return torch.stack([counts.sum(), torch.where(least < math.inf, least, 1.0)])


def _device(device: object) -> torch.device:
    if isinstance(device, bool) or not isinstance(device, (str, int)):
        raise TypeError(f"device must be a torch.device, a str or an int, got {type(device).__name__}")
    try:
        return torch.device(device)
    except RuntimeError as error:  # torch's error does not contain the argument
        raise ValueError(f"device must be a device of this torch, got {device!r}: {error}") from None


def _size(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer ≥ 1, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be ≥ 1, got {value}")
    return int(value)


def _ids(name: str, value: Ids) -> Tensor | np.ndarray:
    """A one-dimensional tensor or array of integers."""
    if isinstance(value, Tensor):
        checks.is_tensor(name, value)
        checks.has_values(name, value)
        integer = value.dtype in _INTEGER
    else:
        is_array = isinstance(value, np.ndarray)
        try:
            value = np.asarray(value)
        except ValueError:  # numpy's error for lists of different lengths
            raise ValueError(f"{name} must have shape [P], got sequences of different lengths") from None
        # An empty list has no dtype of its own.
        integer = value.dtype.kind in "iu" or (not is_array and value.size == 0)
    if not integer:
        found = str(value.dtype).removeprefix("torch.")
        if isinstance(value, np.ndarray) and value.dtype.kind in "US":
            found = "strings: pass row numbers, such as those of numpy.unique(ids, return_inverse=True)[1]"
        raise TypeError(f"{name} must hold integers, got {found}")
    if value.ndim != 1:
        raise ValueError(f"{name} must have shape [P], got {tuple(value.shape)}")
    return value


def _in_range(name: str, ids: Tensor | np.ndarray, size: int) -> Tensor:
    """The ids as an int64 tensor."""
    # A copy of an array: it may be read-only, or have strides or a byte order that torch does not support.
    wide = ids.long() if isinstance(ids, Tensor) else torch.from_numpy(ids.astype(np.int64))
    outside = (wide < 0) | (wide >= size)
    if outside.any():
        position = int(outside.nonzero()[0])
        # From the original, as an unsigned id of 64 bits may have become another.
        raise IndexError(f"{name} must be in [0, {size}), got {ids[position].item()} at position {position}")
    return wide


def _rows(kind: str, ids: Any, labels: np.ndarray | None, size: int) -> Tensor:
    if isinstance(ids, Tensor):
        ids = ids.cpu().numpy()
    wanted = np.asarray(ids)
    if labels is None:
        labels = np.arange(size)
    if wanted.size == 0:
        return torch.zeros(wanted.shape, dtype=torch.int64)
    if (wanted.dtype.kind in "iu") != (labels.dtype.kind in "iu"):
        held = "integers" if labels.dtype.kind in "iu" else "strings"
        raise KeyError(f"no {kind} has the id {wanted.reshape(-1).tolist()[0]!r}: these ids are {held}")
    rows = np.searchsorted(labels, wanted.astype(labels.dtype)).clip(max=len(labels) - 1)
    missing = labels[rows] != wanted
    if missing.any():
        raise KeyError(f"no {kind} has the id {wanted[missing].tolist()[0]!r}")
    return torch.from_numpy(np.asarray(rows))

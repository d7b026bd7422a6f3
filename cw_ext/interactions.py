"""The known positives of every query, for drawing negatives that are not among them."""

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
    """Which items each query is known to like: pairs (query, item), sorted, each once, as a CSR.

    Attributes:
        num_queries, num_items: ids lie in [0, num_queries) and [0, num_items).
        starts: int64 [num_queries + 1]; query q's items are items[starts[q]:starts[q + 1]].
        items: int32 [number of distinct pairs], increasing within each query.
        item_counts: int64 [num_items], how many queries each item occurs with; with keep_counts, in how many events.
        num_events: how many pairs were given, repeated ones counted each time.
        keep_counts: whether item_counts counts events.
        most_per_query: the length of the longest history, 0 if there is none.
        num_occurring: how many items occur at all.
        count_bounds: fp64 [2], the sum of item_counts, and the least that is not 0.
        query_labels, item_labels: numpy arrays [num_queries] and [num_items], sorted: the file's id of each row, if its
            ids were numbered anew. None if ids are rows as they are.
        source: for interactions of a file, a line that tells what was taken from it and what was left out.
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
        """Sort the pairs by query and item; a pair that occurs twice is kept once.

        Args:
            query_ids, item_ids: [P] each, P ≥ 0: tensors of any integer dtype, numpy arrays or lists; pair k is
                (query_ids[k], item_ids[k]), in any order.
            num_queries, num_items: the ranges of the ids, at least 1; num_items at most 2³¹ − 1.
            keep_counts: count a pair in item_counts as often as it occurs, for training on plays or purchases that
                repeat. Popularity draws and the log-Q correction of in-batch negatives then follow events, not pairs.

        The result is on the device of `query_ids` if that is a tensor, else on the CPU.

        Raises:
            TypeError, ValueError: the message contains the argument, what was expected and what came.
            IndexError: an id out of range, with its position.
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
        """The positions of a sparse matrix's non-zero values.

        Args:
            matrix: any scipy.sparse matrix or array [num_queries, num_items]. Only whether a value is zero counts;
                entries at the same position are summed first, as scipy understands them.
            keep_counts: take the values, whole numbers ≥ 0, as numbers of events, and count these in item_counts.

        Raises:
            TypeError: not a scipy.sparse matrix. ValueError: not two dimensions, or a dimension of 0, or values that
                cannot be counts.
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
        """Read the positives of a file: the users are the queries.

        The kind of file is recognised by its content: a table with a header (columns by their usual names, in any
        order, or RecBole's `user_id:token`); a table of two columns without a header, or of more where their numbers
        are given; MovieLens' ratings; LightGCN's lists; SNAP's check-ins; MIND's behaviors.tsv (the clicks of
        impressions and of histories); JSON lines; parquet; or an .npz that scipy.sparse.save_npz wrote. Columns are
        separated by tabs, commas, semicolons, bars, `::` or blanks; text may be compressed by gzip, bzip2 or xz; lines
        at the top that begin with `# ` are skipped, but a header with usual names counts there, too. Files
        other than two columns of integers need polars, `cw_ext[files]` (and an .npz scipy).

        An integer id is a row as it is. Ids are numbered anew, in their sorted order, where they are strings, or where
        the largest integer is beyond 2²⁰ with more than 100 rows per distinct id; `query_labels` and `item_labels`
        then hold the file's ids, and `query_rows` and `item_rows` give the row of an id.

        Args:
            path: the file.
            num_queries, num_items: the ranges of the ids, which then are rows as they are; by default the largest
                id + 1, the number of distinct ids where they are numbered anew, or the matrix's shape.
            user_column, item_column: the name of the column, or its number from 0.
            rating_column: by default the column with a usual name; used only with `min_rating`.
            label_column: by default a column such as `label` or `is_click`; only rows above 0 are positives.
            split_column: by default a column `split`, of train, valid and test; only rows of train are taken.
            separator: of the columns of a text: a character, "::", "tab" or "blanks"; by default that which gives most
                columns.
            format: "table" or "lightgcn", for files that could be both.
            encoding: of a text, such as "latin-1"; UTF-8 if None.
            min_rating: lower ratings are not positives; None keeps every rating.
            renumber: True numbers all ids anew, False never does; None as above.
            keep_counts: count a pair in item_counts as often as the file has it (for an .npz: see `from_scipy`).

        Raises:
            OSError: the file cannot be read; FileNotFoundError if it is not there.
            ValueError: the content is not as above (the message gives file, line or columns), or an argument cannot
                act on this file, or there is no pair and no number of queries and items either.
            IndexError: an id beyond `num_queries` or `num_items`.
            ImportError: polars or scipy is needed and not installed.
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
                raise ValueError(f"{path}: renumber=True cannot act on an .npz, whose ids are rows")
            if keep_counts:
                raise ValueError(f"{path}: keep_counts=True cannot act on an .npz; load the matrix, and use from_scipy")
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
        """The rows of queries by the ids that the file has for them.

        Args:
            ids: a sequence or an array of integers or strings, as in the file.

        Returns:
            int64, of the shape of `ids`, on the CPU.

        Raises:
            KeyError: an id without a query.
        """
        return _rows("query", ids, self.query_labels, self.num_queries)

    def item_rows(self, ids: Any) -> Tensor:
        """The rows of items by the ids that the file has for them; otherwise as `query_rows`."""
        return _rows("item", ids, self.item_labels, self.num_items)

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.starts.device

    def to(self, device: torch.device | str | int) -> Interactions:
        """The same interactions on the device: this object if it is there already.

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

        Made once for each pair of numbers, and kept.

        Args:
            exponent: a number ≥ 0; with 0 all items that can be drawn are equally likely.
            smoothing: a number ≥ 0. With 0, items that never occur are never drawn.

        Raises:
            TypeError, ValueError: not such numbers, or neither interactions nor smoothing.
            RuntimeError: a first call inside torch.compile.
        """
        checks.non_negative_number("exponent", exponent)
        checks.non_negative_number("smoothing", smoothing)
        self._check_any_occurs(smoothing)
        key = exponent, smoothing = float(exponent), float(smoothing)
        if key not in self._tables:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    "torch.compile cannot trace how a popularity table is made: before, call once "
                    f"{self._maker}.popularity({exponent}{f', {smoothing}' if smoothing else ''})"
                )
            counts = self.item_counts.double() + smoothing
            logs = (exponent * (counts / counts.max()).log()).clamp(min=_SMALLEST_LOG_WEIGHT)
            table = popularity_table(torch.where(counts > 0, logs.exp(), 0.0))
            self._tables[key] = self._with_known_shares(table)
        return self._tables[key]

    def candidates(self, candidates: Tensor | Candidates) -> Candidates:
        """The items that can be negatives, prepared for `candidates=` of the functions that draw.

        Made once for a tensor, again when the tensor is written to, and kept as long as the tensor lives. Writes
        through numpy or `.data` are not noticed: make a new tensor instead.

        Args:
            candidates: a mask, bool [num_items], or ids, int32 or int64 [C], in any order; ids that occur twice
                count once. On the device of the interactions. Or a result of this method.

        Raises:
            TypeError, ValueError, IndexError: not such a tensor, or no candidate is left.
            RuntimeError: a first call inside torch.compile.
        """
        if isinstance(candidates, Candidates):
            if candidates.interactions is not self:
                raise ValueError(
                    "candidates must be prepared by the same interactions, got those of others; call "
                    "candidates(mask_or_ids) of these"
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
        """Refuse queries that know every item that could be drawn for them.

        The ids are not read, so that no device is waited for, unless there is such a query at all.

        Args:
            query_ids: any shape, int32 or int64, on this device, in [0, num_queries), or −1 for padding.
            distribution: "uniform" draws from all items, "popularity" from those that occur; with smoothing from all.
            popularity_smoothing: a number ≥ 0.
            pos_ids: the shape of query_ids, or None; rows with −1 are padding.

        Raises:
            ValueError: the message contains the first such query; or nothing occurs, so that there is no popularity.
            TypeError, IndexError: query_ids are not as above (their range is checked only if they are read).
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
        # Tables and candidates are quickly made again, on the device of the copy.
        return {name: value for name, value in self.__dict__.items() if name not in ("_tables", "_candidates")}

    def _count(self, item_ids: np.ndarray, values: np.ndarray) -> None:
        """Take the values of a matrix as numbers of events."""
        wrong = (values < 0) | (values != np.floor(values)) | (values > 2**53)
        if wrong.any():
            raise ValueError(f"matrix must hold whole numbers ≥ 0 with keep_counts=True, got {values[wrong][0]}")
        counts = np.bincount(item_ids, weights=values, minlength=self.num_items)
        self.item_counts = torch.from_numpy(counts.astype(np.int64))
        self.count_bounds = count_bounds(self.item_counts)
        self.num_events = int(values.sum(dtype=np.float64))

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_tables": {}, "_candidates": WeakTensorKeyDictionary()}
        if "count_bounds" not in state:  # pickled before there was one
            self.count_bounds = count_bounds(self.item_counts)

    def _check_any_occurs(self, smoothing: float) -> None:
        if self.num_occurring == 0 and smoothing == 0:
            raise ValueError(
                f"no {self._item} occurs in any interaction, so none can be drawn by popularity without smoothing"
            )

    def _with_known_shares(self, table: Popularity) -> Popularity:
        """The table, with the shares of the known items if a query knows half of all or more."""
        shares = table.cumulative.diff(prepend=table.cumulative.new_zeros(1))
        sums = torch.zeros(len(self) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(shares[self.items], 0, out=sums[1:])
        of_queries = sums[self.starts].diff()
        return table._replace(known_shares=sums) if 2 * int(of_queries.max()) >= self.num_items * ONE else table


class Candidates(CandidateItems):
    """What `interactions.candidates(mask_or_ids)` returns.

    Negatives are drawn as from a catalogue of the candidates alone, whose items are positions in `ids`; at the end a
    position becomes an id. So known positives that are not candidates cost nothing.

    Attributes:
        ids, is_candidate: as of CandidateItems.
        interactions: the interactions that they were made for.
        known: the pairs of these with a candidate, by its position.
    """

    def __init__(self, candidates: Tensor, interactions: Interactions) -> None:
        """Use interactions.candidates() instead, which documents the arguments and keeps the result."""
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
        """As of :meth:`cw_ext.Interactions.popularity`, of the candidates alone: by position in `ids`, except
        `log_weights`, which are by item."""
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
    """fp64 [2]: the sum of the counts, and the least that is not 0, or 1. It reads all items, which no step should."""
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
        raise TypeError(f"{name} must hold integers, got {str(value.dtype).removeprefix('torch.')}")
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
        raise KeyError(f"no {kind} has the id {wanted.reshape(-1)[0]!r}: these ids are {held}")
    rows = np.searchsorted(labels, wanted.astype(labels.dtype)).clip(max=len(labels) - 1)
    missing = labels[rows] != wanted
    if missing.any():
        raise KeyError(f"no {kind} has the id {wanted[missing].tolist()[0]!r}")
    return torch.from_numpy(np.asarray(rows))

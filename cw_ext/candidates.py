"""The items that can be negatives, where not all can: out of stock, of another market."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cw_ext import checks
from cw_ext.alias_table import Popularity

if TYPE_CHECKING:
    from cw_ext.interactions import Interactions


class CandidateItems:
    """Some of a table's items.

    Attributes:
        ids: int32 [C], distinct and increasing.
        is_candidate: bool [I].
    """

    def __init__(self, candidates: Tensor, num_items: int, like_name: str, like: Tensor) -> None:
        """From a mask or ids, on the device of `like`."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "torch.compile cannot trace how candidates are prepared: before, call once "
                "candidates = interactions.candidates(candidates)"
            )
        checks.has_dtype("candidates", candidates, (torch.bool, *checks.INTEGER))
        checks.has_values("candidates", candidates)
        checks.matches("candidates", candidates, like_name, like, dtype=False)
        is_mask = candidates.dtype == torch.bool
        if candidates.dim() != 1 or (is_mask and candidates.numel() != num_items):
            dtype = str(candidates.dtype).removeprefix("torch.")
            raise ValueError(
                f"candidates must be a mask of shape [{num_items}], a value per item, or ids of shape [C], "
                f"got {dtype} of shape {tuple(candidates.shape)}"
            )
        if is_mask:
            self.is_candidate = candidates.clone()
        else:
            checks.ids_in_range("candidates", candidates, num_items, padding=False)
            self.is_candidate = torch.zeros(num_items, dtype=torch.bool, device=candidates.device)
            self.is_candidate[candidates.long()] = True
        self.ids = self.is_candidate.nonzero().squeeze(1).int()
        if len(self) == 0:
            raise ValueError(f"candidates must leave at least one item, got none of {num_items}")

    def __len__(self) -> int:
        """The number of candidates."""
        return self.ids.numel()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} of {self.is_candidate.numel()} items)"


class Candidates(CandidateItems):
    """What `interactions.candidates(mask_or_ids)` returns.

    Negatives are drawn as from a catalogue of the candidates alone, whose items are their places in `ids`; in the end a
    place becomes an id. So known positives that are no candidates cost nothing.

    Attributes:
        ids, is_candidate: as of CandidateItems.
        interactions: what they were made for.
        known: of those, the pairs with a candidate, by its place.
    """

    def __init__(self, candidates: Tensor, interactions: Interactions) -> None:
        """Use interactions.candidates(), which has the arguments, and keeps what is made here."""
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
        known.most_per_query = int(known.starts.diff().max())
        known.num_occurring = int((known.item_counts > 0).sum())
        self.known = known
        self._tables: dict[tuple[float, float], Popularity] = {}

    def popularity(self, exponent: float, smoothing: float = 0.0) -> Popularity:
        """As of :meth:`cw_ext.Interactions.popularity`, of the candidates alone: over their places, but for
        `log_weights`, which are over all items."""
        table = self.known.popularity(exponent, smoothing)
        key = float(exponent), float(smoothing)
        if key not in self._tables:
            log_weights = table.log_weights.new_zeros(self.interactions.num_items)
            log_weights[self.ids] = table.log_weights
            self._tables[key] = table._replace(log_weights=log_weights)
        return self._tables[key]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tables": {}}  # as Interactions has it

"""The items that may be negatives, where not all may: some are out of stock, or not sold in a market."""

from __future__ import annotations

import torch
from torch import Tensor

from cw_ext import checks


class CandidateItems:
    """Some of a table's items.

    Attributes:
        ids: int32 [C], distinct and increasing.
        is_candidate: bool [I].
    """

    def __init__(self, candidates: Tensor, num_items: int, like_name: str, like: Tensor) -> None:
        """Make it from a mask or ids, on the device of `like`."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "torch.compile cannot prepare candidates; before compiling, call once "
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

"""Alias tables, which draw an item from any distribution with one random slot and one random word."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cw_ext import checks

# A slot's share of the distribution, in the unit of the thresholds: the number of 32-bit words.
ONE = 1 << 32
# For smaller shares, rounding to whole words changes them by more than a millionth.
_SMALL = 1 << 20


class Popularity(NamedTuple):
    """A distribution over the items [0, I), ready to be drawn from.

    To draw: pick a slot i uniformly from [0, I) and a word u uniformly from [0, 2³²); the item is i if
    u < thresholds[i], else aliases[i].

    Attributes:
        thresholds: uint32 [I]; 0 for an item that fills its own slot and is its own alias.
        aliases: int32 [I], items of positive probability.
        masses: fp64 [I], the probabilities p; they sum to 1. What the table draws is within 2⁻³²/I of each.
        log_weights: fp64 [I], −log(p′ · number of items with p > 0): the log importance weights that turn the
            distribution into the uniform one over the items that can occur. p′ is p or, where rounding changes p by
            more than a millionth, the probability that the table draws with. 0 where p = 0.
        cumulative: int64 [I], the running sums of the items' shares of all (slot, word): the last is I·2³².
        known_shares: int64 [P + 1], or None: the share of items[:k] of an Interactions together, modulo 2⁶⁴. Only made
            if a query knows so many items that drawing again may fail.
    """

    thresholds: Tensor
    aliases: Tensor
    masses: Tensor
    log_weights: Tensor
    cumulative: Tensor
    known_shares: Tensor | None = None


def popularity_table(weights: Tensor) -> Popularity:
    """The table for drawing items with probability proportional to `weights`.

    Args:
        weights: fp64 [I], finite, ≥ 0, at least one > 0; on any device. The table is computed on the CPU in
            O(I log I). An item of weight 0 is never drawn.

    Returns:
        The table, on the device of `weights`.

    Raises:
        TypeError, ValueError: weights are not as above.
    """
    checks.has_dtype("weights", weights, (torch.float64,))
    checks.has_values("weights", weights)
    if weights.dim() != 1:
        raise ValueError(f"weights must have shape [I], got {tuple(weights.shape)}")
    cpu = weights.detach().cpu()
    outside = ~((cpu >= 0) & cpu.isfinite())
    if outside.any():
        raise ValueError(f"weights must be finite and ≥ 0, got {cpu[outside][0].item()}")
    if not cpu.any():
        raise ValueError(f"weights must hold a weight > 0, got none in {cpu.numel()}")

    relative = cpu / cpu.max()  # the sum of weights near the largest double is infinite
    masses = relative / relative.sum()
    shares = _shares(masses)
    thresholds, aliases = _sweep(shares)
    alone = thresholds == ONE  # does not fit into a word
    thresholds[alone], aliases[alone] = 0, alone.nonzero().squeeze(1)
    drawn = torch.where(shares < _SMALL, shares.double() / (masses.numel() * ONE), masses)
    log_weights = torch.where(masses > 0, -torch.log(drawn * (masses > 0).sum()), 0.0)
    tensors = (thresholds.to(torch.uint32), aliases.int(), masses, log_weights, shares.cumsum(0))
    return Popularity(*(t.to(weights.device) for t in tensors))


def _shares(masses: Tensor) -> Tensor:
    """The probabilities as whole words: int64 [I] with the sum I·2³², each within one word of masses·I·2³².

    An item with mass gets at least one word, so that it can be drawn, even for a query that knows all others. The
    largest item gives up these words.

    With whole numbers the sweep is exact, without rounding errors.
    """
    total = masses.numel() * ONE  # below 2⁶³, as ids have 31 bits
    exact = masses * total
    shares = exact.floor().long()
    missing = total - int(shares.sum())
    # The largest remainders are rounded up. Items without mass have none, and must get none.
    rounded_up = max(0, min(missing, int((masses > 0).sum())))
    remainders = torch.where(masses > 0, exact - exact.floor(), -1.0)
    shares[remainders.argsort(descending=True, stable=True)[:rounded_up]] += 1
    shares.masked_fill_((masses > 0) & (shares == 0), 1)
    # Above 2⁵³ a double has no remainder: its rounding error (a share of 10⁻¹⁵) goes to the largest.
    shares[shares.argmax()] += total - int(shares.sum())
    return shares


def _sweep(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Walker's table (1977) without Vose's loop, by the sweep of Hübschle-Schneider and Sanders (2019).

    Lights (items with a share of at most one slot) and heavies are listed separately, in the order of the items. The
    lights' slots are filled up from the first heavy until its surplus is used up, then from the next. The light at
    which that happens is still filled by the old heavy, which thereby falls below one slot itself, and whose own
    slot is filled up by the next. All positions follow from the running sums alone.

    Args:
        shares: int64 [I], with the sum I·2³².

    Returns:
        (thresholds int64 [I], aliases int64 [I]).
    """
    aliases = torch.arange(shares.numel())
    thresholds = shares.clamp(max=ONE)
    heavies = (shares > ONE).nonzero().squeeze(1)
    if heavies.numel() == 0:
        return thresholds, aliases
    lights = (shares <= ONE).nonzero().squeeze(1)
    deficits = ONE - shares[lights]
    lacking = deficits.cumsum(0)
    surplus = (shares[heavies] - ONE).cumsum(0)
    last = heavies.numel() - 1

    filled_by = torch.searchsorted(surplus, lacking - deficits, right=True)
    # Only full slots at the very end lie beyond the last heavy, and need no alias.
    aliases[lights] = heavies[filled_by.clamp(max=last)]
    used_up_at = lacking[torch.searchsorted(lacking, surplus)]
    thresholds[heavies] = ONE + surplus - used_up_at
    aliases[heavies[:-1]] = heavies[1:]
    return thresholds, aliases

"""The public function that draws negatives, and the argument checks that all draws share."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from cw_ext import checks, extension, op_errors, reference_sampling
from cw_ext.interactions import DISTRIBUTIONS, Candidates, Interactions
from cw_ext.reference_sampling import Draws, history_of

Distribution = Literal["uniform", "popularity"]
MAX_SEED = 2**63 - 1
# Odd, so that no two ranks have the same multiple modulo 2⁶³: 2⁶³ over the golden ratio.
_RANKS_APART = 0x4F1BBCDCBFA53E0B


def draw_negatives(
    query_ids: Tensor | None,
    interactions: Interactions,
    num_negatives: int,
    *,
    seed: int | Tensor | None = None,
    first_row: int = 0,
    distribution: Distribution = "uniform",
    popularity_exponent: float = 0.75,
    popularity_smoothing: float = 0.0,
    candidates: Tensor | Candidates | None = None,
) -> Tensor:
    """The ids of the negatives that :func:`cw_ext.sampled_cw_loss` draws with the same arguments.

    Args:
        query_ids: [B], int32 or int64, the query of each row, as a row of `interactions`. A known positive of the query
            is rejected, and another item drawn. −1 is padding: the row's ids are −1. None: draw one set for all rows,
            and reject nothing.
        interactions: the known positives.
        num_negatives: N in [1, 2^32], how many negatives each row draws, with replacement.
        seed: an integer in [0, 2^63), or an int64 tensor without dimensions on the device of `interactions`. The same
            seed gives the same negatives on every device and number of threads, and draw j of row b does not depend on
            B and N. None takes a seed from torch's generator of the device, so that torch.manual_seed() makes a run
            reproducible. Where torch.distributed is initialised, each process changes that seed by its rank.
        first_row: in [0, 2^63 − 1 − B]. Row b draws what row first_row + b would. If processes with parts of a batch
            give the same seed, and each the position of its first row in the whole batch, they draw what one process
            would draw for the whole batch. It has no effect if query_ids is None.
        distribution: "uniform" over the items, or "popularity": an item that occurs n times in `interactions` is drawn
            with probability ∝ (n + popularity_smoothing)^popularity_exponent.
        popularity_exponent: α ≥ 0.
        popularity_smoothing: ≥ 0. With 0, items that never occur are never drawn.
        candidates: the items that can be drawn: a mask, bool [I]; or ids, int32 or int64 [C]; or the result of
            interactions.candidates() for one of these, which torch.compile needs. None: all items.

    Returns:
        int64 [B, N], or [N] if query_ids is None.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got. Also for a query
            without any item left to draw.
        IndexError: an id out of range, on the CPU. On CUDA it is a device-side assertion.

    Example:
        >>> import torch
        >>> from cw_ext import Interactions, draw_negatives
        >>> known = Interactions([0, 0, 1], [2, 3, 4], num_queries=2, num_items=5)
        >>> ids = draw_negatives(torch.tensor([0, 1]), known, 100, seed=1)
        >>> ids.shape
        torch.Size([2, 100])
        >>> ids[0].unique()  # items 2 and 3 are known positives of query 0
        tensor([0, 1, 4])
    """
    check_interactions(interactions, "interactions", None)
    if query_ids is not None:
        check_query_ids(query_ids, interactions, padding=True)
    distributed = (distribution, popularity_exponent, popularity_smoothing)
    draws = draws_of(query_ids, interactions, num_negatives, seed, first_row, *distributed, candidates)
    rows = 1 if query_ids is None else query_ids.shape[0]
    fused = extension.use_kernels("auto", interactions.device.type)
    ids = draw(draws, rows, interactions.num_items, fused).long()
    return ids[0] if query_ids is None else ids


def draws_of(
    query_ids: Tensor | None,
    interactions: Interactions,
    num_negatives: int,
    seed: int | Tensor | None,
    first_row: int = 0,
    distribution: str = "uniform",
    popularity_exponent: float = 0.75,
    popularity_smoothing: float = 0.0,
    candidates: Tensor | Candidates | None = None,
    *,
    pos_ids: Tensor | None = None,
    log_weights_dtype: torch.dtype | None = None,
) -> Draws:
    """Checks the arguments of a draw whose interactions and query ids have already been checked.

    Makes log weights if it gets a dtype for them. Rows whose pos_ids are −1 need no negative.
    """
    check_draws(num_negatives, distribution, popularity_exponent, popularity_smoothing)
    check_seed(seed, interactions.device)
    check_first_row(first_row, 1 if query_ids is None else query_ids.shape[0])
    prepared = None if candidates is None else interactions.candidates(candidates)
    known = interactions if prepared is None else prepared.known
    history: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    if query_ids is not None:
        if not torch.compiler.is_compiling():
            smoothing = popularity_smoothing
            known.check_has_negatives(query_ids, distribution, popularity_smoothing=smoothing, pos_ids=pos_ids)
        history = history_of(query_ids, known)
    tables: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] = (None, None, None, None)
    log_weights = None
    if distribution == "popularity":
        source = interactions if prepared is None else prepared
        table = source.popularity(popularity_exponent, popularity_smoothing)
        tables = (table.thresholds, table.aliases, table.cumulative, table.known_shares)
        if log_weights_dtype is not None:
            log_weights = _in_dtype(table.log_weights, log_weights_dtype)
    seeds = seed_tensor(seed, interactions.device)
    first_row = 0 if query_ids is None else first_row
    ids = None if prepared is None else prepared.ids
    return Draws(*history, seeds, first_row, num_negatives, *tables, log_weights, ids)


# A table's log weights in another dtype, as long as the table lives: a step must not take longer with more items.
_CONVERTED = WeakTensorKeyDictionary()


def _in_dtype(log_weights: Tensor, dtype: torch.dtype) -> Tensor:
    if torch.compiler.is_compiling() or log_weights.dtype == dtype:  # the latter would keep itself alive
        return log_weights.to(dtype)
    kept: dict[torch.dtype, Tensor] = _CONVERTED.setdefault(log_weights, {})
    if dtype not in kept:
        with torch.inference_mode(False):  # inference tensors could not be used in training
            kept[dtype] = log_weights.to(dtype)
    return kept[dtype]


def uniform_draws(
    num_negatives: int, seed: int | Tensor | None, device: torch.device, candidates: Tensor | None
) -> Draws:
    """One set of uniform negatives for all rows, from all items or from int32 candidates [C]."""
    no_tables = dict.fromkeys(Draws._fields)
    settings = {"seed": seed_tensor(seed, device), "first_row": 0, "num_negatives": num_negatives}
    return Draws(**no_tables | settings | {"candidates": candidates})  # type: ignore[arg-type]


def check_draws(
    num_negatives: int, distribution: str, popularity_exponent: float, popularity_smoothing: float = 0.0
) -> None:
    """How many negatives to draw, and from what."""
    checks.num_negatives(num_negatives)
    checks.choice("distribution", distribution, DISTRIBUTIONS)
    checks.non_negative_number("popularity_exponent", popularity_exponent)
    checks.non_negative_number("popularity_smoothing", popularity_smoothing)


def check_first_row(first_row: int, rows: int) -> None:
    checks.whole_number("first_row", first_row, 0)
    # When compiled, this would add a guard on the number of rows; the ops check it too.
    if not torch.compiler.is_compiling() and first_row > 2**63 - 1 - rows:
        raise ValueError(f"first_row must be at most 2**63 - 1 - B with B = {rows}, got {first_row}")


def check_interactions(interactions: Interactions, like_name: str, like: Tensor | None) -> None:
    """On the device of `like`."""
    if not isinstance(interactions, Interactions):
        raise TypeError(f"interactions must be a cw_ext.Interactions, got {type(interactions).__name__}")
    if like is not None and interactions.device != like.device:
        raise ValueError(
            f"interactions must be on the device of {like_name}, {like.device}, got {interactions.device}; move them "
            "with interactions.to(device)"
        )


def check_query_ids(
    query_ids: Tensor, interactions: Interactions, pos_ids: Tensor | None = None, *, padding: bool = False
) -> None:
    """[B] ids of queries in `interactions`, on its device. −1 is allowed with padding, or where pos_ids is −1."""
    checks.has_dtype("query_ids", query_ids, checks.INTEGER)
    checks.matches("query_ids", query_ids, "interactions", interactions.starts, dtype=False)
    got = tuple(query_ids.shape)
    if query_ids.dim() != 1:
        raise ValueError(f"query_ids must have shape [B], got {got}")
    if pos_ids is not None and query_ids.shape != pos_ids.shape:
        raise ValueError(f"query_ids must have shape ({pos_ids.shape[0]},), one id per row of queries, got {got}")
    checks.ids_in_range("query_ids", query_ids, interactions.num_queries, padding=padding, unless_padding=pos_ids)


def check_seed(seed: int | Tensor | None, device: torch.device) -> None:
    if isinstance(seed, Tensor):
        checks.has_dtype("seed", seed, (torch.int64,))
        if seed.dim() or seed.device != device:
            got = f"shape {tuple(seed.shape)} on {seed.device}"
            raise ValueError(f"seed must be an integer, or a tensor of shape () on {device}, got {got}")
    elif seed is not None:
        checks.whole_number("seed", seed, 0, MAX_SEED)


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """int64 [] on the device, without waiting for it."""
    if seed is None:
        drawn = torch.randint(MAX_SEED, (), dtype=torch.int64, device=device)
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        # The processes' generators are usually in the same state. Rank 0 keeps the generator's seed.
        return drawn ^ (rank * _RANKS_APART & MAX_SEED) if rank else drawn
    if isinstance(seed, Tensor):
        return seed
    return torch.full((), seed, dtype=torch.int64, device=device)


def draw(draws: Draws, rows: int, num_items: int, fused: bool) -> Tensor:
    """int32 [rows, N], by the kernels or by the reference."""
    if fused:
        try:
            ids: Tensor = torch.ops.cw_ext.draw_negatives(rows, num_items, *draws)
        except op_errors.RAISED as error:
            raise op_errors.restored(error) from None
    else:
        ids = _reference_draw(rows, num_items, *draws)
    return ids


@torch.library.custom_op("cw_ext_reference::draw_negatives", mutates_args=())
def _reference_draw(
    rows: int,
    num_items: int,
    query_ids: Tensor | None,
    starts: Tensor | None,
    known: Tensor | None,
    seed: Tensor,
    first_row: int,
    num_negatives: int,
    thresholds: Tensor | None,
    aliases: Tensor | None,
    cumulative: Tensor | None,
    known_shares: Tensor | None,
    log_weights: Tensor | None,
    candidates: Tensor | None,
) -> Tensor:
    """The reference as an op: the number of rejections depends on the data, which torch.compile cannot trace."""
    history, tables = (query_ids, starts, known), (thresholds, aliases, cumulative, known_shares)
    draws = Draws(*history, seed, first_row, num_negatives, *tables, log_weights, candidates)
    return reference_sampling.draw(draws, rows, num_items).int()


@_reference_draw.register_fake
def _(
    rows: int,
    num_items: int,
    query_ids: Tensor | None,
    starts: Tensor | None,
    known: Tensor | None,
    seed: Tensor,
    first_row: int,
    num_negatives: int,
    *tables: Tensor | None,
) -> Tensor:
    return seed.new_empty((rows, num_negatives), dtype=torch.int32)

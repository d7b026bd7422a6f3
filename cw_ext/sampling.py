"""The public function that draws negatives, and the arguments that draws have wherever they are made."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor

from cw_ext import checks, extension, reference_draws
from cw_ext.interactions import DISTRIBUTIONS, Interactions
from cw_ext.reference_draws import Draws, history_of

Distribution = Literal["uniform", "popularity"]
MAX_SEED = 2**63 - 1


def draw_negatives(
    query_ids: Tensor | None,
    interactions: Interactions,
    num_negatives: int,
    *,
    seed: int | Tensor | None = None,
    distribution: Distribution = "uniform",
    popularity_exponent: float = 0.75,
) -> Tensor:
    """The negatives that :func:`cw_ext.sampled_cw_loss` draws with the same arguments.

    Args:
        query_ids: [B], int32 or int64, rows of `interactions`; known positives of a row's query are rejected by drawing
            again. None: one set for all rows, from which nothing is rejected.
        interactions: the known positives.
        num_negatives: N in [1, 2^32], draws per row, with replacement.
        seed: an integer in [0, 2^63), or an int64 tensor without dimensions on the device of `interactions`. The same
            seed gives the same negatives on any device and any number of threads: draw j of row b is the same whatever
            B and N are. None takes one from torch's generator (of the device), so that torch.manual_seed() reproduces
            a run.
        distribution: "uniform" over the items, or "popularity": an item that occurs n times in `interactions` is drawn
            with probability ∝ n^popularity_exponent.
        popularity_exponent: α ≥ 0.

    Returns:
        int64 [B, N], or [N] where query_ids is None.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected and what came; also for a query with no
            item left to draw.
        IndexError: a query id out of range, on the CPU; on CUDA a device-side assertion.
    """
    check_interactions(interactions, "interactions", None)
    if query_ids is not None:
        check_query_ids(query_ids, interactions)
    draws = draws_of(query_ids, interactions, num_negatives, seed, distribution, popularity_exponent)
    rows = 1 if query_ids is None else query_ids.shape[0]
    fused = extension.use_kernels("auto", interactions.device.type)
    ids = draw(draws, rows, interactions.num_items, fused).long()
    return ids[0] if query_ids is None else ids


def draws_of(
    query_ids: Tensor | None,
    interactions: Interactions | Tensor,
    num_negatives: int,
    seed: int | Tensor | None,
    distribution: str = "uniform",
    popularity_exponent: float = 0.75,
    log_weights_dtype: torch.dtype | None = None,
) -> Draws:
    """Checks the arguments of a draw whose interactions and query ids have been checked.

    Log weights come where a dtype is given. Without query ids, a tensor on the device can stand for the interactions of
    uniform draws.
    """
    check_draws(num_negatives, distribution, popularity_exponent)
    check_seed(seed, interactions.device)
    history: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    tables = history
    log_weights = None
    known = cast(Interactions, interactions)  # where more than the device is asked for
    if query_ids is not None:
        if not torch.compiler.is_compiling():
            known.check_has_negatives(query_ids, distribution)
        history = history_of(query_ids, known)
    if distribution == "popularity":
        table = known.popularity(popularity_exponent)
        tables = (table.thresholds, table.aliases, table.masses)
        if log_weights_dtype is not None:
            log_weights = table.log_weights.to(log_weights_dtype)
    return Draws(*history, seed_tensor(seed, interactions.device), num_negatives, *tables, log_weights)


def check_draws(num_negatives: int, distribution: str, popularity_exponent: float) -> None:
    """How many negatives to draw, and from what."""
    checks.num_negatives(num_negatives)
    checks.choice("distribution", distribution, DISTRIBUTIONS)
    checks.non_negative_number("popularity_exponent", popularity_exponent)


def check_interactions(interactions: Interactions, like_name: str, like: Tensor | None) -> None:
    """On the device of `like`."""
    if not isinstance(interactions, Interactions):
        raise TypeError(f"interactions must be cw_ext.Interactions, got {type(interactions).__name__}")
    if like is not None and interactions.device != like.device:
        raise ValueError(
            f"interactions must be on the device of {like_name}, {like.device}, got {interactions.device}; move them "
            "with interactions.to(device)"
        )


def check_query_ids(query_ids: Tensor, interactions: Interactions, rows: int | None = None) -> None:
    """[B] ids of queries that `interactions` knows, on its device."""
    checks.has_dtype("query_ids", query_ids, checks.INTEGER)
    checks.matches("query_ids", query_ids, "interactions", interactions.starts, dtype=False)
    got = tuple(query_ids.shape)
    if query_ids.dim() != 1:
        raise ValueError(f"query_ids must have shape [B], got {got}")
    if rows is not None and query_ids.shape[0] != rows:
        raise ValueError(f"query_ids must have shape ({rows},), one id per row of queries, got {got}")
    checks.ids_in_range("query_ids", query_ids, interactions.num_queries, padding=False)


def check_seed(seed: int | Tensor | None, device: torch.device) -> None:
    if isinstance(seed, Tensor):
        checks.has_dtype("seed", seed, (torch.int64,))
        if seed.dim() or seed.device != device:
            got = f"shape {tuple(seed.shape)} on {seed.device}"
            raise ValueError(f"seed must be a number, or a tensor of shape () on {device}, got {got}")
    elif seed is not None:
        checks.whole_number("seed", seed, 0, MAX_SEED)


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """int64 [] on the device, without waiting for it."""
    if seed is None:
        return torch.randint(MAX_SEED, (), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        return seed
    return torch.full((), seed, dtype=torch.int64, device=device)


def draw(draws: Draws, rows: int, num_items: int, fused: bool) -> Tensor:
    """int32 [rows, N], by the kernels or by the reference."""
    if fused:
        ids: Tensor = torch.ops.cw_ext.draw_negatives(rows, num_items, *draws)
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
    num_negatives: int,
    thresholds: Tensor | None,
    aliases: Tensor | None,
    masses: Tensor | None,
    log_weights: Tensor | None,
) -> Tensor:
    """The reference as an op: how often it draws again depends on the data, which torch.compile cannot trace."""
    history, tables = (query_ids, starts, known), (thresholds, aliases, masses)
    return reference_draws.draw(Draws(*history, seed, num_negatives, *tables, log_weights), rows, num_items).int()


@_reference_draw.register_fake
def _(
    rows: int,
    num_items: int,
    query_ids: Tensor | None,
    starts: Tensor | None,
    known: Tensor | None,
    seed: Tensor,
    num_negatives: int,
    *tables: Tensor | None,
) -> Tensor:
    return seed.new_empty((rows, num_negatives), dtype=torch.int32)

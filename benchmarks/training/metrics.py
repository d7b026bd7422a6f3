"""Recall@K and NDCG@K of a full ranking of all items, computed in blocks of users."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.training.recommended import Recommended

# Scores of one block of users: 2**22 floats are 16 MiB.
_SCORES_PER_BLOCK = 2**22


def ranking_metrics(
    user_table: torch.Tensor,
    item_table: torch.Tensor,
    target_users: torch.Tensor,
    target_items: torch.Tensor,
    masked_users: torch.Tensor,
    masked_items: torch.Tensor,
    k: int = 20,
    rerank: tuple[int, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] | None = None,
    popularity: torch.Tensor | None = None,
    user_ndcg: list[torch.Tensor] | None = None,
) -> dict[str, float]:
    """Rank all items for each user by inner product and compare the first k with the user's targets.

    Recall@K is hits / number of targets. NDCG@K divides the discounted gain by that of an ideal ranking cut
    at min(K, number of targets). Both are means over the users that have targets.

    With `popularity` there are four more numbers, of the same lists; items that are masked are in no list:

    - Balanced NDCG@K: each item counts the same, whatever its popularity. A hit on item i gains 1/n_i, n_i the number
      of targets with item i; Σ_u DCG_u / Σ_u IDCG_u, where a user's ideal list is the targets by falling gain, cut at
      K.
    - Mean popularity: of the items in a user's list, the mean number of training interactions; the mean over users.
    - Coverage: the share of all items that are in a list.
    - Gini: :func:`~benchmarks.training.recommended.gini` of how many lists each item is in, of all items.

    Args:
        user_table: embeddings [num_users, D]. To rank by cosine, normalise the rows first.
        item_table: embeddings [num_items, D].
        target_users, target_items: int64 pairs to be found, each [num_targets], no pair twice.
        masked_users, masked_items: int64 pairs left out of the ranking, each [num_masked].
        k: length of the ranking.
        rerank: None, or how many of the first items are ranked again, and by what: called with users [B], their first
            items' scores and ids [B, C], in order; returns other scores [B, C], −inf where the score is.
        popularity: None, or int64 [num_items] ≥ 0, the number of training interactions of each item. (The training
            command counts those that are not kept for validation, the same for every loss.)
        user_ndcg: None, or a list that gets float64 tensors: together the NDCG@K of each user that has targets, by id.

    Returns:
        ``{"recall": ..., "ndcg": ...}``, both in [0, 1]; with `popularity` also ``"balanced_ndcg"``,
        ``"mean_popularity"``, ``"coverage"`` and ``"gini"``, all in [0, 1] except the second.

    Raises:
        ValueError: there are no targets, k < 1, or `popularity` is not int64 [num_items] or has a negative number.
    """
    if len(target_users) == 0:
        raise ValueError("target_users: expected at least one target pair, got none")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    num_items = item_table.shape[0]
    if popularity is not None:
        _check_popularity(popularity, num_items)
    k = min(k, num_items)
    target_users, target_items = _sort_by_user(target_users, target_items)
    masked_users, masked_items = _sort_by_user(masked_users, masked_items)
    users, num_targets = torch.unique_consecutive(target_users, return_counts=True)

    discounts = torch.arange(2, k + 2, dtype=torch.float64, device=item_table.device).log2().reciprocal()
    ideal = discounts.cumsum(0)
    recall = ndcg = 0.0
    recommended = None if popularity is None else Recommended(popularity, target_users, target_items, discounts)
    for block in users.split(max(1, _SCORES_PER_BLOCK // num_items)):
        scores = user_table[block] @ item_table.T  # [block, num_items]
        rows, items = _pairs_of_block(block, masked_users, masked_items)
        scores[rows, items] = -torch.inf
        is_target = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        rows, items = _pairs_of_block(block, target_users, target_items)
        is_target[rows, items] = True

        if rerank is None:
            top_scores, top_items = scores.topk(k)
        else:
            number, other_scores = rerank
            first_scores, first_items = scores.topk(min(max(k, number), num_items))
            top_scores, places = other_scores(block, first_scores, first_items).topk(k)
            top_items = first_items.gather(1, places)
        # A user with fewer than k unmasked items gets masked ones at the end of the list, which are no hits.
        unmasked = top_scores > -torch.inf
        hits = is_target.gather(1, top_items) & unmasked
        counts = num_targets[torch.searchsorted(users, block)]
        recall += (hits.sum(1) / counts.double()).sum().item()
        of_users = (hits * discounts).sum(1) / ideal[counts.clamp(max=k) - 1]
        ndcg += of_users.sum().item()
        if user_ndcg is not None:
            user_ndcg.append(of_users)
        if recommended is not None:
            recommended.add(top_items, unmasked, hits)
    more = {} if recommended is None else recommended.metrics()
    return {"recall": recall / len(users), "ndcg": ndcg / len(users), **more}


def shares_below(
    user_table: torch.Tensor,
    item_table: torch.Tensor,
    target_users: torch.Tensor,
    target_items: torch.Tensor,
    masked_users: torch.Tensor,
    masked_items: torch.Tensor,
) -> torch.Tensor:
    """For each target, the share of the user's other items that score below it, ties counting half.

    Args:
        user_table, item_table, target_users, target_items, masked_users, masked_items: as of :func:`ranking_metrics`;
            masked items are not counted.

    Returns:
        float64 [num_targets], sorted by user; NaN where there is no other item.
    """
    num_items = item_table.shape[0]
    target_users, target_items = _sort_by_user(target_users, target_items)
    masked_users, masked_items = _sort_by_user(masked_users, masked_items)
    shares = []
    for targets in torch.arange(len(target_users)).split(max(1, _SCORES_PER_BLOCK // num_items)):
        users, rows = torch.unique_consecutive(target_users[targets], return_inverse=True)
        scores = user_table[users] @ item_table.T  # [users of the block, num_items]
        score = scores[rows, target_items[targets]].unsqueeze(1)
        masked_rows, items = _pairs_of_block(users, masked_users, masked_items)
        scores[masked_rows, items] = torch.nan  # neither below nor equal to anything
        below, equal = (scores[rows] < score).sum(1), (scores[rows] == score).sum(1) - 1
        others = (~scores.isnan()).sum(1)[rows] - 1
        shares.append((below + equal / 2) / others.double())
    return torch.cat(shares)


def _check_popularity(popularity: torch.Tensor, num_items: int) -> None:
    if popularity.dtype != torch.int64 or popularity.shape != (num_items,):
        raise ValueError(
            f"popularity: expected int64 [{num_items}], one number per item, "
            f"got {popularity.dtype} {list(popularity.shape)}"
        )
    if (popularity < 0).any():
        raise ValueError(f"popularity: expected numbers of interactions, got {popularity.min().item()}")


def _sort_by_user(users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    users, order = users.sort()
    return users, items[order]


def _pairs_of_block(block: torch.Tensor, users: torch.Tensor, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (row within the block, item) of every pair whose user is in the block; all sorted by user."""
    begin = torch.searchsorted(users, block[0])
    end = torch.searchsorted(users, block[-1], right=True)
    users, items = users[begin:end], items[begin:end]
    rows = torch.searchsorted(block, users)
    # The block skips users without targets, whose pairs still lie between its first and its last user.
    inside = block[rows] == users
    return rows[inside], items[inside]

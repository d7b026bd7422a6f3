"""Negatives from Markov chains that continue from batch to batch: MCNS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from cw_ext import checks
from cw_ext.candidate_scores import candidate_scores
from cw_ext.embedding_batch import Similarity, check_similarity
from cw_ext.interactions import Interactions
from cw_ext.reference_sampling import is_among, pair_keys
from cw_ext.samplers.base import NUMBERS, Batch, SamplerBase, few_random_numbers, fractions
from cw_ext.samplers.catalogue import BLOCK
from cw_ext.samplers.protocol import Negatives
from cw_ext.samplers.query_state import check_loaded, first_of_each, known_positives, state_rows, uniform_items

# Tensors, each with the number of writes to it.
_Versions = list[tuple[Tensor, int]]


class Chain(SamplerBase):
    """Draws negatives with probability ∝ p^α by Markov chains, where p is the model's softmax over the unknown items.

    This is MCNS (arXiv 2005.09863; THUDM/MCNS). It does not score all unknown items, which are the items that are not
    known positives of the query.

    >>> import torch
    >>> from cw_ext import Interactions, cw_loss_from_embeddings, samplers
    >>> known = Interactions([0, 0, 1], [5, 2, 7], num_queries=2, num_items=300)
    >>> users, items = torch.nn.Embedding(2, 16), torch.nn.Embedding(300, 16)
    >>> query_ids, pos_ids = torch.tensor([0, 1]), torch.tensor([5, 7])
    >>> sampler = samplers.Chain(known, 10, temperature=0.1)
    >>> queries = users(query_ids)
    >>> ids, _ = sampler.draw(queries, items, query_ids, pos_ids, seed=0)
    >>> loss = cw_loss_from_embeddings(queries, items, pos_ids, ids)  # then a step of the optimizer
    >>> sampler.update(queries, items, query_ids, pos_ids, seed=0)

    Each query has N chains, each at an unknown item. In a step, a chain proposes another item: uniformly among the
    unknown items, or with probability ½ among the `neighbours` of its item, if there are any. It moves with the
    probability of Metropolis and Hastings. To keep the distribution exact with neighbours, a move to a neighbour is
    refused if the chain's item is not a neighbour of that item in turn. (The published MCNS program uses a uniform
    density there.)

    `draw` returns where the chains are after `steps` steps, without moving them. `update` moves them there. If the last
    draw was for another batch, `update` takes as many steps itself.

    A chain never moves to an item whose score is not finite. It leaves such an item for the first other item that is
    proposed and has a way back, as all uniform proposals do. When a state is loaded, chains at items that have become
    known positives start again.

    The state_dict has one buffer, with a row per query and one for padding: `states`, int32 [Q + 1, N], the items of
    the chains. They are −1 for a query with all items as known positives.

    Args:
        interactions: the known positives, which are never drawn.
        num_negatives: N ≥ 1, the number of chains per query.
        temperature: τ > 0 of the model's softmax.
        exponent: α ≥ 0. With 0, all unknown items are equally likely. The target distribution is the one of `Scored`
            with softmax(τ/α) among all items.
        steps: ≥ 1 for each draw. With few steps, a chain still depends on older scores.
        neighbours: int32 or int64 [I, K], items similar to each item, in any order, on the device of the interactions.
            −1 is padding, which proposes nothing. Moves with to(device), but is not in the state_dict.
        similarity: the score, as for :func:`cw_ext.cw_loss_from_embeddings`.
        seed: for the chains' first items, as for :func:`cw_ext.draw_negatives`.

    Raises:
        TypeError, ValueError, IndexError: the message names the argument, what was expected, and what it
            got.
    """

    states: Tensor
    neighbours: Tensor | None
    _known: Tensor | None
    _log_ways: Tensor | None

    def __init__(
        self,
        interactions: Interactions,
        num_negatives: int,
        *,
        temperature: float,
        exponent: float = 0.25,
        steps: int = 10,
        neighbours: Tensor | None = None,
        similarity: Similarity = "half_cosine",
        seed: int | Tensor | None = None,
    ) -> None:
        """Checks and stores the arguments. The class describes them."""
        super().__init__(interactions, num_negatives)
        self.temperature = checks.positive_number("temperature", temperature)
        self.exponent = checks.non_negative_number("exponent", exponent)
        checks.whole_number("steps", steps, 1, checks.MOST_DRAWS // int(num_negatives))
        check_similarity(similarity)
        self.steps, self.similarity = steps, similarity
        known = log_ways = None
        if neighbours is not None:
            _check_neighbours(neighbours, interactions)
            known = pair_keys(interactions.starts, interactions.items, interactions.num_items)
            neighbours = neighbours.int()
            log_ways = _log_ways(neighbours)
        self.register_buffer("neighbours", neighbours, persistent=False)
        self.register_buffer("_known", known, persistent=False)  # neighbours that must not be proposed
        self.register_buffer("_log_ways", log_ways, persistent=False)
        self.register_buffer("states", uniform_items(interactions, num_negatives, seed))
        # What the latest draw depended on, except the scores, and where its chains went.
        self._walked: tuple[_Versions, Tensor] | None = None

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        """Keep the dtype of what neighbours need, even if the model is cast."""
        log_ways = self._log_ways
        super()._apply(fn, recurse)
        self._log_ways = None if log_ways is None else log_ways.to(self.states.device)
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        check_loaded(state, prefix + "states", self.interactions.num_items, "an item of interactions")
        super()._load_from_state_dict(state, prefix, *args)
        known = known_positives(self.states, self.interactions)
        if known.any():
            # Always with the same seed, so that loading a state twice gives the same result.
            self.states = torch.where(known, uniform_items(self.interactions, self.states.shape[1], 0), self.states)

    def extra_repr(self) -> str:
        return f"{self.num_negatives}, temperature={self.temperature}, exponent={self.exponent}, steps={self.steps}"

    def _draw(self, batch: Batch) -> Negatives:
        states = self._walk(batch)
        versions = _versions(batch.given_query_ids, batch.pos_ids, self.states)
        self._walked = None if versions is None else (versions, states)
        return Negatives(states.long(), None)

    @torch.no_grad()
    def update(
        self,
        queries: Tensor,
        items: Tensor | nn.Embedding,
        query_ids: Tensor,
        pos_ids: Tensor,
        *,
        epoch: int = 0,
        seed: int | Tensor | None = None,
    ) -> None:
        """See :meth:`Sampler.update`. If a query has several rows in the batch, its first row counts.

        Raises:
            TypeError, ValueError, IndexError: as for `draw`.
        """
        batch = self._batch(queries, items, query_ids, pos_ids, seed)
        walked, self._walked = self._walked, None
        is_same = walked is not None and _are_same(walked[0], _versions(query_ids, pos_ids, self.states))
        states = walked[1] if walked is not None and is_same else self._walk(batch)
        rows = state_rows(batch.query_ids, self.interactions.num_queries)
        states = states[first_of_each(rows)]
        self.states[rows] = torch.where(states < 0, self.states[rows], states)

    def _walk(self, batch: Batch) -> Tensor:
        """int32 [B, N], where the chains are after their steps."""
        n, steps = self.num_negatives, self.steps
        at = self.states[state_rows(batch.query_ids, self.interactions.num_queries)]
        log_p = self._log_target(batch, at)
        uniform = self._uniform_ids(batch, steps * n).view(-1, steps, n)
        numbers = few_random_numbers(batch.seed, batch.rows, 3 * steps * n).view(-1, 3, steps, n)
        log_u = fractions(numbers[:, 0]).log()
        for step in range(steps):
            to, log_ways = uniform[:, step], torch.zeros_like(log_p)
            if self.neighbours is not None:
                slot = (numbers[:, 1, step].long() * self.neighbours.shape[1]) // NUMBERS
                near, log_ways_near = self._neighbour(batch, at, slot)
                by_neighbour = numbers[:, 2, step] > NUMBERS // 2
                to = torch.where(by_neighbour, near, to)
                log_ways = torch.where(by_neighbour, log_ways_near, log_ways)
            log_p_to = self._log_target(batch, to)
            # Written so that a comparison with NaN, from −inf to −inf, refuses the move.
            moves = (to >= 0) & (at >= 0) & (log_u[:, step] < log_p_to - log_p + log_ways)
            at, log_p = torch.where(moves, to, at), torch.where(moves, log_p_to, log_p)
        return at

    def _log_target(self, batch: Batch, ids: Tensor) -> Tensor:
        """log p^α plus a constant per row, [B, N]. −inf for a score that is not finite."""
        scores = candidate_scores(batch.queries, batch.items, ids, similarity=self.similarity)
        scaled = scores * (self.exponent / self.temperature)
        return torch.where(scores.isfinite(), scaled, -torch.inf)

    def _neighbour(self, batch: Batch, at: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Propose neighbours of items [B, N].

        Returns:
            (ids [B, N], log_ways [B, N]): the neighbours, −1 for known positives; and the log of the number of ways
            back over the number of ways there, −inf without a way back.
        """
        assert self.neighbours is not None and self._log_ways is not None
        at = at.clamp(min=0)
        to = self.neighbours[at, slot]
        return torch.where(self._is_known(batch, to), -1, to), self._log_ways[at, slot]

    def _is_known(self, batch: Batch, ids: Tensor) -> Tensor:
        """Whether ids [B, N] are known positives of their row's query."""
        assert self._known is not None
        return is_among(self._known, batch.query_ids.unsqueeze(1), ids, self.interactions.num_items)


def _versions(*tensors: Tensor) -> _Versions | None:
    """None for tensors of inference mode, which do not count the writes to them."""
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return [(tensor, tensor._version) for tensor in tensors]


def _are_same(before: _Versions, now: _Versions | None) -> bool:
    return now is not None and all(a is b and m == n for (a, m), (b, n) in zip(before, now, strict=True))


def _log_ways(neighbours: Tensor) -> Tensor:
    """fp32 [I, K]: log of the number of ways back from each neighbour over the number of ways to it."""
    items, k = neighbours.shape
    parts, rows = [], max(1, BLOCK // k**2)
    for first in range(0, items, rows):
        to = neighbours[first : first + rows]
        at = torch.arange(first, first + len(to), device=to.device)
        ways = (to.unsqueeze(1) == to.unsqueeze(2)).sum(-1)
        ways_back = (neighbours[to.clamp(min=0)] == at.view(-1, 1, 1)).sum(-1)
        parts.append((ways_back.float() / ways.float()).log())
    return torch.cat(parts)


def _check_neighbours(neighbours: Tensor, interactions: Interactions) -> None:
    checks.has_dtype("neighbours", neighbours, checks.INTEGER)
    checks.matches("neighbours", neighbours, "interactions", interactions.starts, dtype=False)
    if neighbours.dim() != 2 or neighbours.shape[0] != interactions.num_items or neighbours.shape[1] == 0:
        raise ValueError(
            f"neighbours must have shape [{interactions.num_items}, K], a row per item with K ≥ 1, "
            f"got {tuple(neighbours.shape)}"
        )
    checks.ids_in_range("neighbours", neighbours, interactions.num_items)

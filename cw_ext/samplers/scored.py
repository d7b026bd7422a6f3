"""Negatives drawn with weights that depend on their scores."""

from __future__ import annotations

import torch
from torch import Tensor

from cw_ext import checks
from cw_ext.candidate_scores import candidate_scores
from cw_ext.embedding_batch import Similarity, check_similarity
from cw_ext.interactions import Interactions
from cw_ext.samplers.base import Batch, SamplerBase, few_random_numbers, fractions, gumbel, random_numbers
from cw_ext.samplers.catalogue import BLOCK, unknown_items
from cw_ext.samplers.log_weights import LogWeight
from cw_ext.samplers.protocol import Negatives

# The highest weight of a row is this power of two. Random numbers have fewer bits, so finer weights would not show.
_WEIGHT_BITS = 40


class Scored(SamplerBase):
    """Draws each row's negatives from uniform candidates, with probability ∝ a weight of their scores.

    >>> import torch
    >>> from cw_ext import Interactions, cw_loss_from_embeddings, samplers
    >>> known = Interactions([0, 0, 1], [5, 2, 7], num_queries=2, num_items=300)
    >>> users, items = torch.nn.Embedding(2, 16), torch.nn.Embedding(300, 16)
    >>> query_ids, pos_ids = torch.tensor([0, 1]), torch.tensor([5, 7])
    >>> sampler = samplers.Scored(known, 10, num_candidates=100, log_weight=samplers.softmax(0.1))
    >>> queries = users(query_ids)
    >>> drawn = sampler.draw(queries, items, query_ids, pos_ids, seed=0)
    >>> drawn.ids.shape
    torch.Size([2, 10])
    >>> loss = cw_loss_from_embeddings(queries, items, pos_ids, drawn.ids, neg_log_weights=drawn.log_weights)

    With a steep weight this is dynamic negative sampling. With `softmax` it samples by the model's own preferences (as
    in the abstract of GenNi, arXiv 2208.03645), and with `fne` as FNE does. You can also write your own weight. A loss
    that is trained on these negatives has the target of hard negative sampling. For `softmax(τ_s)`, the mean of A over
    the draws is the A of weighting="exponential", weight_temperature=−τ_s, normalize_weights=True on all candidates.

    Without replacement, a row ends with −1 if too few candidates have a weight above 0. With replacement, it has −1
    only if no candidate has one. If the positive's score is NaN, all candidates have the same weight, so that the loss
    of the row is NaN and not 0.

    Args:
        interactions: the known positives, which are never drawn.
        num_negatives: N ≥ 1.
        log_weight: a function that takes the candidates' scores [B, K] and the positives' scores [B] and returns log
            weights [B, K]. −inf and NaN are never drawn, +inf before all others. Padding has a score of −inf and is
            never drawn either. See :func:`softmax` and :func:`fne`.
        num_candidates: K ≥ 1 uniform candidates, drawn with replacement. None uses all items that are not known
            positives, each once, and computes their scores for a few rows at a time.
        replacement: draw with replacement. If False, draw one by one, each with probability ∝ weight among the
            remaining candidates; N ≤ K. An item that is a candidate twice can then be drawn twice.
        log_q_correction: return −log weight as the negatives' log weights, so that the loss has its uniform target
            again. Only with replacement.
        similarity: the score, as for :func:`cw_ext.cw_loss_from_embeddings`.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
    """

    def __init__(
        self,
        interactions: Interactions,
        num_negatives: int,
        *,
        log_weight: LogWeight,
        num_candidates: int | None = 1000,
        replacement: bool = True,
        log_q_correction: bool = False,
        similarity: Similarity = "half_cosine",
    ) -> None:
        """Checks and stores the arguments. The class describes them."""
        super().__init__(interactions, num_negatives)
        if not callable(log_weight):
            raise TypeError(f"log_weight must be a function of scores and pos_scores, got {type(log_weight).__name__}")
        checks.flags(replacement=replacement, log_q_correction=log_q_correction)
        if num_candidates is not None:
            checks.whole_number("num_candidates", num_candidates, 1, checks.MOST_DRAWS)
        most = interactions.num_items if num_candidates is None else num_candidates
        if not replacement and num_negatives > most:
            raise ValueError(
                f"num_negatives must be at most the number of candidates, {most}, without replacement, "
                f"got {num_negatives}"
            )
        if log_q_correction and not replacement:
            raise ValueError("log_q_correction must be False without replacement, got True")
        check_similarity(similarity)
        self.log_weight, self.num_candidates, self.replacement = log_weight, num_candidates, replacement
        self.log_q_correction, self.similarity = log_q_correction, similarity

    def extra_repr(self) -> str:
        return f"{self.num_negatives}, num_candidates={self.num_candidates}, replacement={self.replacement}"

    def _draw(self, batch: Batch) -> Negatives:
        numbers = few_random_numbers(batch.seed, batch.rows, self.num_negatives) if self.replacement else None
        if self.num_candidates is not None:
            return self._from(batch, self._uniform_ids(batch, self.num_candidates), numbers, 0)
        # The scores, and what is computed from them, are as large as the catalogue for each row.
        rows = max(1, BLOCK // self.interactions.num_items)
        parts = []
        for first in range(0, max(1, batch.rows), rows):
            some = slice(first, first + rows)
            own = {"query_ids": batch.query_ids[some], "pos_ids": batch.pos_ids[some]}
            part = batch._replace(queries=batch.queries[some], **own)
            unknown = unknown_items(part.query_ids, self.interactions)
            parts.append(self._from(part, unknown, None if numbers is None else numbers[some], first))
        ids = torch.cat([part.ids for part in parts])
        log_weights = [part.log_weights for part in parts if part.log_weights is not None]
        return Negatives(ids, torch.cat(log_weights) if log_weights else None)

    def _from(self, batch: Batch, candidates: Tensor, numbers: Tensor | None, first_row: int) -> Negatives:
        """Draw from candidates [B, K]: with replacement by random numbers [B, N], else as rows from first_row on."""
        log_weights, highest = self._log_weights(batch, candidates)
        if numbers is not None:
            places, found = _with_replacement(log_weights.clone() if self.log_q_correction else log_weights, numbers)
        else:
            noise = random_numbers(batch.seed, batch.rows, candidates.shape[1], first_row)
            places, found = _without_replacement(log_weights, self.num_negatives, noise)
        ids = torch.where(found, candidates.gather(1, places), -1).long()
        if not self.log_q_correction:
            return Negatives(ids, None)
        return Negatives(ids, torch.where(ids < 0, -torch.inf, -(log_weights.gather(1, places) + highest)))

    def _log_weights(self, batch: Batch, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Log weights minus the highest of their row (−inf if it has none), a new tensor [B, K]; and this highest,
        [B, 1]."""
        scores = candidate_scores(batch.queries, batch.items, candidates, similarity=self.similarity)
        pos_ids = batch.pos_ids.unsqueeze(1)
        pos_scores = candidate_scores(batch.queries, batch.items, pos_ids, similarity=self.similarity)[:, 0]
        given = self.log_weight(scores, pos_scores)
        name = "log_weight(scores, pos_scores)"
        checks.has_dtype(name, given, checks.FLOATING)
        checks.matches(name, given, "scores", scores, dtype=False)
        checks.has_shape(name, given, tuple(scores.shape), "one log weight per score")
        finite = torch.finfo(scores.dtype)
        log_weights = given.to(scores.dtype).nan_to_num(nan=-torch.inf, posinf=finite.max, neginf=-torch.inf)
        # For a NaN query or positive: without ids the loss of such a row would be 0.
        log_weights.masked_fill_(pos_scores.isnan().unsqueeze(1), 0.0)
        if self.num_candidates is None:  # uniform candidates are padding only in whole rows
            log_weights.masked_fill_(candidates < 0, -torch.inf)
        highest = log_weights.amax(1, keepdim=True).clamp_(min=finite.min)
        return log_weights.sub_(highest), highest


def _with_replacement(log_weights: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Draw with probability ∝ exp(log_weights [B, K]) by random numbers [B, N].

    Returns the places [B, N], and whether the row had anything to draw, [B, 1]. It overwrites the log weights, as fewer
    large tensors take less time.
    """
    # In integers, whose sum does not depend on the order, and small enough to stay below 2⁶³.
    count = log_weights.shape[1]
    highest = 2.0 ** min(_WEIGHT_BITS, 62 - count.bit_length())
    sums = log_weights.exp_().mul_(highest).long().cumsum_(1)
    total = sums[:, -1:].contiguous()
    target = (fractions(numbers) * total).long()
    # The first sum above the target belongs to a place with a weight. Without weights there is no such sum.
    places = torch.searchsorted(sums, target, right=True).clamp_(max=count - 1)
    return places, total > 0


def _without_replacement(log_weights: Tensor, n: int, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one by one by random numbers [B, K]: the places [B, N], and whether one was left to draw, [B, N]."""
    keys, places = (log_weights + gumbel(numbers, log_weights.dtype)).topk(n, dim=1)
    return places, keys > -torch.inf

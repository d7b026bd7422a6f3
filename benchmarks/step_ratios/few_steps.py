"""A few steps from scores, from embeddings and with sampled negatives, by functions that every version of cw_ext has.

The caller decides which checkout's cw_ext is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.step_ratios.inputs import Sizes, Step, forward_and_backward, make_generator, make_ids, make_tables
from cw_ext import Interactions, cw_loss, cw_loss_from_embeddings, sampled_cw_loss

# Known positives of a query where negatives are sampled.
KNOWN = 40
SEED = 0


def make_steps(sizes: Sizes) -> dict[str, Callable[[], Step]]:
    """Return by name what makes a step."""
    small, large = (sizes.few_scores, sizes.few_scores), (sizes.batch_size, sizes.many_negatives)
    steps = {
        f"scores {small[0]}x{small[1]}": partial(_scores, *small),
        f"scores {small[0]}x{small[1]}, no gradient": partial(_scores, *small, backward=False),
        f"scores {large[0]}x{large[1]}": partial(_scores, *large),
    }
    for negatives, items in sizes.embedding_sizes():
        steps[f"embeddings N={negatives} I={items}"] = partial(_embeddings, sizes, negatives, items)
    steps[f"sampled N={sizes.many_negatives} I={sizes.many_items}"] = partial(_sampled, sizes)
    return steps


def _scores(rows: int, negatives: int, backward: bool = True) -> Step:
    """Scores in the half cosine's range."""
    generator = make_generator()
    leaves = [(torch.rand(size, generator=generator) - 0.5).requires_grad_() for size in ((rows,), (rows, negatives))]
    loss = partial(cw_loss, *leaves, backend="fused")
    return forward_and_backward(loss, leaves) if backward else torch.no_grad()(loss)


def _embeddings(sizes: Sizes, negatives: int, items: int) -> Step:
    generator = make_generator()
    tables = make_tables(sizes, items, generator)
    ids = make_ids(sizes, negatives, items, generator)
    return forward_and_backward(partial(cw_loss_from_embeddings, *tables, *ids, backend="fused"), tables)


def _sampled(sizes: Sizes) -> Step:
    """A query per row; it knows its positive and others, with the same draws in every step."""
    generator = make_generator()
    tables = make_tables(sizes, sizes.many_items, generator)
    known = torch.randint(sizes.many_items, (sizes.batch_size, KNOWN), generator=generator)
    query_ids = torch.arange(sizes.batch_size)
    history = Interactions(
        query_ids.repeat_interleave(KNOWN), known.flatten(), num_queries=sizes.batch_size, num_items=sizes.many_items
    )
    loss = partial(
        sampled_cw_loss,
        *tables,
        query_ids,
        known[:, 0].contiguous(),
        history,
        sizes.many_negatives,
        seed=SEED,
        backend="fused",
    )
    return forward_and_backward(loss, tables)

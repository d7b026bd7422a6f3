"""How many negatives each epoch uses, if scores decide: adaptive negative sampling.

C. Wu, F. Wu, Y. Huang, "Rethinking InfoNCE: How Many Negative Samples Do You Need?" (arXiv 2105.13003), change the
number over the stages of training. The formula behind it is the reconstruction of
:mod:`benchmarks.training.effectiveness`, not theirs.
"""

from __future__ import annotations

from typing import Literal

import torch

from benchmarks.training.effectiveness import best_number, estimate_inputs
from benchmarks.training.estimates import LARGEST_PRIOR, Tables, Unseen
from cw_ext import candidate_scores
from cw_ext.prior import estimate_prior

# The sample that a number rests on: validation items, and negatives for each.
_POSITIVES, _NEGATIVES = 1000, 1000


def stage_number(
    unseen: Unseen, tables: Tables, prior: float | Literal["auto"], most: int, generator: torch.Generator
) -> int:
    """How many negatives a row should have now, from 1 to `most`.

    Args:
        unseen: positives that training has not seen, of which a sample is taken.
        tables: of the users and of the items, whose inner products are the scores.
        prior: the share of false negatives, or "auto": Best Bin Estimation.
        most: at least 1.
        generator: of the samples.
    """
    device = unseen.users.device
    sample = torch.randperm(len(unseen.users), generator=generator, device=device)[:_POSITIVES]
    users, items = unseen.users[sample], unseen.items[sample].unsqueeze(1)
    ids = torch.cat([items, unseen.draw(users, _NEGATIVES, generator)], 1)
    scores = candidate_scores(tables[0][users], tables[1], ids, similarity="dot").cpu()
    positive, negatives = scores[:, 0], scores[:, 1:]
    if prior == "auto":
        prior = min(estimate_prior(positive, negatives).prior, LARGEST_PRIOR)
    return best_number(estimate_inputs(positive.numpy(), negatives.numpy(), prior), largest=most)

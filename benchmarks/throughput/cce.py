"""Sampled softmax as CCE⁻ computes it: by cw_ext, by plain PyTorch, and by CCE⁻ itself.

CCE⁻ (https://github.com/On-Point-RND/MemoryEfficientSRS) is cut cross-entropy over negatives of each row's own. It runs
from a checkout of its repository; none of its code is here. The loss of a row is

    log(1 + κ Σ_j exp(q·x_j − q·x⁺))    with κ = (I − 1)/(N + 1), which makes the N negatives represent all other items,

summed over the rows: CCE⁻ adds up its gradients in half precision, where a mean over thousands of rows would leave
them too few digits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cw_ext import cw_loss_from_embeddings


def fused(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    """The loss by cw_ext's kernels. With a floor of 1 the correction comes to its factor 1/(1 − prior), which is κ."""
    return cw_loss_from_embeddings(
        queries,
        items,
        pos_ids,
        neg_ids,
        similarity="dot",
        temperature=1.0,
        weighting="none",
        include_positive=True,
        prior=1 - 1 / _kappa(items, neg_ids),
        floor=1.0,
        reduction="sum",
        backend="fused",
    )


def eager(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    """The loss in plain PyTorch, scores in the tables' dtype, the rest in fp32 (fp64 for fp64), as under autocast."""
    pos = (queries * F.embedding(pos_ids, items)).sum(1)
    neg = torch.bmm(F.embedding(neg_ids, items), queries.unsqueeze(2)).squeeze(2)
    d = neg - pos.unsqueeze(1)
    d = d if d.dtype == torch.float64 else d.float()
    return F.softplus(torch.logsumexp(d, 1) + math.log(_kappa(items, neg_ids))).sum()


def use_cce(checkout: Path) -> None:
    """Let :func:`cce` import from this checkout.

    Raises:
        ValueError: there is no CCE⁻ in it.
    """
    kernels = checkout / "kernels"
    if not (kernels / "cut_cross_entropy" / "cce.py").is_file():
        raise ValueError(f"--cce {checkout}: expected a checkout with kernels/cut_cross_entropy/cce.py, got none there")
    sys.path.insert(0, str(kernels.resolve()))


def cce(pos_ids: Tensor, neg_ids: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return CCE⁻'s loss of (queries, items), both fp16 or bf16, for these int64 ids [B] and [B, N].

    Raises:
        ImportError: no checkout in use, or one that does not work with the installed Triton.
    """
    from cut_cross_entropy.cce import CCEParams, LinearCrossEntropyFunction

    parameters = CCEParams(
        targets=pos_ids,
        valids=None,
        softcap=None,
        reduction="sum",
        filter_eps=None,
        shift=0,
        batch_shape=pos_ids.shape,
        use_kahan=False,
        # The kernels take a row's first id for its positive. They have no mask: an id of I would count with score 0.
        item_inds=torch.cat([pos_ids.unsqueeze(1), neg_ids], 1),
    )
    return lambda queries, items: LinearCrossEntropyFunction.apply(queries, items, None, parameters)


def _kappa(items: Tensor, neg_ids: Tensor) -> float:
    return (items.shape[0] - 1) / (neg_ids.shape[1] + 1)

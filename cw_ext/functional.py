"""The functional forms of the loss."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn

from cw_ext import autograd, checks, extension, plain_scores, reference
from cw_ext.autocast import floating_input, without_autocast
from cw_ext.embedding_batch import Similarity, embedding_batch, loss_of_ids
from cw_ext.op_inputs import ScoreInputs
from cw_ext.parameters import LossArguments, documents_loss_arguments, resolve
from cw_ext.row_values import curve_inputs, row_values

if extension.available():
    from cw_ext import export_ops  # noqa: F401  (defines the ops of exported programs)


@documents_loss_arguments
def cw_loss(
    pos_scores: Tensor,
    neg_scores: Tensor,
    *,
    extra_pos_scores: Tensor | None = None,
    neg_log_weights: Tensor | None = None,
    row_weights: Tensor | None = None,
    **loss: Unpack[LossArguments],
) -> Tensor:
    """The CW loss ("Correct and Weight", arXiv 2601.04291) on scores that the model computed.

    The fused kernels compute the loss and the gradient of the scores in one pass over the negatives. Double
    backward, and gradients in torch.func's transforms, run through the reference. torch.func.vmap is one call of the
    kernels for all samples.

    Args:
        pos_scores: s⁺ [...], fp16, bf16, fp32 or fp64; any leading shape, any strides.
        neg_scores: s_j [..., N], N ≥ 1. A score of −inf is a negative with no mass (it still counts in N; mask it
            out with `neg_log_weights` where it should not). NaN or +inf makes its own row's loss NaN, no other.
        extra_pos_scores: s_k [..., M], extra positives of the same query for the correction; −inf is padding.
        neg_log_weights: log q_j [..., N], or a shape that broadcasts to it (such as [N]): importance weights, a
            sampling correction, a log probability of being a true negative. −inf masks the negative out.
        row_weights: [...], multiplies the rows.
        **loss: see below.

    Returns:
        A scalar, or [...] with reduction="none"; fp64 for fp64 scores, else fp32. Gradients come back in the
        dtype of each input.

    Raises:
        TypeError, ValueError: the message contains the argument, what was expected and what came.
        NotImplementedError: the kernels in a transform of torch.func inside torch.compile, which loses its gradients;
            backend="reference" works there.
        RuntimeError: backend="fused" where the kernels cannot run.
    """
    if extra_pos_scores is None and neg_log_weights is None and row_weights is None:
        at_once = plain_scores.loss(pos_scores, neg_scores, loss)
        if at_once is not None:
            return at_once
    options = resolve(loss)
    pos = floating_input("pos_scores", pos_scores)
    neg = floating_input("neg_scores", neg_scores)
    extra = None if extra_pos_scores is None else floating_input("extra_pos_scores", extra_pos_scores)
    device = pos.device.type
    with without_autocast(device):
        checks.scores(pos, neg, extra)
        checks.log_weights(neg_log_weights, tuple(neg.shape), "pos_scores", pos)
        checks.row_weights(row_weights, "pos_scores", pos)
        dtype = reference.compute_dtype(pos.dtype)
        inputs = ScoreInputs(
            pos,
            neg,
            extra,
            _expanded(neg_log_weights, neg.shape, dtype),
            row_values(options, "pos_scores", pos, dtype),
            curve_inputs(options, "pos_scores", pos, dtype),
            options.row,
            options.reduction if row_weights is None else "none",
        )
        fused = extension.use_kernels(options.backend, device)
        rows = autograd.score_rows(inputs) if fused else reference.score_rows(inputs)
        return reference.result(rows, row_weights, options.reduction, options.row.return_above)


@documents_loss_arguments
def cw_loss_from_embeddings(
    queries: Tensor,
    items: Tensor | nn.Embedding,
    pos_ids: Tensor,
    neg_ids: Tensor,
    *,
    extra_pos_ids: Tensor | None = None,
    neg_log_weights: Tensor | None = None,
    row_weights: Tensor | None = None,
    similarity: Similarity = "half_cosine",
    sparse_grad: bool = False,
    **loss: Unpack[LossArguments],
) -> Tensor:
    """The CW loss ("Correct and Weight", arXiv 2601.04291) straight from embedding tables and ids.

    Gather, similarity, loss and both gradients in one operation: nothing of size B·N·D is allocated (the reference
    backend and double backward do allocate it).

    Args:
        queries: [B, D], one row per positive, already gathered; fp16, bf16, fp32 or fp64.
        items: [I, D], any table, in the dtype of `queries`, or the nn.Embedding that holds it. A tensor, such as
            `embedding.weight`, knows nothing of the embedding's options. The module keeps them as in `items(ids)`:
            a row at `padding_idx` is used as it is and gets no gradient (an id is masked by −1 only), and `sparse=True`
            is sparse_grad=True; `max_norm`, `scale_grad_by_freq` and a forward of its own are refused. Its hooks are
            not run.
        pos_ids: [B], int32 or int64, rows of `items`. −1 is padding: the row is left out.
        neg_ids: [B, N], or [N] where all rows share the negatives. −1 is padding: the negative is masked out.
        extra_pos_ids: [B, M], extra positives of the same query for the correction. −1 is padding.
        neg_log_weights: log q_j [B, N], or a shape that broadcasts to it (such as [N]); −inf masks out.
        row_weights: [B], multiplies the rows.
        similarity: the score: "half_cosine" ½·cos(q, x) in [−½, ½] (as in the paper), "cosine" or "dot". A zero
            vector has cosine 0 with everything, and gradient 0.
        sparse_grad: give `items` a coalesced sparse gradient (for torch.optim.SparseAdam) in place of a dense one.
        **loss: see below.

    Returns:
        A scalar, or [B] with reduction="none"; fp64 for fp64 tables, else fp32. Gradients come back in the dtype of
        each input.

    Raises:
        TypeError, ValueError: the message contains the argument, what was expected and what came.
        IndexError: an id out of range, which the message contains, on the CPU; on CUDA a device-side assertion.
        NotImplementedError: inside torch.func.vmap.
        RuntimeError: backend="fused" where the kernels cannot run.
    """
    batch = embedding_batch(queries, items, pos_ids, extra_pos_ids, row_weights, similarity, loss)
    checks.flag("sparse_grad", sparse_grad)
    sparse_grad = sparse_grad or batch.sparse_items
    with without_autocast(batch.device):
        checks.negative_ids(neg_ids, batch.queries)
        shape = (batch.rows, neg_ids.shape[-1])
        checks.log_weights(neg_log_weights, shape, "queries", batch.queries)
        return loss_of_ids(batch, neg_ids, _expanded(neg_log_weights, shape, batch.dtype), sparse_grad=sparse_grad)


def _expanded(log_weights: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    return None if log_weights is None else log_weights.to(dtype).expand(shape)

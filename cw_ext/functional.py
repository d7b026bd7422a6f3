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
    """The CW loss ("Correct and Weight", arXiv 2601.04291) on scores that your model has computed.

    The fused kernels compute the loss and the gradient of the scores in one pass over the negatives. Double backward,
    and gradients under the transforms of torch.func, use the plain PyTorch reference. torch.func.vmap makes one call
    of the kernels for all samples.

    Args:
        pos_scores: s⁺ [...], the score of each row's positive; fp16, bf16, fp32 or fp64, any leading shape, any
            strides.
        neg_scores: s_j [..., N], the scores of its negatives, N ≥ 1. A score of −inf is a negative without mass, which
            still counts in N; to mask it out, use `neg_log_weights`. NaN or +inf makes the loss of its own row NaN,
            and of no other.
        extra_pos_scores: s_k [..., M], extra positives of the same query for the correction. −inf is padding.
        neg_log_weights: log q_j [..., N], or a shape that broadcasts to it, such as [N]: importance weights, a
            sampling correction, or the log of the probability that it is a true negative. −inf masks a negative out.
        row_weights: [...], the weight w of each row. The mean is then Σ w·L / Σ w.
        **loss: see below.

    Returns:
        A scalar, or [...] with reduction="none"; fp64 for fp64 scores, else fp32. Each input gets its gradient in its
        own dtype.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
        NotImplementedError: the kernels under a transform of torch.func inside torch.compile, which loses their
            gradients. Use backend="reference" there.
        RuntimeError: backend="fused" where the kernels cannot run.

    Example:
        >>> import torch
        >>> from cw_ext import cw_loss
        >>> pos_scores = torch.tensor([0.4, 0.1], requires_grad=True)
        >>> neg_scores = torch.tensor([[0.3, -0.2], [0.2, -0.4]], requires_grad=True)
        >>> loss = cw_loss(pos_scores, neg_scores, temperature=0.2)
        >>> loss.backward()
        >>> print(f"{loss.item():.3f}")
        -0.607
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
    """The CW loss ("Correct and Weight", arXiv 2601.04291) from embeddings and ids.

    Look-up, similarity, loss and both gradients are one operation, which allocates nothing of size B·N·D. Only the
    reference backend and double backward do.

    Args:
        queries: [B, D], the query vector of each row: one row per positive; fp16, bf16, fp32 or fp64.
        items: [I, D], the embedding table of the items in the dtype of `queries`, or the nn.Embedding that holds it.
            The nn.Embedding keeps its options, as in `items(ids)`: the row at `padding_idx` is used, but gets no
            gradient, and `sparse=True` means sparse_grad=True. `max_norm`, `scale_grad_by_freq` and a subclass with
            another forward raise an error. Hooks do not run. A tensor, such as `embedding.weight`, has none of these
            options.
        pos_ids: [B], int32 or int64, the positive of each row, as a row of `items`. −1 is padding: the row is left out.
        neg_ids: [B, N], or [N] if all rows share the negatives. −1 is padding: the negative is masked out.
        extra_pos_ids: [B, M], extra positives of the same query for the correction. −1 is padding.
        neg_log_weights: log q_j [B, N], or a shape that broadcasts to it, such as [N]. −inf masks a negative out.
        row_weights: [B], the weight w of each row. The mean is then Σ w·L / Σ w.
        similarity: the score. "half_cosine": ½·cos(q, x), in [−½, ½], as in the paper; "cosine"; or "dot", the inner
            product. A zero vector has the cosine 0 with every vector, and the gradient 0.
        sparse_grad: give `items` a coalesced sparse gradient, as torch.optim.SparseAdam takes, instead of a dense one.
        **loss: see below.

    Returns:
        A scalar, or [B] with reduction="none"; fp64 for fp64 tables, else fp32. Each input gets its gradient in its
        own dtype.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
        IndexError: an id out of range, with that id in the message, on the CPU. On CUDA it is a device-side assertion.
        NotImplementedError: inside torch.func.vmap.
        RuntimeError: backend="fused" where the kernels cannot run.

    Example:
        >>> import torch
        >>> from cw_ext import cw_loss_from_embeddings
        >>> _ = torch.manual_seed(0)
        >>> users = torch.nn.Embedding(100, 16)
        >>> items = torch.nn.Embedding(500, 16)
        >>> user_ids = torch.tensor([3, 8])
        >>> pos_ids = torch.tensor([41, 7])
        >>> neg_ids = torch.randint(500, (2, 20))
        >>> loss = cw_loss_from_embeddings(
        ...     users(user_ids), items, pos_ids, neg_ids, similarity="cosine", temperature=0.2
        ... )
        >>> loss.backward()
        >>> print(f"{loss.item():.2f}")
        2.51
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

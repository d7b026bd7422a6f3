"""What the throughput benchmark times: one step of the CW loss with its defaults, by each of its contestants.

- cw_ext: the fused kernels.
- graph: the same step replayed from a CUDA graph (GPU only): the device's time, without Python's.
- deterministic: the same step under torch.use_deterministic_algorithms(True) (GPU only), along with which torch fills
  memory that would be left uninitialised.
- eager: the same loss in bare PyTorch, no more operations than the maths needs. At level 2 as one would write it:
  look up, normalise, multiply. (By F.embedding: the backward pass of an index takes twice as long.)
- tuned: eager with an eye to its speed (level 2, negatives per row): the whole table is normalised before rows are
  looked up, which leaves autograd less of size B·N·D. Where the table has several times the B·N rows drawn, eager's
  order is the faster one.
- compile: torch.compile of tuned, or of eager where there is none.
- checkpoint: tuned with activation checkpointing around gather, scores and loss (level 2, negatives per row). It keeps
  nothing of size B·N·D from forward to backward, but backward builds all of it again, so that the peak of a step
  that is nothing but the loss stays eager's.
- cce: CCE⁻, another project's fused kernels (GPU only), on the shapes whose loss is sampled softmax, as it computes
  nothing else. There the others compute sampled softmax too: benchmarks/sampled_softmax.py.
- floor: the yardstick, which is not the loss but less work than it. At level 1 copies of the scores into memory that
  exists: on the CPU two, one for each of forward and backward; on a GPU one, since forward reads the scores and writes
  their gradient, and backward finds nothing left to multiply. At level 2 an embedding bag: the same rows gathered and
  summed, and a constant gradient scattered back to the same rows, in which torch never builds [B, N, D]. With shared
  negatives three matrix products, of scores and both gradients. At level 2 it is made of torch's own operations,
  which a better kernel can beat: a share of the floor above 100 % is no mistake.

In bf16 eager stays in bf16, as a user's model would; cw_ext computes in fp32 and is held to the same tolerance. cce
sums its gradients in half precision, which takes a tolerance of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks import cuda_steps, sampled_softmax
from benchmarks.throughput_shapes import Shape
from cw_ext import cw_loss, cw_loss_from_embeddings

CONTESTANTS = ("cw_ext", "graph", "deterministic", "eager", "tuned", "compile", "checkpoint", "cce", "floor")
# They depend on more than torch and cw_ext, or ask more of them, and are left out where that is not to be had.
OPTIONAL = ("graph", "deterministic", "compile", "cce")
TEMPERATURE = 0.1

# Relative errors that pass for rounding: of the loss, and of each gradient as a whole.
TOLERANCE = {"float32": (1e-4, 1e-3), "bfloat16": (2e-2, 5e-2), "float16": (2e-3, 1e-2)}
CCE_TOLERANCE = (2e-3, 5e-2)

# Numbers of the largest tensor that computing the truth makes at a time: 128 MiB in fp64.
TRUTH_BLOCK = 2**24

Loss = Callable[..., Tensor]
Step = Callable[[], tuple[Tensor, ...]]


class WrongResult(ValueError):
    """A contestant that computes something else; the message names it, the shape and the tensor."""


@dataclass(frozen=True)
class Inputs:
    """What a step works on: positive and negative scores, or queries and items with pos_ids and neg_ids.

    Attributes:
        leaves: tensors that get a gradient.
        ids: the others.
    """

    leaves: tuple[Tensor, ...]
    ids: tuple[Tensor, ...] = ()


def contestants_of(shape: Shape, chosen: Sequence[str] = CONTESTANTS, device: str = "cpu") -> list[str]:
    """Return those of the chosen contestants that exist for this shape on this device."""
    cuda, softmax = device == "cuda", shape.loss == "sampled_softmax"
    per_row_ids = shape.level == 2 and not shape.shared
    conditions = {
        "graph": cuda,
        "deterministic": cuda and not softmax,
        "tuned": per_row_ids and not softmax,
        "checkpoint": per_row_ids and not softmax,
        "cce": cuda and softmax,
    }
    return [name for name in CONTESTANTS if name in chosen and conditions.get(name, True)]


def make_inputs(shape: Shape, device: str = "cpu") -> Inputs:
    """Return the same random inputs whenever called: scores in the half cosine's range, or normal embeddings.

    For sampled softmax the embeddings are so small that their inner products have variance 1.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = (shape.batch_size, shape.negatives)

    def leaf(values: Tensor) -> Tensor:
        return values.to(device, shape.torch_dtype).requires_grad_()

    if shape.level == 1:
        pos, neg = (torch.rand(size, generator=generator) - 0.5 for size in (sizes[:1], sizes))
        return Inputs((leaf(pos), leaf(neg)))
    scale = shape.dim**-0.25 if shape.loss == "sampled_softmax" else 1.0
    tables = (scale * torch.randn(rows, shape.dim, generator=generator) for rows in (shape.batch_size, shape.items))
    ids = (
        torch.randint(shape.items, size, generator=generator).to(device)
        for size in (sizes[:1], sizes[1:] if shape.shared else sizes)
    )
    return Inputs(tuple(map(leaf, tables)), tuple(ids))


def make_step(name: str, shape: Shape, inputs: Inputs) -> Step:
    """Return a function that runs the contestant's step once, forward and backward.

    It returns the loss and the gradients of the leaves (floor: whatever it made); compile compiles in its first call.
    """
    match name:
        case "floor":
            return _floor_step(shape, inputs)
        case "graph":
            return cuda_steps.captured(make_step("cw_ext", shape, inputs))
        case "deterministic":
            return cuda_steps.deterministic(make_step("cw_ext", shape, inputs))
        case "cce":
            loss, ids = sampled_softmax.cce(*inputs.ids), ()
        case _:
            loss, ids = _loss_function(name, shape), inputs.ids

    def step() -> tuple[Tensor, ...]:
        value = loss(*inputs.leaves, *ids)
        return (value.detach(), *torch.autograd.grad(value, inputs.leaves))

    return step


def make_tiny_step(name: str, shape: Shape, device: str = "cpu") -> Step:
    """Return a step of the same kind on next to no data. That of compile is not compiled."""
    sizes = (2, 2) if shape.level == 2 else (0, 0)
    tiny = Shape(shape.level, 2, 2, *sizes, shape.dtype, shape.shared)
    return make_step("eager" if name == "compile" else name, tiny, make_inputs(tiny, device))


def make_fresh_step(name: str, shape: Shape, device: str = "cpu") -> Step:
    """Return a step on inputs of its own, compiled already where it is compiled."""
    step = make_step(name, shape, make_inputs(shape, device))
    if name == "compile":
        step()
    return step


def exact_results(shape: Shape, inputs: Inputs) -> tuple[Tensor, ...]:
    """Return loss and gradients by eager in fp64, what :func:`check` takes for right; in blocks of rows, to fit."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in inputs.leaves]
    eager = _loss_function("eager", shape)
    block = max(1, TRUTH_BLOCK // (shape.negatives * max(shape.dim, 1)))
    total = torch.zeros((), dtype=torch.float64, device=leaves[0].device)
    for start in range(0, shape.batch_size, block):
        rows = slice(start, min(start + block, shape.batch_size))
        value = eager(*_of_rows(shape, leaves, inputs.ids, rows))
        if shape.loss == "cw":  # a mean over the rows
            value = value * ((rows.stop - rows.start) / shape.batch_size)
        value.backward()
        total += value.detach()
    return (total, *(leaf.grad for leaf in leaves))


def check(name: str, shape: Shape, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Compare a contestant's loss and gradients with those expected, so that no wrong result is timed.

    Raises:
        WrongResult: one of them is off by more than the dtype's rounding.
    """
    tolerances = CCE_TOLERANCE if name == "cce" else TOLERANCE[shape.dtype]
    leaves = ("pos_scores", "neg_scores") if shape.level == 1 else ("queries", "items")
    parts = ("loss", *(f"gradient of {leaf}" for leaf in leaves))
    for part, a, b in zip(parts, found, expected, strict=True):
        tolerance = tolerances[0] if part == "loss" else tolerances[1]
        error = ((a.double() - b).norm() / b.norm()).item()
        if not error <= tolerance:  # NaN is no agreement
            raise WrongResult(
                f"{name} at level {shape.level}, {shape.label}: expected the {part} of eager PyTorch in fp64 "
                f"to within {tolerance:g}, got a relative error of {error:.2g}"
            )


def _of_rows(shape: Shape, leaves: Sequence[Tensor], ids: Sequence[Tensor], rows: slice) -> list[Tensor]:
    if shape.level == 1:
        return [leaf[rows] for leaf in leaves]
    queries, items = leaves
    pos_ids, neg_ids = ids
    return [queries[rows], items, pos_ids[rows], neg_ids if shape.shared else neg_ids[rows]]


def _loss_function(name: str, shape: Shape) -> Loss:
    fused = _fused_from_scores if shape.level == 1 else _fused_from_embeddings
    if shape.loss == "sampled_softmax":
        fused, eager, tuned = sampled_softmax.fused, sampled_softmax.eager, sampled_softmax.eager
    elif shape.level == 1:
        eager = tuned = eager_from_scores
    elif shape.shared:
        eager = tuned = eager_shared
    else:
        eager, tuned = eager_from_embeddings, tuned_from_embeddings
    match name:
        case "cw_ext":
            return fused
        case "eager":
            return eager
        case "tuned":
            return tuned
        case "compile":
            return torch.compile(tuned, dynamic=False, fullgraph=True)
        case "checkpoint":
            return _checkpointed
    raise ValueError(f"contestant must be one of {', '.join(CONTESTANTS)}, got {name!r}")


def _fused_from_scores(pos_scores: Tensor, neg_scores: Tensor) -> Tensor:
    return cw_loss(pos_scores, neg_scores, temperature=TEMPERATURE, backend="fused")


def _fused_from_embeddings(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    return cw_loss_from_embeddings(queries, items, pos_ids, neg_ids, temperature=TEMPERATURE, backend="fused")


def eager_from_scores(pos_scores: Tensor, neg_scores: Tensor) -> Tensor:
    """The loss from scores [B] and [B, N]."""
    return _of_scaled_margins((neg_scores - pos_scores.unsqueeze(1)) / TEMPERATURE)


def eager_from_embeddings(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    """The loss from embeddings, with negatives per row [B, N]."""
    q = _scaled_unit(queries)
    pos = (q * F.normalize(F.embedding(pos_ids, items), dim=-1)).sum(-1)
    neg = (q.unsqueeze(1) * F.normalize(F.embedding(neg_ids, items), dim=-1)).sum(-1)
    return _of_scaled_margins(neg - pos.unsqueeze(1))


def tuned_from_embeddings(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    """The same, normalising each row of the table once."""
    return _of_unit_rows(_scaled_unit(queries), F.normalize(items, dim=1), pos_ids, neg_ids)


def eager_shared(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    """The loss from embeddings, with shared negatives [N]."""
    q = _scaled_unit(queries)
    pos = (q * F.normalize(F.embedding(pos_ids, items), dim=1)).sum(1)
    neg = q @ F.normalize(F.embedding(neg_ids, items), dim=1).T
    return _of_scaled_margins(neg - pos.unsqueeze(1))


def _checkpointed(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    unit = F.normalize(items, dim=1)
    return checkpoint(_of_unit_rows, _scaled_unit(queries), unit, pos_ids, neg_ids, use_reentrant=False)


def _scaled_unit(queries: Tensor) -> Tensor:
    # The half of the half cosine and 1/τ are folded in where there are B·D numbers in place of B·N.
    return F.normalize(queries, dim=1) * (0.5 / TEMPERATURE)


def _of_unit_rows(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    pos = (queries * F.embedding(pos_ids, items)).sum(1)
    neg = torch.bmm(F.embedding(neg_ids, items), queries.unsqueeze(2)).squeeze(2)
    return _of_scaled_margins(neg - pos.unsqueeze(1))


def _of_scaled_margins(d: Tensor) -> Tensor:
    """d/τ [B, N], weighted by the detached sigmoid."""
    return torch.logsumexp(d + F.logsigmoid(-d.detach()), 1).mean()


def _floor_step(shape: Shape, inputs: Inputs) -> Step:
    if shape.level == 1:
        source = inputs.leaves[1].detach()
        target = torch.empty_like(source)
        copies = 1 if source.is_cuda else 2
        return lambda: tuple(target.copy_(source) for _ in range(copies))

    queries, items = inputs.leaves
    neg_ids = inputs.ids[1]
    if shape.shared:
        q, table = queries.detach(), items.detach()
        d_scores = torch.ones(shape.batch_size, shape.negatives, dtype=q.dtype, device=q.device)

        def products() -> tuple[Tensor, ...]:
            negatives = table[neg_ids]
            return q @ negatives.T, d_scores @ negatives, d_scores.T @ q

        return products

    d_sums = torch.ones_like(queries)

    def bag() -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.embedding_bag(neg_ids, items, mode="sum"), items, d_sums)

    return bag

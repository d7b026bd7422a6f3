"""The contestants of the throughput benchmark. Each runs one step of the CW loss with its defaults.

- cw_ext: the fused kernels.
- graph: the same step, replayed from a CUDA graph (GPU only). It shows the device's time without Python's.
- deterministic: the same step under torch.use_deterministic_algorithms(True) (GPU only), which also makes torch fill
  memory that would otherwise stay uninitialised.
- recompute, ready-ids, torch-search, torch-isin, numpy-sets, numpy-choice, bit-table: for negatives drawn for each row,
  see benchmarks/throughput/sampled.py.
- eager: the loss in plain PyTorch (benchmarks/throughput/eager.py), with no more operations than the formula needs.
  From embeddings it is written the obvious way: look up, normalise, multiply. It uses F.embedding, since the backward
  pass of indexing takes twice as long. With one set of negatives for all rows it multiplies by the set's rows, and
  masks what a row leaves out.
- tuned: eager, written for speed (from embeddings, with negatives per row). It normalises the whole table before the
  look-up, so that autograd keeps fewer tensors of size B·N·D. If the table has several times as many rows as the B·N
  that are looked up, eager's order is faster.
- compile: torch.compile of tuned, or of eager where there is no tuned. What a row leaves out is found before it.
- checkpoint: tuned with activation checkpointing around look-up, scores and loss (from embeddings, with negatives per
  row). It keeps nothing of size B·N·D from forward to backward. But backward builds all of it again, so the peak of a
  step that consists of the loss alone is still eager's.
- cce: CCE⁻, the fused kernels of another project (GPU only). It only computes sampled softmax, so it only runs on
  shapes with that loss, where the other contestants compute sampled softmax too: benchmarks/throughput/cce.py.
- floor: a yardstick that does less work than the loss. From scores, it copies the scores into existing memory: twice on
  the CPU, for forward and backward; once on a GPU, where forward reads the scores and writes their gradient, and
  backward has nothing left to multiply. With negatives per row it is an embedding bag, which gathers and sums the same
  rows, and scatters a constant gradient back to them; torch never builds [B, N, D] for it, and nothing is drawn. With
  one set it is three matrix products: the scores and both gradients. Except from scores, the floor consists of torch's
  own operations, which a better kernel can beat, so a share of the floor above 100 % is no mistake.

In bf16, eager stays in bf16, as a user's model would. cw_ext computes in fp32, and has to meet the same tolerance. cce
sums its gradients in half precision, which needs a tolerance of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.throughput import cce, cuda, eager, sampled, shared
from benchmarks.throughput.eager import TEMPERATURE
from benchmarks.throughput.inputs import Inputs, make_inputs
from benchmarks.throughput.samplers import SAMPLERS
from benchmarks.throughput.shapes import ONE_SET, Shape
from cw_ext import cw_loss, cw_loss_from_embeddings

CONTESTANTS = (
    "cw_ext", "recompute", "graph", "deterministic", "ready-ids", *SAMPLERS, "eager", "tuned", "compile", "checkpoint",
    "cce", "floor",
)  # fmt: skip
# These need more than torch and cw_ext, or a special build, and are left out where that is missing.
OPTIONAL = ("graph", "deterministic", "compile", "cce")

# Relative errors that count as rounding: of the loss, and of each gradient as a whole.
TOLERANCE = {"float32": (1e-4, 1e-3), "bfloat16": (2e-2, 5e-2), "float16": (2e-3, 1e-2)}
CCE_TOLERANCE = (2e-3, 5e-2)

# Size of the largest tensor when computing the truth: 128 MiB in fp64.
TRUTH_BLOCK = 2**24

Step = Callable[[], tuple[Tensor, ...]]


class WrongResult(ValueError):
    """A contestant's result is wrong. The message has its name, the shape and the tensor."""


def contestants_of(shape: Shape, chosen: Sequence[str] = CONTESTANTS, device: str = "cpu") -> list[str]:
    """Return the chosen contestants that exist for this shape on this device."""
    on_gpu, softmax, drawn = device == "cuda", shape.loss == "sampled_softmax", shape.kind == "sampled"
    per_row_ids = shape.kind == "ids" and not shape.shared
    conditions = {
        "graph": on_gpu,
        "deterministic": on_gpu and not softmax,
        **dict.fromkeys(("recompute", "ready-ids", *SAMPLERS), drawn),
        "bit-table": drawn and not shape.popularity and not on_gpu,
        "eager": not drawn,
        "tuned": per_row_ids and not softmax,
        "compile": not drawn,
        "checkpoint": per_row_ids and not softmax,
        "cce": on_gpu and softmax,
    }
    return [name for name in CONTESTANTS if name in chosen and conditions.get(name, True)]


def make_step(name: str, shape: Shape, inputs: Inputs) -> Step:
    """Return a function that runs the contestant's step once, forward and backward.

    It returns the loss and the gradients of the leaves (floor: whatever it made); compile compiles in its first call.
    """
    match name:
        case "floor":
            return _floor_step(shape, inputs)
        case "graph":
            return cuda.captured(make_step("cw_ext", shape, inputs))
        case "deterministic":
            return cuda.deterministic(make_step("cw_ext", shape, inputs))
    loss = _loss_function(name, shape, inputs)

    def step() -> tuple[Tensor, ...]:
        value = loss(*inputs.leaves)
        return (value.detach(), *torch.autograd.grad(value, inputs.leaves))

    return step


def make_tiny_step(name: str, shape: Shape, device: str = "cpu") -> Step:
    """Return a step of the same kind on very little data. That of compile is not compiled."""
    sizes = {} if shape.kind == "scores" else {"dim": 2, "items": 2}
    if shape.users:
        sizes |= {"items": 8, "users": 4}
    negatives = 2 if shape.negatives else 0
    tiny = Shape(shape.kind, 2, negatives, **sizes, dtype=shape.dtype, shared=shape.shared, popularity=shape.popularity)
    return make_step("eager" if name == "compile" else name, tiny, make_inputs(tiny, device))


def make_fresh_step(name: str, shape: Shape, device: str = "cpu") -> Step:
    """Return a step on new inputs. A step that is compiled has been compiled already."""
    step = make_step(name, shape, make_inputs(shape, device))
    if name == "compile":
        step()
    return step


def draws_itself(name: str, shape: Shape) -> bool:
    """Whether the contestant draws other negatives than cw_ext."""
    return shape.kind == "sampled" and name in SAMPLERS


def exact_results(shape: Shape, inputs: Inputs, name: str = "cw_ext") -> tuple[Tensor, ...]:
    """Return loss and gradients by eager in fp64, the truth for :func:`check`; in blocks of rows, to limit memory.

    Args:
        shape, inputs: of the step.
        name: the contestant whose negatives are used, where they are drawn.

    Raises:
        WrongResult: it has drawn a known positive.
    """
    leaves = [leaf.detach().double().requires_grad_() for leaf in inputs.leaves]
    total = torch.zeros((), dtype=torch.float64, device=leaves[0].device)
    loss = _eager_in_blocks(name, shape, inputs)
    depth = 1 if shape.kind in ONE_SET else max(shape.dim, 1)
    block = max(1, TRUTH_BLOCK // (shape.columns * depth))
    for start in range(0, shape.batch_size, block):
        rows = slice(start, min(start + block, shape.batch_size))
        value = loss(rows, *leaves)
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
    leaves = ("pos_scores", "neg_scores") if shape.kind == "scores" else ("queries", "items")
    parts = ("loss", *(f"gradient of {leaf}" for leaf in leaves))
    for part, a, b in zip(parts, found, expected, strict=True):
        tolerance = tolerances[0] if part == "loss" else tolerances[1]
        error = ((a.double() - b).norm() / b.norm()).item()
        if not error <= tolerance:  # also for NaN
            raise WrongResult(
                f"{name} ({shape.table}, {shape.label}): expected the {part} of eager PyTorch in fp64 "
                f"to within {tolerance:g}, got a relative error of {error:.2g}"
            )


def _eager_in_blocks(name: str, shape: Shape, inputs: Inputs) -> Callable[..., Tensor]:
    """Return eager's loss of (rows, *leaves), of these rows of the batch alone."""
    if shape.kind == "scores":
        return lambda rows, pos, neg: eager.from_scores(pos[rows], neg[rows])
    if shape.kind in ONE_SET:
        return lambda rows, queries, items: shared.eager(shape, inputs, rows=rows)(queries[rows], items)
    if shape.kind == "sampled":
        pos_ids, _ = inputs.ids
        try:
            neg_ids, log_q = sampled.first_draws(name, shape, inputs)
        except ValueError as error:
            raise WrongResult(f"{name} ({shape.table}, {shape.label}): {error}") from None
        return lambda rows, queries, items: eager.from_embeddings(
            queries[rows], items, pos_ids[rows], neg_ids[rows], None if log_q is None else log_q[rows]
        )
    pos_ids, neg_ids = inputs.ids
    loss = _ids_losses(shape)["eager"]
    return lambda rows, queries, items: loss(
        queries[rows], items, pos_ids[rows], neg_ids if shape.shared else neg_ids[rows]
    )


def _loss_function(name: str, shape: Shape, inputs: Inputs) -> Callable[..., Tensor]:
    """Return the contestant's loss of the leaves."""
    if name == "cce":
        return cce.cce(*inputs.ids)
    if shape.kind == "sampled":
        return sampled.loss_function(name, shape, inputs)
    if shape.kind in ONE_SET:
        if name == "cw_ext":
            return shared.fused(shape, inputs)
        loss = _compiled(eager.one_set) if name == "compile" else eager.one_set
        return shared.eager(shape, inputs, loss)
    losses = _score_losses() if shape.kind == "scores" else _ids_losses(shape)
    loss = _compiled(losses.get("tuned", losses["eager"])) if name == "compile" else losses[name]
    return lambda *leaves: loss(*leaves, *inputs.ids)


def _compiled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(loss, dynamic=False, fullgraph=True)


def _score_losses() -> dict[str, Callable[..., Tensor]]:
    return {"cw_ext": _fused_from_scores, "eager": eager.from_scores}


def _ids_losses(shape: Shape) -> dict[str, Callable[..., Tensor]]:
    if shape.loss == "sampled_softmax":
        return {"cw_ext": cce.fused, "eager": cce.eager}
    if shape.shared:
        return {"cw_ext": _fused_from_embeddings, "eager": eager.shared}
    return {
        "cw_ext": _fused_from_embeddings,
        "eager": eager.from_embeddings,
        "tuned": eager.tuned_from_embeddings,
        "checkpoint": eager.checkpointed,
    }


def _fused_from_scores(pos_scores: Tensor, neg_scores: Tensor) -> Tensor:
    return cw_loss(pos_scores, neg_scores, temperature=TEMPERATURE, backend="fused")


def _fused_from_embeddings(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
    return cw_loss_from_embeddings(queries, items, pos_ids, neg_ids, temperature=TEMPERATURE, backend="fused")


def _floor_step(shape: Shape, inputs: Inputs) -> Step:
    if shape.kind == "scores":
        source = inputs.leaves[1].detach()
        target = torch.empty_like(source)
        copies = 1 if source.is_cuda else 2
        return lambda: tuple(target.copy_(source) for _ in range(copies))

    queries, items = inputs.leaves
    if shape.shared or shape.kind in ONE_SET:
        neg_ids = inputs.ids[1] if shape.shared else shared.negative_ids(shape, inputs)
        q, table = queries.detach(), items.detach()
        d_scores = torch.ones(shape.batch_size, shape.columns, dtype=q.dtype, device=q.device)

        def products() -> tuple[Tensor, ...]:
            negatives = table if neg_ids is None else table[neg_ids]
            return q @ negatives.T, d_scores @ negatives, d_scores.T @ q

        return products

    neg_ids = inputs.ids[1] if shape.kind == "ids" else sampled.first_draws("cw_ext", shape, inputs)[0]
    d_sums = torch.ones_like(queries)

    def bag() -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.embedding_bag(neg_ids, items, mode="sum"), items, d_sums)

    return bag

"""The autograd.Function of an op, from the descriptions in op_inputs.py.

The forward op returns, beside each row's loss, that loss's gradient; backward multiplies it by grad_output row by
row. What is saved is written to only where autograd is about to free it, so a second backward sees the same numbers.
Under create_graph the gradient is taken through the reference instead, which autograd can differentiate again; so it is
in the transforms of torch.func, which can be nested and always ask for that.

A small batch takes the kernels less time than Python. So the reduction is part of the op, which spares autograd its
nodes, and what depends on the op alone is worked out once, when it is described.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from cw_ext import checks, extension
from cw_ext.op_inputs import Layout, Losses
from cw_ext.row_values import RowValues

Gradients = dict[str, Tensor | None]

# Whether the backward pass in hand leaves the graph for another. Where this torch does not tell, it may.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def may_overwrite() -> bool:
    """Whether the backward pass in hand may write to what was saved for it, which nobody will see again."""
    return not torch.compiler.is_compiling() and not _keeps_graph()


def _wants_graph() -> bool:
    """Whether the gradients are to have a graph, which torch.func's transforms always want."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


def _distinct(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same tensors, none of them twice: a Function in torch.compile takes none twice."""
    found: list[Tensor | None] = []
    for tensor in tensors:
        again = tensor is not None and any([tensor is other for other in found])
        found.append(tensor.view_as(tensor) if tensor is not None and again else tensor)
    return found


class Saved:
    """What a forward pass left for backward."""

    __slots__ = ("op", "others", "tensors", "wanted")

    def __init__(self, ctx: Any) -> None:
        self.op: Op = ctx.op
        self.wanted: Any = ctx.wanted
        self.others: Sequence[Any] = ctx.others
        self.tensors: tuple[Any, ...] = ctx.saved_tensors

    def arguments(self) -> Any:
        """The op's inputs as it takes them, by name."""
        return self.op.layout.named(*self.op.together(self.tensors, self.others))

    def results(self) -> Any:
        return self.op.results(*self.tensors[len(self.op.layout.tensors) :])


class Op:
    """An op with its gradients, which go by the names of its arguments."""

    def __init__(
        self,
        name: str,
        layout: Layout[Any],
        results: type[Any],
        by_reference: Callable[[Any], Losses],
    ) -> None:
        """
        Args:
            name: torch.ops.cw_ext.NAME.
            layout: of its inputs.
            results: what it returns after the losses.
            by_reference: the losses of the same inputs, by the reference.
        """
        self.layout, self.results, self.by_reference = layout, results, by_reference
        self.op: Any = getattr(torch.ops.cw_ext, name).default if extension.available() else None
        self._no_tensors = (None,) * len(layout.tensors)
        self.reduction_at = layout.names.index("reduction")
        self.names = tuple(layout.names[place] for place in layout.tensors)
        saved = [*self.names, *results._fields]
        self.rescale_at = saved.index("rescale")
        # By argument: where among what is saved it is itself, where the gradient of the rows' losses is, and for a row
        # value in which row of that.
        self._row_gradients: dict[str, tuple[int, int, int | None]] = {
            name: (at, saved.index(f"d_{name}"), None) for at, name in enumerate(self.names) if f"d_{name}" in saved
        }
        for row, value in enumerate(RowValues._fields):
            name = f"{value}_rows"
            self._row_gradients[name] = (saved.index(name), saved.index("d_row_values"), row)

    def together(self, tensors: Iterable[Any], others: Iterable[Any]) -> list[Any]:
        """The op's arguments from its tensors and, with anything in their places, all arguments."""
        arguments = list(others)
        for place, tensor in zip(self.layout.tensors, tensors):
            arguments[place] = tensor
        return arguments

    def without_tensors(self, arguments: Iterable[Any]) -> list[Any]:
        return self.together(self._no_tensors, arguments)

    def __call__(self, inputs: Any, *options: Any) -> tuple[Tensor, ...]:
        """The op's results, with gradients."""
        arguments = self.layout.flat(inputs)
        tensors = [arguments[place] for place in self.layout.tensors]
        needs_gradient = torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in tensors])
        wanted = self.wanted(inputs, needs_gradient, *options)
        # torch.func's transforms and torch.compile want the setup_context.
        compiling, transformed = torch.compiler.is_compiling(), torch._C._are_functorch_transforms_active()
        if compiling and transformed:
            raise NotImplementedError(
                "torch.compile loses the kernels' gradients in torch.func's transforms: use backend='reference' there, "
                "or leave the transform out of what is compiled"
            )
        result: tuple[Tensor, ...]
        if not needs_gradient and not transformed:
            result = self.op(*arguments, *wanted)
        elif compiling or transformed:
            tensors = _distinct(tensors)
            result = OpFunction.apply(self, wanted, self.without_tensors(arguments), *tensors)  # type: ignore[no-untyped-call]
        else:
            result = _Direct.apply(self, wanted, arguments, *tensors)  # type: ignore[no-untyped-call]
        return result

    def wanted(self, inputs: Any, needs_gradient: bool, *options: Any) -> Any:
        """The op's arguments after its inputs."""
        raise NotImplementedError

    def gradients(self, saved: Saved, grad: Tensor, names: list[str]) -> Gradients:
        """The gradients of these arguments; `grad` is that of the rows' losses, [B] or one number for all."""
        return self.scaled(saved, grad, names)

    def scaled(self, saved: Saved, grad: Tensor, names: list[str]) -> Gradients:
        """The rows' own gradients times grad, in the dtypes of their inputs."""
        found: Gradients = {}
        overwrite = may_overwrite()
        own: list[Tensor] = []
        others: dict[torch.dtype, list[str]] = {}
        for name in names:
            of, at, row = self._row_gradients[name]
            gradient, dtype = saved.tensors[at], saved.tensors[of].dtype
            if row is not None:
                gradient = gradient[row]
            found[name] = gradient
            if overwrite and gradient.dtype == dtype:
                own.append(gradient)
            else:
                others.setdefault(dtype, []).append(name)
        if own:
            # In place: fresh memory takes the system longer to hand out than the multiplication takes.
            torch.ops.cw_ext.scale_rows_(own, grad)
        for dtype, alike in others.items():
            found.update(zip(alike, torch.ops.cw_ext.scale_rows([found[name] for name in alike], grad, dtype)))
        return found

    def through_reference(self, saved: Saved, grad: Tensor, names: list[str]) -> Gradients:
        """The gradients of these arguments, with a graph of their own."""
        tensors = dict(zip(self.names, saved.tensors))
        of = [tensors[name] for name in names]

        def loss(*values: Tensor) -> Tensor:
            given = tensors | dict(zip(names, values))
            arguments = self.together(list(given.values()), saved.others)
            return self.by_reference(self.layout.rebuilt(arguments))[0]

        if torch._C._are_functorch_transforms_active():  # where torch.autograd.grad does not see a vmapped grad
            found = torch.func.vjp(loss, *of)[1](grad)
        else:
            with torch.enable_grad():
                found = torch.autograd.grad(loss(*of), of, grad, create_graph=True, allow_unused=True)
        return dict(zip(names, found))

    def vmap(self, samples: int, in_dims: Sequence[Any], tensors: Sequence[Any], others: Sequence[Any]) -> Any:
        raise NotImplementedError(checks.NO_VMAP)


def _save(ctx: Any, op: Op, wanted: Any, others: list[Any], tensors: Sequence[Any], output: tuple[Tensor, ...]) -> None:
    ctx.op, ctx.wanted, ctx.others = op, wanted, others
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    # All tensors: a seed or ids that are written to before backward would draw others in silence.
    ctx.save_for_backward(*tensors, *output[len(Losses._fields) :])


class OpFunction(torch.autograd.Function):
    """Any op. Its arguments are the op, what is wanted for backward, the other arguments and the tensors."""

    @staticmethod
    def forward(op: Op, wanted: Any, others: list[Any], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = op.op(*op.together(tensors, others), *wanted)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        op, wanted, others, *tensors = inputs
        _save(ctx, op, wanted, others, tensors, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        op: Op = ctx.op
        names = op.names
        found: Gradients = {}
        if grad is not None:
            needed = [*compress(names, ctx.needs_input_grad[3:])]
            saved = Saved(ctx)
            if _wants_graph():
                found = op.through_reference(saved, grad, needed)
            else:
                if saved.others[op.reduction_at] == "mean":
                    grad = grad * saved.tensors[op.rescale_at]
                found = op.gradients(saved, grad, needed)
        return (None, None, None, *map(found.get, names))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], op: Op, _: Any, others: list[Any], *tensors: Any) -> tuple[Any, Any]:
        found: tuple[Any, Any] = op.vmap(info.batch_size, in_dims[3:], tensors, others)
        return found


class _Direct(torch.autograd.Function):
    """The same without a setup_context, for which apply() works out forward's signature at each call."""

    @staticmethod
    def forward(ctx: Any, op: Op, wanted: Any, arguments: list[Any], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = op.op(*arguments, *wanted)
        _save(ctx, op, wanted, op.without_tensors(arguments), tensors, result)
        return result

    backward = OpFunction.backward

"""The autograd.Function of an op, from the descriptions in op_inputs.py.

The forward op returns, beside each row's loss, that loss's gradient; backward multiplies it by grad_output row by
row. What is saved is written to only where autograd is about to free it, so a second backward sees the same numbers.
Under create_graph the gradient is taken through the reference instead, which autograd can differentiate again; so it is
in the transforms of torch.func, which can be nested and always ask for that.

A small batch takes the kernels less time than Python. So the reduction is part of the op, which spares autograd its
nodes, and what depends on the op alone is worked out once, when its class is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class Saved:
    """What a forward pass left for backward."""

    __slots__ = ("op", "others", "tensors", "wanted")

    def __init__(self, op: Op, ctx: Any) -> None:
        self.op = op
        self.wanted: Any = ctx.wanted
        self.others: Sequence[Any] = ctx.others
        self.tensors: tuple[Any, ...] = ctx.saved_tensors

    def inputs(self) -> Any:
        values = list(self.others)
        for place, tensor in zip(self.op.tensors, self.tensors):
            values[place] = tensor
        return self.op.layout.rebuilt(values)

    def results(self) -> Any:
        return self.op.results(*self.tensors[len(self.op.tensors) :])


class Op:
    """An op with its gradients.

    The arguments of its autograd.Function are the fields of the op's inputs, except that the row values stand there one
    by one, since autograd sees no tensor inside a tuple; then comes what is wanted for backward. A gradient goes by the
    name of its argument.
    """

    def __init__(
        self,
        name: str,
        layout: Layout[Any],
        results: type[Any],
        by_reference: Callable[[Any], tuple[Tensor, Tensor]],
    ) -> None:
        """
        Args:
            name: torch.ops.cw_ext.NAME.
            layout: of its inputs.
            results: what it returns after the losses.
            by_reference: (loss, live) of the same inputs, by the reference.
        """
        self.layout, self.results, self.by_reference = layout, results, by_reference
        self.op = getattr(torch.ops.cw_ext, name).default if extension.available() else None
        at = layout.fields.index("row_values")
        self.names = (*layout.fields[:at], *RowValues._fields, *layout.fields[at + 1 :])
        self._values_at, self._values_end = at, at + len(RowValues._fields)

        self.tensors = tuple(place for place, tensor in enumerate(layout.tensors) if tensor)
        self._reduction_at = layout.names.index("reduction")
        saved = [*(layout.names[place] for place in self.tensors), *results._fields]
        self._rescale_at = saved.index("rescale")
        # By argument: where among what is saved it is itself, where the gradient of the rows' losses, and for a row
        # value in which row of that.
        self._row_gradients: dict[str, tuple[int, int, int | None]] = {
            name: (saved.index(name), saved.index(f"d_{name}"), None) for name in self.names if f"d_{name}" in saved
        }
        for row, name in enumerate(RowValues._fields):
            self._row_gradients[name] = (saved.index(f"{name}_rows"), saved.index("d_row_values"), row)

    def arguments(self, inputs: Any) -> tuple[Any, ...]:
        at = self._values_at
        return (*inputs[:at], *inputs[at], *inputs[at + 1 :])

    def inputs(self, arguments: Sequence[Any]) -> Any:
        at, end = self._values_at, self._values_end
        return self.layout.make(*arguments[:at], RowValues(*arguments[at:end]), *arguments[end:])

    def __call__(self, inputs: Any, wanted: Callable[[bool], Any]) -> tuple[Tensor, ...]:
        """The op's results, with gradients: wanted(whether there is to be any) is what is wanted for backward."""
        arguments = self.arguments(inputs)
        needs_gradient = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)
        # torch.func's transforms and torch.compile want the setup_context.
        compiling, transformed = torch.compiler.is_compiling(), torch._C._are_functorch_transforms_active()
        if compiling and transformed:
            raise NotImplementedError(
                "torch.compile loses the kernels' gradients in torch.func's transforms: use backend='reference' there, "
                "or leave the transform out of what is compiled"
            )
        result: tuple[Tensor, ...]
        if not needs_gradient and not transformed:
            result = self.op(*self.layout.flat(inputs), *wanted(False))
        else:
            function = OpFunction if compiling or transformed else _Direct
            result = function.apply(self, *arguments, wanted(needs_gradient))
        return result

    def forward(self, ctx: Any, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        """The op's results. A ctx saves them."""
        wanted = arguments[-1]
        op_inputs = self.layout.flat(self.inputs(arguments[:-1]))
        output: tuple[Tensor, ...] = self.op(*op_inputs, *wanted)
        if ctx is not None:
            self._save(ctx, op_inputs, wanted, output)
        return output

    def save(self, ctx: Any, arguments: Sequence[Any], output: tuple[Tensor, ...]) -> None:
        self._save(ctx, self.layout.flat(self.inputs(arguments[:-1])), arguments[-1], output)

    def _save(self, ctx: Any, op_inputs: list[Any], wanted: Any, output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.wanted = wanted
        # All tensors: a seed or ids that are written to before backward would draw others in silence.
        ctx.save_for_backward(*[op_inputs[place] for place in self.tensors], *output[len(Losses._fields) :])
        for place in self.tensors:
            op_inputs[place] = None
        ctx.others = op_inputs

    def backward(self, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        found: Gradients = {}
        if grad is not None:
            wanted = [name for name, needed in zip(self.names, ctx.needs_input_grad[1:]) if needed]
            saved = Saved(self, ctx)
            if _wants_graph():
                found = self._through_reference(saved.inputs(), grad, wanted)
            else:
                if saved.others[self._reduction_at] == "mean":
                    grad = grad * saved.tensors[self._rescale_at]
                found = self.gradients(saved, grad, wanted)
        return (None, *[found.get(name) for name in self.names], None)

    def gradients(self, saved: Saved, grad: Tensor, wanted: list[str]) -> Gradients:
        """The wanted gradients; `grad` is that of the rows' losses, [B] or one number for all."""
        return self.scaled(saved, grad, wanted)

    def scaled(self, saved: Saved, grad: Tensor, wanted: list[str]) -> Gradients:
        """The rows' own gradients times grad, in the dtypes of their inputs."""
        found: Gradients = {}
        overwrite = may_overwrite()
        own: list[Tensor] = []
        others: dict[torch.dtype, list[str]] = {}
        for name in wanted:
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
        for dtype, names in others.items():
            found.update(zip(names, torch.ops.cw_ext.scale_rows([found[name] for name in names], grad, dtype)))
        return found

    def _through_reference(self, inputs: Any, grad: Tensor, wanted: list[str]) -> Gradients:
        """The wanted gradients, with a graph of their own."""
        arguments = dict(zip(self.names, self.arguments(inputs)))
        of = [arguments[name] for name in wanted]

        def loss(*values: Tensor) -> Tensor:
            given = arguments | dict(zip(wanted, values))
            return self.by_reference(self.inputs(list(given.values())))[0]

        if torch._C._are_functorch_transforms_active():  # where torch.autograd.grad does not see a vmapped grad
            found = torch.func.vjp(loss, *of)[1](grad)
        else:
            with torch.enable_grad():
                found = torch.autograd.grad(loss(*of), of, grad, create_graph=True, allow_unused=True)
        return dict(zip(wanted, found))

    def vmap(self, info: Any, in_dims: Sequence[Any], arguments: Sequence[Any]) -> tuple[Any, Any]:
        raise NotImplementedError(checks.NO_VMAP)


class OpFunction(torch.autograd.Function):
    """Its arguments are an op, that op's, and what is wanted for backward."""

    @staticmethod
    def forward(op: Op, *arguments: Any) -> tuple[Tensor, ...]:
        return op.forward(None, arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.op = inputs[0]
        ctx.op.save(ctx, inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        return ctx.op.backward(ctx, grad)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], op: Op, *arguments: Any) -> tuple[Any, Any]:
        return op.vmap(info, in_dims[1:], arguments)


class _Direct(torch.autograd.Function):
    """The same without a setup_context, for which apply() works out forward's signature at each call."""

    @staticmethod
    def forward(ctx: Any, op: Op, *arguments: Any) -> tuple[Tensor, ...]:
        ctx.op = op
        return op.forward(ctx, arguments)

    backward = OpFunction.backward

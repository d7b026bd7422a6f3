"""The autograd.Function of an op, built from the descriptions in op_inputs.py.

The forward op returns each row's loss together with its gradient; backward multiplies that by grad_output row by row.
Saved tensors are only overwritten where autograd is about to free them, so a second backward sees the same numbers.
Under create_graph the gradient goes through the reference instead, which autograd can differentiate again. The
transforms of torch.func can be nested and always need that, so they do the same.

For a small batch, Python takes longer than the kernels. So the reduction is part of the op, which saves autograd nodes,
and everything that depends on the op alone is computed once, when it is described.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cw_ext import checks, extension, op_errors
from cw_ext.op_inputs import Layout, Losses
from cw_ext.row_values import RowValues
from cw_ext.sparse_rows import stay_coalesced

Gradients = dict[str, Tensor | None]

scale_in_place: Any = torch.ops.cw_ext.scale_rows_.default if extension.available() else None

# Whether the current backward pass keeps the graph for another one. Assumed if this torch cannot tell.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def may_overwrite() -> bool:
    """Whether the current backward pass may overwrite its saved tensors, because they are not used again."""
    return not torch.compiler.is_compiling() and not _keeps_graph()


def wants_graph() -> bool:
    """Whether the gradients need a graph, as they always do in torch.func's transforms."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


def _distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors without duplicates: under torch.compile a Function must not get a tensor twice."""
    found: list[Tensor] = []
    for tensor in tensors:
        again = any([tensor is other for other in found])
        found.append(tensor.view_as(tensor) if again else tensor)
    return found


def _together(others: Sequence[Any], places: Sequence[int], tensors: Sequence[Tensor]) -> list[Any]:
    """An op's arguments: the others, with the tensors put into their places."""
    arguments = [*others]
    for place, tensor in zip(places, tensors):
        arguments[place] = tensor
    return arguments


class Call(NamedTuple):
    """A call of an op, without its tensors."""

    op: Op
    wanted: Any
    others: list[Any]  # the op's arguments, with None in the places of its tensors
    places: tuple[int, ...]  # of its tensors


class Saved:
    """What a forward pass saved for backward."""

    __slots__ = ("computed", "op", "others", "places", "tensors", "wanted")

    def __init__(self, call: Call, saved: tuple[Tensor, ...]) -> None:
        self.op, self.wanted, self.others, self.places = call
        count = len(self.places)
        self.tensors: tuple[Tensor, ...] = saved[:count]
        self.computed: tuple[Tensor, ...] = saved[count:]

    @property
    def results(self) -> Any:
        return self.op.results(*self.computed)

    def arguments(self) -> Any:
        """The op's inputs by name, as it takes them."""
        return self.op.layout.named(*_together(self.others, self.places, self.tensors))

    def by_name(self) -> dict[str, Tensor]:
        """The tensors among them."""
        names = self.op.layout.names
        return {names[place]: tensor for place, tensor in zip(self.places, self.tensors)}


class Op:
    """An op with its gradients, which are found by the names of its arguments."""

    sparse_items = False  # whether the gradient of the items is sparse

    def __init__(
        self,
        name: str,
        layout: Layout[Any],
        results: type[Any],
        by_reference: Callable[[Any], Losses],
    ) -> None:
        """
        Args:
            name: the op is torch.ops.cw_ext.NAME.
            layout: the layout of its inputs.
            results: the type of what it returns after the losses.
            by_reference: computes the losses of the same inputs by the reference.
        """
        self.layout, self.results, self.by_reference = layout, results, by_reference
        self.op: Any = getattr(torch.ops.cw_ext, name).default if extension.available() else None
        self.only_scales = type(self).gradients is Op.gradients
        self.reduction_at = layout.names.index("reduction")
        self.rescale_at = results._fields.index("rescale")
        # For each argument: which result is its gradient of the rows' losses and, for a row value, which row of that.
        at = {name: place for place, name in enumerate(results._fields)}
        self._row_gradients: dict[str, tuple[int, int | None]] = {
            name: (at[f"d_{name}"], None) for name in layout.names if f"d_{name}" in at
        }
        for row, value in enumerate(RowValues._fields):
            self._row_gradients[f"{value}_rows"] = (at["d_row_values"], row)
        self._scaled_at = functools.lru_cache(maxsize=64)(self._find_scaled)

    def __call__(self, inputs: Any, *options: Any) -> tuple[Tensor, ...]:
        """The op's results, with gradients."""
        arguments = self.layout.flat(inputs)
        # A Function takes time for each of its arguments, so it only gets the tensors that are present.
        places = tuple([place for place in self.layout.tensors if arguments[place] is not None])
        tensors = [arguments[place] for place in places]
        needs_gradient = torch.is_grad_enabled() and True in [tensor.requires_grad for tensor in tensors]
        wanted = self.wanted(inputs, needs_gradient, *options)
        # torch.func's transforms and torch.compile need the setup_context.
        compiling, transformed = torch.compiler.is_compiling(), torch._C._are_functorch_transforms_active()
        if compiling and transformed:
            raise NotImplementedError(
                "torch.compile loses the kernels' gradients in torch.func's transforms: use backend='reference' there, "
                "or leave the transform out of the compiled code"
            )
        result: tuple[Tensor, ...]
        if compiling:
            if not needs_gradient:
                result = self.op(*arguments, *wanted)
            else:
                result = self._apply(wanted, arguments, places, tensors)
            return result
        try:
            if transformed:
                result = self._apply(wanted, arguments, places, tensors)
            elif not needs_gradient:
                result = self.op(*arguments, *wanted)
            else:
                tensors = [torch._C._functorch.unwrap_if_dead(tensor) for tensor in tensors]
                losses: list[Tensor] = []
                loss = _apply_directly(Call(self, wanted, arguments, places), losses, *tensors)
                result = (loss, *losses)
        except op_errors.RAISED as error:
            raise op_errors.restored(error) from None
        return result

    def _apply(
        self, wanted: Any, arguments: list[Any], places: tuple[int, ...], tensors: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        others = _together(arguments, places, [None] * len(places))  # type: ignore[list-item]
        result: tuple[Tensor, ...] = OpFunction.apply(self, wanted, others, places, *_distinct(tensors))  # type: ignore[no-untyped-call]
        return result

    def wanted(self, inputs: Any, needs_gradient: bool, *options: Any) -> Any:
        """The op's arguments after its inputs."""
        raise NotImplementedError

    def gradients(self, saved: Saved, grad: Tensor, needed: dict[str, Tensor]) -> Gradients:
        """The gradients of these arguments; `grad` is that of the rows' losses, [B] or one number for all."""
        return self.scaled(saved, grad, needed)

    def scaled(self, saved: Saved, grad: Tensor, needed: dict[str, Tensor]) -> Gradients:
        """The rows' own gradients times grad, in the dtypes of the arguments that they belong to."""
        gradients = [self._of_rows(saved.computed, *self._row_gradients[name]) for name in needed]
        return dict(zip(needed, _scaled(gradients, [*needed.values()], grad, None)))

    def all_scaled(self, saved: Saved, grad: Tensor, needs: tuple[bool, ...]) -> list[Tensor | None]:
        """The gradients of all tensors, if these are the rows' own gradients scaled. Faster than by name."""
        found: list[Tensor | None] = [None] * len(needs)
        scaled_at = self._scaled_at(saved.places, needs)
        gradients = [self._of_rows(saved.computed, at, row) for _, at, row in scaled_at]
        like = [saved.tensors[place] for place, _, _ in scaled_at]
        rescale = saved.computed[self.rescale_at] if saved.others[self.reduction_at] == "mean" else None
        for (place, _, _), gradient in zip(scaled_at, _scaled(gradients, like, grad, rescale)):
            found[place] = gradient
        return found

    def _find_scaled(self, places: tuple[int, ...], needs: tuple[bool, ...]) -> list[tuple[int, int, int | None]]:
        """For each tensor that needs a gradient: its number, and where its gradient is."""
        names = [self.layout.names[place] for place in places]
        return [(i, *self._row_gradients[name]) for i, name in enumerate(names) if needs[i]]

    @staticmethod
    def _of_rows(computed: tuple[Tensor, ...], at: int, row: int | None) -> Tensor:
        return computed[at] if row is None else computed[at][row]

    def through_reference(self, saved: Saved, grad: Tensor, needed: dict[str, Tensor]) -> Gradients:
        """The gradients of these arguments, with a graph of their own."""
        tensors, of = saved.by_name(), [*needed.values()]

        def loss(*values: Tensor) -> Tensor:
            given = tensors | dict(zip(needed, values))
            arguments = _together(saved.others, saved.places, [*given.values()])
            return self.by_reference(self.layout.rebuilt(arguments)).loss

        if torch._C._are_functorch_transforms_active():  # where torch.autograd.grad does not see a vmapped grad
            found = torch.func.vjp(loss, *of)[1](grad)
        else:
            with torch.enable_grad():
                # Views, since one input may have been computed from another, such as queries from items. The gradient
                # of items would then include the part that flows through the queries, and count it twice.
                of = [x.view_as(x) for x in of]
                found = torch.autograd.grad(loss(*of), of, grad, create_graph=True, allow_unused=True)
        return dict(zip(needed, found))

    def vmap(self, samples: int, in_dims: Sequence[Any], tensors: Sequence[Any], together: Callable[..., Any]) -> Any:
        """The Function's vmap rule; together(tensors) are the inputs with these tensors."""
        raise NotImplementedError(checks.NO_VMAP)


def _scaled(gradients: list[Tensor], like: Sequence[Tensor], grad: Tensor, rescale: Tensor | None) -> list[Tensor]:
    """These gradients times grad and `rescale`, each in the dtype of its tensor in `like`."""
    overwrite = may_overwrite()
    own: list[Tensor] = []
    others: dict[torch.dtype, list[int]] = {}
    for i, gradient in enumerate(gradients):
        dtype = like[i].dtype
        if overwrite and gradient.dtype == dtype:
            own.append(gradient)
        else:
            others.setdefault(dtype, []).append(i)
    if own:
        # In place: allocating fresh memory takes longer than the multiplication.
        scale_in_place(own, grad, rescale)
    if others and rescale is not None:
        grad = grad * rescale
    for dtype, alike in others.items():
        for i, scaled in zip(alike, torch.ops.cw_ext.scale_rows([gradients[i] for i in alike], grad, dtype)):
            gradients[i] = scaled
    return gradients


def gradients_of(
    ctx: Any, call: Call, tensors: tuple[Tensor, ...], grad: Tensor | None, needs: tuple[bool, ...]
) -> Sequence[Tensor | None]:
    """Of the op's tensors, from those that were saved."""
    if grad is None:
        return [None] * len(needs)
    op, saved, with_graph = call.op, Saved(call, tensors), wants_graph()
    if op.only_scales and not with_graph and not torch.compiler.is_compiling():
        return op.all_scaled(saved, grad, needs)
    names = [op.layout.names[place] for place in call.places]
    needed = dict(compress(zip(names, saved.tensors), needs))
    if with_graph:
        found = op.through_reference(saved, grad, needed)
    else:
        if saved.others[op.reduction_at] == "mean":
            grad = grad * saved.computed[op.rescale_at]
        found = op.gradients(saved, grad, needed)
        items = found.get("items") if op.sparse_items else None
        if items is not None:
            ctx.kept = stay_coalesced(items, ctx.next_functions[names.index("items")][0])
    return [*map(found.get, names)]


class OpFunction(torch.autograd.Function):
    """The autograd.Function of any op. Its arguments are the op, what is wanted for backward, the op's arguments
    without its tensors, the places of the tensors, and the tensors.
    """

    @staticmethod
    def forward(
        op: Op, wanted: Any, others: list[Any], places: tuple[int, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = op.op(*_together(others, places, tensors), *wanted)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        op, wanted, others, places, *tensors = inputs
        ctx.op, ctx.wanted, ctx.others, ctx.places = op, wanted, others, places
        ctx.mark_non_differentiable(*[x for x in output[1:] if x is not None])
        ctx.set_materialize_grads(False)
        # All tensors: if a seed or ids are written to before backward, it would silently draw others.
        ctx.save_for_backward(*tensors, *output[len(Losses._fields) :])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        call = Call(ctx.op, ctx.wanted, ctx.others, ctx.places)
        return (None, None, None, None, *gradients_of(ctx, call, ctx.saved_tensors, grad, ctx.needs_input_grad[4:]))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        op, _, others, places, *tensors = arguments

        def together(tensors: Sequence[Tensor]) -> Any:
            return op.layout.rebuilt(_together(others, places, tensors))

        found: tuple[Any, Any] = op.vmap(info.batch_size, in_dims[4:], tensors, together)
        return found


class _Direct(torch.autograd.Function):
    """The same for eager mode, where every step takes time: apply() inspects forward's signature if there is a
    setup_context, and every input and output becomes part of the graph. So there is no setup_context here, and only the
    tensors and the loss are in the graph. The other losses' results are appended to a list.
    """

    @staticmethod
    def forward(ctx: Any, call: Call, losses: list[Tensor], *tensors: Tensor) -> Tensor:
        op, wanted, arguments, places = ctx.call = call
        loss: Tensor
        loss, live, above, *rest = op.op(*arguments, *wanted)
        for place in places:
            arguments[place] = None  # they are saved as such
        losses += (live, above)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *rest)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        try:
            return (None, None, *gradients_of(ctx, ctx.call, ctx.saved_tensors, grad, ctx.needs_input_grad[2:]))
        except op_errors.RAISED as error:
            raise op_errors.restored(error) from None


# What Function.apply does outside torch.func's transforms, without inspecting each argument.
_apply_directly: Callable[..., Tensor] = super(torch.autograd.Function, _Direct).apply

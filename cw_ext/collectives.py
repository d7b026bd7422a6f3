"""Rows that the processes of a group exchange, with gradients. The engine is torch.distributed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from cw_ext import checks
from cw_ext.compiling import uncompiled
from cw_ext.together import number_of, raise_in_all

if TYPE_CHECKING:
    ProcessGroup: TypeAlias = dist.ProcessGroup
else:
    ProcessGroup = Any  # a torch without the distributed package has no such name

# torch 2.13 has other names for these two, and warns of the ones from before.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)
# More rows than a process has.
_ROWS_APART = 2**40


def check_process_group(process_group: ProcessGroup) -> None:
    """A group that this process belongs to."""
    not_in_it: object = dist.is_available() and dist.GroupMember.NON_GROUP_MEMBER  # new_group()'s result in the others
    if not_in_it and process_group == not_in_it:
        raise ValueError("process_group must contain this process, got a group without it")
    if not dist.is_available() or not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup, such as torch.distributed.group.WORLD after "
            f"init_process_group(), got {type(process_group).__name__}"
        )


class Parts:
    """How many rows each process of a group has.

    Attributes:
        sizes: by rank.
        rank, world: this process's place in the group, and the number of processes.
        first: where its rows begin among those of all, in the order of the ranks.
    """

    def __init__(self, group: ProcessGroup, sizes: Sequence[int]) -> None:
        self.group = group
        self.sizes = [*sizes]
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self.first = sum(self.sizes[: self.rank])

    @property
    def total(self) -> int:
        return sum(self.sizes)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows [B, ...] of all processes, [ΣB, ...], in the order of the ranks; without gradients."""
        longest = max(self.sizes)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        found = rows.new_empty((self.world, *padded.shape))
        # What has no elements is not sent: not every backend takes it.
        if padded.numel():
            _all_gather(found.flatten(0, 1), padded, group=self.group)
        if min(self.sizes) == longest:
            return found.flatten(0, 1)
        return torch.cat([part[:size] for part, size in zip(found, self.sizes)])

    def scatter(self, rows: Tensor) -> Tensor:
        """Of rows [ΣB, ...], the sum over the processes for this process's own rows, [B, ...]."""
        longest = max(self.sizes)
        if min(self.sizes) == longest:
            padded = rows.contiguous()
        else:
            padded = rows.new_zeros((self.world, longest, *rows.shape[1:]))
            for part, own in zip(padded, rows.split(self.sizes)):
                part[: len(own)] = own
            padded = padded.flatten(0, 1)
        found = rows.new_empty((longest, *rows.shape[1:]))
        if found.numel():
            _reduce_scatter(found, padded, group=self.group)
        return found[: self.sizes[self.rank]]

    def start_to_pass_on(self, tensors: Sequence[Tensor], owner: int) -> tuple[list[Tensor], list[Any]]:
        """Begin to send tensors, the rows of process `owner`, to the next process, and to receive the last one's.

        Returns:
            (what is received, which must be waited for)
        """
        before = (owner - 1) % self.world  # whose rows come from the last process
        received = [x.new_empty((self.sizes[before], *x.shape[1:])) for x in tensors]
        there = dist.get_global_rank(self.group, (self.rank + 1) % self.world)
        here = dist.get_global_rank(self.group, (self.rank - 1) % self.world)
        sent = [dist.P2POp(dist.isend, x.contiguous(), there, self.group) for x in tensors if x.numel()]
        got = [dist.P2POp(dist.irecv, x, here, self.group) for x in received if x.numel()]
        return received, dist.batch_isend_irecv([*sent, *got]) if sent or got else []

    def pass_on(self, tensors: Sequence[Tensor], owner: int) -> list[Tensor]:
        """The same, waiting for it."""
        received, waiting = self.start_to_pass_on(tensors, owner)
        for work in waiting:
            work.wait()
        return received

    def around(self, tensors: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """(owner, its tensors) for each process, this one first; while a part is used the next one travels."""
        owner, current = self.rank, [*tensors]
        for step in range(self.world):
            received, waiting = ([], []) if step == self.world - 1 else self.start_to_pass_on(current, owner)
            yield owner, current
            for work in waiting:
                work.wait()
            owner, current = (owner - 1) % self.world, received


class _Gathered(torch.autograd.Function):
    """Parts.gather; its gradient is Parts.scatter."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        return parts.gather(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Scattered.apply(grad, ctx.parts), None  # type: ignore[no-untyped-call]


class _Scattered(torch.autograd.Function):
    """Parts.scatter; its gradient is Parts.gather."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        return parts.scatter(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Gathered.apply(grad, ctx.parts), None  # type: ignore[no-untyped-call]


class _Summed(torch.autograd.Function):
    """The sum over the processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        value = value.clone()
        dist.all_reduce(value, group=group)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Summed.apply(grad, ctx.group), None  # type: ignore[no-untyped-call]


def gathered(rows: Tensor, parts: Parts, gradients: bool) -> Tensor:
    """The rows of all processes, [ΣB, ...]; see :func:`gather_rows`."""
    if gradients and rows.requires_grad and torch.is_grad_enabled():
        found: Tensor = _Gathered.apply(rows, parts)  # type: ignore[no-untyped-call]
        return found
    others = parts.gather(rows.detach())
    if not rows.requires_grad:
        return others
    return torch.cat([others[: parts.first], rows, others[parts.first + len(rows) :]])


def sum_over_processes(value: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of a tensor over the processes."""
    if value.requires_grad and torch.is_grad_enabled():
        found: Tensor = _Summed.apply(value, group)  # type: ignore[no-untyped-call]
        return found
    value = value.detach().clone()
    dist.all_reduce(value, group=group)
    return value


def tell_all(numbers: Sequence[float], device: torch.device, group: ProcessGroup) -> list[list[float]]:
    """The numbers of each process, by rank; waits for all of them."""
    own = torch.tensor([numbers], dtype=torch.float64, device=device)
    found = own.new_empty((dist.get_world_size(group), len(numbers)))
    _all_gather(found, own, group=group)
    told: list[list[float]] = found.tolist()
    return told


@uncompiled
def gather_rows(rows: Tensor, process_group: ProcessGroup, *, gradients: bool = True) -> tuple[Tensor, int]:
    """The rows of all processes of a group, in the order of the ranks. All of them must call this together.

    Args:
        rows: [B, ...], with the same dtype and, but for B ≥ 0, the same shape on each process.
        process_group: such as torch.distributed.group.WORLD.
        gradients: send the gradients of the other processes' rows back to them, and add what they send (a
            reduce-scatter in backward, which all processes must run, or none). Without, each process's rows get the
            gradient of its own loss alone, and backward sends nothing.

    Returns:
        (rows [ΣB, ...], first): this process's rows are rows[first : first + B].

    Raises:
        TypeError, ValueError: the message contains the argument, what was expected and what came.
    """
    check_process_group(process_group)
    error, shape, with_gradient = None, "", False
    try:
        checks.is_tensor("rows", rows)
        checks.flag("gradients", gradients)
        if rows.dim() == 0:
            raise ValueError("rows must have at least one dimension, got a tensor of shape ()")
        shape = ", ".join(["B", *map(str, rows.shape[1:])])
        with_gradient = gradients and rows.requires_grad and torch.is_grad_enabled()
    except (TypeError, ValueError) as caught:
        error = caught
    device = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
    own = [len(rows), hash_of(shape, rows.dtype, with_gradient)] if error is None else [number_of(error), 0]
    told = tell_all(own, device, process_group)
    raise_in_all(error, [int(size) for size, _ in told])
    if any(other[1] != told[0][1] for other in told):
        raise ValueError(
            "rows must have the same shape and dtype, and require a gradient, on all processes or on none, got here "
            f"[{shape}] in {rows.dtype}, {'with' if with_gradient else 'without'} a gradient"
        )
    parts = Parts(process_group, [int(size) for size, _ in told])
    return gathered(rows, parts, gradients), parts.first


def hash_of(*values: object) -> float:
    """A number that differs where the text of the values does, the same in every process."""
    number = 0
    for byte in repr(values).encode():
        number = (number * 257 + byte) % (2**31 - 1)
    return float(number)


def row_numbers(count: int, process_group: ProcessGroup, device: torch.device | str | None = None) -> Tensor:
    """Numbers that no other process of a group has: `item_ids` for rows that have no id in a catalogue.

    Args:
        count: how many, in [0, 2^40]. They are the same at each call.
        process_group: such as torch.distributed.group.WORLD.
        device: of the result.

    Returns:
        int64 [count].

    Raises:
        TypeError, ValueError: the message contains the argument, what was expected and what came.
    """
    checks.whole_number("count", count, 0, _ROWS_APART)
    check_process_group(process_group)
    return dist.get_rank(process_group) * _ROWS_APART + torch.arange(count, device=device)

"""Exchange rows between the processes of a group, with gradients, by torch.distributed."""

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
    ProcessGroup = Any  # a torch without torch.distributed has no such class

# torch 2.13 renamed these two, and warns about the old names.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)
# More rows than any process has.
_ROWS_APART = 2**40


def check_process_group(process_group: ProcessGroup) -> None:
    """Check that it is a group and that this process belongs to it."""
    not_in_it: object = dist.is_available() and dist.GroupMember.NON_GROUP_MEMBER  # new_group()'s result for others
    if not_in_it and process_group == not_in_it:
        raise ValueError("process_group must contain this process, got a group without it")
    if not dist.is_available() or not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup, such as torch.distributed.group.WORLD after "
            f"init_process_group(), got {type(process_group).__name__}"
        )


class Parts:
    """The number of rows that each process of a group has.

    Attributes:
        sizes: by rank.
        rank, world: this process's rank in the group, and the number of processes.
        first: the place of its first row among the rows of all processes, in the order of the ranks.
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
        """Gather the rows [B, ...] of all processes, [ΣB, ...], in the order of the ranks, without gradients."""
        longest = max(self.sizes)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        found = rows.new_empty((self.world, *padded.shape))
        # Tensors without elements are not sent: not every backend accepts them.
        if padded.numel():
            _all_gather(found.flatten(0, 1), padded, group=self.group)
        if min(self.sizes) == longest:
            return found.flatten(0, 1)
        return torch.cat([part[:size] for part, size in zip(found, self.sizes)])

    def scatter(self, rows: Tensor) -> Tensor:
        """The sum over the processes of rows [ΣB, ...], but only of this process's rows, [B, ...]."""
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
        """Start to send tensors, the rows of process `owner`, to the next process, and to receive from the one before.

        Returns:
            (the tensors that are received, what to wait for before using them)
        """
        before = (owner - 1) % self.world  # the owner of the rows that come from the previous process
        received = [x.new_empty((self.sizes[before], *x.shape[1:])) for x in tensors]
        there = dist.get_global_rank(self.group, (self.rank + 1) % self.world)
        here = dist.get_global_rank(self.group, (self.rank - 1) % self.world)
        sent = [dist.P2POp(dist.isend, x.contiguous(), there, self.group) for x in tensors if x.numel()]
        got = [dist.P2POp(dist.irecv, x, here, self.group) for x in received if x.numel()]
        return received, dist.batch_isend_irecv([*sent, *got]) if sent or got else []

    def pass_on(self, tensors: Sequence[Tensor], owner: int) -> list[Tensor]:
        """The same, and wait for it."""
        received, waiting = self.start_to_pass_on(tensors, owner)
        for work in waiting:
            work.wait()
        return received

    def around(self, tensors: Sequence[Tensor]) -> Iterator[tuple[int, list[Tensor]]]:
        """(owner, its tensors) for each process, this one first. While a part is used, the next one is on its way."""
        owner, current = self.rank, [*tensors]
        for step in range(self.world):
            received, waiting = ([], []) if step == self.world - 1 else self.start_to_pass_on(current, owner)
            yield owner, current
            for work in waiting:
                work.wait()
            owner, current = (owner - 1) % self.world, received


class _Gathered(torch.autograd.Function):
    """Parts.gather, whose gradient is Parts.scatter."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        return parts.gather(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Scattered.apply(grad, ctx.parts), None  # type: ignore[no-untyped-call]


class _Scattered(torch.autograd.Function):
    """Parts.scatter, whose gradient is Parts.gather."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, parts: Parts) -> Tensor:
        ctx.parts = parts
        return parts.scatter(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Gathered.apply(grad, ctx.parts), None  # type: ignore[no-untyped-call]


class _Summed(torch.autograd.Function):
    """The sum over the processes. Its gradient is such a sum, too."""

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
    """The numbers of each process, by rank. Waits for all processes."""
    own = torch.tensor([numbers], dtype=torch.float64, device=device)
    found = own.new_empty((dist.get_world_size(group), len(numbers)))
    _all_gather(found, own, group=group)
    told: list[list[float]] = found.tolist()
    return told


@uncompiled
def gather_rows(rows: Tensor, process_group: ProcessGroup, *, gradients: bool = True) -> tuple[Tensor, int]:
    """Gather the rows of all processes of a group, in the order of the ranks. All must call this together.

    >>> import torch
    >>> import torch.distributed as dist
    >>> from cw_ext.distributed import gather_rows
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun starts more
    >>> vectors, first = gather_rows(torch.ones(3, 8), dist.group.WORLD)
    >>> vectors.shape, first  # with more processes, the sum of their rows
    (torch.Size([3, 8]), 0)
    >>> dist.destroy_process_group()

    Args:
        rows: [B, ...], B ≥ 0. The dtype and the other dimensions must be the same on all processes.
        process_group: for example torch.distributed.group.WORLD.
        gradients: send the gradients of the other processes' rows back to them, and add the gradients they send. This
            is a reduce-scatter in backward, which all processes must run, or none. If False, the rows get only the
            gradient of their own process's loss, and backward sends nothing.

    Returns:
        (rows [ΣB, ...], first): the rows of all processes. This process's are rows[first : first + B].

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
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
            "rows must have the same shape and dtype, and require a gradient, in all processes or in none, got "
            f"[{shape}] in {rows.dtype}, {'with' if with_gradient else 'without'} a gradient, in this one"
        )
    parts = Parts(process_group, [int(size) for size, _ in told])
    return gathered(rows, parts, gradients), parts.first


def hash_of(*values: object) -> float:
    """A number that differs if the text of the values differs, the same on every process."""
    number = 0
    for byte in repr(values).encode():
        number = (number * 257 + byte) % (2**31 - 1)
    return float(number)


def row_numbers(count: int, process_group: ProcessGroup, device: torch.device | str | None = None) -> Tensor:
    """Numbers that no other process of a group has, as `item_ids` for rows without an id in a catalogue.

    Don't use torch.arange for such rows: it gives the same numbers on all processes, and rows with the same number
    count as the same item.

    >>> import torch.distributed as dist
    >>> from cw_ext.distributed import row_numbers
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun starts more
    >>> row_numbers(3, dist.group.WORLD)
    tensor([0, 1, 2])
    >>> dist.destroy_process_group()

    Args:
        count: how many, in [0, 2^40]. Each call returns the same numbers.
        process_group: for example torch.distributed.group.WORLD.
        device: of the result.

    Returns:
        int64 [count].

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got.
    """
    checks.whole_number("count", count, 0, _ROWS_APART)
    check_process_group(process_group)
    return dist.get_rank(process_group) * _ROWS_APART + torch.arange(count, device=device)

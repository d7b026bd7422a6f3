"""An embedding table that is too large for one process: each process of a group holds a part of its rows."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F

from cw_ext import checks
from cw_ext.collectives import ProcessGroup, check_process_group, hash_of, tell_all
from cw_ext.compiling import uncompiled
from cw_ext.negative_sampling import seed_tensor
from cw_ext.together import number_of, raise_in_all


def distinct_ids(*ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Find the distinct ids of some tensors, and each id's place among them.

    Use it to fetch each row of a table of another library only once.

    >>> import torch
    >>> from cw_ext.distributed import distinct_ids
    >>> distinct, (pos, neg) = distinct_ids(torch.tensor([7, 2]), torch.tensor([[7, 5], [-1, 2]]))
    >>> distinct.tolist(), pos.tolist(), neg.tolist()
    ([2, 5, 7], [2, 0], [[2, 1], [-1, 0]])

    Args:
        ids: integer tensors of any shapes; −1 is padding.

    Returns:
        (distinct, places): the distinct ids [U] in increasing order, without −1, and for each tensor the places of its
        ids among them (−1 stays −1), all int64.
    """
    # By sorting. One flag per table row, as on one machine, would be as long as the whole table.
    distinct, places = torch.unique(torch.cat([t.reshape(-1) for t in ids]), return_inverse=True)
    padding = int((distinct == -1).sum())
    parts = (places - padding).split([t.numel() for t in ids])
    return distinct[padding:].long(), tuple(part.view(t.shape) for part, t in zip(parts, ids))


class _Exchanged(torch.autograd.Function):
    """Each process sends rows to each other process. Backward returns their gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, received: list[int], sent: list[int], group: ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = (sent, received), group
        found: Tensor = collectives.wait_tensor(collectives.all_to_all_single(rows.contiguous(), received, sent, group))
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Exchanged.apply(grad, *ctx.sizes, ctx.group), None, None, None  # type: ignore[no-untyped-call]


class RowShardedTable(nn.Module):
    """An embedding table [I, D] that is split over R processes. Each holds ⌈I/R⌉ rows, in the order of the ranks.

    A process fetches each row that it needs once. It sends the ids to the processes that hold the rows, and receives
    the rows. Backward sends the gradients the same way as the ids, with torch.distributed's all-to-all.

    >>> import torch
    >>> import torch.distributed as dist
    >>> from cw_ext.distributed import RowShardedTable
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # torchrun starts more
    >>> table = RowShardedTable(300, 16)
    >>> ids = torch.tensor([[3, 299], [3, 7]])
    >>> rows, (places,) = table(ids)  # the distinct rows [3, 16], and where each id's row is
    >>> rows[places].shape  # as from an nn.Embedding
    torch.Size([2, 2, 16])
    >>> dist.destroy_process_group()

    Gradients are means over the processes, as with DistributedDataParallel. You can use the table next to a model under
    DistributedDataParallel, but not inside it: it would overwrite all parts with the rows of the first process.

    The optimizer works on `weight`, this process's rows, so its state is split in the same way. Use SparseAdam, or with
    sparse=False any optimizer that updates each number or each row independently. Don't clip by a norm over all
    gradients: torch's `clip_grad_norm_` sees only this process's rows, and would scale the shared parameters by a
    different factor on each process. :func:`save_checkpoint` saves the table and the optimizer's state; state_dict()
    has only this process's rows. Inside torch.compile, the table and its communication run uncompiled.

    Attributes:
        weight: this process's rows, [≤ ⌈I/R⌉, D], which are rows first to first + len(weight) of the table.
        first: the table's row at the start of `weight`.
        num_rows: the rows of the whole table, I.
        dim: the columns, D.
        process_group: the group.
    """

    def __init__(
        self,
        num_rows: int,
        dim: int,
        *,
        process_group: ProcessGroup | None = None,
        sparse: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Fill this process's rows with numbers from N(0, 1). They depend on torch's seed and on the process.

        All processes of the group must call this together.

        Args:
            num_rows: I ≥ 1, the same on all processes.
            dim: D ≥ 1, the same on all processes.
            process_group: the processes that hold the table. None is the default group of all processes.
            sparse: give `weight` a sparse gradient, so that rows that are not in the batch cost nothing in a step.
            dtype, device: of the table. None is torch's default.

        Raises:
            TypeError, ValueError: an argument is invalid, or torch.distributed.init_process_group() has not been
                called. The message names the argument, what was expected, and what it got.
        """
        super().__init__()
        group = dist.distributed_c10d._get_default_group() if process_group is None else process_group
        check_process_group(group)
        error, alike = None, f"[{num_rows}, {dim}] with dtype={dtype or torch.get_default_dtype()}, sparse={sparse}"
        try:
            checks.whole_number("num_rows", num_rows, 1)
            checks.whole_number("dim", dim, 1)
            checks.flag("sparse", sparse)
            number = 0
        except (TypeError, ValueError) as caught:
            error, number = caught, number_of(caught)
        of_all = tell_all([number, hash_of(alike)], torch.empty(0, device=device).device, group)
        raise_in_all(error, [int(number) for number, _ in of_all])
        for rank, (_, other) in enumerate(of_all):
            if other != of_all[dist.get_rank(group)][1]:
                raise ValueError(
                    "num_rows, dim, dtype and sparse must be the same in all processes, "
                    f"got {alike} here and other values in process {rank}"
                )
        self.process_group, self.sparse = group, sparse
        self.num_rows, self.dim = num_rows, dim
        self.share = -(-num_rows // dist.get_world_size(group))
        self.first = min(self.share * dist.get_rank(group), num_rows)
        own = min(num_rows - self.first, self.share)
        self.weight = nn.Parameter(torch.empty(own, dim, dtype=dtype, device=device))
        generator = torch.Generator(self.weight.device)
        generator.manual_seed(int(seed_tensor(None, self.weight.device)))
        nn.init.normal_(self.weight, generator=generator)

    def __deepcopy__(self, memo: dict[int, Any]) -> RowShardedTable:
        """Keep the group, which cannot be copied. Averaged models need this."""
        memo[id(self.process_group)] = self.process_group
        copied = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def extra_repr(self) -> str:
        last = self.first + len(self.weight)
        return f"{self.num_rows}, {self.dim}, sparse={self.sparse}, holds rows {self.first} to {last}"

    @uncompiled
    def forward(self, *ids: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Fetch the rows of these ids. All processes must call this, and backward, together.

        Args:
            ids: int32 or int64 tensors of any shapes on the table's device, in [0, I) or −1 for padding.

        Returns:
            (rows [U, D], places): the distinct rows, and for each tensor of ids the place of each id's row among them,
            int64 (−1 stays −1).

        Raises:
            IndexError, TypeError, ValueError: an id is out of range, or an argument does not hold ids. If one process
                raises, all do. The message of the process with the invalid ids names the id.
            RuntimeError: the table is inside a module that DistributedDataParallel wraps.
        """
        world, error = dist.get_world_size(self.process_group), None
        try:
            distinct, places = self._checked(ids)
            # Increasing ids are already in the order of the processes that hold them.
            counts = torch.bincount(distinct // self.share, minlength=world)
        except (IndexError, RuntimeError, TypeError, ValueError) as caught:
            error = caught
            counts = torch.full((world,), number_of(error), device=self.weight.device)
        asked = collectives.all_to_all_single(counts, None, None, self.process_group)
        others = asked.tolist()  # how many rows each process asks for
        raise_in_all(error, others)
        mine = counts.tolist()
        wanted = collectives.all_to_all_single(distinct, others, mine, self.process_group)
        rows = F.embedding(wanted - self.first, self.weight, sparse=self.sparse)
        rows = _Exchanged.apply(rows, mine, others, self.process_group)  # type: ignore[no-untyped-call]
        if rows.requires_grad:
            rows.register_hook(lambda gradient: gradient / world)
        return rows, places

    def _checked(self, ids: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """distinct_ids(), after checking that the table has all of them."""
        # DistributedDataParallel has no public sign of being in its forward.
        around = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
        if around is not None and any(parameter is self.weight for parameter in around._module_parameters):
            raise RuntimeError(
                "a RowShardedTable must be outside of the module that DistributedDataParallel wraps, got one inside: "
                "all parts now hold the rows of the first process"
            )
        if not ids:
            raise ValueError("ids must be at least one tensor, got none")
        for tensor in ids:
            checks.has_dtype("ids", tensor, checks.INTEGER)
            checks.matches("ids", tensor, "weight", self.weight, dtype=False)
        distinct, places = distinct_ids(*ids)
        for id_ in distinct[[0, -1]].tolist() if len(distinct) else []:
            if not 0 <= id_ < self.num_rows:
                raise IndexError(f"ids must be in [0, {self.num_rows}), or −1 for padding, got {id_}")
        return distinct, places

    def whole(self, rows: Tensor | None = None) -> DTensor:
        """The whole table [I, D] as a DTensor. It shares the table's memory and has no gradients.

        `table.whole().full_tensor()` returns the table as one tensor. All processes must call it.

        Args:
            rows: another tensor that is split like the table, with the shape of `weight`: its gradient, or the state of
                an optimizer.
        """
        rows = self.weight if rows is None else rows
        mesh = DeviceMesh.from_group(self.process_group, self.weight.device.type)
        shape = torch.Size((self.num_rows, self.dim))
        return DTensor.from_local(rows.detach(), mesh, [Shard(0)], shape=shape, stride=(self.dim, 1), run_check=False)

"""An embedding table that is too large for one process: its rows are spread over a group."""

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
    """Number the distinct ids of some tensors.

    Args:
        ids: integer tensors of any shapes; −1 is padding.

    Returns:
        The distinct ids [U] in increasing order, without −1, and each tensor with the places of its ids among them
        (−1 stays −1), int64.
    """
    # By sorting: flags per table row, as for a table on one machine, would be as long as the whole table.
    distinct, places = torch.unique(torch.cat([t.reshape(-1) for t in ids]), return_inverse=True)
    padding = int((distinct == -1).sum())
    parts = (places - padding).split([t.numel() for t in ids])
    return distinct[padding:].long(), tuple(part.view(t.shape) for part, t in zip(parts, ids))


class _Exchanged(torch.autograd.Function):
    """Rows that each process sends to each other one; their gradients go back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, received: list[int], sent: list[int], group: ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = (sent, received), group
        found: Tensor = collectives.wait_tensor(collectives.all_to_all_single(rows.contiguous(), received, sent, group))
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Exchanged.apply(grad, *ctx.sizes, ctx.group), None, None, None  # type: ignore[no-untyped-call]


class RowShardedTable(nn.Module):
    """An embedding table [I, D] of which each of R processes holds ⌈I/R⌉ rows, in the order of the ranks.

    A process fetches each row that it needs once: the ids go to the processes that hold the rows, the rows come back,
    and in backward their gradients go where the ids went, by torch.distributed's all-to-all. Gradients are means over
    the processes, as with DistributedDataParallel, which can be used beside the table, but not around it: it would
    overwrite all parts with those of the first process.

    The optimizer works on `weight`, the process's own rows, so that its state is spread alike: SparseAdam, or with
    sparse=False any that treats each number or each row by itself. A norm over all gradients is not such a thing:
    torch's clip_grad_norm_ sees this process's rows alone, and would scale what all processes have alike by another
    factor in each. To save table and state: :func:`save_checkpoint`. state_dict() has this process's rows only. Under
    torch.compile the table and what it sends run as they do without it.

    >>> rows, (places,) = table(ids)
    >>> vectors = rows[places]  # [*ids.shape, D], as of an nn.Embedding

    Attributes:
        weight: this process's own rows, [≤ ⌈I/R⌉, D]; rows first to first + len(weight) of the table.
        first: the row of the table that `weight` begins with.
        num_rows, dim: I and D.
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
        """Fill the process's own rows with numbers from N(0, 1), which follow torch's seed and differ by process.

        All processes of the group must call this together.

        Args:
            num_rows: I ≥ 1, the same in all processes.
            dim: D ≥ 1, the same in all processes.
            process_group: the processes that hold the table; None: the default group, of all.
            sparse: give `weight` a sparse gradient, so that a step costs nothing for rows that are not in the batch.
            dtype, device: of the table; torch's defaults if None.

        Raises:
            TypeError, ValueError: the message contains the argument, what was expected and what came; also where
                torch.distributed.init_process_group() has not been called.
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
                    f"got {alike} here and others in process {rank}"
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
        """With the same group, which cannot be copied: for averaged models."""
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
            (rows [U, D], places): the distinct rows, and where in them each id's row is (−1 stays −1), int64.

        Raises:
            IndexError, TypeError, ValueError: an id out of range, or what are no ids. All processes raise it if one
                does; the one whose ids are wrong names the id.
            RuntimeError: the table is part of a module that DistributedDataParallel wraps.
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
        others = asked.tolist()  # how many each process asks for
        raise_in_all(error, others)
        mine = counts.tolist()
        wanted = collectives.all_to_all_single(distinct, others, mine, self.process_group)
        rows = F.embedding(wanted - self.first, self.weight, sparse=self.sparse)
        rows = _Exchanged.apply(rows, mine, others, self.process_group)  # type: ignore[no-untyped-call]
        if rows.requires_grad:
            rows.register_hook(lambda gradient: gradient / world)
        return rows, places

    def _checked(self, ids: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """distinct_ids(), all of which the table has."""
        # That the process is in its forward, DistributedDataParallel tells no one else.
        around = getattr(nn.parallel.DistributedDataParallel, "_active_ddp_module", None)
        if around is not None and any(parameter is self.weight for parameter in around._module_parameters):
            raise RuntimeError(
                "a RowShardedTable must be beside what DistributedDataParallel wraps, got one inside, whose rows it "
                "has overwritten with those of the first process"
            )
        if not ids:
            raise ValueError("ids must be at least one tensor, got none")
        for tensor in ids:
            checks.has_dtype("ids", tensor, checks.INTEGER)
            checks.matches("ids", tensor, "weight", self.weight, dtype=False)
        distinct, places = distinct_ids(*ids)
        for id_ in distinct[[0, -1]].tolist() if len(distinct) else []:
            if not 0 <= id_ < self.num_rows:
                raise IndexError(f"ids must be -1 or in [0, {self.num_rows}), got {id_}")
        return distinct, places

    def whole(self, rows: Tensor | None = None) -> DTensor:
        """The table [I, D] of all processes as a DTensor, on the same memory and without gradients.

        `table.whole().full_tensor()`, which all processes call, is the table in one piece.

        Args:
            rows: what else is spread like the table, of the shape of `weight`: its gradient, an optimizer's state.
        """
        rows = self.weight if rows is None else rows
        mesh = DeviceMesh.from_group(self.process_group, self.weight.device.type)
        shape = torch.Size((self.num_rows, self.dim))
        return DTensor.from_local(rows.detach(), mesh, [Shard(0)], shape=shape, stride=(self.dim, 1), run_check=False)

"""Counts what a process sends, at the calls of torch.distributed."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SENT = ("sent_ids", "sent_forward", "sent_backward")


class SentBytes(TorchDispatchMode):
    """Bytes that this process sends to others: of integers, and of all else before and after backward begins.

    An all-reduce is counted as the reduce-scatter and the all-gather that it can be done with. A library may send more
    or less, as gloo does where it sends along trees.

    Attributes:
        phase: of the step, to be set by who runs it: "backward" or another one; None: nothing is counted.
        total: bytes by kind, see :data:`SENT`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase: str | None = None
        self.total: dict[str, int] = defaultdict(int)

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = op.name().partition("::")
        if self.phase is not None and space in ("c10d", "_c10d_functional"):
            self._count(name.split(".")[0], args)
        return op(*args, **(kwargs or {}))

    def _count(self, name: str, args: Any) -> None:
        others = dist.get_world_size() - 1
        if name == "all_to_all_single":
            tensor, _, splits, _ = args
            self._add(tensor, _bytes(tensor[:1]) * (sum(splits) - splits[dist.get_rank()]))
        elif name == "_allgather_base_":
            self._add(args[1], _bytes(args[1]) * others)
        elif name == "_reduce_scatter_base_":
            self._add(args[1], _bytes(args[0]) * others)
        elif name == "send":
            for tensor in args[0]:
                self._add(tensor, _bytes(tensor))
        elif name == "allreduce_":
            for tensor in args[0]:
                self._add(tensor, 2 * _bytes(tensor) * others // (others + 1))
        elif name not in ("recv_", "wait_tensor", "_wrap_tensor_autograd"):  # which send nothing
            raise NotImplementedError(f"how much {name} sends")

    def _add(self, tensor: Tensor, sent: int) -> None:
        if not tensor.dtype.is_floating_point:
            self.total["sent_ids"] += sent
        else:
            self.total["sent_backward" if self.phase == "backward" else "sent_forward"] += sent


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

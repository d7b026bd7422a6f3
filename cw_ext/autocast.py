"""How every form of the loss treats its inputs under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from cw_ext import checks
from cw_ext.compiling import has_autocast


def _autocasts(device: str) -> bool:
    return has_autocast(device) and torch.is_autocast_enabled(device)


def floating_input(name: str, value: Tensor) -> Tensor:
    """A floating-point tensor. Under autocast, half precision is cast once, to fp32, as for torch's own losses."""
    checks.has_dtype(name, value, checks.FLOATING)
    if value.dtype in (torch.float16, torch.bfloat16) and _autocasts(value.device.type):
        return value.float()
    return value


def without_autocast(device: str) -> AbstractContextManager[None]:
    return torch.autocast(device, enabled=False) if _autocasts(device) else nullcontext()

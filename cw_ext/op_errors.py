"""Errors of the ops, as Python exceptions.

An op on LibTorch's stable ABI cannot raise TypeError and, from torch 2.15 on, no ValueError. So the kernels put the
class at the front of the message (csrc/tensor.h), and callers of an op outside compiled code catch :data:`RAISED` and
raise :func:`restored`.
"""

from __future__ import annotations

import torch

RAISED = (ValueError, IndexError, RuntimeError)
_CLASSES: dict[str, type[Exception]] = {"ValueError": ValueError, "IndexError": IndexError, "TypeError": TypeError}


def restored(error: Exception) -> Exception:
    """The same error with the class that it had in the op."""
    message = str(error)
    name, colon, rest = message.partition(": ")
    if colon and name in _CLASSES:
        return _CLASSES[name](rest)
    if "CUDA out of memory" in message and not isinstance(error, torch.OutOfMemoryError):
        return torch.OutOfMemoryError(message)
    return error

"""The embeddings of a large batch, from an encoder whose activations fit only for a small one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from cw_ext import checks

Inputs = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]


def encode_in_micro_batches(encoder: Callable[..., Tensor], inputs: Inputs, micro_batch_size: int) -> Tensor:
    """Encode a batch in parts, and keep the activations of none: backward encodes each part again.

    A loss over all embeddings then has the gradients of the whole batch, as with gradient caching ("Scaling Deep
    Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983), and you call its `backward()` as
    usual. Memory holds the inputs, the embeddings and the activations of one part; the price is one more forward pass
    of the encoder. Each part runs under torch.utils.checkpoint, so that dropout is the same in both passes, under
    autocast too.

    An encoder that mixes the rows of its batch only sees the rows of one part, and sees them twice. Batch normalisation
    in training mode then normalises over each part, which differs from normalising over the batch, and updates its
    running statistics in both passes. Put it into eval mode, or use another normalisation.

    Under DistributedDataParallel, wrap the module whose forward() calls this function. You may also wrap the encoder if
    it has no buffers, or does not send them at each pass (forward_sync_buffers=False). Processes may have different
    numbers of parts.

    Args:
        encoder: a module or function. It is called as `encoder(x)` if `inputs` is a tensor, with the tensors as
            positional arguments if it is a tuple or list, and as keyword arguments if it is a mapping, such as a
            tokenizer's output; each time with at most `micro_batch_size` rows of each tensor. It returns [rows, ...],
            one row for each row that it was given. If your model returns something else, pass a function, such as
            ``lambda **x: model(**x).last_hidden_state[:, 0]``. An empty batch makes one call.
        inputs: one tensor [B, ...] or several, all with the same B ≥ 0, on the encoder's device. Only the random states
            of the CPU and of that device are restored for the second pass. The inputs get gradients too.
        micro_batch_size: ≥ 1. 1 takes the least memory, the largest that fits takes the least time.

    Returns:
        [B, ...], in the order of the inputs.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected, and what it got. Also for an encoder
            that does not return one row per row, or a DistributedDataParallel that would send buffers.

    Example:
        >>> import torch
        >>> from cw_ext import cw_loss_in_batch, encode_in_micro_batches
        >>> query_encoder = torch.nn.Linear(30, 16)
        >>> item_encoder = torch.nn.Linear(40, 16)
        >>> query_inputs = torch.randn(64, 30)
        >>> item_inputs = torch.randn(64, 40)
        >>> queries = encode_in_micro_batches(query_encoder, query_inputs, 8)
        >>> items = encode_in_micro_batches(item_encoder, item_inputs, 8)
        >>> ids = torch.arange(64)
        >>> loss = cw_loss_in_batch(queries, items, ids, log_q_correction=False)
        >>> loss.backward()
    """
    call, tensors = _call(encoder, inputs)
    checks.whole_number("micro_batch_size", micro_batch_size, 1)
    rows = _rows(inputs, tensors)
    encoded = []
    for start in range(0, max(rows, 1), int(micro_batch_size)):
        part = [tensor[start : start + int(micro_batch_size)] for tensor in tensors]
        # All by position: checkpoint looks there for the devices whose random state it must restore.
        encoded.append(checkpoint(call, *part, use_reentrant=False))
        _check_encoded(encoded[-1], part[0].shape[0])
    return torch.cat(encoded)


def _call(encoder: Callable[..., Tensor], inputs: Inputs) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A function of tensors by position, and the tensors."""
    if not callable(encoder):
        raise TypeError(f"encoder must be a module or function, got {type(encoder).__name__}")
    if isinstance(encoder, DistributedDataParallel) and encoder.broadcast_buffers and _has_buffers(encoder):
        raise ValueError(
            "encoder must not be a DistributedDataParallel that sends its buffers at each pass, as processes with "
            "different numbers of parts would wait for each other: make it with forward_sync_buffers=False "
            "(broadcast_buffers in older versions of torch), or wrap the module that calls encode_in_micro_batches; "
            "got one that sends them"
        )
    if isinstance(inputs, Tensor):
        return encoder, [inputs]
    if isinstance(inputs, Mapping):
        names = list(inputs)
        return lambda *tensors: encoder(**dict(zip(names, tensors, strict=True))), list(inputs.values())
    if isinstance(inputs, (tuple, list)):
        return encoder, list(inputs)
    raise TypeError(f"inputs must be a torch.Tensor, or a tuple, list or mapping of them, got {type(inputs).__name__}")


def _has_buffers(module: nn.Module) -> bool:
    return next(module.buffers(), None) is not None


def _named(inputs: Inputs, tensors: list[Tensor]) -> list[tuple[str, Tensor]]:
    """The tensors with their names for error messages."""
    if isinstance(inputs, Tensor):
        return [("inputs", inputs)]
    keys = inputs if isinstance(inputs, Mapping) else range(len(tensors))
    return [(f"inputs[{key!r}]", tensor) for key, tensor in zip(keys, tensors, strict=True)]


def _rows(inputs: Inputs, tensors: list[Tensor]) -> int:
    """The B of all tensors."""
    if not tensors:
        raise ValueError(f"inputs must hold at least one tensor, got an empty {type(inputs).__name__}")
    named = _named(inputs, tensors)
    for name, tensor in named:
        checks.is_tensor(name, tensor)
        if tensor.dim() == 0:
            raise ValueError(f"{name} must have shape [B, ...], got a tensor without dimensions")
    first, rows = named[0][0], tensors[0].shape[0]
    for name, tensor in named:
        if tensor.shape[0] != rows:
            raise ValueError(f"{name} must have as many rows as {first}, {rows}, got shape {tuple(tensor.shape)}")
    return rows


def _check_encoded(encoded: object, rows: int) -> None:
    if not isinstance(encoded, Tensor):
        raise TypeError(f"encoder must return a torch.Tensor, got {type(encoded).__name__}")
    if encoded.dim() == 0 or encoded.shape[0] != rows:
        raise ValueError(
            f"encoder must return a row for each of the {rows} rows it was given, got shape {tuple(encoded.shape)}"
        )

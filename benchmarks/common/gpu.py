"""The GPU that a benchmark runs on: whether there is one, what it is, and how fast it copies."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.common import timing

DEVICES = ("cpu", "cuda")
COPY_BYTES = 2 * 2**30
COPIES = 20


def require(device: str) -> None:
    """Refuse a device that is not available; the message contains the flag.

    Raises:
        ValueError: device is "cuda" and torch finds no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device cuda: expected a GPU that torch can use, got none (torch {torch.__version__})")


def synchronize(device: str) -> None:
    """Wait until the device has finished its work; the CPU always has."""
    if device == "cuda":
        torch.cuda.synchronize()


def properties() -> dict[str, Any]:
    """Describe the current GPU for a result file: name, CUDA of the torch build, multiprocessors, sizes in bytes."""
    found = torch.cuda.get_device_properties()
    return {
        "gpu": found.name,
        "cuda": torch.version.cuda,
        "multiprocessors": found.multi_processor_count,
        "l2_bytes": found.L2_cache_size,
        "gpu_memory_bytes": found.total_memory,
    }


def copy_bytes_per_second(device: str = "cuda", size: int = COPY_BYTES) -> float:
    """Measure the bandwidth of a copy within the device's memory, bytes read and bytes written per second.

    Args:
        device: "cuda"; "cpu" works too.
        size: bytes to copy, far more than fits into caches.

    Returns:
        The median of :data:`COPIES` copies, each of `size` bytes read and as many written.
    """
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    def seconds() -> float:
        return timing.seconds_of(lambda: target.copy_(source), lambda: synchronize(device))

    seconds()
    return 2 * size / timing.quantiles([seconds() for _ in range(COPIES)])["median"]

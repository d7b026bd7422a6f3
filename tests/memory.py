"""What a call holds in memory while it runs, and what it leaves."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

import torch


def peak_of(device: torch.device) -> Callable[[Callable[[], object]], tuple[int, int]]:
    """A function that measures a call: (most bytes held at one time beyond those at the start, largest allocation)."""
    return _peak_on_cpu if device.type == "cpu" else _peak_on_cuda


def _peak_on_cpu(run: Callable[[], object]) -> tuple[int, int]:
    """(most bytes held at one time beyond those at the start, largest single allocation)."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = run()
    del kept
    held = peak = largest = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events, "the profiler saw no allocation"
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak, largest = max(peak, held), max(largest, event.nbytes())
    return peak, largest


def _peak_on_cuda(run: Callable[[], object]) -> tuple[int, int]:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = run()
    torch.cuda.synchronize()
    del kept
    peak = torch.cuda.max_memory_allocated() - before
    return peak, peak


class _MallocInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def held_bytes() -> int:
    """What this process has from malloc."""
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallocInfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)

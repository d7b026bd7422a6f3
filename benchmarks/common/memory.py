"""Peak extra memory of one training step."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch

Step = Callable[[], object]


def peak_extra_bytes(warm_up: Callable[[], Step], build: Callable[[], Step]) -> int | None:
    """Run one step in a fresh process and return by how much the resident set grew at its peak.

    Unlike a profiler of torch's allocator, this also counts what a kernel allocates for itself. It is measured in whole
    pages and includes whatever else the process does meanwhile, so that differences of some 100 KiB mean nothing.

    Args:
        warm_up: returns a step that is run first, too small to leave memory behind for reuse. Both are pickled, so
            each is a function of a module or a functools.partial of one.
        build: returns the step to measure; what building it allocates or runs is not counted.

    Returns:
        Bytes, or None on systems without /proc.

    Raises:
        RuntimeError: the process ended without a result; its message is on stderr.
    """
    if not Path("/proc/self/status").exists():
        return None
    # A forked process would inherit the parent's high-water mark; a spawned one starts from nothing.
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, warm_up, build, torch.get_num_threads()))
    try:
        # Ctrl-C goes to all processes of a terminal; this one inherits a mask that leaves it to its parent.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sender.close()  # so that the end of the process ends the wait
        peak = receiver.recv()
        process.join()
        return peak
    except EOFError:
        process.join()
        raise RuntimeError(
            f"expected a peak from the process that measures memory, got its exit status {process.exitcode}"
        ) from None
    finally:
        if process.is_alive():
            process.kill()
            process.join()


def peak_extra_bytes_cuda(step: Step) -> int:
    """Run one step and return by how much what torch has allocated on the current GPU grew at its peak."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _measure(sender: Connection, warm_up: Callable[[], Step], build: Callable[[], Step], threads: int) -> None:
    torch.set_num_threads(threads)
    # Code, thread pool and autograd are loaded by a step that is too small to leave memory behind for reuse.
    warm_up()()
    step = build()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    # Resets the mark. Where that is not allowed it also covers start-up, and the result can only be too high.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    step()
    sender.send(_status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no field {field}")

"""Ways to run a step on a GPU: replayed from a CUDA graph, and under deterministic algorithms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[], tuple[Tensor, ...]]

# What is set up on first use must exist before a capture.
WARM_UP_RUNS = 3


def captured(step: Step) -> Step:
    """Capture the step in a CUDA graph and return its replay, which takes the device's time without Python's.

    Its results are in the same memory at every replay.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_RUNS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return results

    return replay


def deterministic(step: Step) -> Step:
    """Return the step under torch.use_deterministic_algorithms(True), which is reset after it."""

    def run() -> tuple[Tensor, ...]:
        torch.use_deterministic_algorithms(True)
        try:
            return step()
        finally:
            torch.use_deterministic_algorithms(False)

    return run

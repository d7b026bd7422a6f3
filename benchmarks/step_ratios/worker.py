"""Times steps with one checkout's cw_ext, as the parent process asks for them."""

from __future__ import annotations

import json
import sys

import torch

import cw_ext
from benchmarks.step_ratios import few_steps, grid, inputs, ratios


def serve(threads: int, steps: str, clock: str, quick: bool) -> None:
    """Write a line with the build and the names of the steps, then answer each line "[name, repetitions]" with seconds.

    All lines are JSON. A step is made when it is first asked for, and dropped for the next.
    """
    torch.set_num_threads(threads)
    if steps == "grid":
        makers = grid.make_steps(grid.QUICK if quick else grid.FULL)
    else:
        makers = few_steps.make_steps(inputs.QUICK if quick else inputs.FULL)
    _answer({"build": cw_ext.build_config(), "names": [*makers]})
    made, seconds = None, None
    for line in sys.stdin:
        name, repetitions = json.loads(line)
        if name != made:
            seconds = None  # its memory is free before the next step's is taken
            made, seconds = name, ratios.clock(makers[name](), ratios.CLOCKS[clock])
        _answer(seconds(repetitions))


def _answer(value: object) -> None:
    print(json.dumps(value), flush=True)

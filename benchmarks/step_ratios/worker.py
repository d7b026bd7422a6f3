"""Times steps with one checkout's cw_ext, as the parent process asks for them."""

from __future__ import annotations

import json
import sys

import torch

import cw_ext
from benchmarks.step_ratios import inputs, levels, ratios


def serve(threads: int, quick: bool) -> None:
    """Write a line with the build and the names of the steps, then answer each line "[name, repetitions]" with seconds.

    All lines are JSON.
    """
    torch.set_num_threads(threads)
    steps = levels.make_steps(inputs.QUICK if quick else inputs.FULL)
    _answer({"build": cw_ext.build_config(), "names": [*steps]})
    clocks = {name: ratios.clock(step) for name, step in steps.items()}
    for line in sys.stdin:
        name, repetitions = json.loads(line)
        _answer(clocks[name](repetitions))


def _answer(value: object) -> None:
    print(json.dumps(value), flush=True)

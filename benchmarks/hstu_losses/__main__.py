"""Compare the memory and time of CW with the sampled softmax of HSTU's two code bases.

    PYTHONPATH=CHECKOUT python -m benchmarks.hstu_losses meta
    PYTHONPATH=CHECKOUT/examples/hstu python -m benchmarks.hstu_losses nvidia

For "meta", CHECKOUT is a clone of meta-recsys/generative-recommenders; for "nvidia", of NVIDIA/recsys-examples. Shapes
come from their configurations, and the encoder's outputs are made up. CW draws its negatives the way their loss does,
from all items (meta) or from the batch's distinct items (nvidia). A step is the loss with its gradients. Memory is the
peak growth of a fresh process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import command, memory, reporting, timing
from benchmarks.common.arguments import add_out
from benchmarks.hstu_losses.steps import LOSSES, SHAPES, TINY, step_of

ROUNDS = 20
# For all rounds of one shape and loss.
BUDGET_SECONDS = 20.0


def measure(code_base: str, name: str, shape: tuple[int, int, int, int]) -> dict[str, Any]:
    """Time the losses in turns, and measure the memory of each.

    Returns:
        A JSON-ready dict: the shape, and by loss the seconds in quantiles and the peak's bytes.
    """
    steps = {loss: step_of(code_base, loss, shape) for loss in LOSSES[code_base]}
    plans = {}
    for loss, step in steps.items():
        step()
        plans[loss] = timing.plan(timing.estimate(step, _nothing), ROUNDS, BUDGET_SECONDS)
    samples = timing.alternate(steps, plans, _nothing)
    return {
        "name": name,
        **dict(zip(("targets", "negatives", "dim", "items"), shape, strict=True)),
        "seconds": {loss: timing.quantiles(samples[loss]) for loss in steps},
        "peak_bytes": {
            loss: memory.peak_extra_bytes(
                partial(step_of, code_base, loss, TINY), partial(step_of, code_base, loss, shape)
            )
            for loss in steps
        },
    }


def _nothing() -> None:
    """On the CPU there is nothing to wait for."""


def describe(code_base: str, results: Sequence[dict[str, Any]]) -> str:
    """A table with a row per shape and loss."""
    lines = []
    for result in results:
        for loss in LOSSES[code_base]:
            peak = result["peak_bytes"][loss]
            seconds = result["seconds"][loss]["median"]
            lines.append([result["name"], loss, f"{1e3 * seconds:.0f}", "" if peak is None else f"{peak / 2**20:.0f}"])
    return reporting.format_table(["shape", "loss", "ms", "MiB"], lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = command.make_parser(
        "python -m benchmarks.hstu_losses", __doc__, interrupted="nothing is written", positional="{meta,nvidia}"
    )
    parser.add_argument("code_base", choices=SHAPES, help="code base whose loss, sampler and shapes to use")
    add_out(parser)
    arguments = parser.parse_args(argv)
    out = arguments.out or reporting.default_directory("hstu-losses")
    return command.run(lambda: _run(arguments.code_base, out))


def _run(code_base: str, out: Path) -> None:
    try:
        step_of(code_base, "softmax", TINY)
    except ImportError as error:
        raise ValueError(f"expected PYTHONPATH to contain the checkout, as in --help, got: {error}") from None
    reporting.make_writable_directory(out)
    results = [measure(code_base, name, shape) for name, shape in SHAPES[code_base].items()]
    file = out / f"{code_base}.json"
    reporting.write_json(file, {"environment": reporting.environment(), "shapes": results})
    print(describe(code_base, results))
    print()
    reporting.print_results(file)


if __name__ == "__main__":
    sys.exit(main())

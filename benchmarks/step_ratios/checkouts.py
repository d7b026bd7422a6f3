"""This checkout's build against another's: the same steps in two processes that take turns.

Two processes with the same build can differ by some percent for as long as they live. Hence several pairs of processes,
one after the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import cw_ext
from benchmarks.common import command, reporting
from benchmarks.step_ratios.ratios import alternate, summarize

PAIRS = 4

_ROOT = Path(__file__).resolve().parents[2]
# The folder that holds the cw_ext of this process: _ROOT or, where that is not built, an installed copy's.
_HERE = Path(cw_ext.__file__).resolve().parents[1]
# A worker imports cw_ext from one folder and the steps, which that may not have, from another.
_START = """
import sys
checkout, own, threads, steps, clock, quick = sys.argv[1:]
sys.path.insert(0, checkout)
import cw_ext
sys.path[0] = own
from benchmarks.step_ratios import worker
worker.serve(int(threads), steps, clock, quick == "True")
"""


class Worker:
    """A process that times steps with a checkout's cw_ext.

    Attributes:
        build: its :func:`cw_ext.build_config`.
        names: its steps.
    """

    def __init__(self, process: subprocess.Popen[str], checkout: Path) -> None:
        self._process, self._checkout = process, checkout
        self.build, self.names = self._read().values()
        if not self.build["available"]:
            raise ValueError(f"{checkout}: expected a checkout with its kernels built, got: {self.build['reason']}")

    def seconds(self, name: str, repetitions: int) -> float:
        """Time a step, as a :data:`benchmarks.step_ratios.ratios.Clock` does."""
        self._process.stdin.write(json.dumps([name, repetitions]) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._checkout}: the process that runs its cw_ext has failed")
        return json.loads(line)


def measure(other: Path, rounds: int, threads: int, steps: str, clock: str, quick: bool) -> dict[str, Any]:
    """Compare this build's steps with another's.

    Args:
        other: a checkout with its kernels built.
        rounds: samples of each step from each of the :data:`PAIRS` of processes.
        threads: of torch.
        steps: "few", those of :mod:`.few_steps`, or "grid", all shapes of :mod:`.grid`.
        clock: of :data:`.ratios.CLOCKS`.
        quick: tiny sizes.

    Returns:
        A JSON-ready dict: ``"other"``, that checkout's commit and build; ``"steps"``, what :func:`.ratios.summarize`
        returns for here/there, by step, and the median ratio in each of the ``"pairs"``.

    Raises:
        ValueError: `other` is no checkout, or not built; the message contains it.
        RuntimeError: its cw_ext failed in a step.
    """
    if not (other / "cw_ext" / "__init__.py").is_file():
        raise ValueError(f"{other}: expected a checkout of cw_ext, got no cw_ext/__init__.py there")
    samples: dict[str, list[tuple[list[float], list[float]]]] = {}
    with command.progress(range(PAIRS), unit="pair") as pairs:
        for _ in pairs:
            options = (str(threads), steps, clock, str(quick))
            with _worker(_HERE, options) as here, _worker(other.resolve(), options) as there:
                for name in command.progress(here.names, unit="step", leave=False):
                    found = alternate(partial(here.seconds, name), partial(there.seconds, name), rounds)
                    samples.setdefault(name, []).append(found)
                build = there.build
    pooled = {name: _pooled(found) for name, found in samples.items()}
    return {"other": {"git_commit": reporting.git_commit(other), "cw_ext": build}, "clock": clock, "steps": pooled}


def _pooled(pairs: Sequence[tuple[list[float], list[float]]]) -> dict[str, Any]:
    """Summarize a step's samples from all pairs of processes together."""
    here, there = (list(chain.from_iterable(samples)) for samples in zip(*pairs, strict=True))
    return {**summarize(here, there), "pairs": [summarize(*pair)["ratio"]["median"] for pair in pairs]}


@contextmanager
def _worker(checkout: Path, options: Sequence[str]) -> Iterator[Worker]:
    """A worker, which ends when its input does; Ctrl-C is for the parent alone."""
    command = [sys.executable, "-c", _START, str(checkout), str(_ROOT), *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield Worker(process, checkout)


def describe(results: dict[str, Any]) -> str:
    """Return the results as a table, a row per step."""
    rows = []
    for name, step in results["steps"].items():
        milliseconds = [f"{1e3 * seconds:.3f}" for seconds in step["seconds"]]
        ratio = "{median:.3f} ({q25:.3f}-{q75:.3f})".format(**step["ratio"])
        rows.append([name, *milliseconds, ratio, f"{min(step['pairs']):.3f}-{max(step['pairs']):.3f}"])
    return reporting.format_table(["step", "ms here", "ms there", "here/there (quartiles)", "pairs' medians"], rows)

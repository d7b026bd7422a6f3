"""Calls of the compiled kernels in which every allocation fails once: run as a program, with failing_allocations.cpp
preloaded, it prints what came of them as JSON."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from cases import Embeddings, Result, Scores, assert_as_good, make_embeddings, make_scores
from drawing import Drawn, make_drawn
from memory import held_bytes

from cw_ext import extension

# So many rows that there is work for two threads.
ROWS, NEGATIVES, DIM = 600, 64, 16


def _drawn(kind: str, dtype: torch.dtype = torch.float32, m: int = 0, **settings: Any) -> Drawn:
    return make_drawn(kind, ROWS, DIM, m, **settings).to(dtype)


def _embeddings(dtype: torch.dtype = torch.float32, **settings: Any) -> Embeddings:
    return make_embeddings(ROWS, NEGATIVES, DIM, items=300, **settings).to(dtype)


def _scores(dtype: torch.dtype = torch.float32, **settings: Any) -> Scores:
    return make_scores((ROWS,), NEGATIVES, **settings).to(dtype)


Case = Scores | Embeddings | Drawn
# name: (makes the inputs, further arguments of the loss)
CASES: dict[str, tuple[Callable[[], Case], dict[str, Any]]] = {
    "scores": (_scores, {}),
    "scores, all inputs, fp16": (
        lambda: _scores(torch.float16, m=3, log_q=True, row_weights=True),
        {"prior": 0.1, "confidence_temperature": 2.0},
    ),
    "embeddings": (_embeddings, {}),
    "embeddings, all inputs, bf16": (
        lambda: _embeddings(torch.bfloat16, m=3, log_q=True, row_weights=True, padding=True),
        {"prior": 0.1, "reduction": "sum"},
    ),
    "embeddings, sparse gradient": (_embeddings, {"sparse_grad": True}),
    "embeddings, shared ids": (lambda: _embeddings(shared=True), {}),
    "sampled": (lambda: _drawn("sampled", num_negatives=NEGATIVES), {"seed": 3}),
    "sampled, recomputed, popularity": (
        lambda: _drawn("sampled", m=2, num_negatives=NEGATIVES, recompute=True, distribution="popularity"),
        {"prior": 0.1, "seed": 3},
    ),
    "sampled, shared": (lambda: _drawn("sampled", num_negatives=NEGATIVES, shared=True), {"seed": 3}),
    "sampled, sparse gradient": (
        lambda: _drawn("sampled", num_negatives=NEGATIVES, sparse_grad=True),
        {"seed": 3},
    ),
    "in-batch": (lambda: _drawn("in_batch"), {}),
    "full": (lambda: _drawn("full"), {}),
}
# Where an allocation of fewer bytes than these fails, torch's own unboxing of an op's arguments (TORCH_BOX) loses those
# that it has not come to. So what is kept is counted where a larger one does: a tensor's memory or a kernel's scratch.
LARGE = 1024
# Where a thread's own allocations are to fail too. Few, since a busy machine takes long to wake threads up.
TWO_THREADS = ("sampled",)


@dataclass
class Outcome:
    """What came of one case.

    Attributes:
        failed: how many of the call's allocations failed, each in a call of its own.
        errors: the types of the exceptions.
        faults: what should not have been.
        kept_bytes: what the process held in the end, after all that were :data:`LARGE` had failed again, beyond what it
            held before.
        large: how many these are.
    """

    failed: int
    errors: list[str]
    faults: list[str]
    kept_bytes: int
    large: int


def _values(case: Case) -> list[torch.Tensor]:
    found = [getattr(case, field.name) for field in fields(case)]
    return [value for value in found if isinstance(value, torch.Tensor)]


class _Calls:
    """A case's call, forward and backward, and what must come of it."""

    def __init__(self, case: Case, arguments: dict[str, Any]) -> None:
        self.case, self.arguments = case, arguments
        self.expected = self.run("fused", case.leaves())
        truth = self.run("reference", case.to(torch.float64).leaves())
        assert_as_good(self.expected, self.run("reference", case.leaves()), truth, _values(case)[0].dtype)

    def run(self, backend: str, leaves: Case) -> Result:
        loss = leaves.loss(backend=backend, **self.arguments)
        loss.backward()
        return Result(loss.detach(), {name: gradient.to_dense() for name, gradient in leaves.gradients().items()})

    def faults(self, leaves: Case) -> Iterator[str]:
        """What is wrong after a call with these leaves failed."""
        if not all(map(torch.equal, _values(leaves), _values(self.case))):
            yield "an input was changed"
        for field in fields(leaves):
            value = getattr(leaves, field.name)
            if isinstance(value, torch.Tensor) and value.grad is not None:
                if not torch.equal(value.grad.to_dense(), self.expected.gradients[field.name]):
                    yield f"a part of the gradient of {field.name} was left"
        if not torch.is_grad_enabled():
            yield "gradients are off"
        again = self.run("fused", self.case.leaves())
        if not torch.equal(again.loss, self.expected.loss):
            yield f"the next call's loss is {again.loss.item()}, not {self.expected.loss.item()}"
        for name, gradient in again.gradients.items():
            if not torch.equal(gradient, self.expected.gradients[name]):
                yield f"the next call's gradient of {name} is another"


class _Failures:
    """What the preloaded library reports."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.fail_allocation.argtypes = [ctypes.c_long]
        self._library.allocations_left.restype = ctypes.c_long
        self._library.watch_code.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t]
        self._code = self._code_of(str(extension._library(extension.PACKAGE, "_cpu")))

    @staticmethod
    def _code_of(path: str) -> tuple[int, int]:
        """The addresses between which the library's code lies in this process."""
        with open("/proc/self/maps", encoding="utf-8") as maps:
            for line in maps:
                addresses, mode, *_, name = line.split(maxsplit=5)
                if "x" in mode and os.path.realpath(name.strip()) == os.path.realpath(path):
                    begin, end = addresses.split("-")
                    return int(begin, 16), int(end, 16)
        raise RuntimeError(f"{path} is not loaded")

    def each(self, calls: _Calls, least: int = 0, threads: int = 1) -> Iterator[tuple[Case, BaseException | None]]:
        """Let the first allocation of the call fail, then in another call the second, and so on to the last.

        `least`: the bytes of those of `new`. Yields (the call's leaves, what it raised).
        """
        self._library.watch_code(*self._code, least)
        for k in itertools.count(1):
            leaves, error = calls.case.leaves(), None
            torch.set_num_threads(threads)
            self._library.fail_allocation(k)
            try:
                calls.run("fused", leaves)
            except Exception as raised:
                error = raised.with_traceback(None)  # which would hold the call's tensors
            came = self._library.allocations_left() <= 0
            self._library.fail_allocation(0)
            torch.set_num_threads(1)
            if not came:
                assert error is None, error
                return
            yield leaves, error


def sweep(name: str, failures: _Failures) -> Outcome:
    """Let all allocations of a case's call fail in turn, and then again to see whether memory is lost."""
    make, arguments = CASES[name]
    calls = _Calls(make(), arguments)
    errors: dict[str, None] = {}
    faults: dict[str, None] = {}
    failed = 0
    for leaves, error in failures.each(calls, threads=2 if name in TWO_THREADS else 1):
        failed += 1
        errors[type(error).__name__] = None
        if not (isinstance(error, (RuntimeError, MemoryError)) and re.search("can't allocate|bad_alloc", str(error))):
            faults[f"allocation {failed} ended in {type(error).__name__}: {error}"] = None
        faults |= dict.fromkeys(f"after allocation {failed}: {fault}" for fault in calls.faults(leaves))
    del leaves, error
    deque(failures.each(calls, LARGE), maxlen=0)  # what is kept from a first time on, in caches, is no leak
    held = held_bytes()
    large = sum(1 for _ in failures.each(calls, LARGE))
    return Outcome(failed, list(errors), list(faults), held_bytes() - held, large)


def main() -> None:
    """Print the outcome of every case."""
    failures = _Failures()
    print(json.dumps({name: asdict(sweep(name, failures)) for name in CASES}))


if __name__ == "__main__":
    main()

"""The CUDA kernels without a GPU, their threads emulated on the CPU (cuda_emulation/emulation.h): the tests of values
and gradients run on them, with the threads in several orders, and under AddressSanitizer and ThreadSanitizer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_emulation import build

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))

PRELOADED = {"plain": None, "address": "libasan.so", "thread": "libtsan.so"}


@dataclass(frozen=True)
class Run:
    """Some of the tests on one build of the kernels."""

    kind: str
    files: str
    at_least: int  # tests that pass
    keywords: str = ""
    seed: int = 1  # of the order in which threads run
    deterministic: bool = False  # sums over items by sorting, however few; fresh memory holds NaN


# What would take minutes here, and bad input, which stops the kernels and with them the process.
DRAWN = "not bad_input and not many_parts and not many_items and not what_is_held and not full_graph"
# Each kernel and each of its ways once, for what takes ten times as long.
DRAWN_CORE = "the_ids or of_dense_scores or reference_sampling or almost or without_a_history or sizes or spoiled"

ARGUMENT_FILES = "temperature positive_temperature score_curve above"
# Compiled, they call the same ops.
ARGUMENTS = "not compil and not full_graph and not export and not bad"

RUNS = {
    "values": Run(
        "plain", "scores candidate_scores embeddings numerics properties presets sparse pairs execution", 1000
    ),
    "deterministic": Run("plain", "embeddings sparse pairs item_sums gradients", 500, seed=2, deterministic=True),
    "arguments": Run("plain", ARGUMENT_FILES, 500, ARGUMENTS, seed=2, deterministic=True),
    "another order": Run("plain", "scores embeddings item_sums", 200, "not every_parameter", seed=3),
    "bounds": Run(
        "address", "scores candidate_scores embeddings pairs item_sums", 200, "not every_parameter or everything"
    ),
    "races": Run(
        "thread",
        "scores candidate_scores embeddings item_sums",
        200,
        "(not every_parameter or everything) and not many_rows",
    ),
    "drawn": Run("plain", "sampled sampling shared_negatives candidates", 550, DRAWN),
    "drawn, deterministic": Run("plain", "sampled shared_negatives", 450, DRAWN, seed=2, deterministic=True),
    "drawn, bounds": Run("address", "sampled sampling shared_negatives candidates", 60, DRAWN_CORE),
    "drawn, races": Run("thread", "sampled sampling shared_negatives candidates", 60, DRAWN_CORE),
}


def _environment(kind: str, **more: str) -> dict[str, str]:
    settings = {
        "CUDA_VISIBLE_DEVICES": "",  # where there is a GPU after all
        "OMP_NUM_THREADS": "1",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python never frees all
        "TSAN_OPTIONS": "halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    if (library := PRELOADED[kind]) is not None:
        settings["LD_PRELOAD"] = str(build.runtime(library))
    return os.environ | settings | more


def _pytest(run: Run) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "--tb=short", "--capture=sys", "-p", "no:cacheprovider"]
    command += [f"tests/test_{file}.py" for file in run.files.split()]
    command += ["-k", run.keywords] if run.keywords else []
    environment = _environment(
        run.kind,
        CW_EXT_TEST_LIBRARY=str(build.OUT / run.kind / "_cuda.so"),
        CW_EXT_TEST_DETERMINISTIC=str(int(run.deterministic)),
        CW_CUDA_EMULATION_SEED=str(run.seed),
    )
    return subprocess.run(
        command,
        cwd=build.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )


def _planted(kind: str, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [build.OUT / kind / "planted", name],
        env=_environment(kind) | {"LD_PRELOAD": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def built() -> dict[str, str | None]:
    """For each kind of build, why it cannot run here, or None."""
    kinds = [kind for kind, library in PRELOADED.items() if library is None or build.runtime(library)]
    build.build(*(f"{kind}/{target}" for kind in kinds for target in ("_cuda.so", "planted")))
    why_not: dict[str, str | None] = {kind: f"the compiler has no {PRELOADED[kind]}" for kind in PRELOADED}
    for kind in kinds:
        # A kernel's address space may be laid out in a way that a sanitizer cannot do with.
        fatal = re.search(r"FATAL: \w+Sanitizer: .*", _planted(kind, "barrier").stdout)
        why_not[kind] = fatal[0] if fatal else None
    return why_not


def _skip_unless_it_runs(built: dict[str, str | None], kind: str) -> None:
    if built[kind] is not None:
        pytest.skip(built[kind])


@pytest.fixture(scope="module")
def runs(
    built: dict[str, str | None], request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """The runs that were asked for, as many at a time as there are processors."""
    asked_for = {
        item.callspec.params["name"] for item in request.session.items if item.name.startswith("test_the_suite[")
    }
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    yield {name: pool.submit(_pytest, run) for name, run in RUNS.items() if name in asked_for and not built[run.kind]}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", RUNS)
def test_the_suite(built: dict[str, str | None], runs: dict[str, Future], name: str) -> None:
    _skip_unless_it_runs(built, RUNS[name].kind)
    done = runs[name].result()
    # The failures and a sanitizer's report are at the end.
    assert done.returncode == 0, done.stdout[-20_000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= RUNS[name].at_least, done.stdout[-500:]


OUT_OF_RANGE = {
    "neg_ids.* must be in": """
import conftest
from cases import make_embeddings
case = make_embeddings(40, 9, 4, 11)
case.neg_ids[3, 4] = 11
case.loss(backend="fused")
""",
    "[^_]ids.* must be in": """
import conftest
import torch
import cw_ext
cw_ext.candidate_scores(torch.ones(3, 4), torch.ones(11, 4), torch.tensor([[0], [11], [3]]), backend="fused")
""",
    "extra_pos_ids.* must be in": """
import conftest
from cases import make_embeddings
case = make_embeddings(40, 9, 4, 11, 2, shared=True)
case.extra_ids[3, 1] = 11
case.loss(backend="fused")
""",
    "query_ids.* must be in": """
import conftest
import torch
starts, known = torch.tensor([0, 1, 2]), torch.tensor([3, 5], dtype=torch.int32)
history = torch.tensor([1, 2, 0]), starts, known
torch.ops.cw_ext.draw_negatives(3, 11, *history, torch.tensor(1), 0, 4, *[None] * 6)
""",
    "starts.* must rise": """
import conftest
import torch
starts, known = torch.tensor([0, 1, 3]), torch.tensor([3, 5], dtype=torch.int32)
history = torch.tensor([1, 0, 0]), starts, known
torch.ops.cw_ext.draw_negatives(3, 11, *history, torch.tensor(1), 0, 4, *[None] * 6)
""",
}


@pytest.mark.parametrize("message", OUT_OF_RANGE)
def test_what_is_out_of_range_stops_the_kernel(built: dict[str, str | None], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_RANGE[message]],
        cwd=Path(__file__).parents[1],
        env=_environment(
            "plain", PYTHONPATH=str(build.ROOT), CW_EXT_TEST_LIBRARY=str(build.OUT / "plain" / "_cuda.so")
        ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGABRT and re.search(message, done.stderr), done.stderr


# ---- that faults are seen: planted.cu ----------------------------------------------------------------------

RACE = "WARNING: ThreadSanitizer: data race"
FAULTS = [
    ("thread", "no_barrier", RACE),
    ("thread", "no_barrier_before_reuse", RACE),
    ("thread", "warp_barrier_across_warps", RACE),
    ("thread", "shuffle_for_barrier", RACE),
    ("thread", "blocks_meet", RACE),
    ("thread", "last_block_without_fence", RACE),
    ("address", "reads_past_input", "AddressSanitizer: heap-buffer-overflow"),
    ("address", "writes_past_shared", "AddressSanitizer: global-buffer-overflow"),
    ("address", "writes_past_dynamic_shared", "AddressSanitizer: use-after-poison"),
    ("plain", "misaligned", "misaligned address"),
    ("plain", "barrier_for_some", "CUDA emulation: .* (exits while other|that have exited)"),
    ("plain", "barriers_apart", r"CUDA emulation: .* waits at planted.cu:\d+, but thread"),
    ("plain", "shuffle_for_some", "CUDA emulation: .* meets lanes that have exited"),
    ("plain", "shuffle_outside_mask", "CUDA emulation: .* reads lane 1, which is not in the mask"),
    ("plain", "no_barrier", "^NaN"),
    ("plain", "unwritten", "^NaN"),
    ("plain", "copy_not_waited_for", "^NaN"),
]


@pytest.mark.parametrize(("kind", "name", "expected"), FAULTS, ids=[f"{kind}-{name}" for kind, name, _ in FAULTS])
def test_a_planted_fault_is_seen(built: dict[str, str | None], kind: str, name: str, expected: str) -> None:
    _skip_unless_it_runs(built, kind)
    done = _planted(kind, name)
    assert re.search(expected, done.stdout), done.stdout
    assert (done.returncode == 0) == (expected == "^NaN")


@pytest.mark.parametrize("kind", PRELOADED)
@pytest.mark.parametrize("name", ["barrier", "warp_barrier", "atomics", "last_block", "copy"])
def test_no_fault_is_seen_where_none_is(built: dict[str, str | None], kind: str, name: str) -> None:
    _skip_unless_it_runs(built, kind)
    done = _planted(kind, name)
    assert (done.returncode, done.stdout) == (0, "no NaN\n")

"""Errors of the ops: the class and the message that C++ gives them, from threads and where memory runs out, and what
the public functions make of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import Embeddings, child_environment, item_gradient_arguments, make_embeddings, make_scores
from drawing import make_interactions
from torch import Tensor

import cw_ext
from cw_ext import autograd, op_errors, op_function, plain_scores

OPS = torch.ops.cw_ext
NO_HISTORY = (None, None, None)
NO_TABLES = (None, None, None, None, None)
SEED = torch.tensor(1)


def _embeddings(rows: int = 6, n: int = 9, shared: bool = False, items: int = 130) -> Embeddings:
    return make_embeddings(rows, n, 8, items, seed=31, shared=shared).to(torch.float32)


def _draw(rows: int = 3, n: int = 4, seed: Tensor = SEED, candidates: Tensor | None = None) -> Tensor:
    drawn: Tensor = OPS.draw_negatives(rows, 11, *NO_HISTORY, seed, 0, n, *NO_TABLES, candidates)
    return drawn


def _item_gradient(**changes: Any) -> Callable[[], object]:
    arguments = item_gradient_arguments(_embeddings())
    unknown = changes.keys() - arguments.keys() - {"sums"}
    assert not unknown
    return lambda: OPS.item_gradient(**arguments | changes)


def _error(call: Callable[[], object]) -> Exception:
    """What the op raises, as the package hands it on."""
    with pytest.raises(op_errors.RAISED) as caught:
        call()
    return op_errors.restored(caught.value)


# ---- classes -------------------------------------------------------------------------------------------------


@pytest.mark.cpu_kernels
def test_in_transforms_too(kernels: None) -> None:
    case = make_embeddings(6, 9, 8, 130, seed=32)
    ids = case.pos_ids.clone()
    ids[-1] = 130

    def loss(queries: Tensor) -> Tensor:
        return cw_ext.cw_loss_from_embeddings(queries, case.items, ids, case.neg_ids, backend="fused")

    with pytest.raises(IndexError, match=r"^pos_ids must be in \[0, 130\), or −1 for padding, got 130"):
        torch.func.grad(loss)(case.queries)


IDS = torch.zeros(6, dtype=torch.int64)
IN_OPS: dict[str, tuple[Callable[[], Callable[[], object]], type[Exception], str]] = {
    "sums": (lambda: _item_gradient(sums="both"), ValueError, "sums is unknown: both"),
    "similarity": (lambda: _item_gradient(similarity="l2"), ValueError, "similarity is unknown: l2"),
    "shape": (
        lambda: _item_gradient(unit_queries=torch.zeros(6, 7)),
        ValueError,
        "items must have shape [130, 7], got [130, 8]",
    ),
    "no negatives": (lambda: lambda: _draw(n=0), ValueError, "num_negatives must be in [1, 2^31), got 0"),
    "candidate": (
        lambda: lambda: _draw(candidates=torch.tensor([3, 11], dtype=torch.int32)),
        IndexError,
        "candidates must be in [0, 11), got 11",
    ),
    "dtype of ids": (lambda: _item_gradient(pos_ids=IDS.float()), TypeError, "ids must be int32 or int64"),
    "dtype of queries": (
        lambda: _item_gradient(unit_queries=torch.zeros(6, 8, dtype=torch.float64)),
        TypeError,
        "unit_queries must have dtype Float, got Double",
    ),
    "dtype of seed": (lambda: lambda: _draw(seed=torch.tensor(1.0)), TypeError, "seed must have dtype Long, got Float"),
    "dtype of gradients": (
        lambda: lambda: OPS.scale_rows([torch.zeros(3, 2).half()], torch.ones(3), torch.float16),
        TypeError,
        "gradients must have dtype Float, got Half",
    ),
    "dtype of factor": (
        lambda: lambda: OPS.scale_rows([torch.zeros(3, 2)], torch.ones(3).double(), torch.float32),
        TypeError,
        "factor must have dtype Float, got Double",
    ),
}


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("name", IN_OPS)
def test_an_op_called_alone(kernels: None, name: str) -> None:
    make, kind, message = IN_OPS[name]
    error = _error(make())
    assert (type(error), str(error)) == (kind, message)


KNOWN = make_interactions(6, 9, seed=3)
POS, NEG = torch.zeros(3), torch.zeros(3, 4)
QUERIES, ITEMS = torch.ones(3, 2), torch.ones(9, 2)
ROWS, ROW_NEGATIVES = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64)
PUBLIC = {
    "cw_loss": lambda: cw_ext.cw_loss(POS, NEG.double(), backend="fused"),
    "cw_loss, row values": lambda: cw_ext.cw_loss(POS, NEG, prior=ROWS, backend="fused"),
    "cw_loss_from_embeddings": lambda: cw_ext.cw_loss_from_embeddings(
        QUERIES, ITEMS, ROWS, ROW_NEGATIVES.float(), backend="fused"
    ),
    "sampled_cw_loss": lambda: cw_ext.sampled_cw_loss(
        QUERIES, ITEMS, ROWS.float(), ROWS, KNOWN, 5, seed=1, backend="fused"
    ),
    "cw_loss_in_batch": lambda: cw_ext.cw_loss_in_batch(QUERIES, ITEMS.double(), ROWS, backend="fused"),
    "cw_loss_full": lambda: cw_ext.cw_loss_full(QUERIES, ITEMS, ROWS.float(), backend="fused"),
    "draw_negatives": lambda: cw_ext.draw_negatives(ROWS.float(), KNOWN, 5),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_function_takes_no_wrong_dtype(kernels: None, name: str) -> None:
    with pytest.raises(TypeError, match="must .*got (float|int)"):
        PUBLIC[name]()


# ---- threads -------------------------------------------------------------------------------------------------


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("blocks", ["last", "all"])
def test_an_exception_that_a_thread_throws(kernels: None, four_threads: None, blocks: str) -> None:
    """Where the order of the pairs is checked, in parallel over blocks of rows: the caller has not the last of them."""
    case = _embeddings(rows=6000, n=200, items=1000)
    arguments = item_gradient_arguments(case)
    expected = OPS.item_gradient(**arguments)
    ends = arguments["pair_ends"]
    assert len(ends) > 4
    forged = ends.clone()
    forged[-1 if blocks == "last" else slice(None), 1] = -1
    for _ in range(3):
        error = _error(lambda: OPS.item_gradient(**arguments | {"pair_ends": forged}))
        assert type(error) is ValueError
        assert str(error).startswith("pair_ends must rise to at most ")
        assert blocks == "all" or str(error).endswith(f" in block {len(ends) - 1}")
        assert torch.equal(OPS.item_gradient(**arguments), expected)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("kind", ["own", "shared"])
def test_an_id_out_of_range_in_the_last_row(kernels: None, four_threads: None, kind: str) -> None:
    good = _embeddings(rows=6000, n=200, shared=kind == "shared")
    bad = good.map(torch.clone)
    bad.pos_ids[-1] = 130
    expected = good.loss(backend="fused")
    for _ in range(3):
        with pytest.raises(IndexError, match=r"^pos_ids must be in \[0, 130\).*got 130"):
            bad.loss(backend="fused")
        assert torch.equal(good.loss(backend="fused"), expected)


# ---- memory --------------------------------------------------------------------------------------------------


@pytest.mark.cpu_kernels
def test_more_memory_than_there_can_be(kernels: None) -> None:
    """4 PiB of ids."""
    error = _error(lambda: _draw(rows=2**30, n=2**20))
    assert type(error) is RuntimeError and "can't allocate memory" in str(error)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        cw_ext.draw_negatives(torch.zeros(1, dtype=torch.int64).expand(10**6), KNOWN, 2**31 - 1, seed=1)
    assert _draw().shape == (3, 4)


TORCHS_MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB"


def _out_of_memory(*_: Any, **__: Any) -> Any:
    raise RuntimeError(TORCHS_MESSAGE)


def _other_error(*_: Any, **__: Any) -> Any:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(("raised", "kind"), [(_out_of_memory, torch.OutOfMemoryError), (_other_error, RuntimeError)])
@pytest.mark.parametrize("gradient", [True, False])
def test_cudas_memory_runs_out_forward(
    kernels: None, monkeypatch: pytest.MonkeyPatch, raised: Any, kind: type[Exception], gradient: bool
) -> None:
    for op in (autograd.SCORES_OP, autograd._EMBEDDINGS):
        monkeypatch.setattr(op, "op", raised)
    for case in (make_scores().to(torch.float32), _embeddings()):
        with (
            pytest.raises(RuntimeError, match="^CUDA (out of memory|error)") as caught,
            torch.set_grad_enabled(gradient),
        ):
            case.leaves().loss(backend="fused")
        assert type(caught.value) is kind


@pytest.mark.parametrize(("raised", "kind"), [(_out_of_memory, torch.OutOfMemoryError), (_other_error, RuntimeError)])
def test_cudas_memory_runs_out_backward(
    kernels: None, monkeypatch: pytest.MonkeyPatch, raised: Any, kind: type[Exception]
) -> None:
    losses = [
        make_scores().to(torch.float32).leaves().loss(backend="fused"),
        _embeddings().leaves().loss(backend="fused"),
    ]
    for name in ("scale_rows_", "scale_rows", "item_gradient"):
        monkeypatch.setattr(OPS, name, raised)
    for module in (op_function, plain_scores):
        monkeypatch.setattr(module, "scale_in_place", raised)
    for loss in losses:
        with pytest.raises(RuntimeError, match="^CUDA (out of memory|error)") as caught:
            (2 * loss).backward()
        assert type(caught.value) is kind


def test_cudas_memory_runs_out_drawing(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPS, "draw_negatives", _out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="^CUDA out of memory"):
        cw_ext.draw_negatives(torch.zeros(2, dtype=torch.int64), KNOWN, 5, seed=1)


# ---- instruction sets ----------------------------------------------------------------------------------------

_CAPABILITY = """
import torch, cw_ext
from cases import make_embeddings
case = make_embeddings(7, 301, 333, 130, seed=5).to(torch.float32)
losses = case.loss(backend="fused", reduction="none")
torchs = torch.backends.cpu.get_cpu_capability().lower()
print(torchs, cw_ext.build_config()["cpu_capability"], hash(tuple(losses.tolist())))
"""


def _capability(asked: str | None) -> tuple[str, str, str]:
    """What torch and the kernels run on, and the bits of a loss, whose sums depend on the width of vectors."""
    environment = child_environment()
    environment.pop("ATEN_CPU_CAPABILITY", None)
    if asked is not None:
        environment["ATEN_CPU_CAPABILITY"] = asked
    done = subprocess.run(
        [sys.executable, "-c", _CAPABILITY], env=environment, check=True, timeout=60, capture_output=True, text=True
    )
    torchs, ours, bits = done.stdout.split()
    return torchs, ours, bits


@pytest.mark.cpu_kernels
def test_torch_and_the_kernels_choose_the_same_instruction_set(kernels: None) -> None:
    known = ["default", "avx2", "avx512"]
    torchs, best, bits = _capability(None)
    if best not in known or torchs not in known:
        pytest.skip(f"a machine of another kind: {torchs}, {best}")
    assert torchs == best
    of_each = {}
    for asked in known[: known.index(best) + 1]:
        *chosen, of_each[asked] = _capability(asked)
        assert chosen == [asked, asked]
    assert len({*of_each.values()}) == len(of_each), "the kernels run on what they say"
    assert of_each[best] == bits
    # What is no name counts for nothing: torch warns of it.
    for asked in ("", "AVX2"):
        assert _capability(asked) == (best, best, bits), asked

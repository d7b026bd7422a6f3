"""What users get wrong: an exception naming the argument, what was expected, what came; nothing computed."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import assert_near, child_environment, make_embeddings
from torch import Tensor

import cw_ext
from cw_ext import CWEmbeddingLoss, CWLoss, cw_loss, cw_loss_from_embeddings

INF, NAN = math.inf, math.nan
POS, NEG = torch.zeros(3), torch.zeros(3, 4)
QUERIES, ITEMS = torch.ones(3, 2), torch.ones(5, 2)
POS_IDS, NEG_IDS = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64)
META = torch.device("meta")


def level_1(pos: Any = POS, neg: Any = NEG, **arguments: Any) -> Tensor:
    return cw_loss(pos, neg, **arguments)


def level_2(
    queries: Any = QUERIES,
    items: Any = ITEMS,
    pos_ids: Any = POS_IDS,
    neg_ids: Any = NEG_IDS,
    **arguments: Any,
) -> Tensor:
    return cw_loss_from_embeddings(queries, items, pos_ids, neg_ids, **arguments)


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that comes after the computation is no check."""

    def unreachable(*_: Any) -> Any:
        raise AssertionError("the loss was computed")

    for module in (cw_ext.reference, cw_ext.autograd):
        for name in ("rows", "embedding_rows", "score_rows"):
            monkeypatch.setattr(module, name, unreachable, raising=False)


def _raises(error: type[Exception], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=message):
        call()


# (arguments of either level, error, message)
LOSS_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"temperature": 0}, ValueError, r"temperature must be > 0, got 0"),
    ({"temperature": -0.1}, ValueError, r"temperature must be > 0, got -0.1"),
    ({"temperature": NAN}, ValueError, r"temperature .*> 0.*got nan"),
    ({"temperature": INF}, ValueError, r"temperature .*> 0.*got inf"),
    ({"temperature": "0.1"}, TypeError, r"temperature .*number.*got str"),
    ({"temperature": True}, TypeError, r"temperature .*number.*got bool"),
    ({"temperature": None}, TypeError, r"temperature .*number.*got NoneType"),
    ({"prior": 1.0}, ValueError, r"prior must be in \[0, 1\), got 1.0"),
    ({"prior": -0.01}, ValueError, r"prior must be in \[0, 1\), got -0.01"),
    ({"prior": NAN}, ValueError, r"prior .*\[0, 1\).*got nan"),
    ({"prior": "a"}, TypeError, r"prior .*\[0, 1\).*got str"),
    ({"prior": torch.tensor([0.1, 1.5, 0.2])}, ValueError, r"prior must be in \[0, 1\), got 1.5"),
    ({"prior": torch.tensor([0.1, NAN, 0.2])}, ValueError, r"prior must be in \[0, 1\), got nan"),
    ({"prior": torch.tensor([0.1, 0.2])}, ValueError, r"prior .*\(3,\).*got \(2,\)"),
    ({"prior": torch.zeros(3, 1)}, ValueError, r"prior .*\(3,\).*got \(3, 1\)"),
    ({"prior": torch.zeros(3, dtype=torch.int64)}, TypeError, r"prior .*float32.*got int64"),
    ({"floor": 0.0}, ValueError, r"floor must be in \(0, 1\], got 0.0"),
    ({"floor": 1.01}, ValueError, r"floor must be in \(0, 1\], got 1.01"),
    ({"floor": None}, TypeError, r"floor .*\(0, 1\].*got NoneType"),
    ({"min_margin": NAN}, ValueError, r"min_margin .*got nan"),
    ({"min_margin": "m"}, TypeError, r"min_margin .*got str"),
    ({"weighting": "sigmoidal"}, ValueError, r"weighting .*'none', 'sigmoid'.*got 'sigmoidal'"),
    ({"weighting": None}, ValueError, r"weighting .*'none', 'sigmoid'.*got None"),
    ({"surrogate": "log"}, ValueError, r"surrogate .*'exp', 'tanh'.*got 'log'"),
    ({"reduction": "avg"}, ValueError, r"reduction .*'mean', 'sum', 'none'.*got 'avg'"),
    ({"backend": "cuda"}, ValueError, r"backend .*'auto', 'fused', 'reference'.*got 'cuda'"),
    ({"weight_temperature": 0.0}, ValueError, r"weight_temperature must be > 0.*got 0.0"),
    ({"weight_temperature": -0.1}, ValueError, r"weight_temperature must be > 0.*got -0.1 .*'sigmoid'"),
    ({"weighting": "linear", "weight_temperature": -1.0}, ValueError, r"weight_temperature .*got -1.0"),
    ({"weighting": "exponential", "weight_temperature": 0}, ValueError, r"weight_temperature .*got 0"),
    ({"detach_weights": 1}, TypeError, r"detach_weights must be True or False, got 1"),
    ({"normalize_weights": None}, TypeError, r"normalize_weights must be True or False, got None"),
    ({"include_positive": "yes"}, TypeError, r"include_positive must be True or False, got 'yes'"),
    ({"confidence_temperature": 0}, ValueError, r"confidence_temperature must be > 0, got 0"),
    ({"confidence_temperature": -2}, ValueError, r"confidence_temperature must be > 0, got -2"),
    ({"confidence_threshold": INF}, ValueError, r"confidence_threshold .*got inf"),
    ({"confidence_threshold": "b"}, TypeError, r"confidence_threshold .*got str"),
    ({"confidence_threshold": torch.zeros(4)}, ValueError, r"confidence_threshold .*\(3,\).*got \(4,\)"),
    ({"row_weights": torch.ones(4)}, ValueError, r"row_weights .*\(3,\).*got \(4,\)"),
    ({"row_weights": [1.0, 1.0, 1.0]}, TypeError, r"row_weights .*Tensor.*got list"),
    ({"row_weights": torch.ones(3, dtype=torch.complex64)}, TypeError, r"row_weights .*real.*got complex64"),
    ({"row_weights": torch.ones(3, device=META)}, ValueError, r"row_weights .*device.*cpu.*got meta"),
    ({"neg_log_weights": torch.zeros(5)}, ValueError, r"neg_log_weights .*\(3, 4\).*got \(5,\)"),
    ({"neg_log_weights": torch.zeros(3, 1)}, ValueError, r"neg_log_weights .*\(3, 4\).*got \(3, 1\)"),
    ({"neg_log_weights": torch.zeros(2, 4)}, ValueError, r"neg_log_weights .*\(3, 4\).*got \(2, 4\)"),
    ({"neg_log_weights": torch.zeros(1, 3, 4)}, ValueError, r"neg_log_weights .*\(3, 4\).*got \(1, 3, 4\)"),
    ({"neg_log_weights": torch.tensor(0.0)}, ValueError, r"neg_log_weights .*\(3, 4\).*got \(\)"),
    ({"neg_log_weights": torch.zeros(3, 4, dtype=torch.bool)}, TypeError, r"neg_log_weights .*got bool"),
    ({"neg_log_weights": 0.0}, TypeError, r"neg_log_weights .*Tensor.*got float"),
    ({"neg_log_weights": torch.zeros(3, 4, device=META)}, ValueError, r"neg_log_weights .*device.*got meta"),
    ({"tau": 0.1}, TypeError, r"'tau'.*temperature, prior"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), LOSS_ARGUMENTS)
def test_loss_arguments(nothing_runs: None, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    _raises(error, message, lambda: level_1(**arguments))
    _raises(error, message, lambda: level_2(**arguments))


def _known_before_the_scores(arguments: dict[str, Any]) -> bool:
    tensors = any(isinstance(value, Tensor) for value in arguments.values())
    return not tensors and not arguments.keys() & {"row_weights", "neg_log_weights"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"), [case for case in LOSS_ARGUMENTS if _known_before_the_scores(case[0])]
)
def test_modules_check_when_they_are_made(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    _raises(error, message, lambda: CWLoss(**arguments))
    _raises(error, message, lambda: CWEmbeddingLoss(**arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"pos": [0.0]}, TypeError, r"pos_scores must be a torch.Tensor, got list"),
        ({"neg": None}, TypeError, r"neg_scores must be a torch.Tensor, got NoneType"),
        ({"pos": POS.long()}, TypeError, r"pos_scores .*float16, bfloat16, float32, float64, got int64"),
        ({"pos": POS.to(torch.complex64)}, TypeError, r"pos_scores .*got complex64"),
        ({"neg": NEG.double()}, TypeError, r"neg_scores .*pos_scores.*float32.*got float64"),
        ({"neg": NEG.long()}, TypeError, r"neg_scores .*float32.*got int64"),
        ({"neg": NEG[:2]}, ValueError, r"neg_scores .*\(3,\).*got \(2, 4\)"),
        ({"neg": torch.zeros(3)}, ValueError, r"neg_scores .*\(3,\).*got \(3,\)"),
        ({"neg": torch.tensor(1.0)}, ValueError, r"neg_scores .*got \(\)"),
        ({"neg": torch.zeros(1, 3, 4)}, ValueError, r"neg_scores .*\(3,\).*got \(1, 3, 4\)"),
        ({"pos": POS[:, None]}, ValueError, r"neg_scores .*\(3, 1\).*got \(3, 4\)"),
        ({"neg": torch.zeros(3, 0)}, ValueError, r"neg_scores .*N ≥ 1.*got shape \(3, 0\)"),
        ({"neg": NEG.to(META)}, ValueError, r"neg_scores .*device of pos_scores, cpu, got meta"),
        ({"extra_pos_scores": torch.zeros(3)}, ValueError, r"extra_pos_scores .*\(3,\).*got \(3,\)"),
        ({"extra_pos_scores": torch.zeros(2, 2)}, ValueError, r"extra_pos_scores .*\(3,\).*got \(2, 2\)"),
        (
            {"extra_pos_scores": torch.zeros(3, 2).half()},
            TypeError,
            r"extra_pos_scores .*float32.*got float16",
        ),
        ({"extra_pos_scores": [[0.0]]}, TypeError, r"extra_pos_scores .*Tensor, got list"),
        (
            {"extra_pos_scores": torch.zeros(3, 2, device=META)},
            ValueError,
            r"extra_pos_scores .*cpu, got meta",
        ),
    ],
)
def test_scores(nothing_runs: None, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    _raises(error, message, lambda: level_1(**arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": [[1.0]]}, TypeError, r"queries must be a torch.Tensor, got list"),
        ({"items": None}, TypeError, r"items must be a torch.Tensor, got NoneType"),
        ({"queries": QUERIES.long()}, TypeError, r"queries .*got int64"),
        ({"items": ITEMS.double()}, TypeError, r"items .*queries, float32, got float64"),
        ({"items": ITEMS.to(META)}, ValueError, r"items .*device of queries, cpu, got meta"),
        ({"queries": QUERIES[0]}, ValueError, r"queries must have shape \[B, D\], got \(2,\)"),
        ({"queries": QUERIES[None]}, ValueError, r"queries must have shape \[B, D\], got \(1, 3, 2\)"),
        ({"queries": QUERIES[:, :0]}, ValueError, r"queries .*D ≥ 1.*got shape \(3, 0\)"),
        ({"items": torch.ones(5, 3)}, ValueError, r"items must have shape \[I, D\] .*D = 2, got \(5, 3\)"),
        ({"items": torch.ones(0, 2)}, ValueError, r"items .*I ≥ 1.*got shape \(0, 2\)"),
        ({"items": torch.ones(5)}, ValueError, r"items must have shape \[I, D\] .*got \(5,\)"),
        ({"pos_ids": POS_IDS.float()}, TypeError, r"pos_ids .*int32, int64, got float32"),
        ({"pos_ids": POS_IDS.bool()}, TypeError, r"pos_ids .*int32, int64, got bool"),
        ({"neg_ids": NEG_IDS.to(torch.int16)}, TypeError, r"neg_ids .*int32, int64, got int16"),
        ({"neg_ids": NEG_IDS.tolist()}, TypeError, r"neg_ids .*Tensor, got list"),
        ({"pos_ids": POS_IDS[:2]}, ValueError, r"pos_ids .*\(3,\), one id per row.*got \(2,\)"),
        ({"pos_ids": POS_IDS[:, None]}, ValueError, r"pos_ids .*\(3,\), one id per row.*got \(3, 1\)"),
        ({"neg_ids": NEG_IDS[:2]}, ValueError, r"neg_ids .*\[B, N\].*B = 3.*\[N\].*got \(2, 4\)"),
        ({"neg_ids": NEG_IDS[None]}, ValueError, r"neg_ids .*\[B, N\].*got \(1, 3, 4\)"),
        ({"neg_ids": torch.tensor(1)}, ValueError, r"neg_ids .*\[B, N\].*got \(\)"),
        ({"neg_ids": NEG_IDS[:, :0]}, ValueError, r"neg_ids .*N ≥ 1.*got shape \(3, 0\)"),
        ({"neg_ids": NEG_IDS[0, :0]}, ValueError, r"neg_ids .*N ≥ 1.*got shape \(0,\)"),
        ({"neg_ids": NEG_IDS.to(META)}, ValueError, r"neg_ids .*device of queries, cpu, got meta"),
        ({"extra_pos_ids": POS_IDS}, ValueError, r"extra_pos_ids .*\[B, M\].*B = 3, got \(3,\)"),
        ({"extra_pos_ids": NEG_IDS[:1]}, ValueError, r"extra_pos_ids .*\[B, M\].*B = 3, got \(1, 4\)"),
        ({"extra_pos_ids": NEG_IDS.float()}, TypeError, r"extra_pos_ids .*int32, int64, got float32"),
        (
            {"similarity": "cosinus"},
            ValueError,
            r"similarity .*'half_cosine', 'cosine', 'dot', got 'cosinus'",
        ),
        ({"sparse_grad": 1}, TypeError, r"sparse_grad must be True or False, got 1"),
    ],
)
def test_embeddings(nothing_runs: None, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    _raises(error, message, lambda: level_2(**arguments))


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("sparse_grad", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("name", "bad", "dtype"),
    [
        ("pos_ids", 11, torch.int64),
        ("pos_ids", -2, torch.int32),
        ("neg_ids", 11, torch.int64),
        ("neg_ids", 12345, torch.int32),
        ("neg_ids", -2, torch.int64),
        # Not to be cut to 32 bits, where it would be item 3.
        ("neg_ids", 2**40 + 3, torch.int64),
        ("neg_ids", -(2**33), torch.int64),
        ("extra_ids", 11, torch.int64),
        ("extra_ids", 2**32, torch.int64),
        ("extra_ids", -7, torch.int32),
    ],
)
def test_ids_out_of_range(backend: str, name: str, bad: int, dtype: torch.dtype, sparse_grad: bool) -> None:
    """An IndexError with the id, wherever it stands, and a process that goes on working."""
    good = make_embeddings(40, 9, 4, 11, 2, seed=51, id_dtype=dtype)
    expected = good.loss(backend="reference")
    case = good.map(torch.clone)
    ids = getattr(case, name)
    ids.view(-1)[-1] = bad
    its_name = {"extra_ids": "extra_pos_ids"}.get(name, name)
    leaves = case.leaves()
    with pytest.raises(IndexError, match=rf"{its_name} must be in \[0, 11\).*got {re.escape(str(bad))}\b"):
        leaves.loss(backend=backend, sparse_grad=sparse_grad)
    assert_near(good.loss(backend=backend, sparse_grad=sparse_grad), expected, torch.float64)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("bad", [11, -2])
def test_shared_ids_out_of_range(backend: str, bad: int) -> None:
    case = make_embeddings(40, 9, 4, 11, shared=True)
    case.neg_ids[4] = bad
    with pytest.raises(IndexError, match=rf"neg_ids must be in \[0, 11\).*got {bad}\b"):
        case.loss(backend=backend)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("bad", [11, -2, 2**40])
def test_ids_out_of_range_on_cuda(kernels: None, bad: int) -> None:
    """A device-side assertion ends the use of the GPU by its process, so another process has it."""
    code = f"""
import torch
from cases import make_embeddings
case = make_embeddings(40, 9, 4, 11).to(device="cuda")
case.neg_ids[3, 4] = {bad}
try:
    case.loss(backend="fused").item()
except Exception as error:
    raise SystemExit(7 if "assert" in str(error) or isinstance(error, IndexError) else 8)
"""
    done = subprocess.run([sys.executable, "-c", code], env=child_environment(), timeout=300)
    assert done.returncode == 7


@pytest.mark.cpu_kernels
def test_a_later_error_leaves_no_trace_of_gradients(backend: str) -> None:
    """The exception comes from forward: no leaf has a gradient, and none is half made."""
    leaves = make_embeddings(4, 3, 4, 5).leaves()
    leaves.neg_ids[0, 0] = 99
    with pytest.raises(IndexError):
        leaves.loss(backend=backend).backward()
    assert leaves.queries.grad is None and leaves.items.grad is None


def test_a_prior_out_of_range_in_compiled_code_is_nan() -> None:
    """Where looking at the values would break the graph, the row says it."""
    compiled = torch.compile(lambda prior: cw_loss(POS, NEG, prior=prior, reduction="none"), backend="eager")
    loss = compiled(torch.tensor([0.1, 1.5, -0.5]))
    assert loss.isfinite().tolist() == [True, False, False] and loss[1:].isnan().all()

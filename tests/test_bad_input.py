"""What users get wrong: an exception naming the argument, what was expected, what came; nothing computed."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import assert_near, child_environment, make_embeddings
from drawing import make_interactions
from torch import Tensor

import cw_ext
from cw_ext import (
    CWEmbeddingLoss,
    CWFullLoss,
    CWInBatchLoss,
    CWLoss,
    CWSampledLoss,
    FalseNegatives,
    Interactions,
    ScoreCurve,
    cw_loss,
    cw_loss_from_embeddings,
    cw_loss_full,
    cw_loss_in_batch,
    draw_negatives,
    presets,
    sampled_cw_loss,
)
from cw_ext.alias_table import popularity_table
from cw_ext.false_negatives import cvir_log_weights, delayed_weights
from cw_ext.prior import estimate_prior

INF, NAN = math.inf, math.nan
POS, NEG = torch.zeros(3), torch.zeros(3, 4)
QUERIES, ITEMS = torch.ones(3, 2), torch.ones(5, 2)
POS_IDS, NEG_IDS = torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int64)
TWO = torch.tensor([0.1, 0.2])
META = torch.device("meta")


def of_scores(pos: Any = POS, neg: Any = NEG, **arguments: Any) -> Tensor:
    return cw_loss(pos, neg, **arguments)


def of_embeddings(
    queries: Any = QUERIES,
    items: Any = ITEMS,
    pos_ids: Any = POS_IDS,
    neg_ids: Any = NEG_IDS,
    **arguments: Any,
) -> Tensor:
    return cw_loss_from_embeddings(queries, items, pos_ids, neg_ids, **arguments)


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check must come before the computation."""

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
    ({"temperature": torch.tensor([0.1, 0.0, 0.2])}, ValueError, r"^temperature must be > 0, got 0.0"),
    ({"temperature": torch.tensor(-0.5)}, ValueError, r"^temperature must be > 0, got -0.5"),
    ({"temperature": torch.ones(3, 1)}, ValueError, r"^temperature .*\(3,\), one value per row, got \(3, 1\)"),
    ({"temperature": torch.ones(3, dtype=torch.int64)}, TypeError, r"^temperature must have dtype .*got int64"),
    ({"temperature": torch.ones(3, device=META)}, ValueError, r"^temperature must be on the device .*cpu, got meta"),
    ({"positive_temperature": 0}, ValueError, r"^positive_temperature must be > 0, got 0"),
    ({"positive_temperature": -0.1}, ValueError, r"^positive_temperature must be > 0, got -0.1"),
    ({"positive_temperature": NAN}, ValueError, r"^positive_temperature .*> 0.*got nan"),
    ({"positive_temperature": "0.1"}, TypeError, r"^positive_temperature must be a number > 0 or None, got str"),
    ({"positive_temperature": torch.ones(3)}, TypeError, r"^positive_temperature .* number > 0 or None, got Tensor"),
    ({"score_curve": [0.0, 1.0]}, TypeError, r"^score_curve must be a cw_ext.ScoreCurve or None, got list"),
    ({"score_curve": ScoreCurve}, TypeError, r"^score_curve must be a cw_ext.ScoreCurve or None, got type"),
    ({"return_above": 1}, TypeError, r"^return_above must be True or False, got 1"),
    ({"return_above": None}, TypeError, r"^return_above must be True or False, got None"),
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
    # Beyond every float.
    ({"temperature": 10**400}, ValueError, r"temperature must be a number > 0 .*that a float can hold, got 10{400}"),
    ({"prior": -(10**400)}, ValueError, r"prior .*\[0, 1\).* got -10{400}"),
    ({"min_margin": Fraction(10**400)}, ValueError, r"min_margin must be a number or None .*got 10{400}"),
    # What is equal to a choice, or has no hash.
    ({"weighting": ["none"]}, ValueError, r"weighting .*'none', 'sigmoid'.*got \['none'\]"),
    ({"reduction": np.array(["mean"])}, ValueError, r"reduction .*'mean', 'sum'.*got array\(\['mean'\]"),
    ({"surrogate": np.array(["exp", "tanh"])}, ValueError, r"surrogate .*'exp', 'tanh'.*got array"),
    ({"backend": {}}, ValueError, r"backend .*'auto', 'fused'.*got \{\}"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), LOSS_ARGUMENTS)
def test_loss_arguments(nothing_runs: None, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    _raises(error, message, lambda: of_scores(**arguments))
    _raises(error, message, lambda: of_embeddings(**arguments))


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
    _raises(error, message, lambda: of_scores(**arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": [[1.0]]}, TypeError, r"queries must be a torch.Tensor, got list"),
        ({"items": None}, TypeError, r"items must be a torch.Tensor or a torch.nn.Embedding, got NoneType"),
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
        ({"similarity": ["cosine"]}, ValueError, r"similarity .*'half_cosine', .*got \['cosine'\]"),
        ({"sparse_grad": 1}, TypeError, r"sparse_grad must be True or False, got 1"),
        ({"pos_ids": None}, TypeError, r"pos_ids must be a torch.Tensor, got NoneType"),
    ],
)
def test_embeddings(nothing_runs: None, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    _raises(error, message, lambda: of_embeddings(**arguments))


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
    """Where reading the values would break the graph, the row is NaN."""
    compiled = torch.compile(lambda prior: cw_loss(POS, NEG, prior=prior, reduction="none"), backend="eager")
    loss = compiled(torch.tensor([0.1, 1.5, -0.5]))
    assert loss.isfinite().tolist() == [True, False, False] and loss[1:].isnan().all()


# ---- every function ----------------------------------------------------------------------------------------

KNOWN = make_interactions(5, 5, 6)
QUERY_IDS = torch.tensor([0, 2, 3])
BATCH = {"queries": QUERIES, "items": ITEMS, "pos_ids": POS_IDS, "row_weights": torch.ones(3)}
BATCH |= {"extra_pos_ids": NEG_IDS, "prior": torch.zeros(3), "confidence_threshold": torch.zeros(3)}
WHO = {"query_ids": QUERY_IDS, "interactions": KNOWN}
GOOD: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "cw_loss": (cw_loss, {"pos_scores": POS, "neg_scores": NEG, "extra_pos_scores": NEG, "neg_log_weights": NEG}),
    "cw_loss_from_embeddings": (cw_loss_from_embeddings, BATCH | {"neg_ids": NEG_IDS, "neg_log_weights": NEG}),
    "sampled_cw_loss": (sampled_cw_loss, BATCH | WHO | {"num_negatives": 3, "seed": torch.tensor(1)}),
    "cw_loss_in_batch": (cw_loss_in_batch, BATCH | WHO | {"item_counts": torch.ones(5)}),
    "cw_loss_full": (cw_loss_full, BATCH | WHO),
    "draw_negatives": (draw_negatives, WHO | {"num_negatives": 3, "seed": torch.tensor(1)}),
    "Interactions": (
        Interactions,
        {"query_ids": QUERY_IDS, "item_ids": QUERY_IDS, "num_queries": 5, "num_items": 5},
    ),
    "check_has_negatives": (KNOWN.check_has_negatives, {"query_ids": QUERY_IDS, "distribution": "uniform"}),
    "estimate_prior": (estimate_prior, {"positive_scores": POS, "unlabeled_scores": POS}),
    "FalseNegatives.fit": (FalseNegatives.fit, {"positive_scores": TWO, "unlabeled_scores": TWO, "prior": 0.1}),
    "probability": (FalseNegatives.fit(TWO, TWO, 0.1).probability, {"scores": NEG}),
    "log_weights": (FalseNegatives.fit(TWO, TWO, 0.1, family="isotonic").log_weights, {"scores": NEG}),
    "cvir_log_weights": (cvir_log_weights, {"neg_scores": NEG, "prior": 0.1}),
    "delayed_weights": (delayed_weights, {"kinds": POS_IDS, "f_dp": POS}),
    "popularity_table": (popularity_table, {"weights": torch.ones(3, dtype=torch.float64)}),
}
TENSORS = [(call, name) for call, (_, given) in GOOD.items() for name, v in given.items() if isinstance(v, Tensor)]


def _prototype(make: Callable[[], Tensor]) -> Tensor:
    """Without torch's warnings that it is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


@pytest.mark.parametrize(("call", "name"), TENSORS, ids=[f"{call}-{name}" for call, name in TENSORS])
def test_layouts(call: str, name: str) -> None:
    """Tensors that are not dense, which operations deep inside would refuse in words of their own."""
    function, good = GOOD[call]
    function(**good)
    dense = good[name]
    bad = {
        "layout torch.sparse_coo": dense.to_sparse(),
        "a nested tensor": _prototype(lambda: torch.nested.nested_tensor([dense, dense])),
    }
    if dense.dim() == 2:
        bad["layout torch.sparse_csr"] = _prototype(dense.to_sparse_csr)
    if torch.backends.mkldnn.is_available() and dense.dtype == torch.float32:
        bad["layout torch._mkldnn"] = dense.to_mkldnn()
    for got, value in bad.items():
        message = rf"^{name} must be a dense \(strided\) tensor, got {got}$"
        _raises(TypeError, message, lambda value=value: function(**good | {name: value}))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("call", "arguments", "error", "message"),
    [
        ("sampled_cw_loss", {"sparse_grad": None}, TypeError, "sparse_grad must be True or False, got None"),
        ("sampled_cw_loss", {"num_negatives": 2**63}, ValueError, r"num_negatives must be at most 2\*\*32, got 9223"),
        ("cw_loss_in_batch", {"num_negatives": 2**40}, ValueError, r"num_negatives must be at most 2\*\*32, got 1099"),
        ("draw_negatives", {"num_negatives": 10**30}, ValueError, r"num_negatives must be at most 2\*\*32, got 1000"),
        # What this call makes no use of.
        (
            "sampled_cw_loss",
            {"popularity_exponent": "1"},
            TypeError,
            "popularity_exponent must be a number ≥ 0, got str",
        ),
        ("cw_loss_in_batch", {"seed": -1}, ValueError, "seed must be an integer in .* got -1"),
        (
            "cw_loss_in_batch",
            {"log_q_correction": False, "item_counts": torch.ones(4)},
            ValueError,
            r"item_counts .*\(5,\).* got \(4,\)",
        ),
        (
            "cw_loss_in_batch",
            {"item_counts": -torch.arange(5)},
            ValueError,
            "item_counts must be finite and ≥ 0, got -4",
        ),
        ("cw_loss_in_batch", {"item_counts": torch.full((5,), NAN)}, ValueError, "item_counts .*≥ 0, got nan"),
        ("cw_loss_in_batch", {"item_counts": torch.full((5,), INF)}, ValueError, "item_counts .*≥ 0, got inf"),
        ("draw_negatives", {"distribution": ["uniform"]}, ValueError, r"distribution .*got \['uniform'\]"),
        (
            "cw_loss_full",
            {"row_weights": _prototype(lambda: torch.quantize_per_tensor(POS, 0.1, 0, torch.qint8))},
            TypeError,
            "row_weights must be real, got qint8",
        ),
        ("Interactions", {"query_ids": QUERY_IDS.to(META)}, ValueError, "item_ids must be on the device of query_ids"),
        (
            "Interactions",
            {"query_ids": QUERY_IDS.to(META), "item_ids": QUERY_IDS.to(META)},
            ValueError,
            "query_ids must hold values, got a tensor on the device meta",
        ),
        ("estimate_prior", {"positive_scores": POS.to(META)}, ValueError, "positive_scores must hold values"),
        ("popularity_table", {"weights": [1.0]}, TypeError, "weights must be a torch.Tensor, got list"),
        ("check_has_negatives", {"query_ids": [0]}, TypeError, "query_ids must be a torch.Tensor, got list"),
        ("check_has_negatives", {"query_ids": POS}, TypeError, "query_ids must have dtype int32, int64, got float32"),
    ],
)
def test_further_arguments(call: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    function, good = GOOD[call]
    _raises(error, message, lambda: function(**good | arguments))


def test_queries_that_are_looked_at_are_in_range() -> None:
    """Not so a negative id, which would be another query; −1 is padding."""
    full = make_interactions(5, 5, 6, full=True)
    for bad in (5, -2):
        message = rf"query_ids must be in \[0, 5\), or −1 for padding, got {bad}"
        _raises(IndexError, message, lambda bad=bad: full.check_has_negatives(torch.tensor([0, bad]), "uniform"))


@pytest.mark.parametrize(
    ("device", "error"),
    [(torch.float32, TypeError), (POS, TypeError), (None, TypeError), (True, TypeError), ("nowhere", ValueError)],
)
def test_interactions_move_to_devices_only(device: Any, error: type[Exception]) -> None:
    """A tensor's to() takes a dtype, too, and would make ids of another one."""
    _raises(error, "device must be a .*, got", lambda: KNOWN.to(device))


@pytest.mark.parametrize("path", [None, 3, b"pairs.tsv"])
def test_a_path_that_is_none(path: Any) -> None:
    _raises(TypeError, "path must be a str or os.PathLike, got", lambda: Interactions.from_file(path))
    with pytest.raises(FileNotFoundError):
        Interactions.from_file(Path("nothing"))


# ---- modules and presets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "arguments", "error", "message"),
    [
        (CWEmbeddingLoss, {"similarity": "l2"}, ValueError, "similarity must be one of .*got 'l2'"),
        (CWEmbeddingLoss, {"sparse_grad": None}, TypeError, "sparse_grad must be True or False, got None"),
        *(
            (CWSampledLoss, {"interactions": KNOWN, "num_negatives": 3} | bad, error, message)
            for bad, error, message in (
                ({"interactions": None}, TypeError, "interactions must be a cw_ext.Interactions, got NoneType"),
                ({"interactions": None, "distribution": "popularity"}, TypeError, "interactions must be .*NoneType"),
                ({"num_negatives": 0}, ValueError, "num_negatives must be an integer ≥ 1, got 0"),
                ({"distribution": "zipf"}, ValueError, "distribution must be one of .*got 'zipf'"),
                ({"popularity_exponent": -1}, ValueError, "popularity_exponent must be .*got -1"),
                ({"similarity": None}, ValueError, "similarity must be one of .*got None"),
                ({"shared": 1}, TypeError, "shared must be True or False, got 1"),
                ({"recompute": "no"}, TypeError, "recompute must be True or False, got 'no'"),
                ({"log_q_correction": 0}, TypeError, "log_q_correction must be True or False, got 0"),
                ({"sparse_grad": 0}, TypeError, "sparse_grad must be True or False, got 0"),
            )
        ),
        (CWInBatchLoss, {"interactions": {}}, TypeError, "interactions must be a cw_ext.Interactions, got dict"),
        (CWInBatchLoss, {"num_negatives": -1}, ValueError, "num_negatives must be an integer ≥ 0, got -1"),
        (CWInBatchLoss, {"similarity": 1}, ValueError, "similarity must be one of .*got 1"),
        (CWInBatchLoss, {"log_q_correction": None}, TypeError, "log_q_correction must be True or False, got None"),
        (CWInBatchLoss, {"sparse_grad": 2}, TypeError, "sparse_grad must be True or False, got 2"),
        (CWFullLoss, {"similarity": "cosinus"}, ValueError, "similarity must be one of .*got 'cosinus'"),
    ],
)
def test_modules_check_their_settings_when_they_are_made(
    module: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    _raises(error, message, lambda: module(**arguments))


@pytest.mark.parametrize("queries", [QUERIES.to(META), QUERIES.long().to(META)], ids=["beside others", "wrong itself"])
def test_modules_survive_a_batch_on_meta(queries: Tensor) -> None:
    """Their known positives move to where the queries are; from there they could not come back."""
    module = CWSampledLoss(KNOWN, 3)
    expected = module(QUERIES, ITEMS, QUERY_IDS, POS_IDS, seed=1)
    with pytest.raises((TypeError, ValueError), match="queries"):
        module(queries, ITEMS, QUERY_IDS, POS_IDS, seed=1)
    assert torch.equal(module(QUERIES, ITEMS, QUERY_IDS, POS_IDS, seed=1), expected)


@pytest.mark.parametrize(
    ("preset", "arguments", "error", "message"),
    [
        (presets.sl, {"temperature": "0.1"}, TypeError, "temperature must be a number > 0 .*got str"),
        (presets.infonce, {"temperature": 0}, ValueError, "temperature must be > 0, got 0"),
        (presets.dcl, {"prior": 1.0}, ValueError, r"prior must be in \[0, 1\), got 1.0"),
        (presets.dcl, {"min_margin": NAN}, ValueError, "min_margin must be a number or None, got nan"),
        (presets.pucl, {"prior": POS}, TypeError, r"prior must be a number in \[0, 1\), got Tensor"),
        (presets.pucl, {"label_frequency": None}, TypeError, r"label_frequency must be a number in .* got NoneType"),
        (presets.hcl, {"concentration": "1"}, TypeError, "concentration must be a number > 0 .*got str"),
        (presets.hcl, {"temperature": [1]}, TypeError, "^temperature must be a number > 0 .*got list"),
        (presets.hcl, {"temperature": torch.tensor(0.1)}, TypeError, "^temperature must be a number > 0 .*got Tensor"),
        (presets.psl, {"surrogate": "sigmoid"}, ValueError, "surrogate must be one of .*got 'sigmoid'"),
        (presets.bsl, {"negative_temperature": -1}, ValueError, "negative_temperature must be > 0, got -1"),
        (presets.slk, {"quantile_temperature": INF}, ValueError, "quantile_temperature must be .*got inf"),
        (presets.cw, {"confidence_temperature": True}, TypeError, "confidence_temperature must be .*got bool"),
    ],
)
def test_presets(preset: Any, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    """Where they are called, in their own words."""
    _raises(error, rf"^{message}", lambda: preset(**arguments))

"""The CPU's order of pairs for the item gradient: by blocks of rows, buckets of items (csrc/cpu/bucketed_pairs.h)."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPE_IDS, DTYPES, against_truth, generator, item_gradient_arguments, make_embeddings
from torch._subclasses.fake_tensor import FakeTensorMode

from cw_ext import op_errors
from cw_ext.op_inputs import EMBEDDINGS, EmbeddingInputs, EmbeddingResults, Losses, Wanted
from cw_ext.parameters import resolve
from cw_ext.row_values import CurveInputs, RowValues

# Many blocks of few rows, few blocks of many rows, rows longer than a block; one bucket, and several and a part.
SIZES = {
    "several blocks": {"rows": 40, "n": 900, "dim": 20, "items": 200},
    "short rows": {"rows": 2100, "n": 1, "dim": 8, "items": 130},
    "long rows": {"rows": 3, "n": 17000, "dim": 5, "items": 65},
    "several slices": {"rows": 20, "n": 40, "dim": 150, "items": 70},
    "few items": {"rows": 20, "n": 30, "dim": 16, "items": 3},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_sizes(kernels: None, device: torch.device, sizes: dict[str, int], dtype: torch.dtype) -> None:
    case = make_embeddings(**sizes, m=2, seed=101, padding=True)
    weight = torch.randn(sizes["rows"], generator=generator(102), dtype=torch.float64)
    against_truth(case, dtype, device, weight, prior=0.05)


def test_shared_negatives_named_more_than_once(kernels: None, device: torch.device) -> None:
    case = make_embeddings(30, 2000, 12, 70, m=2, seed=103, padding=True, shared=True)
    weight = torch.randn(30, generator=generator(104), dtype=torch.float64)
    against_truth(case, torch.float32, device, weight, prior=0.05)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dim", [64, 256])
def test_eight_bytes_per_negative(kernels: None, dim: int) -> None:
    """What a step holds beyond its inputs and their gradients."""
    rows, n, items = 256, 1000, 5000
    case = make_embeddings(rows, n, dim, items, seed=105).to(torch.float32).leaves(["queries", "items"])
    case.loss(backend="fused").backward()
    case.queries.grad = case.items.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        case.loss(backend="fused").backward()
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        held += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, held)
    gradients = 4 * dim * (rows + items)
    assert held == gradients, "the measurement sees the gradients that are left"
    assert (peak - gradients) / (rows * n) <= 8


def _held(rows: int, n: int, items: int) -> tuple[int, int]:
    """Bytes of the coefficients and of pair_ends, by the shapes that the op allocates; no ends where they are dense."""
    with FakeTensorMode():
        inputs = EmbeddingInputs(
            queries=torch.empty(rows, 8),
            items=torch.empty(items, 8),
            pos_ids=torch.empty(rows, dtype=torch.int64),
            neg_ids=torch.empty(rows, n, dtype=torch.int32),
            extra_ids=None,
            log_q=None,
            exclude=False,
            history=None,
            row_values=RowValues(),
            curve=CurveInputs(),
            parameters=resolve({}).row,
            similarity="half_cosine",
            reduction="mean",
        )
        wanted = Wanted(with_gradients=True, with_log_q_gradient=False, with_curve_gradient=False)
        found = torch.ops.cw_ext.embeddings_forward(*EMBEDDINGS.flat(inputs), *wanted)
    results = EmbeddingResults(*found[len(Losses._fields) :])
    coefficients, ends = results.coefficients, results.pair_ends
    assert ends.dtype == torch.int32 and ends.shape[1] == (items + 63) // 64
    assert coefficients.shape == (rows, 1 + n if len(ends) else items)
    return 4 * coefficients.numel(), 4 * ends.numel()


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("rows", [1, 64, 1024, 100_000])
@pytest.mark.parametrize("n", [1, 100, 1000, 8192, 100_000])
@pytest.mark.parametrize("items", [1000, 41_000, 10**6, 10**7])
def test_ends_of_blocks_are_few(kernels: None, rows: int, n: int, items: int) -> None:
    """At most half of the coefficients, or 8 bytes per item; or, with few pairs per row, I/16 bytes per 1,024 rows."""
    coefficients, ends = _held(rows, n, items)
    if ends == 0:
        assert coefficients <= 2 * 6 * rows * (1 + n), "at most twice the memory of pairs"
        return
    of_a_block = 4 * ((items + 63) // 64)
    assert ends <= max(coefficients / 2, 129 * of_a_block, (rows / 1024 + 1) * of_a_block)


@pytest.mark.cpu_kernels
def test_larger_blocks_with_a_large_table(kernels: None, device: torch.device) -> None:
    case = make_embeddings(260, 9000, 1, 10**6, seed=107).to(torch.float32)
    ends = item_gradient_arguments(case)["pair_ends"]
    assert 4 * ends.numel() == _held(260, 9000, 10**6)[1] and len(ends) == 130, "two rows per block"
    against_truth(case, torch.float32, device, similarity="dot", temperature=1.0)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pair_keys", -1, "pair_keys names the row 1023"),
        ("pair_ends", 10**6, "pair_ends must rise to at most"),
        ("pair_ends", -5, "pair_ends must rise to at most"),
    ],
)
def test_a_forged_order(kernels: None, name: str, value: int, message: str) -> None:
    """What the op is given does not make it read or write beyond its tensors."""
    arguments = item_gradient_arguments(make_embeddings(6, 9, 8, 130, seed=106).to(torch.float32))
    arguments[name].view(-1)[1] = value
    with pytest.raises(op_errors.RAISED, match=f"ValueError: {message}"):
        torch.ops.cw_ext.item_gradient(**arguments)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("name", ["pair_keys", "pair_ends"])
def test_an_order_of_another_shape(kernels: None, name: str) -> None:
    arguments = item_gradient_arguments(make_embeddings(6, 9, 8, 130, seed=106).to(torch.float32))
    arguments[name] = arguments[name][:, :1]
    with pytest.raises(op_errors.RAISED, match=f"ValueError: {name} must have shape"):
        torch.ops.cw_ext.item_gradient(**arguments)

"""The CPU's way to the item gradient: pairs sorted by blocks of rows and buckets of items (csrc/cpu/pairs.h)."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPE_IDS, DTYPES, against_truth, generator, item_gradient_arguments, make_embeddings

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


KEYS, ENDS = 4, 5  # places of the op's arguments


@pytest.mark.cpu_kernels
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (KEYS, -1, "pair_keys names the row 1023"),
        (ENDS, 10**6, "pair_ends must rise to at most"),
        (ENDS, -5, "pair_ends must rise to at most"),
    ],
)
def test_a_forged_order(kernels: None, place: int, value: int, message: str) -> None:
    """What the op is given does not make it read or write beyond its tensors."""
    arguments = item_gradient_arguments(make_embeddings(6, 9, 8, 130, seed=106).to(torch.float32))
    arguments[place].view(-1)[1] = value
    with pytest.raises(ValueError, match=message):
        torch.ops.cw_ext.item_gradient(*arguments)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("place", [KEYS, ENDS])
def test_an_order_of_another_shape(kernels: None, place: int) -> None:
    arguments = item_gradient_arguments(make_embeddings(6, 9, 8, 130, seed=106).to(torch.float32))
    arguments[place] = arguments[place][:, :1]
    with pytest.raises(ValueError, match="must have shape"):
        torch.ops.cw_ext.item_gradient(*arguments)

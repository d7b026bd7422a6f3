"""Run in a clean environment with an installed wheel: what a user's first minutes need, against the reference."""

import pathlib
import shutil
import sys
import warnings

import torch

import cw_ext

warnings.filterwarnings("error", message=".*reference backend")  # which would hide that the kernels do not run
found = [name for name in ("cc", "gcc", "g++", "clang++", "nvcc", "ninja") if shutil.which(name)]
assert not found, f"a compiler is here: {found}"
assert pathlib.Path(cw_ext.__file__).is_relative_to(sys.argv[1]), cw_ext.__file__

config = cw_ext.build_config()
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, cw_ext {cw_ext.__version__}: {config}")
assert config["available"], config["reason"]
assert config["compiler"], "the module for this Python is not here"

torch.manual_seed(0)
ids, counts = torch.arange(6), torch.arange(1, 41)
known = cw_ext.Interactions(ids, ids, num_queries=6, num_items=40)
for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
    queries, items = torch.randn(6, 8, dtype=dtype), torch.randn(40, 8, dtype=dtype)
    pos, neg = torch.randn(6, dtype=dtype), torch.randn(6, 30, dtype=dtype)
    losses = {
        "scores": lambda backend: cw_ext.cw_loss(pos, neg, backend=backend),
        "drawn": lambda backend: cw_ext.sampled_cw_loss(queries, items, ids, ids, known, 9, seed=1, backend=backend),
        "in batch": lambda backend: cw_ext.cw_loss_in_batch(queries, items, ids, item_counts=counts, backend=backend),
        "full": lambda backend: cw_ext.cw_loss_full(queries, items, ids, backend=backend),
    }
    for name, loss in losses.items():
        results = []
        for backend in ("fused", "reference"):
            tensors = [x.requires_grad_() for x in ((pos, neg) if name == "scores" else (queries, items))]
            value = loss(backend)
            results.append((value.detach(), *torch.autograd.grad(value, tensors)))
        for fused, reference in zip(*results, strict=True):
            assert (fused - reference).abs().max() <= close * reference.abs().max(), f"{name}, {dtype}"

neg = torch.randn(6, 30)
compiled = torch.compile(cw_ext.cw_loss, backend="aot_eager", fullgraph=True)
assert torch.equal(compiled(torch.ones(6), neg, backend="fused"), cw_ext.cw_loss(torch.ones(6), neg))
try:
    cw_ext.cw_loss(torch.ones(6), neg, temperature=-1.0, backend="fused")
except ValueError as error:
    assert "temperature" in str(error), error
else:
    raise AssertionError("a wrong argument was taken")
print("ok")

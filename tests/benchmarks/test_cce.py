"""Sampled softmax: that CCE⁻ is called as its kernels expect, played by a stand-in with its repository's interface."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from throughput_cases import columns_of

from benchmarks.common import gpu, memory
from benchmarks.throughput import __main__ as throughput
from benchmarks.throughput import cce, contestants, cuda, shapes
from benchmarks.throughput.shapes import Shape

SHAPE = Shape("ids", 64, 50, dim=16, items=200, dtype="float16", loss="sampled_softmax")

# Written from what the kernels do with their arguments, in plain PyTorch: the names, their order and what they refuse.
STAND_IN = """
import math
from dataclasses import dataclass

import torch


@dataclass
class CCEParams:
    targets: torch.Tensor
    valids: torch.Tensor | None
    softcap: float | None
    reduction: str
    filter_eps: float | None
    shift: int
    batch_shape: torch.Size
    use_kahan: bool
    item_inds: torch.Tensor | None


class LinearCrossEntropyFunction:
    @staticmethod
    def apply(e, c, bias, params):
        assert e.dtype == c.dtype and e.dtype in (torch.float16, torch.bfloat16)
        assert e.is_contiguous() and params.item_inds.is_contiguous()
        assert params.item_inds.dtype == params.targets.dtype == torch.int64
        assert bias is params.valids is params.softcap is params.filter_eps is None and not params.use_kahan
        items, samples = c.size(0), params.item_inds.size(1)
        scores = (e.unsqueeze(1).float() * c[params.item_inds].float()).sum(-1)
        scores = torch.cat([scores[:, :1], scores[:, 1:] + math.log(items - 1) - math.log(samples)], 1)
        targets = (e.float() * c[params.targets].float()).sum(-1)
        return getattr(torch.logsumexp(scores, 1) - targets, params.reduction)()
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A directory laid out as CCE⁻'s repository, which no later test can import from."""
    package = tmp_path / "checkout" / "kernels" / "cut_cross_entropy"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cce.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("cut_cross_entropy", "cut_cross_entropy.cce"):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "checkout"


def test_cce_computes_what_the_others_do(checkout):
    cce.use_cce(checkout)
    inputs = contestants.make_inputs(SHAPE)
    found = contestants.make_step("cce", SHAPE, inputs)()
    assert {gradient.dtype for gradient in found[1:]} == {torch.float16}
    contestants.check("cce", SHAPE, found, contestants.exact_results(SHAPE, inputs))


def test_a_wrong_cce_is_caught(checkout):
    path = checkout / "kernels" / "cut_cross_entropy" / "cce.py"
    path.write_text(STAND_IN.replace("math.log(samples)", "math.log(samples - 1)"), encoding="utf-8")
    cce.use_cce(checkout)
    inputs = contestants.make_inputs(SHAPE)
    found = contestants.make_step("cce", SHAPE, inputs)()
    with pytest.raises(contestants.WrongResult, match="cce \\(embeddings, B=64 N=50 .* softmax\\): expected the loss"):
        contestants.check("cce", SHAPE, found, contestants.exact_results(SHAPE, inputs))


def test_the_command_for_a_gpu_played_through_on_the_cpu(checkout, kernels, tmp_path, monkeypatch, capsys):
    make_inputs = contestants.make_inputs
    monkeypatch.setattr(contestants, "make_inputs", lambda shape, device: make_inputs(shape))
    monkeypatch.setattr(cuda, "captured", lambda step: step)
    monkeypatch.setattr(memory, "peak_extra_bytes_cuda", lambda step: 10**6)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(shapes, "QUICK_CUDA", (Shape("scores", 8, 6), Shape("ids", 8, 6, dim=4, items=20, shared=True)))
    monkeypatch.setattr(shapes, "QUICK_CCE", (SHAPE,))
    stand_ins = {"require": None, "synchronize": None, "properties": {"gpu": "Some GPU"}, "copy_bytes_per_second": 1e12}
    for name, result in stand_ins.items():
        monkeypatch.setattr(gpu, name, lambda *_, result=result: result)

    names = ["cw_ext", "graph", "deterministic", "eager", "cce", "floor"]
    arguments = ["--device", "cuda", "--cce", str(checkout), "--contestants", *names, "--rounds", "2"]
    assert throughput.main(["--quick", *arguments, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "throughput.json").read_text(encoding="utf-8"))
    assert [list(entry["contestants"]) for entry in report["shapes"]] == [
        ["cw_ext", "graph", "deterministic", "eager", "floor"],
        ["cw_ext", "graph", "deterministic", "eager", "floor"],
        ["cw_ext", "graph", "eager", "cce", "floor"],
    ]
    for entry in report["shapes"]:
        for name, cost in entry["contestants"].items():
            assert cost["peak_extra_bytes"] == (None if name in ("graph", "floor") else 10**6)
    assert (report["environment"]["gpu"], report["environment"]["copy_bytes_per_second"]) == ("Some GPU", 1e12)
    described = capsys.readouterr().out
    assert columns_of(described, "scores")["graph"]["% of copy"] not in ("-", "")
    assert columns_of(described, "embeddings")["cce"]["x cce"] == "1.00"


def test_scores_are_neither_all_alike_nor_decided():
    inputs = contestants.make_inputs(SHAPE)
    queries, items = (leaf.detach().float() for leaf in inputs.leaves)
    assert 0.8 < (queries @ items.T).std() < 1.25


def test_a_directory_without_cce_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)
    with pytest.raises(ValueError, match=r"--cce .*: expected a checkout with kernels/cut_cross_entropy/cce.py"):
        cce.use_cce(tmp_path)
    assert sys.path == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_cce_that_cannot_be_imported_is_left_out_on_cuda(checkout, kernels, tmp_path, capsys):
    (checkout / "kernels" / "cut_cross_entropy" / "cce.py").write_text("import no_such_module\n", encoding="utf-8")
    arguments = ["--quick", "--device", "cuda", "--cce", str(checkout), "--contestants", "cce", "floor"]
    assert throughput.main([*arguments, "--rounds", "2", "--out", str(tmp_path / "out")]) == 0
    assert "left out: cce (embeddings, B=256 N=100 D=64 I=1200 fp16 softmax): ModuleNotFound" in capsys.readouterr().out

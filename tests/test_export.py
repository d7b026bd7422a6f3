"""torch.export of a model that returns its loss: the same number, the same gradients, here and in another process."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import assert_near, child_environment, exact, make_embeddings, make_scores
from drawing import make_drawn
from op_calls import OpCalls
from recommender import make_batch, make_recommender, training_step
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from cw_ext import ScoreCurve, cw_loss_from_embeddings

pytestmark = pytest.mark.cpu_kernels  # the programs are run where they were exported

# Those whose negatives are handed over, or come from ids: a program of the others computes the loss alone.
WITH_GRADIENTS = ("scores", "embeddings", "shared", "in-batch", "mixed")
SAVES_UINT32 = pytest.mark.skipif(
    torch.__version__ < "2.12", reason="torch.export.save of torch 2.11 knows no uint32, which a table's thresholds are"
)
LOSS_ALONE = ("sampled", pytest.param("popularity", marks=SAVES_UINT32), "full")
STRICT = pytest.mark.parametrize(
    "strict", [pytest.param(False, id="non-strict"), pytest.param(True, id="strict", marks=pytest.mark.thorough)]
)


def _exported(model: nn.Module, strict: bool, rows: int = 6) -> ExportedProgram:
    """For any number of rows."""
    of_rows = {0: Dim("rows", min=2)}
    return export(model, make_batch(rows, 7), dynamic_shapes=(of_rows, of_rows, of_rows), strict=strict)


def _saved_and_loaded(program: ExportedProgram) -> ExportedProgram:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_near(value, expected[name], torch.float32, name)


@STRICT
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_loss_and_gradients(backend: str, name: str, strict: bool) -> None:
    """For batches of any size, also those that the CPU sorts in more than one block."""
    model = make_recommender(name, backend)
    exported = _saved_and_loaded(_exported(model, strict)).module()
    for rows in (6, 3, 1100):
        batch = make_batch(rows, 7)
        _assert_equal(training_step(exported, exported, *batch), training_step(model, model, *batch))


@STRICT
@pytest.mark.parametrize("name", LOSS_ALONE)
def test_loss(kernels: None, name: str, strict: bool) -> None:
    model = make_recommender(name)
    exported = _saved_and_loaded(_exported(model, strict)).module()
    for rows in (6, 3, 40):
        losses = []
        for function in (exported, model):
            torch.manual_seed(89)
            losses.append(function(*make_batch(rows, 7)).detach())
        assert_near(*losses, torch.float32)


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_second_derivatives(kernels: None, name: str) -> None:
    model = make_recommender(name)
    exported = _exported(model, strict=False).module()
    found = []
    for module in (exported, model):
        torch.manual_seed(88)
        parameters = list(module.parameters())
        first = torch.autograd.grad(module(*make_batch(6, 7)), parameters, create_graph=True)
        found.append(torch.autograd.grad(sum((g**2).sum() for g in first), parameters))
    assert found[1][0].abs().sum() > 0
    for derivative, expected in zip(*found, strict=True):
        assert_near(derivative, expected, torch.float32)


@pytest.mark.parametrize("name", [pytest.param("scores", marks=pytest.mark.thorough), "embeddings"])
def test_a_program_in_another_process(kernels: None, tmp_path: Path, name: str) -> None:
    """It needs cw_ext to be imported, and nothing of the model's source."""
    model = make_recommender(name)
    torch.export.save(_exported(model, strict=False), tmp_path / "model.pt2")
    batch = make_batch(9, 7)
    torch.save(batch, tmp_path / "batch.pt")
    source = (
        "import torch, cw_ext\n"
        "module = torch.export.load('model.pt2').module()\n"
        "loss = module(*torch.load('batch.pt'))\n"
        "loss.backward()\n"
        "found = {name: p.grad for name, p in module.named_parameters()}\n"
        "torch.save(found | {'loss': loss.detach()}, 'found.pt')\n"
    )
    environment = child_environment(OMP_NUM_THREADS="1")
    child = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert child.returncode == 0, child.stderr
    _assert_equal(torch.load(tmp_path / "found.pt"), training_step(model, model, *batch))


class _Learned(nn.Module):
    """A table, with a temperature and a curve that are learned beside it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(90)
        self.items = nn.Parameter(torch.randn(50, 8))
        self.log_temperature, self.knots = nn.Parameter(torch.tensor(-1.0)), nn.Parameter(torch.randn(4))

    def forward(self, users: Tensor, positives: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
        return cw_loss_from_embeddings(
            self.items[users],
            self.items,
            positives,
            negatives,
            temperature=self.log_temperature.exp(),
            positive_temperature=0.4,
            score_curve=ScoreCurve(-0.5, 0.5, self.knots),
            return_above=True,
        )


@STRICT
def test_a_learned_temperature_and_curve(kernels: None, strict: bool) -> None:
    """Their gradients, and the counts."""
    model = _Learned()
    exported = _saved_and_loaded(_exported(model, strict)).module()
    with torch.no_grad():  # what is learned later
        for module in (exported, model):
            module.log_temperature.add_(0.5)
            module.knots.mul_(-1)
    for rows in (6, 40):
        batch = make_batch(rows, 7)
        steps = []
        for module in (exported, model):
            module.zero_grad()
            loss, above = module(*batch)
            loss.backward()
            steps.append({"loss": loss.detach(), "above": above} | {n: p.grad for n, p in module.named_parameters()})
        assert steps[0]["above"].shape == (rows,) and steps[0]["above"].any()
        _assert_equal(*steps)


def test_opcheck(kernels: None) -> None:
    """Schema, fake kernel and gradients of the ops of exported programs, on all that they take."""
    per_row = exact([0.1, 0.2, 0.0, 0.3, 0.1])
    scores = make_scores((5,), 7, 2, seed=110, log_q=True)
    embeddings = make_embeddings(5, 7, 8, 20, 2, seed=111, padding=True, log_q=True)
    shared = make_drawn("in_batch", 5)
    arguments = {"prior": per_row, "confidence_threshold": per_row, "confidence_temperature": 1.0}
    own = {"temperature": per_row + 0.1, "knots": exact([0.0, 0.3, -0.2])}
    scores, embeddings = replace(scores, **own), replace(embeddings, **own)
    arguments["score_curve"] = ScoreCurve(-0.5, 0.5, torch.zeros(3))
    for case, more in ((scores, arguments), (embeddings, arguments), (shared, {"reduction": "none"})):
        with OpCalls() as mode:
            case.loss(backend="fused", **more)
        (op, args, _) = mode.calls[-1]
        exported = getattr(torch.ops.cw_ext_export, op._schema.name.removeprefix("cw_ext::")).default
        leaves = [a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
        torch.library.opcheck(exported, leaves[: len(exported._schema.arguments)])


def test_a_portable_program(kernels: None) -> None:
    """backend="reference" leaves nothing of cw_ext in the graph."""
    for name in ("scores", "embeddings"):
        fused, reference = (_exported(make_recommender(name, b), strict=False) for b in ("fused", "reference"))
        ops = [{str(node.target).partition(".")[0] for node in p.graph.nodes} for p in (fused, reference)]
        assert "cw_ext_export" in ops[0] and not any("cw_ext" in op for op in ops[1])

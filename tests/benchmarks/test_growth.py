"""The growth benchmark: what its steps compute, and what the command writes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import cw_ext
from benchmarks.growth import __main__ as growth
from benchmarks.growth import contestants, measure
from benchmarks.growth.contestants import CONTESTANTS, SEED, TEMPERATURE, Sizes

SIZES = Sizes(items=60, rows=5, negatives=12, dim=8, known=3)


def gradients(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    inputs = contestants.make_inputs(SIZES)
    loss = contestants.make_loss(name, SIZES, inputs)()
    loss.backward()
    assert inputs.items.grad.is_sparse == (not contestants.is_dense(name))
    return loss.detach(), inputs.queries.grad, inputs.items.grad.to_dense()


@pytest.mark.parametrize("kind", ["drawn", "shared"])
def test_sparse_is_dense(kernels, kind):
    for found, expected in zip(gradients(f"{kind}, sparse"), gradients(f"{kind}, dense"), strict=True):
        torch.testing.assert_close(found, expected)


def test_eager_is_the_loss_of_its_draws(kernels):
    inputs = contestants.make_inputs(SIZES)
    generator = torch.Generator().manual_seed(SEED)
    neg_ids = torch.randint(SIZES.items, (SIZES.rows, SIZES.negatives), generator=generator)
    arguments = (inputs.queries, inputs.items, inputs.pos_ids, neg_ids)
    for name, settings in (
        ("eager CW", {"temperature": TEMPERATURE}),
        ("eager softmax", {**cw_ext.presets.infonce(TEMPERATURE)}),
    ):
        inputs.queries.grad = inputs.items.grad = None
        loss = cw_ext.cw_loss_from_embeddings(*arguments, **settings)
        loss.backward()
        found = gradients(name)
        expected = (inputs.queries.grad, inputs.items.grad)
        for gradient, other in zip(found[1:], expected, strict=True):
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_steps_draw_anew_and_leave_no_gradient(kernels):
    for name in CONTESTANTS:
        inputs = contestants.make_inputs(SIZES)
        loss = contestants.make_loss(name, SIZES, inputs)
        assert loss() != loss()
        contestants.make_step(name, SIZES, inputs)()
        assert inputs.queries.grad is None and inputs.items.grad is None


def test_the_command_writes_a_table_and_a_plot(kernels, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    assert growth.main(["--quick", "--rounds", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert (out / "growth.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "growth.json").read_text(encoding="utf-8"))
    assert [table["items"] for table in report["tables"]] == [50, 200]
    for table in report["tables"]:
        assert table["table_bytes"] == 4 * 8 * table["items"]
        assert not table["left_out"] and [*table["contestants"]] == [*CONTESTANTS]
        for name, cost in table["contestants"].items():
            assert 0 < cost["seconds"]["q20"] <= cost["seconds"]["median"] <= cost["seconds"]["q80"]
            assert cost["rounds"] == 2
            assert cost["peak_extra_bytes"] is None or cost["peak_extra_bytes"] >= 0
            assert name in printed
    assert report["step"] == "B=8, N=16, D=8, fp32" and "torch" in report["environment"]


def test_what_there_is_no_memory_for(kernels, monkeypatch, tmp_path, capsys):
    """The dense gradient does not fit, of the larger table nothing does."""
    sizes = replace(growth.QUICK, items=10**6)
    monkeypatch.setattr(measure, "available_bytes", lambda: contestants.needed_bytes("drawn, sparse", sizes) + 10**6)
    assert growth.main(["--quick", "--rounds", "1", "--items", "1000000", "100000000", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    first, second = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))["tables"]
    assert {*first["left_out"]} == {"drawn, dense", "shared, dense"}
    assert {*first["contestants"]} == {*CONTESTANTS} - {*first["left_out"]}
    assert {*second["left_out"]} == {*CONTESTANTS} and not second["contestants"]
    assert "left out with 1,000,000 items: drawn, dense, which would need" in printed
    assert "left out with 100,000,000 items: eager softmax, which would need" in printed


def test_a_dense_gradient_is_in_the_peak(kernels):
    """24.4 MiB, as large as the table; a sparse gradient is not, and the table itself does not count."""
    sizes = Sizes(items=100_000, rows=8, negatives=8)
    costs = measure.measure(sizes, ["shared, dense", "shared, sparse"], rounds=1)["contestants"]
    dense, sparse = (costs[name]["peak_extra_bytes"] for name in ("shared, dense", "shared, sparse"))
    if dense is None:
        pytest.skip("this system does not tell peaks")
    assert 0.9 * sizes.table_bytes <= dense < 1.5 * sizes.table_bytes  # some pages were there before
    assert sparse < 0.2 * sizes.table_bytes


def test_no_kernels(monkeypatch, capsys):
    monkeypatch.setattr(cw_ext, "build_config", lambda: {"available": False, "reason": "no kernels here"})
    assert growth.main(["--quick"]) == 2
    assert capsys.readouterr().err == "error: no kernels here\n"

"""The throughput benchmark: that its contestants compute the same, what it makes of its numbers, and what it writes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import contestants, memory, throughput, throughput_plots, throughput_report, timing
from benchmarks.throughput_shapes import FULL, QUICK, Shape, gradient_bytes, least_bytes
from cw_ext import cw_loss, cw_loss_from_embeddings

SCORES = Shape(1, 8, 6)
PER_ROW = Shape(2, 8, 6, dim=4, items=20)
SHARED = Shape(2, 8, 6, dim=4, items=20, shared=True)


@pytest.fixture
def tiny_grid(monkeypatch) -> None:
    """Let --quick measure next to nothing."""
    monkeypatch.setattr(throughput, "QUICK", (SCORES, PER_ROW))
    monkeypatch.setattr(throughput, "QUICK_SCALING", (PER_ROW,))


def reference_results(shape: Shape) -> list[torch.Tensor]:
    inputs = contestants.make_inputs(shape)
    function = cw_loss if shape.level == 1 else cw_loss_from_embeddings
    leaves = [leaf.detach().double().requires_grad_() for leaf in inputs.leaves]
    loss = function(*leaves, *inputs.ids, backend="reference")
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


# --- contestants ---


@pytest.mark.parametrize("shape", [SCORES, PER_ROW, SHARED], ids=["scores", "per-row", "shared"])
@pytest.mark.parametrize("name", [name for name in contestants.CONTESTANTS if name != "floor"])
def test_contestants_compute_the_loss_with_its_defaults(name, shape, kernels, monkeypatch):
    if name not in contestants.contestants_of(shape):
        pytest.skip("not a contestant here")
    # The same graph in one piece, without the seconds that generating C++ takes.
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    found = contestants.make_step(name, shape, contestants.make_inputs(shape))()
    for a, b in zip(found, reference_results(shape), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [SCORES, PER_ROW, SHARED], ids=["scores", "per-row", "shared"])
def test_bf16_contestants_pass_the_check(shape, kernels):
    shape = Shape(shape.level, 64, 50, shape.dim, shape.items, "bfloat16", shape.shared)
    inputs = contestants.make_inputs(shape)
    expected = contestants.exact_results(shape, inputs)
    for name in contestants.contestants_of(shape, ["cw_ext", "eager", "checkpoint"]):
        found = contestants.make_step(name, shape, inputs)()
        assert {gradient.dtype for gradient in found[1:]} == {torch.bfloat16}
        contestants.check(name, shape, found, expected)


@pytest.mark.parametrize(
    ("part", "named"), [(0, "loss"), (1, "gradient of queries"), (2, "gradient of items")], ids=["loss", "q", "x"]
)
@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_wrong_result_is_caught(part, named, wrong):
    expected = contestants.exact_results(PER_ROW, contestants.make_inputs(PER_ROW))
    found = list(expected)
    found[part] = found[part] * wrong
    with pytest.raises(ValueError, match=f"eager at level 2, B=8 N=6 D=4 I=20 fp32: expected the {named}"):
        contestants.check("eager", PER_ROW, found, expected)


def test_a_wrong_contestant_ends_the_benchmark(tiny_grid, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contestants, "cw_loss", lambda pos, neg, **_: 1.01 * cw_loss(pos, neg, backend="reference"))
    status = throughput.main(["--quick", "--contestants", "cw_ext", "--no-memory", "--out", str(tmp_path)])
    assert status == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: cw_ext at level 1, B=8 N=6 fp32: expected the loss")


def test_the_floor_scatters_to_the_rows_gathered_and_builds_nothing_of_size_bnd():
    shape = Shape(2, 256, 500, dim=64, items=300)
    inputs = contestants.make_inputs(shape)
    (gradient,) = contestants.make_step("floor", shape, inputs)()
    counts = torch.bincount(inputs.ids[1].flatten(), minlength=300)
    assert torch.equal(gradient, counts.float().unsqueeze(1).expand(-1, 64))

    peak = memory.peak_extra_bytes(
        partial(contestants.make_tiny_step, "floor", shape), partial(contestants.make_fresh_step, "floor", shape)
    )
    assert peak is None or peak < 256 * 500 * 64 * 4 / 2


def test_memory_of_a_step_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="got its exit status 1"):
        memory.peak_extra_bytes(partial(int, "no number"), int)


# --- what becomes of the numbers ---


def test_least_bytes():
    assert least_bytes(Shape(1, 3, 5)) == 3 * 5 * 4 + 3 * 5 * 4
    assert least_bytes(Shape(1, 3, 5, dtype="bfloat16")) == 3 * 5 * 2 + 3 * 5 * 2
    # Rows of 4 floats for 6 negatives, 6 ids, and twice 5 rows.
    assert least_bytes(Shape(2, 2, 3, dim=4, items=5)) == 6 * 16 + 6 * 8 + 2 * 5 * 16
    assert least_bytes(Shape(2, 2, 3, dim=4, items=5, shared=True)) == 3 * 16 + 3 * 8 + 2 * 5 * 16


@pytest.mark.parametrize("shape", [SCORES, PER_ROW, SHARED, Shape(1, 3, 5, dtype="bfloat16")])
def test_gradient_bytes_are_those_of_the_gradients(shape):
    _, *gradients = contestants.make_step("eager", shape, contestants.make_inputs(shape))()
    assert gradient_bytes(shape) == sum(gradient.nbytes for gradient in gradients)


def test_no_shape_is_measured_twice():
    for grid in (FULL, QUICK):
        assert len(grid) == len(set(grid))


def test_quantiles():
    assert timing.quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == pytest.approx({"q20": 2.0, "median": 3.5, "q80": 5.0})


@pytest.mark.parametrize(
    ("step_seconds", "rounds", "expected"),
    [
        (0.01, 30, timing.Plan(30, 1, warm_up=True)),
        (0.2, 30, timing.Plan(30, 1)),
        (1e-5, 30, timing.Plan(30, 100, warm_up=True)),
        (0.5, 30, timing.Plan(8, 1)),
        (3.0, 30, timing.Plan(5, 1)),
        (3.0, 2, timing.Plan(2, 1)),
    ],
)
def test_slow_steps_get_fewer_rounds_and_short_ones_repetitions(step_seconds, rounds, expected):
    assert timing.plan(step_seconds, rounds, budget_seconds=4.0) == expected


def test_steps_alternate_and_slow_ones_sit_out_evenly():
    calls: list[str] = []
    steps = {name: partial(calls.append, name) for name in "abc"}
    plans = {"a": timing.Plan(8, 1), "b": timing.Plan(2, 1), "c": timing.Plan(8, 3)}
    samples = timing.alternate(steps, plans, lambda: None)
    assert {name: len(values) for name, values in samples.items()} == {"a": 8, "b": 2, "c": 8}
    assert [calls.count(name) for name in "abc"] == [8, 2, 24]
    # 4 rounds of one a and three c each, and one b, make 17 calls.
    assert [half.count("b") for half in (calls[:17], calls[17:])] == [1, 1]
    assert all(abs(3 * calls[:end].count("a") - calls[:end].count("c")) <= 6 for end in range(len(calls)))


def made_up_costs(peak: int | None = None, **medians: float) -> dict:
    return {
        name: {"seconds": {"q20": median, "median": median, "q80": median}, "peak_extra_bytes": peak}
        for name, median in medians.items()
    }


def test_derived_numbers():
    costs = made_up_costs(peak=1000, cw_ext=2e-6, eager=1e-5, floor=1e-6)
    throughput_report.add_derived(Shape(1, 10, 20), costs)
    own = costs["cw_ext"]
    assert own["speed_vs_eager"] == pytest.approx(5.0)
    assert own["speed_vs_compile"] is None
    assert own["gb_per_s"] == pytest.approx(1600 / 2e-6 / 1e9)
    assert own["share_of_floor"] == pytest.approx(0.5)
    assert own["extra_bytes_per_negative"] == pytest.approx((1000 - 10 * 21 * 4) / 200)
    assert costs["eager"]["share_of_floor"] == pytest.approx(0.1)
    assert costs["floor"]["gb_per_s"] is None


def test_defeats_are_named():
    shapes = [
        {"shape": {"level": 1}, "label": "lost", "contestants": made_up_costs(cw_ext=3.0, eager=2.0, compile=1.5)},
        {"shape": {"level": 1}, "label": "won", "contestants": made_up_costs(cw_ext=1.0, eager=2.0, floor=0.1)},
        {"shape": {"level": 1}, "label": "alone", "contestants": made_up_costs(cw_ext=1.0)},
    ]
    assert throughput_report.defeats({"shapes": shapes}) == ["level 1, lost (2.00 times the time of compile)"]


def test_plots_leave_out_what_was_not_measured(tmp_path):
    costs = made_up_costs(eager=1.0)
    throughput_report.add_derived(SCORES, costs)
    report = {"shapes": [{"shape": vars(SCORES), "label": "x", "contestants": costs}]}
    assert throughput_plots.plot(report, tmp_path) == [tmp_path / "throughput_time.png"]
    assert throughput_plots.plot({"shapes": []}, tmp_path) == []


# --- the command line ---


def load_results(directory: Path) -> dict:
    return json.loads((directory / "throughput.json").read_text(encoding="utf-8"))


def test_a_run_is_written_whole(tiny_grid, kernels, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    names = ["cw_ext", "eager", "floor"]
    threads = torch.get_num_threads()
    try:
        arguments = ["--quick", "--contestants", *names, "--rounds", "3", "--threads", "2", "--out", str(out)]
        assert throughput.main(arguments) == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)

    report = load_results(out)
    assert report["environment"]["torch"] == torch.__version__
    assert report["environment"]["threads"] == 2
    assert [Shape(**entry["shape"]) for entry in report["shapes"]] == [SCORES, PER_ROW]
    for entry in report["shapes"]:
        assert list(entry["contestants"]) == names
        for name, cost in entry["contestants"].items():
            assert 0 < cost["seconds"]["q20"] <= cost["seconds"]["median"] <= cost["seconds"]["q80"]
            assert cost["rounds"] == 3
            assert (cost["peak_extra_bytes"] is None) == (name == "floor" or not Path("/proc/self/status").exists())
    (scaling,) = report["scaling"]
    assert scaling["seconds"].keys() == {"1", "2"}
    assert scaling["factor"] > 0
    printed = capsys.readouterr().out
    for picture in ("time", "memory", "floor"):
        path = out / f"throughput_{picture}.png"
        assert path.read_bytes().startswith(b"\x89PNG")
        assert str(path) in printed
    assert "where cw_ext loses: " in printed
    assert f"{1e3 * report['shapes'][1]['contestants']['cw_ext']['seconds']['median']:.3f}" in printed


def test_levels_are_chosen_and_memory_is_left_out(tiny_grid, tmp_path):
    arguments = ["--level", "2", "--contestants", "checkpoint", "--no-memory", "--rounds", "2", "--out", str(tmp_path)]
    assert throughput.main(["--quick", *arguments]) == 0
    (entry,) = load_results(tmp_path)["shapes"]
    assert Shape(**entry["shape"]) == PER_ROW
    assert entry["contestants"]["checkpoint"]["peak_extra_bytes"] is None
    assert not (tmp_path / "throughput_memory.png").exists()


def test_without_a_compiler_compile_is_left_out(tiny_grid, tmp_path, monkeypatch, capsys):
    def compile_nothing(*_, **__):
        def fail(*_):
            raise RuntimeError("no compiler\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    arguments = ["--level", "1", "--contestants", "eager", "compile", "--no-memory", "--rounds", "2"]
    assert throughput.main(["--quick", *arguments, "--out", str(tmp_path)]) == 0
    (entry,) = load_results(tmp_path)["shapes"]
    assert list(entry["contestants"]) == ["eager"]
    assert entry["left_out"] == {"compile": "RuntimeError: no compiler"}
    assert "left out: compile at level 1, B=8 N=6 fp32: RuntimeError: no compiler\n" in capsys.readouterr().out


def test_an_interrupted_run_keeps_the_shapes_before(tiny_grid, tmp_path, monkeypatch, capsys):
    measure = throughput.measure_shape

    def interrupted_at_level_2(shape, *arguments, **settings):
        if shape.level == 2:
            raise KeyboardInterrupt
        return measure(shape, *arguments, **settings)

    monkeypatch.setattr(throughput, "measure_shape", interrupted_at_level_2)
    arguments = ["--quick", "--contestants", "eager", "floor", "--no-memory", "--rounds", "2", "--out", str(tmp_path)]
    assert throughput.main(arguments) == 130
    assert [entry["label"] for entry in load_results(tmp_path)["shapes"]] == ["B=8 N=6 fp32"]
    captured = capsys.readouterr()
    assert "interrupted; 1 of 2 shapes finished\n" in captured.err
    assert "B=8 N=6 fp32" in captured.out
    assert (tmp_path / "throughput_time.png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_one_line(tmp_path, capsys):
    assert throughput.main(["--quick", "--device", "cuda", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: --device cuda: expected a GPU that torch can use, got none")


def test_an_output_directory_that_cannot_be_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert throughput.main(["--quick", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "expected a writable output directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--contestants", "nobody"], "invalid choice: 'nobody'"),
        (["--level", "3"], "invalid choice: 3"),
        (["--rounds", "0"], "expected a whole number of at least 1, got '0'"),
        (["--level", "1", "--contestants", "checkpoint"], "tuned and checkpoint are for level 2 only"),
    ],
)
def test_bad_flags_are_refused(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as caught:
        throughput.main(arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err

"""The throughput benchmark: that its contestants compute the same, and what it writes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from throughput_cases import ONE_SETS, PER_ROW, SAMPLED, SCORES, SHAPES, columns_of, made_up_report

from benchmarks.common import memory
from benchmarks.throughput import __main__ as throughput
from benchmarks.throughput import contestants, cuda, eager, sampled, shapes
from benchmarks.throughput import measure as throughput_measure
from benchmarks.throughput.inputs import Inputs
from benchmarks.throughput.samplers import SAMPLERS
from benchmarks.throughput.shapes import Shape
from cw_ext import cw_loss, cw_loss_from_embeddings, cw_loss_full, cw_loss_in_batch, sampled_cw_loss


@pytest.fixture
def tiny_grid(monkeypatch) -> None:
    """Let --quick measure next to nothing."""
    monkeypatch.setattr(shapes, "QUICK", (SCORES, PER_ROW))
    monkeypatch.setattr(shapes, "QUICK_CUDA", (SCORES, PER_ROW))
    monkeypatch.setattr(shapes, "QUICK_SCALING", (PER_ROW,))


def reference_loss(shape: Shape, inputs: Inputs, leaves: list[torch.Tensor]) -> torch.Tensor:
    """The loss that all contestants compute, by other means than theirs."""
    if shape.users:
        pos_ids, query_ids = inputs.ids
        known = {"query_ids": query_ids, "interactions": inputs.interactions, "backend": "reference"}
        if shape.kind in ("sampled", "shared"):
            ids = {**known, "pos_ids": pos_ids, "num_negatives": shape.negatives, "shared": shape.kind == "shared"}
            distribution = "popularity" if shape.popularity else "uniform"
            return sampled_cw_loss(*leaves, **ids, seed=sampled.SEED, distribution=distribution)
        if shape.kind == "full":
            return cw_loss_full(*leaves, pos_ids, **known)
        return cw_loss_in_batch(*leaves, pos_ids, **known, num_negatives=shape.negatives, seed=sampled.SEED)
    if shape.loss == "cw":
        function = cw_loss if shape.kind == "scores" else cw_loss_from_embeddings
        return function(*leaves, *inputs.ids, backend="reference")
    queries, items = leaves
    pos_ids, neg_ids = inputs.ids
    logits = torch.einsum("bd,bnd->bn", queries, items[torch.cat([pos_ids.unsqueeze(1), neg_ids], 1)])
    # Each of the N negatives stands for (I - 1) / (N + 1) other items.
    logits = logits + F.pad(torch.full_like(logits[:, 1:], math.log(19 / 7)), (1, 0))
    return F.cross_entropy(logits, torch.zeros_like(pos_ids), reduction="sum")


def reference_results(shape: Shape) -> list[torch.Tensor]:
    inputs = contestants.make_inputs(shape)
    leaves = [leaf.detach().double().requires_grad_() for leaf in inputs.leaves]
    loss = reference_loss(shape, inputs, leaves)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def compile_without_a_compiler(monkeypatch) -> None:
    """Let torch.compile trace one graph, as ever, and leave out the seconds that generating code takes."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


# --- contestants ---


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", [n for n in contestants.CONTESTANTS if n not in ("cce", "floor", *SAMPLERS)])
def test_contestants_compute_the_same_loss(name, shape, device, kernels, monkeypatch):
    if name not in contestants.contestants_of(shape, device=device.type):
        pytest.skip("not a contestant here")
    compile_without_a_compiler(monkeypatch)
    step = contestants.make_step(name, shape, contestants.make_inputs(shape, device.type))
    for found in (step(), step()):  # nothing is left behind for the second time
        for a, b in zip(found, reference_results(shape), strict=True):
            torch.testing.assert_close(a.cpu().double(), b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("popularity", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_compute_the_loss_of_what_they_draw(name, popularity, device, kernels):
    shape = replace(SAMPLED, popularity=popularity)
    if name not in contestants.contestants_of(shape, device=device.type):
        pytest.skip("not a contestant here")
    inputs = contestants.make_inputs(shape, device.type)
    step = contestants.make_step(name, shape, inputs)
    first, second = step(), step()
    expected = contestants.exact_results(shape, inputs, name)
    contestants.check(name, shape, first, expected)
    assert second[0] != first[0]  # drawn anew
    neg_ids, _ = sampled.first_draws(name, shape, inputs)
    others, _ = sampled.first_draws("cw_ext", shape, inputs)
    assert not torch.equal(neg_ids, others)
    # That of their own negatives, which come from the reference by another way.
    weights = inputs.interactions.popularity(0.75).log_weights[neg_ids] if popularity else None
    pos_ids, _ = inputs.ids
    leaves = [leaf.detach().double() for leaf in inputs.leaves]
    loss = cw_loss_from_embeddings(*leaves, pos_ids, neg_ids, neg_log_weights=weights, backend="reference")
    torch.testing.assert_close(expected[0], loss, rtol=1e-12, atol=0)


def test_a_sampler_that_draws_a_known_positive_is_caught(monkeypatch, kernels, tmp_path, capsys):
    class Careless:
        def __init__(self, interactions, weights, seed):
            self.interactions = interactions

        def __call__(self, query_ids, num_negatives):
            known = self.interactions.items[self.interactions.starts[query_ids]].long()
            return known.unsqueeze(1).expand(-1, num_negatives)

    monkeypatch.setitem(SAMPLERS, "torch-search", Careless)
    monkeypatch.setattr(shapes, "QUICK", (SAMPLED,))
    arguments = ["--contestants", "cw_ext", "torch-search", "--no-memory", "--rounds", "2", "--threads", "1"]
    assert throughput.main(["--quick", *arguments, "--out", str(tmp_path)]) == 2
    (entry,) = load_results(tmp_path)["shapes"]
    assert (list(entry["contestants"]), entry["left_out"]) == (["cw_ext"], {"torch-search": "wrong result"})
    message = (
        "error: torch-search (sampled, B=8 N=6 D=4 I=30 fp32): expected no known positive among the negatives, got 48"
    )
    assert capsys.readouterr().err.splitlines()[-1] == message


def test_what_is_a_contestant_where():
    assert contestants.contestants_of(SCORES) == ["cw_ext", "eager", "compile", "floor"]
    assert contestants.contestants_of(PER_ROW) == ["cw_ext", "eager", "tuned", "compile", "checkpoint", "floor"]
    drawn = ["cw_ext", "recompute", "ready-ids", "torch-search", "torch-isin", "numpy-sets", "numpy-choice"]
    drawn += ["bit-table", "floor"]
    assert contestants.contestants_of(SAMPLED) == drawn
    assert contestants.contestants_of(replace(SAMPLED, popularity=True)) == [n for n in drawn if n != "bit-table"]
    for shape in ONE_SETS.values():
        assert contestants.contestants_of(shape) == ["cw_ext", "eager", "compile", "floor"]
    on_gpu = {name: contestants.contestants_of(shape, device="cuda") for name, shape in SHAPES.items()}
    without_rivals = ["cw_ext", "graph", "deterministic", "eager", "compile", "floor"]
    rivals = ["ready-ids", "torch-search", "torch-isin", "numpy-sets", "numpy-choice", "floor"]
    assert on_gpu == {
        "scores": without_rivals,
        "per-row": ["cw_ext", "graph", "deterministic", "eager", "tuned", "compile", "checkpoint", "floor"],
        "shared": without_rivals,
        "softmax": ["cw_ext", "graph", "eager", "compile", "cce", "floor"],
        "sampled": ["cw_ext", "recompute", "graph", "deterministic", *rivals],
        "popularity": ["cw_ext", "recompute", "graph", "deterministic", *rivals],
        **dict.fromkeys(ONE_SETS, without_rivals),
    }
    assert contestants.contestants_of(SCORES, ["floor", "graph", "tuned"], "cuda") == ["graph", "floor"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_half_precision_contestants_pass_the_check(shape, dtype, kernels):
    negatives = 50 if shape.negatives else 0
    shape = replace(shape, batch_size=64, negatives=negatives, items=100 if shape.items else 0, dtype=dtype)
    inputs = contestants.make_inputs(shape)
    expected = contestants.exact_results(shape, inputs)
    for name in contestants.contestants_of(shape, ["cw_ext", "recompute", "ready-ids", "eager", "checkpoint"]):
        found = contestants.make_step(name, shape, inputs)()
        assert {gradient.dtype for gradient in found[1:]} == {shape.torch_dtype}
        contestants.check(name, shape, found, expected)


@pytest.mark.parametrize("block", [1, 3 * 6 * 4, 10**6])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_truth_is_the_same_in_blocks(shape, block, monkeypatch):
    monkeypatch.setattr(contestants, "TRUTH_BLOCK", block)
    found = contestants.exact_results(shape, contestants.make_inputs(shape))
    for a, b in zip(found, reference_results(shape), strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_deterministic_step_ends_with_the_setting():
    seen = []

    def step():
        seen.append(torch.are_deterministic_algorithms_enabled())
        if len(seen) == 2:
            raise RuntimeError("no deterministic implementation")
        return ()

    run = cuda.deterministic(step)
    run()
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="no deterministic implementation"):
        run()
    assert not torch.are_deterministic_algorithms_enabled()
    assert seen == [True, True]


@pytest.mark.parametrize(
    ("part", "named"), [(0, "loss"), (1, "gradient of queries"), (2, "gradient of items")], ids=["loss", "q", "x"]
)
@pytest.mark.parametrize("wrong", [1.01, float("nan")])
def test_a_wrong_result_is_caught(part, named, wrong):
    expected = contestants.exact_results(PER_ROW, contestants.make_inputs(PER_ROW))
    found = list(expected)
    found[part] = found[part] * wrong
    with pytest.raises(ValueError, match=f"eager \\(embeddings, B=8 N=6 D=4 I=20 fp32\\): expected the {named}"):
        contestants.check("eager", PER_ROW, found, expected)


def test_a_wrong_contestant_is_not_timed_and_ends_in_an_error(tiny_grid, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contestants, "cw_loss", lambda pos, neg, **_: 1.01 * cw_loss(pos, neg, backend="reference"))
    arguments = ["--contestants", "cw_ext", "eager", "--rounds", "2", "--no-memory", "--out", str(tmp_path)]
    assert throughput.main(["--quick", *arguments, "--threads", "1"]) == 2
    wrong, right = load_results(tmp_path)["shapes"]
    assert (list(wrong["contestants"]), wrong["left_out"]) == (["eager"], {"cw_ext": "wrong result"})
    assert list(right["contestants"]) == ["cw_ext", "eager"]
    captured = capsys.readouterr()
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: cw_ext (scores, B=8 N=6 fp32): expected the loss")
    assert "left out: cw_ext (scores, B=8 N=6 fp32): wrong result\n" in captured.out


def test_the_floor_from_scores_is_what_the_kernels_move(device):
    copies = contestants.make_step("floor", SCORES, contestants.make_inputs(SCORES, device.type))()
    # On a GPU forward reads the scores and writes their gradient; on the CPU backward moves as much again.
    assert len(copies) == {"cpu": 2, "cuda": 1}[device.type]
    for copy in copies:
        assert torch.equal(copy.cpu(), contestants.make_inputs(SCORES).leaves[1])


def test_the_floor_scatters_to_the_rows_gathered_and_builds_nothing_of_size_bnd():
    shape = Shape("ids", 256, 500, dim=64, items=300)
    inputs = contestants.make_inputs(shape)
    (gradient,) = contestants.make_step("floor", shape, inputs)()
    counts = torch.bincount(inputs.ids[1].flatten(), minlength=300)
    assert torch.equal(gradient, counts.float().unsqueeze(1).expand(-1, 64))

    peak = memory.peak_extra_bytes(
        partial(contestants.make_tiny_step, "floor", shape), partial(contestants.make_fresh_step, "floor", shape)
    )
    assert peak is None or peak < 256 * 500 * 64 * 4 / 2


@pytest.mark.parametrize("shape", ONE_SETS.values(), ids=ONE_SETS)
def test_the_floor_of_one_set_is_its_three_products(shape, device):
    scores, d_queries, d_items = contestants.make_step("floor", shape, contestants.make_inputs(shape, device.type))()
    columns = {"shared": 6, "in-batch": 8, "mixed": 14, "full": 30}[shape.kind]
    assert (scores.shape, d_queries.shape, d_items.shape) == ((8, columns), (8, 4), (columns, 4))


def test_memory_of_a_step_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="got its exit status 1"):
        memory.peak_extra_bytes(partial(int, "no number"), int)


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


def test_kinds_are_chosen_and_memory_is_left_out(tiny_grid, tmp_path):
    arguments = [
        "--kinds",
        "ids",
        "--contestants",
        "checkpoint",
        "--no-memory",
        "--rounds",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert throughput.main(["--quick", *arguments]) == 0
    (entry,) = load_results(tmp_path)["shapes"]
    assert Shape(**entry["shape"]) == PER_ROW
    assert entry["contestants"]["checkpoint"]["peak_extra_bytes"] is None
    assert not (tmp_path / "throughput_memory.png").exists()


def test_every_kind_is_measured(kernels, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "QUICK", tuple(SHAPES.values()))
    compile_without_a_compiler(monkeypatch)
    assert throughput.main(["--quick", "--rounds", "2", "--threads", "1", "--no-memory", "--out", str(tmp_path)]) == 0
    report = load_results(tmp_path)
    for entry, shape in zip(report["shapes"], SHAPES.values(), strict=True):
        assert list(entry["contestants"]) == contestants.contestants_of(shape)
        assert not entry["left_out"] and not entry["wrong"]
    described = capsys.readouterr().out
    assert columns_of(described, "sampled")["ready-ids"]["x ready-ids"] == "1.00"
    assert columns_of(described, "one set")["eager"]["x eager"] == "1.00"
    ready, own = (report["shapes"][4]["contestants"][n]["seconds"]["median"] for n in ("ready-ids", "cw_ext"))
    assert f"drawing inside: B=8 N=6 D=4 I=30 fp32: {own / ready:.2f} times the time with ready ids" in described


def test_a_history_is_that_of_a_data_set(kernels, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "QUICK", (SCORES, *ONE_SETS.values(), replace(ONE_SETS["full"], items=50)))
    lines = [f"{user} {(user + 3 * item) % 40}\n" for user in range(40) for item in range(12)]
    (tmp_path / "own.txt").write_text("".join(lines), encoding="utf-8")
    arguments = ["--history", str(tmp_path / "own.txt"), "--contestants", "cw_ext", "eager", "--rounds", "2"]
    assert throughput.main(["--quick", *arguments, "--threads", "1", "--no-memory", "--out", str(tmp_path)]) == 0
    entries = load_results(tmp_path)["shapes"]
    assert [entry["label"] for entry in entries][-1] == "B=8 D=4 I=40 fp32 full own"
    assert [entry["shape"]["kind"] for entry in entries] == ["scores", "shared", "in-batch", "mixed", "full"]
    capsys.readouterr()
    assert throughput.main(["--quick", "--history", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path / 'none'}: expected an interaction file, got none"
    ]


def test_without_a_compiler_compile_is_left_out(tiny_grid, tmp_path, monkeypatch, capsys):
    def compile_nothing(*_, **__):
        def fail(*_):
            raise RuntimeError("no compiler\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", compile_nothing)
    arguments = ["--kinds", "scores", "--contestants", "eager", "compile", "--no-memory", "--rounds", "2"]
    assert throughput.main(["--quick", *arguments, "--out", str(tmp_path)]) == 0
    (entry,) = load_results(tmp_path)["shapes"]
    assert list(entry["contestants"]) == ["eager"]
    assert entry["left_out"] == {"compile": "RuntimeError: no compiler"}
    assert "left out: compile (scores, B=8 N=6 fp32): RuntimeError: no compiler\n" in capsys.readouterr().out


def test_a_contestant_without_enough_memory_is_left_out(tiny_grid, tmp_path, monkeypatch, capsys):
    make_step = contestants.make_step

    def make_step_if_it_fits(name, *arguments):
        def run_out():
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried")

        return run_out if name == "eager" else make_step(name, *arguments)

    monkeypatch.setattr(contestants, "make_step", make_step_if_it_fits)
    arguments = ["--contestants", "eager", "tuned", "floor", "--no-memory", "--rounds", "2", "--out", str(tmp_path)]
    assert throughput.main(["--quick", *arguments]) == 0
    reason = "OutOfMemoryError: CUDA out of memory."
    scores, embeddings = load_results(tmp_path)["shapes"]
    assert (list(scores["contestants"]), scores["left_out"]) == (["floor"], {"eager": reason})
    assert (list(embeddings["contestants"]), embeddings["left_out"]) == (["tuned", "floor"], {"eager": reason})
    assert f"left out: eager (scores, B=8 N=6 fp32): {reason}\n" in capsys.readouterr().out


@pytest.mark.parametrize("part", [(contestants, "exact_results"), (throughput_measure, "_measure")])
def test_a_shape_that_does_not_fit_is_left_out(part, tiny_grid, tmp_path, monkeypatch):
    original = getattr(*part)

    def run_out_on_scores(shape, *arguments):
        if shape.kind == "scores":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(shape, *arguments)

    monkeypatch.setattr(*part, run_out_on_scores)
    arguments = ["--contestants", "eager", "floor", "--no-memory", "--rounds", "2", "--out", str(tmp_path)]
    assert throughput.main(["--quick", *arguments]) == 0
    scores, embeddings = load_results(tmp_path)["shapes"]
    assert scores["contestants"] == {}
    assert scores["left_out"] == {"everyone": "OutOfMemoryError: CUDA out of memory."}
    assert list(embeddings["contestants"]) == ["eager", "floor"]


def test_an_error_keeps_the_shapes_before(tiny_grid, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand much advice")

    monkeypatch.setattr(eager, "from_embeddings", fail)
    arguments = ["--contestants", "eager", "--no-memory", "--rounds", "2", "--out", str(tmp_path)]
    assert throughput.main(["--quick", *arguments]) == 2
    assert [entry["label"] for entry in load_results(tmp_path)["shapes"]] == ["B=8 N=6 fp32"]
    captured = capsys.readouterr()
    assert "B=8 N=6 fp32" in captured.out
    assert captured.err.splitlines()[-1] == "error: RuntimeError: CUDA error: an illegal memory access was encountered"


def test_no_shape_begins_after_the_budget(tiny_grid, tmp_path, monkeypatch, capsys):
    now = 0.0

    def measure(shape, **_):
        nonlocal now
        now += 7.0
        return made_up_report(shape, eager=1.0)["shapes"][0]

    monkeypatch.setattr(throughput.time, "monotonic", lambda: now)
    monkeypatch.setattr(throughput, "measure_shape", measure)
    arguments = ["--quick", "--contestants", "eager", "--out", str(tmp_path), "--budget"]
    assert throughput.main([*arguments, "5"]) == 1
    report = load_results(tmp_path)
    assert [entry["label"] for entry in report["shapes"]] == ["B=8 N=6 fp32"]
    assert report["not_begun"] == ["embeddings, B=8 N=6 D=4 I=20 fp32"]
    assert capsys.readouterr().err.splitlines()[-1] == "out of time; 1 of 2 shapes finished"
    assert throughput.main([*arguments, "8"]) == 0
    assert load_results(tmp_path)["not_begun"] == []


def test_an_interrupted_run_keeps_the_shapes_before(tiny_grid, tmp_path, monkeypatch, capsys):
    measure = throughput.measure_shape

    def interrupted_on_embeddings(shape, **settings):
        if shape.kind == "ids":
            raise KeyboardInterrupt
        return measure(shape, **settings)

    monkeypatch.setattr(throughput, "measure_shape", interrupted_on_embeddings)
    arguments = ["--quick", "--contestants", "eager", "floor", "--no-memory", "--rounds", "2", "--out", str(tmp_path)]
    assert throughput.main(arguments) == 130
    assert [entry["label"] for entry in load_results(tmp_path)["shapes"]] == ["B=8 N=6 fp32"]
    captured = capsys.readouterr()
    assert "interrupted; 1 of 2 shapes finished\n" in captured.err
    assert "B=8 N=6 fp32" in captured.out
    assert (tmp_path / "throughput_time.png").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_run_on_cuda_is_written_whole(tiny_grid, kernels, tmp_path, monkeypatch, capsys):
    compile_without_a_compiler(monkeypatch)
    assert throughput.main(["--quick", "--device", "cuda", "--rounds", "2", "--out", str(tmp_path)]) == 0
    report = load_results(tmp_path)
    assert report["environment"]["gpu"] == torch.cuda.get_device_name()
    assert report["environment"]["copy_bytes_per_second"] > 0
    for entry, shape in zip(report["shapes"], (SCORES, PER_ROW), strict=True):
        assert list(entry["contestants"]) == contestants.contestants_of(shape, device="cuda")
        for name, cost in entry["contestants"].items():
            assert (cost["peak_extra_bytes"] is None) == (name in ("floor", "graph"))
    assert columns_of(capsys.readouterr().out, "scores")["graph"]["% of copy"] != "-"


def test_an_output_directory_that_cannot_be_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert throughput.main(["--quick", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "expected a writable output directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--contestants", "nobody"], "invalid choice: 'nobody'"),
        (["--kinds", "hard"], "invalid choice: 'hard'"),
        (["--rounds", "0"], "expected a whole number of at least 1, got '0'"),
        (
            ["--kinds", "scores", "full", "--contestants", "checkpoint"],
            "none of checkpoint exists for scores, full on cpu",
        ),
        (["--contestants", "graph"], "argument --contestants: none of graph exists for scores, ids, sampled, shared"),
        (["--contestants", "eager", "cce"], "argument --contestants: cce needs --cce DIR"),
        (["--cce", "somewhere"], "argument --cce: needs --device cuda"),
        (["--shapes", "main"], "argument --shapes: needs --device cuda, without --quick"),
        (["--device", "cuda", "--shapes", "cce"], "argument --shapes: cce needs --cce DIR"),
        (["--budget", "-1"], "expected a finite number of at least 0, got '-1'"),
    ],
)
def test_bad_flags_are_refused(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as caught:
        throughput.main(arguments)
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_earlier_results_are_reported_again(kernels, tmp_path, monkeypatch, capsys):
    """Results of versions that numbered the tables have the names of today."""
    monkeypatch.setattr(shapes, "QUICK", (SCORES,))
    arguments = ["--contestants", "cw_ext", "--no-memory", "--rounds", "2", "--threads", "1", "--out", str(tmp_path)]
    assert throughput.main(["--quick", *arguments]) == 0
    path = tmp_path / "throughput.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"table": "scores"', '"table": "level 1"'))
    before = path.read_bytes()
    (tmp_path / "throughput_time.png").unlink()
    described = capsys.readouterr().out
    assert throughput.main(["--report", "--out", str(tmp_path)]) == 0
    assert f"\n{capsys.readouterr().out.partition('results: ')[0]}" in described
    assert path.read_bytes() == before and (tmp_path / "throughput_time.png").exists()
    path.write_text("{}")
    assert throughput.main(["--report", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {path}: expected results of this benchmark, got something else\n"

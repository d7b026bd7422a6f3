"""The throughput benchmark: its grids, how it plans its samples, and what it makes of the numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from throughput_cases import (
    ONE_SETS,
    PER_ROW,
    SAMPLED,
    SCORES,
    SHAPES,
    SHARED,
    SOFTMAX,
    columns_of,
    made_up_costs,
    made_up_report,
)

from benchmarks.common import timing
from benchmarks.throughput import contestants, plots
from benchmarks.throughput import report as throughput_report
from benchmarks.throughput import shapes as throughput_shapes
from benchmarks.throughput.shapes import Shape, gradient_bytes, least_bytes

GRIDS = ("FULL", "QUICK", "FULL_CUDA", "QUICK_CUDA", "FULL_CCE", "QUICK_CCE")


# --- shapes ---


def test_least_bytes():
    assert least_bytes(Shape("scores", 3, 5)) == 3 * 5 * 4 + 3 * 5 * 4
    assert least_bytes(Shape("scores", 3, 5, dtype="bfloat16")) == 3 * 5 * 2 + 3 * 5 * 2
    # Rows of 4 floats for 6 negatives, 6 ids, and twice 5 rows.
    assert least_bytes(Shape("ids", 2, 3, dim=4, items=5)) == 6 * 16 + 6 * 8 + 2 * 5 * 16
    assert least_bytes(Shape("ids", 2, 3, dim=4, items=5, shared=True)) == 3 * 16 + 3 * 8 + 2 * 5 * 16
    # The ids of negatives that are drawn, or taken from the batch, are not an input.
    history = {"dim": 4, "items": 5, "users": 7}
    assert least_bytes(Shape("sampled", 2, 3, **history)) == 6 * 16 + 2 * 5 * 16
    rows = {"shared": 3, "in-batch": 2, "mixed": 5, "full": 5}
    for kind, count in rows.items():
        shape = Shape(kind, 2, 3 if kind in ("shared", "mixed") else 0, **history)
        assert (shape.columns, least_bytes(shape)) == (count, count * 16 + 2 * 5 * 16)


@pytest.mark.parametrize("shape", [SCORES, PER_ROW, SHARED, ONE_SETS["full"], Shape("scores", 3, 5, dtype="bfloat16")])
def test_gradient_bytes_are_those_of_the_gradients(shape):
    _, *gradients = contestants.make_step("eager", shape, contestants.make_inputs(shape))()
    assert gradient_bytes(shape) == sum(gradient.nbytes for gradient in gradients)


def every_shape():
    for name in GRIDS:
        for shape in getattr(throughput_shapes, name):
            yield pytest.param(shape, id=f"{name}-{shape.label}")


@pytest.mark.parametrize("name", GRIDS)
def test_no_shape_is_measured_twice(name):
    grid = getattr(throughput_shapes, name)
    assert len(grid) == len(set(grid)) == len({(shape.table, shape.label) for shape in grid})


@pytest.mark.parametrize("shape", list(every_shape()))
def test_shapes_make_sense(shape):
    assert shape.dim == shape.items == 0 if shape.kind == "scores" else shape.dim > 0 < shape.items
    assert shape.kind == "ids" or not shape.shared
    assert shape.kind == "sampled" or not shape.popularity
    assert (shape.users > 0) == (shape.kind not in ("scores", "ids"))
    assert (shape.negatives == 0) == (shape.kind in ("in-batch", "full"))
    assert not shape.negatives or f"N={shape.negatives}" in shape.label
    # Half of what a GPU of 80 GB has, in fp32: inputs, gradients and six tensors of all scores or gathered rows.
    one_set = shape.shared or shape.kind in throughput_shapes.ONE_SET
    gathered = shape.batch_size * (1 if one_set else max(shape.dim, 1)) * shape.columns
    assert 4 * (6 * gathered + 2 * shape.items * shape.dim) < 40e9
    if shape.loss == "sampled_softmax":
        assert shape.kind == "ids" and not shape.shared
        assert shape.items > shape.negatives + 2  # or negatives would stand for less than themselves
        assert shape.dtype in ("float16", "bfloat16")  # CCE⁻ has no gradients in others


def test_the_grid_of_a_gpu_has_tables_inside_and_outside_its_cache():
    per_row = [s for s in throughput_shapes.FULL_CUDA if s.kind == "ids" and not s.shared]
    megabytes = [shape.items * shape.dim * shape.torch_dtype.itemsize / 1e6 for shape in per_row]
    assert {size > 60 for size in megabytes} == {True, False}
    assert all(size < 45 or size > 250 for size in megabytes)


# --- timing ---


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


@given(
    step_seconds=st.floats(1e-7, 10.0),
    rounds=st.integers(1, 100),
    budget=st.floats(0.0, 30.0),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_plans_keep_to_their_limits(step_seconds, rounds, budget, device):
    limits = timing.LIMITS[device]
    found = timing.plan(step_seconds, rounds, budget, limits)
    assert min(rounds, timing.LEAST_ROUNDS) <= found.rounds <= rounds
    # The fewest repetitions that make up a sample.
    assert found.repetitions * step_seconds >= limits.sample_seconds * (1 - 1e-9)
    assert (found.repetitions - 1) * step_seconds < limits.sample_seconds * (1 + 1e-9)
    if step_seconds > limits.slow_step_seconds:
        assert found.rounds * step_seconds <= max(budget, timing.LEAST_ROUNDS * step_seconds) * (1 + 1e-9)
    else:
        assert found.rounds == rounds


def test_on_a_gpu_a_sample_is_ten_milliseconds_of_work():
    assert timing.plan(2e-5, 30, 1.0, timing.LIMITS["cuda"]) == timing.Plan(30, 500, warm_up=True)
    assert timing.plan(0.1, 30, 1.0, timing.LIMITS["cuda"]) == timing.Plan(10, 1)


@pytest.mark.parametrize(("device", "runs"), [("cpu", 1 + 2 + 4 + 8), ("cuda", 1 + 2 + 4 + 8 + 16 + 32 + 64)])
def test_an_estimate_comes_from_a_sample_that_is_long_enough(device, runs, monkeypatch):
    clock = iter(range(10**6))
    ticks = 0.0

    def step():
        nonlocal ticks
        ticks += 0.16e-3
        next(clock)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: ticks)
    assert timing.estimate(step, lambda: None, timing.LIMITS[device]) == pytest.approx(0.16e-3)
    assert next(clock) == runs


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


# --- the report ---


def test_derived_numbers():
    costs = made_up_costs(peak=1000, cw_ext=2e-6, eager=1e-5, floor=1e-6)
    throughput_report.add_derived(Shape("scores", 10, 20), costs)
    own = costs["cw_ext"]
    assert own["speed_vs_eager"] == pytest.approx(5.0)
    assert own["speed_vs_compile"] is None
    assert own["gb_per_s"] == pytest.approx(1600 / 2e-6 / 1e9)
    assert own["share_of_floor"] == pytest.approx(0.5)
    assert own["extra_bytes_per_negative"] == pytest.approx((1000 - 10 * 21 * 4) / 200)
    assert costs["eager"]["share_of_floor"] == pytest.approx(0.1)
    assert costs["floor"]["gb_per_s"] is None


def test_scores_are_set_against_the_bandwidth_of_a_copy():
    shape = Shape("scores", 1000, 1000)  # 8 MB to move
    environment = {"gpu": "Some GPU", "copy_bytes_per_second": 2e12}
    report = made_up_report(shape, PER_ROW, environment=environment, cw_ext=10e-6, graph=5e-6, floor=4e-6)
    described = throughput_report.describe(report)
    table = columns_of(described, "scores")
    assert {name: row["% of copy"] for name, row in table.items()} == {"cw_ext": "40", "graph": "80", "floor": "-"}
    assert table["graph"]["% of floor"] == "80"
    assert "% of copy" not in columns_of(described, "embeddings")["cw_ext"]
    assert "within the memory of Some GPU, 2000 GB/s" in described
    on_cpu = throughput_report.describe(made_up_report(shape, cw_ext=1.0))
    assert "of copy" not in on_cpu


def test_cce_is_a_rival_where_it_was_measured():
    report = made_up_report(SOFTMAX, cw_ext=3e-3, graph=2e-3, eager=5e-3, cce=1e-3)
    described = throughput_report.describe(report)
    assert columns_of(described, "embeddings")["cw_ext"]["x cce"] == "0.33"
    assert "(3.00 times the time of cce)" in described
    assert "x cce" not in throughput_report.describe(made_up_report(PER_ROW, cw_ext=1.0, eager=2.0))


def test_draws_are_set_against_ready_ids_and_other_draws():
    medians = {"cw_ext": 12e-3, "ready-ids": 10e-3, "torch-search": 60e-3, "numpy-sets": 6e-3, "floor": 30e-3}
    described = throughput_report.describe(made_up_report(SAMPLED, **medians))
    own = columns_of(described, "sampled")["cw_ext"]
    assert [own[f"x {name}"] for name in ("ready-ids", "torch-search", "numpy-sets")] == ["0.83", "5.00", "0.50"]
    assert "x eager" not in own and "x bit-table" not in own
    assert "drawing inside: B=8 N=6 D=4 I=30 fp32: 1.20 times the time with ready ids" in described
    # Ready ids are not a rival, as no training step has them.
    assert "sampled, B=8 N=6 D=4 I=30 fp32 (2.00 times the time of numpy-sets)" in described
    alone = throughput_report.describe(made_up_report(SAMPLED, cw_ext=12e-3, **{"ready-ids": 10e-3}))
    assert "where cw_ext loses: nowhere" in alone


def test_what_was_not_begun_is_said():
    report = made_up_report(SCORES, cw_ext=1.0) | {"not_begun": ["embeddings, a", "embeddings, b"]}
    assert "not started, since the budget was spent: embeddings, a; embeddings, b" in throughput_report.describe(report)


def test_defeats_are_named():
    shapes = [
        {"table": "scores", "label": "lost", "contestants": made_up_costs(cw_ext=3.0, eager=2.0, compile=1.5)},
        {"table": "scores", "label": "won", "contestants": made_up_costs(cw_ext=1.0, eager=2.0, floor=0.1)},
        {"table": "scores", "label": "alone", "contestants": made_up_costs(cw_ext=1.0)},
    ]
    assert throughput_report.defeats({"shapes": shapes}) == ["scores, lost (2.00 times the time of compile)"]


# --- plots ---


@pytest.mark.parametrize(
    ("shapes", "field", "common", "sizes"),
    [
        ([Shape("scores", 8, n) for n in (9, 5, 7)] + [Shape("scores", 4, 5)], "negatives", "B=8 fp32", [5, 7, 9]),
        (
            [replace(PER_ROW, batch_size=b) for b in (8, 2, 4)] + [replace(PER_ROW, negatives=7)],
            "batch_size",
            "N=6 D=4 I=20 fp32",
            [2, 4, 8],
        ),
        ([SCORES], "negatives", "B=8 fp32", [6]),
        ([ONE_SETS["in-batch"], ONE_SETS["full"]], "batch_size", "D=4 I=30 fp32 in-batch", [8]),
    ],
)
def test_curves_follow_what_varies_most(shapes, field, common, sizes):
    found_field, found_common, sweep = plots._longest_sweep(made_up_report(*shapes, eager=1.0)["shapes"])
    assert (found_field, found_common) == (field, common)
    assert [entry["shape"][field] for entry in sweep] == sizes


def test_every_contestant_can_be_drawn(tmp_path):
    medians = {name: 1e-3 * (i + 1) for i, name in enumerate(contestants.CONTESTANTS)}
    report = made_up_report(*SHAPES.values(), **medians)
    time, floor = (tmp_path / f"throughput_{name}.png" for name in ("time", "floor"))
    assert plots.plot(report, tmp_path) == [time, floor]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (time, floor))


def test_a_table_without_numbers_is_no_obstacle_to_the_other(tmp_path):
    report = made_up_report(SCORES, PER_ROW, eager=1e-3)
    report["shapes"][0]["contestants"]["eager"]["peak_extra_bytes"] = 1000
    report["shapes"].append({**report["shapes"][1], "contestants": {}})
    assert len(plots.plot(report, tmp_path)) == 2


def test_plots_leave_out_what_was_not_measured(tmp_path):
    report = made_up_report(SCORES, eager=1.0)
    assert plots.plot(report, tmp_path) == [tmp_path / "throughput_time.png"]
    assert plots.plot({"shapes": []}, tmp_path) == []

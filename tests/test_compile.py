"""torch.compile without graph breaks, and the checks of the ops themselves (opcheck)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import (
    Case,
    Result,
    assert_near,
    evaluate,
    exact,
    generator,
    item_gradient_arguments,
    make_embeddings,
    make_scores,
)
from drawing import Drawn, make_drawn, make_interactions
from op_calls import OpCalls
from recommender import CRITERIA, Recommender, make_batch, make_recommender, training_step
from torch import Tensor

from cw_ext import CWEmbeddingLoss, ScoreCurve, cw_loss, op_errors

# One graph per level is compiled by make test; the rest, which takes a minute, is thorough.
pytestmark = pytest.mark.cpu_kernels  # a graph's shapes and dtypes go by the device


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _scores(rows: int = 5, n: int = 9, seed: int = 81) -> Case:
    return make_scores((rows,), n, 3, seed=seed, log_q=True, row_weights=True).to(torch.float32)


def _embeddings(rows: int = 5, n: int = 9, seed: int = 82, **more: Any) -> Case:
    case = make_embeddings(rows, n, 8, 20, 3, seed=seed, padding=True, log_q=True, row_weights=True, **more)
    return case.to(torch.float32)


# Functions that find negatives themselves, and how.
DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    "uniform": ("sampled", {"num_negatives": 9, "seed": 5}),
    "popularity": ("sampled", {"num_negatives": 9, "seed": 5, "distribution": "popularity", "recompute": True}),
    "shared": ("sampled", {"num_negatives": 9, "seed": 5, "shared": True}),
    "in-batch": ("in_batch", {}),
    "mixed": ("in_batch", {"num_negatives": 5, "seed": 3}),
    "full": ("full", {}),
}


def _drawn(name: str, rows: int = 5) -> Drawn:
    kind, settings = DRAWN[name]
    case = make_drawn(kind, rows, m=3, row_weights=True, interactions=make_interactions(pairs=400))
    case.interactions.popularity(0.75)
    return replace(case.to(torch.float32), settings=settings)


def _compiled(case: Case, loss: Any, grad_output: Tensor | None = None) -> Result:
    leaves = case.leaves()
    value = loss(leaves)
    value.backward(None if grad_output is None else grad_output)
    return Result(value.detach(), leaves.gradients())


def _assert_equal(found: Result, expected: Result) -> None:
    assert_near(found.loss, expected.loss, torch.float32, "loss")
    for name, gradient in found.gradients.items():
        assert gradient.dtype == expected.gradients[name].dtype
        assert_near(gradient, expected.gradients[name], torch.float32, name)


each_reduction = pytest.mark.parametrize("reduction", ["mean", pytest.param("none", marks=pytest.mark.thorough)])


@each_reduction
@pytest.mark.parametrize("level", [1, 2])
def test_full_graph(backend: str, device: torch.device, level: int, reduction: str) -> None:
    """Forward and backward, traced as one graph each."""
    case = (_scores() if level == 1 else _embeddings()).to(device=device)
    arguments = {
        "prior": 0.1,
        "confidence_temperature": 1.0,
        "detach_weights": False,
        "reduction": reduction,
        "backend": backend,
    }
    weight = torch.randn(5, generator=generator(83)).to(device) if reduction == "none" else None
    loss = torch.compile(lambda c: c.loss(**arguments), fullgraph=True, backend="aot_eager")
    expected = _compiled(case, lambda c: c.loss(**arguments), weight)
    _assert_equal(_compiled(case, loss, weight), expected)


@pytest.mark.parametrize("level", [1, 2])
def test_the_loss_is_computed_once(kernels: None, level: int) -> None:
    """The kernel that computes it also finds what backward takes, compiled as uncompiled."""
    case = _scores() if level == 1 else _embeddings()
    compiled = torch.compile(lambda c: c.loss(backend="fused"), fullgraph=True, backend="aot_eager")
    _compiled(case, compiled)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        _compiled(case, compiled)
    called = [e.name for e in profile.events() if e.name.startswith("cw_ext") and e.name.endswith("_forward")]
    assert called == [f"cw_ext::{'scores' if level == 1 else 'embeddings'}_forward"]


@each_reduction
@pytest.mark.parametrize(
    "name", ["uniform", *(pytest.param(n, marks=pytest.mark.thorough) for n in DRAWN if n != "uniform")]
)
def test_full_graph_of_drawn_negatives(backend: str, device: torch.device, name: str, reduction: str) -> None:
    case = _drawn(name).to(device=device)
    case = replace(case, interactions=case.interactions.to(device))
    case.interactions.popularity(0.75)
    arguments = {"prior": 0.1, "reduction": reduction, "backend": backend}
    weight = torch.randn(5, generator=generator(83)).to(device) if reduction == "none" else None
    loss = torch.compile(lambda c: c.loss(**arguments), fullgraph=True, backend="aot_eager")
    expected = _compiled(case, lambda c: c.loss(**arguments), weight)
    _assert_equal(_compiled(case, loss, weight), expected)


_LEVELS = {"scores": _scores, "embeddings": _embeddings, "own shared": lambda: _embeddings(shared=True)}


@pytest.mark.parametrize(
    "name",
    ["scores", "embeddings", "uniform"]
    + [pytest.param(n, marks=pytest.mark.thorough) for n in ("own shared", *DRAWN) if n != "uniform"],
)
def test_full_graph_of_temperatures_and_a_curve(kernels: None, device: torch.device, name: str) -> None:
    """With their gradients, and counts beside the loss; other values need no other graph."""
    case = (_LEVELS[name]() if name in _LEVELS else _drawn(name)).to(device=device)
    if isinstance(case, Drawn):
        case = replace(case, interactions=case.interactions.to(device))
        case.interactions.popularity(0.75)
    curve = ScoreCurve(-0.5, 0.5, torch.zeros(4, device=device), on="margin")
    arguments = {"positive_temperature": 0.3, "score_curve": curve, "return_above": True, "backend": "fused"}
    compiled = torch.compile(lambda c: c.loss(**arguments), fullgraph=True, backend="aot_eager")
    g = generator(84)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            temperature, knots = torch.rand(5, generator=g) + 0.1, torch.randn(4, generator=g)
            case = replace(case, temperature=temperature.to(device), knots=knots.to(device))
            found, above = _with_counts(case, compiled)
            expected, counts = _with_counts(case, lambda c: c.loss(**arguments))
            _assert_equal(found, expected)
            assert torch.equal(above, counts) and above.any()
            assert found.gradients["temperature"].any() and found.gradients["knots"].any()


def _with_counts(case: Case, loss: Any) -> tuple[Result, Tensor]:
    counts = []

    def alone(leaves: Case) -> Tensor:
        value, above = loss(leaves)
        counts.append(above)
        return value

    return _compiled(case, alone), counts[0]


def test_a_popularity_table_is_made_before(kernels: None) -> None:
    case = replace(_drawn("popularity"), interactions=make_interactions(pairs=400))
    with pytest.raises(Exception, match=r"before compiling, call once interactions.popularity\(0.75\)"):
        torch.compile(lambda c: c.loss(), fullgraph=True, backend="aot_eager")(case)


@pytest.mark.thorough
@pytest.mark.parametrize("recompute", [False, True])
def test_a_first_row_that_changes(kernels: None, recompute: bool) -> None:
    """From step to step, and from process to process: no graph of its own for each."""
    case = _drawn("uniform")
    loss = torch.compile(
        lambda c, first_row: c.loss(first_row=first_row, recompute=recompute), fullgraph=True, dynamic=True,
        backend="aot_eager",
    )  # fmt: skip
    _compiled(case, lambda c: loss(c, 40))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for first_row in (41, 2, 2**40):
            expected = _compiled(case, lambda c, row=first_row: c.loss(first_row=row))
            _assert_equal(_compiled(case, lambda c, row=first_row: loss(c, row)), expected)


@pytest.mark.thorough
@pytest.mark.parametrize("level", [1, 2])
def test_changing_sizes(kernels: None, device: torch.device, level: int) -> None:
    """dynamic=True: one graph for batches of every size."""
    graphs = 0

    def counting(module: torch.fx.GraphModule, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    make = _scores if level == 1 else _embeddings
    arguments = {"prior": 0.1, "weighting": "linear", "backend": "fused"}
    for compiler in ("aot_eager", counting):
        torch.compiler.reset()
        loss = torch.compile(lambda c: c.loss(**arguments), fullgraph=True, dynamic=True, backend=compiler)
        for rows, n in ((5, 9), (7, 6), (4, 30)):
            case = make(rows, n).to(device=device)
            expected = _compiled(case, lambda c: c.loss(**arguments))
            _assert_equal(_compiled(case, loss), expected)
    assert graphs == 1


# ---- a whole training step --------------------------------------------------------------------------------


def _assert_steps_are_equal(model: Recommender, compiled: Any, rows: int, n: int) -> None:
    """Loss and the gradients of all parameters, with the same state of torch's generator."""
    batch = make_batch(rows, n)
    found, expected = training_step(model, compiled, *batch), training_step(model, model, *batch)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_near(value, expected[name], torch.float32, name)


@pytest.mark.thorough
@pytest.mark.parametrize("name", CRITERIA)
def test_training_steps_of_any_size(kernels: None, name: str) -> None:
    """Model, loss and backward in one graph for all sizes; negatives that are drawn are those of torch's generator."""
    model = make_recommender(name)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    _assert_steps_are_equal(model, compiled, 6, 9)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows, n in ((5, 6), (12, 30), (3, 9), (40, 4)):
            _assert_steps_are_equal(model, compiled, rows, n)


@pytest.mark.thorough
def test_training_steps_of_few_and_of_many_rows(kernels: None) -> None:
    """From embeddings a graph serves batches that are sorted in one block, and another all that take several."""
    model = make_recommender("embeddings")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (6, 1100):
        _assert_steps_are_equal(model, compiled, rows, 7)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (700, 2100, 1500, 5):
            _assert_steps_are_equal(model, compiled, rows, 7)


def test_a_prior_that_changes(kernels: None) -> None:
    """A number compiles again for each value; a tensor, without dimensions if need be, does not."""
    case = _scores()
    compiled = torch.compile(lambda c, prior: c.loss(prior=prior), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for value in (0.0, 0.1, 0.15):
            prior = torch.tensor(value)
            expected = _compiled(case, lambda c, prior=prior: c.loss(prior=prior))
            _assert_equal(_compiled(case, lambda c, prior=prior: compiled(c, prior)), expected)


@pytest.mark.thorough
def test_inductor_with_a_model_around(kernels: None, device: torch.device) -> None:
    """The default compiler, through a module, with shared negatives and a prior per row."""
    torch.manual_seed(84)
    model = torch.nn.Linear(8, 8).to(device)
    criterion = CWEmbeddingLoss(temperature=0.2, include_positive=True, backend="fused")
    case = _embeddings(shared=True).to(device=device)

    def step(queries: Tensor, items: Tensor, pos_ids: Tensor, neg_ids: Tensor, prior: Tensor) -> Tensor:
        mapped = torch.tanh(model(queries))
        return criterion(mapped, items, pos_ids, neg_ids, prior=prior)

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        model.zero_grad()
        leaves = case.leaves(["queries", "items"])
        prior = torch.full((5,), 0.1, device=device, requires_grad=True)
        loss = function(leaves.queries, leaves.items, leaves.pos_ids, leaves.neg_ids, prior)
        loss.backward()
        gradients = leaves.gradients() | {"weight": model.weight.grad.clone(), "prior": prior.grad}
        results.append(Result(loss.detach(), gradients))
    _assert_equal(results[1], results[0])


def test_a_temperature_that_changes(kernels: None) -> None:
    """The compiler makes a float that changes an input of the graph; it still is one graph."""
    case = _scores()
    arguments = {"backend": "fused"}
    function = torch.compile(
        lambda c, tau, prior: c.loss(temperature=tau, prior=prior, **arguments),
        fullgraph=True,
        backend="aot_eager",
    )
    for tau, prior in ((0.1, 0.0), (0.2, 0.1), (0.35, 0.15)):
        expected = _compiled(case, lambda c: c.loss(temperature=tau, prior=prior, **arguments))
        _assert_equal(_compiled(case, lambda c: function(c, tau, prior)), expected)


def test_no_gradients_wanted(backend: str, device: torch.device) -> None:
    case = _scores().to(device=device)
    with torch.no_grad():
        loss = torch.compile(lambda c: c.loss(backend=backend), fullgraph=True, backend="aot_eager")(case)
    assert_near(loss, case.loss(backend=backend), torch.float32)


@pytest.mark.thorough
def test_under_autocast(backend: str, device: torch.device) -> None:
    case = _embeddings().to(device=device)

    def loss(c: Case) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return c.loss(backend=backend)

    expected = _compiled(case, loss)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    _assert_equal(_compiled(case, compiled), expected)


# ---- the ops -----------------------------------------------------------------------------------------------


def _calls_of(case: Case, **arguments: Any) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    with OpCalls() as mode:
        evaluate(case, torch.ones(5), backend="fused", **arguments)
        # With the graph kept, gradients are not scaled in place.
        case.leaves().loss(backend="fused", **arguments).backward(retain_graph=True)
    return mode.calls


@pytest.mark.parametrize(
    "dtype", [torch.float32, *(pytest.param(d, marks=pytest.mark.thorough) for d in (torch.bfloat16, torch.float64))]
)
def test_opcheck(kernels: None, device: torch.device, dtype: torch.dtype) -> None:
    """Schemas that declare what is written to and what shares memory; fake kernels that agree with the real ones."""
    per_row = exact([0.1, 0.2, 0.0, 0.3, 0.1])
    bare, knots, curve = make_scores((5,), 9, seed=85), exact([0.0, 0.3, -0.2]), ScoreCurve(-0.5, 0.5, torch.zeros(3))
    cases = [
        (bare, {}),
        (_scores(), {"weighting": "linear", "prior": 0.1, "min_margin": -1.0, "confidence_temperature": 1.0}),
        (type(bare)(bare.pos, bare.neg, prior=per_row, threshold=per_row), {"confidence_temperature": 1.0}),
        (replace(bare, temperature=per_row + 0.1, knots=knots), {"score_curve": curve}),
        (replace(_embeddings(), temperature=per_row + 0.1, knots=knots), {"score_curve": curve}),
        (replace(_drawn("uniform"), temperature=per_row + 0.1, knots=knots), {"score_curve": curve}),
        (replace(_drawn("full"), temperature=per_row + 0.1, knots=knots), {"score_curve": curve}),
        (make_embeddings(5, 9, 8, 20, seed=86), {"similarity": "dot"}),
        (_embeddings(), {"prior": 0.1, "detach_weights": False}),
        (_embeddings(shared=True, id_dtype=torch.int32), {"normalize_weights": True}),
        *((_drawn(name), {"prior": 0.1}) for name in DRAWN),
    ]
    checked = set()
    for case, arguments in cases:
        for op, args, kwargs in _calls_of(case.to(dtype, device), **arguments):
            detached = [a.detach() if isinstance(a, Tensor) else a for a in args]
            torch.library.opcheck(op, detached, kwargs)
            checked.add(op._schema.name)
    ops = ("scores_forward", "embeddings_forward", "item_gradient", "scale_rows", "scale_rows_")
    ops += ("draw_negatives", "sampled_forward", "sampled_item_gradient", "full_forward")
    assert checked == {f"cw_ext::{op}" for op in ops}


def test_opcheck_of_candidate_scores(kernels: None, device: torch.device) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        case = _embeddings().to(dtype, device)
        for ids in (case.neg_ids, case.neg_ids.int()[:, :0]):
            torch.library.opcheck(torch.ops.cw_ext.candidate_scores, (case.queries, case.items, ids, "cosine"))


def test_opcheck_without_gradients(kernels: None, device: torch.device) -> None:
    for case, arguments in ((_scores(), {}), (_embeddings(), {}), (_embeddings(), {"return_above": True})):
        with OpCalls() as mode, torch.no_grad():
            case.to(device=device).loss(backend="fused", **arguments)
        assert len(mode.calls) == 1
        for op, args, kwargs in mode.calls:
            torch.library.opcheck(op, args, kwargs)


@pytest.mark.cpu_kernels
def test_the_cpu_has_one_way_to_sum(kernels: None) -> None:
    """Whatever CUDA is asked for; what is no way at all is refused."""
    arguments = item_gradient_arguments(_embeddings())
    ways = ("chosen", "atomic", "sorted")
    chosen, *others = [torch.ops.cw_ext.item_gradient(**arguments, sums=sums) for sums in ways]
    assert all(torch.equal(chosen, other) for other in others)
    with pytest.raises(op_errors.RAISED, match="ValueError: sums is unknown: both"):
        torch.ops.cw_ext.item_gradient(**arguments, sums="both")


def test_the_kernels_ran(kernels: None) -> None:
    """backend="fused" and "auto" reach the ops, and "reference" does not."""
    pos, neg = torch.zeros(2), torch.zeros(2, 3)
    for backend, expected in (("fused", 1), ("auto", 1), ("reference", 0)):
        with OpCalls() as mode:
            cw_loss(pos, neg, backend=backend)
        assert len(mode.calls) == expected, backend


@pytest.mark.thorough
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_a_sparse_gradient_breaks_the_graph(backend: str, shared: bool) -> None:
    """Says so where that is not allowed, and else gives what it gives uncompiled."""
    case = _embeddings()
    if shared:
        case = replace(case, neg_ids=case.neg_ids[0])
    expected = evaluate(case, sparse_grad=True, backend=backend)

    def loss(leaves: Case) -> Tensor:
        return leaves.loss(sparse_grad=True, backend=backend)

    with pytest.raises(RuntimeError, match=r"sparse_grad=True makes a sparse gradient.* leave out fullgraph=True"):
        torch.compile(loss, fullgraph=True, backend="aot_eager")(case.leaves())
    torch.compiler.reset()
    found = _compiled(case, torch.compile(loss, backend="aot_eager"))
    assert found.gradients["items"].is_sparse
    for result in (found, expected):
        result.gradients["items"] = result.gradients["items"].to_dense()
    _assert_equal(found, expected)

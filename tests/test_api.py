"""The package as a user meets it: backends, build_config, modules, autocast, help()."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from cases import assert_near, evaluate, make_embeddings, make_scores, saved_and_loaded
from recommender import CRITERIA, make_batch, make_recommender, training_step
from torch import Tensor, nn
from torch.torch_version import TorchVersion

import cw_ext
from cw_ext import CWEmbeddingLoss, CWLoss, ScoreCurve, cw_loss, cw_loss_from_embeddings, extension

LOSS_ARGUMENTS = {
    "temperature": 0.1,
    "prior": 0.0,
    "weighting": "sigmoid",
    "weight_temperature": None,
    "positive_temperature": None,
    "score_curve": None,
    "detach_weights": True,
    "normalize_weights": False,
    "floor": 0.3,
    "min_margin": None,
    "confidence_temperature": None,
    "confidence_threshold": 0.0,
    "include_positive": False,
    "surrogate": "exp",
    "reduction": "mean",
    "return_above": False,
    "backend": "auto",
}


@pytest.mark.parametrize("form", [cw_loss, cw_loss_from_embeddings])
def test_signatures_are_those_of_the_contract(form: object) -> None:
    parameters = inspect.signature(form).parameters
    assert {n: p.default for n, p in parameters.items() if n in LOSS_ARGUMENTS} == LOSS_ARGUMENTS
    own = [n for n in parameters if n not in LOSS_ARGUMENTS]
    if form is cw_loss:
        assert own == ["pos_scores", "neg_scores", "extra_pos_scores", "neg_log_weights", "row_weights"]
    else:
        assert own == [
            *("queries", "items", "pos_ids", "neg_ids", "extra_pos_ids", "neg_log_weights", "row_weights"),
            *("similarity", "sparse_grad"),
        ]
        assert parameters["similarity"].default == "half_cosine" and parameters["sparse_grad"].default is False
    keywords = [p for p in parameters.values() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert len(keywords) == len(parameters) - (2 if form is cw_loss else 4)


@pytest.mark.parametrize("form", [cw_loss, cw_loss_from_embeddings, CWLoss.__init__, CWEmbeddingLoss.__init__])
def test_help_names_every_argument(form: object) -> None:
    text = inspect.getdoc(form)
    assert text is not None
    for name in inspect.signature(form).parameters:
        assert name == "self" or f"{name}:" in text or form in (CWEmbeddingLoss.__init__,), name
    assert all(f"{name}:" in text for name in LOSS_ARGUMENTS)


# ---- backends ----------------------------------------------------------------------------------------------


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine where nothing was built."""
    monkeypatch.setattr(extension, "_no_cpu", "the kernels were built for X, but Y is running; rebuild with: Z")
    monkeypatch.setattr(extension, "_warned", False)
    yield


def test_build_config(kernels: None) -> None:
    config = cw_ext.build_config()
    assert config["available"] is True
    assert TorchVersion(config["torch"]) >= "2.11", "what the kernels were built with, and not what runs them"
    assert config["cpu_capability"] in (*config["cpu_capabilities"], "default")
    assert "default" in config["cpu_capabilities"] and config["compiler"]
    assert isinstance(config["cuda"], bool)
    assert config["cuda"] or not torch.cuda.is_available(), "a GPU is here, and the build has no kernels for it"


def test_build_config_without_kernels(without_kernels: None) -> None:
    config = cw_ext.build_config()
    assert config == {"available": False, "reason": extension._no_cpu}


def test_fused_says_why_it_cannot(without_kernels: None) -> None:
    for case in (make_scores(), make_embeddings()):
        with pytest.raises(RuntimeError, match=r"backend='fused'.*built for X, but Y is running.*rebuild with: Z"):
            case.loss(backend="fused")


def test_auto_falls_back_with_one_warning(without_kernels: None) -> None:
    case = make_embeddings()
    with pytest.warns(UserWarning, match="built for X.*reference.*slow") as caught:
        first = case.loss()
        second = case.loss(backend="auto")
    assert len(caught) == 1
    assert torch.equal(first, case.loss(backend="reference")) and torch.equal(first, second)


def test_the_reference_never_warns(without_kernels: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_scores().loss(backend="reference")


def test_a_torch_too_old_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading would end in a missing symbol."""
    monkeypatch.delenv(extension.ANOTHER_LIBRARY, raising=False)
    monkeypatch.setattr(extension, "_library", lambda folder, name: folder / "_cpu.so")
    monkeypatch.setattr(torch, "__version__", "2.10.1+cpu")
    why_not = extension._why_no_cpu()
    assert "need torch >= 2.11, but torch 2.10.1+cpu is running" in why_not and "pip install --upgrade torch" in why_not


def test_no_build_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(extension.ANOTHER_LIBRARY, raising=False)
    monkeypatch.setattr(extension, "_library", lambda folder, name: None)
    assert "pip install" in extension._why_no_cpu()


# ---- modules -----------------------------------------------------------------------------------------------


def test_modules_are_the_functions(backend: str) -> None:
    scores = make_scores((4,), 5, 2, log_q=True, row_weights=True)
    arguments = {"prior": 0.1, "temperature": 0.3, "reduction": "none", "backend": backend}
    tensors = {
        "extra_pos_scores": scores.extra,
        "neg_log_weights": scores.log_q,
        "row_weights": scores.row_weights,
    }
    found = CWLoss(**arguments)(scores.pos, scores.neg, **tensors)
    assert torch.equal(found, cw_loss(scores.pos, scores.neg, **tensors, **arguments))

    case = make_embeddings(4, 5, 6, 9, 2, log_q=True, row_weights=True)
    ids = (case.queries, case.items, case.pos_ids, case.neg_ids)
    tensors = {
        "extra_pos_ids": case.extra_ids,
        "neg_log_weights": case.log_q,
        "row_weights": case.row_weights,
    }
    for similarity in ("cosine", "dot"):
        found = CWEmbeddingLoss(similarity=similarity, **arguments)(*ids, **tensors)
        assert torch.equal(found, cw_loss_from_embeddings(*ids, similarity=similarity, **tensors, **arguments))


def test_modules_take_values_per_row_with_each_call(backend: str) -> None:
    per_row = torch.tensor([0.1, 0.2, 0.3, 0.0], dtype=torch.float64)
    scores, case = make_scores((4,), 5), make_embeddings(4, 5, 6, 9)
    ids = (case.queries, case.items, case.pos_ids, case.neg_ids)
    arguments = {"confidence_temperature": 1.0, "backend": backend}
    overrides = {"temperature": per_row + 0.2, "prior": per_row, "confidence_threshold": per_row - 0.1}
    found = CWLoss(prior=0.9, **arguments)(scores.pos, scores.neg, **overrides)
    assert torch.equal(found, cw_loss(scores.pos, scores.neg, **overrides, **arguments))
    found = CWEmbeddingLoss(prior=0.9, **arguments)(*ids, **overrides)
    assert torch.equal(found, cw_loss_from_embeddings(*ids, **overrides, **arguments))
    # What is not given stays as it was.
    kept = CWLoss(prior=0.9, **arguments)(scores.pos, scores.neg, confidence_threshold=0.2)
    expected = cw_loss(scores.pos, scores.neg, prior=0.9, confidence_threshold=0.2, **arguments)
    assert torch.equal(kept, expected)


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
def test_modules_can_be_copied_and_saved(again: object) -> None:
    scores, case = make_scores((4,), 5), make_embeddings(4, 5, 6, 9)
    module = CWLoss(prior=0.1, temperature=0.3, backend="reference")
    assert torch.equal(again(module)(scores.pos, scores.neg), module(scores.pos, scores.neg))
    module = CWEmbeddingLoss(similarity="dot", temperature=3.0, backend="reference")
    ids = (case.queries, case.items, case.pos_ids, case.neg_ids)
    assert torch.equal(again(module)(*ids), module(*ids))
    assert repr(again(module)) == repr(module)


@pytest.mark.parametrize(
    "again",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("name", CRITERIA)
def test_models_with_a_loss_can_be_copied_and_saved(backend: str, name: str, again: Callable[..., nn.Module]) -> None:
    """All that the loss holds goes with the model, known positives and tables of popularities too."""
    model = make_recommender(name, backend)
    copied = again(model)
    assert repr(copied) == repr(model)
    batch = make_batch(9, 7)
    expected, found = training_step(model, model, *batch), training_step(copied, copied, *batch)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    # Nothing of the loss is a parameter: a state can be loaded into a model with another one.
    other = make_recommender("scores", backend)
    assert other.load_state_dict(model.state_dict()).missing_keys == []


def test_modules_are_ordinary_modules() -> None:
    module = torch.nn.Sequential(CWLoss(prior=0.1), CWEmbeddingLoss(similarity="dot")).to(torch.float64).eval()
    assert not list(module.parameters()) and module.state_dict() == {}
    assert "prior=0.1" in repr(module) and "similarity='dot'" in repr(module)


def test_a_module_with_tensors_is_short_in_print() -> None:
    tau, curve = nn.Parameter(torch.tensor(0.5)), ScoreCurve(-1.0, 1.0, torch.zeros(257))
    shown = repr(CWLoss(temperature=tau, prior=torch.zeros(500), score_curve=curve))
    assert "temperature=tensor(0.5" in shown and "prior=tensor of shape (500,)" in shown
    assert "score_curve=ScoreCurve(-1.0, 1.0, 257" in shown and len(shown) < 200 and "\n" not in shown


# ---- autocast ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Scores that a matrix product made in half precision beside scores that a sum made in fp32: cast once,
    to fp32. The loss is fp32, and the parameters' gradients come back in the parameters' dtype."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8).to(device)
    items = torch.randn(20, 8, device=device, requires_grad=True)
    inputs = torch.randn(4, 8, device=device)
    ids = torch.arange(4, device=device)
    with torch.autocast(device.type, dtype):
        queries = model(inputs)
        assert queries.dtype == dtype
        neg = queries @ items.T
        pos = (queries.float() * items[ids]).sum(-1)
        on_scores = cw_loss(pos, neg, temperature=2.0, backend=backend)
        on_embeddings = cw_loss_from_embeddings(queries, items, ids, ids.expand(4, 4), backend=backend)
    assert on_scores.dtype == on_embeddings.dtype == torch.float32
    assert_near(on_scores, cw_loss(pos, neg.float(), temperature=2.0, backend="reference"), torch.float32)
    expected = cw_loss_from_embeddings(queries.float(), items, ids, ids.expand(4, 4), backend="reference")
    assert_near(on_embeddings, expected, torch.float32)
    (on_scores + on_embeddings).backward()
    for tensor in (model.weight, items):
        assert tensor.grad is not None and tensor.grad.dtype == torch.float32 and tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("name", CRITERIA)
def test_autocast_around_a_model(backend: str, name: str) -> None:
    """bf16 from a layer meets a table in fp32: the loss and the gradients of all parameters are fp32."""
    results = []
    for used in (backend, "reference"):
        model = make_recommender(name, used)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.layer(model.users.weight).dtype == torch.bfloat16
        forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
        results.append(training_step(model, forward, *make_batch(9, 7)))
    found, expected = results
    assert set(found) == {"loss", *(parameter for parameter, _ in model.named_parameters())}
    assert_near(found["loss"], expected["loss"], torch.float32)
    for key, value in found.items():
        assert value.dtype == torch.float32 and value.abs().sum() > 0, key
        assert_near(value, expected[key], torch.bfloat16, key)  # the layer's part of backward is in bf16


def test_autocast_leaves_fp64_alone(backend: str) -> None:
    case = make_scores((4,), 5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = case.loss(backend=backend)
    assert loss.dtype == torch.float64 and torch.equal(loss, case.loss(backend=backend))


def test_inference_mode(backend: str) -> None:
    case = make_embeddings(4, 5)
    expected = case.loss(backend=backend)
    with torch.inference_mode():
        loss = case.loss(backend=backend)
    assert loss.is_inference() and torch.equal(loss.clone(), expected)


# ---- training ----------------------------------------------------------------------------------------------


def _loss_of(tables: torch.nn.ModuleList, backend: str) -> Tensor:
    users, items = tables
    ids = torch.arange(30)
    neg_ids = (ids[:, None] * 7 + torch.arange(1, 11)) % 40
    neg_ids[neg_ids == ids[:, None]] = -1
    return cw_loss_from_embeddings(users.weight, items.weight, ids, neg_ids, prior=0.02, backend=backend)


def test_training_lowers_the_loss_alike(kernels: None) -> None:
    """Twenty steps of Adam end at the same place on either backend."""
    ends = []
    for backend in ("fused", "reference"):
        torch.manual_seed(1)
        tables = torch.nn.ModuleList([torch.nn.Embedding(30, 8), torch.nn.Embedding(40, 8)]).double()
        optimizer = torch.optim.Adam(tables.parameters(), lr=0.05)
        first = _loss_of(tables, backend).item()
        for _ in range(20):
            optimizer.zero_grad()
            _loss_of(tables, backend).backward()
            optimizer.step()
        ends.append(_loss_of(tables, backend).detach())
        assert ends[-1].item() < first - 1
    assert torch.allclose(ends[0], ends[1], rtol=1e-9)


def test_the_gradient_descends(backend: str) -> None:
    """A small step against the gradient lowers the loss by the square of its length."""
    case = make_scores((4,), 9, 2, seed=7)
    arguments = {"prior": 0.1, "detach_weights": False, "reduction": "mean", "backend": backend}
    result = evaluate(case, **arguments)
    step = 1e-7
    moved = case.map(lambda t: t)
    for name, gradient in result.gradients.items():
        getattr(moved, name).sub_(step * gradient)
    expected = sum((g**2).sum() for g in result.gradients.values()) * step
    found = result.loss - moved.loss(**arguments)
    assert torch.allclose(found, expected, rtol=1e-4)

"""Models against dense matrices in float64, and XSimGCL's noise and contrastive loss counted out."""

from __future__ import annotations

import importlib.util
import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.training
from benchmarks.common.data import InteractionData
from benchmarks.training.models import MODELS, MatrixFactorization, ModelOptions

ROOT = Path(__file__).parents[2]
USERS, ITEMS, DIM = 7, 9, 64
ALONE = {"user": 3, "item": 8}  # without a training pair

needs_pyg = pytest.mark.skipif(
    importlib.util.find_spec("torch_geometric") is None, reason="torch_geometric is not installed"
)
GRAPH_MODELS = [pytest.param(name, marks=needs_pyg) for name in ("lightgcn", "xsimgcl")]


def training_pairs() -> list[tuple[int, int]]:
    taken = np.random.default_rng(0).random((USERS, ITEMS)) < 0.5
    taken[ALONE["user"]] = taken[:, ALONE["item"]] = False
    return [(int(user), int(item)) for user, item in np.argwhere(taken)]


def make_data(pairs: list[tuple[int, int]] | None = None) -> InteractionData:
    pairs = torch.tensor(training_pairs() if pairs is None else pairs)
    nothing = torch.empty(0, dtype=torch.int64)
    return InteractionData(pairs[:, 0], pairs[:, 1], nothing, nothing, USERS, ITEMS, "made up")


def build(name: str, seed: int = 0, device: torch.device | str = "cpu", **options) -> MatrixFactorization:
    generator = torch.Generator().manual_seed(seed)
    return MODELS[name](make_data(), DIM, generator, ModelOptions(**options)).to(device)


def dense_adjacency(pairs: list[tuple[int, int]]) -> torch.Tensor:
    """float64 [V, V], entry by entry."""
    matrix = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=torch.float64)
    for user, item in pairs:
        items_of_user = sum(u == user for u, _ in pairs)
        users_of_item = sum(i == item for _, i in pairs)
        matrix[user, USERS + item] += 1 / math.sqrt(items_of_user * users_of_item)
        matrix[USERS + item, user] += 1 / math.sqrt(items_of_user * users_of_item)
    return matrix


def dense_propagation(num_layers: int, first: int) -> torch.Tensor:
    """What makes the final table of the embeddings: the mean of the powers of the matrix from `first` on."""
    matrix = dense_adjacency(training_pairs())
    powers = [torch.linalg.matrix_power(matrix, power) for power in range(first, num_layers + 1)]
    return torch.stack(powers).mean(0)


def embeddings(model: MatrixFactorization) -> torch.Tensor:
    """float64 [V, dim]."""
    return torch.cat([model.user_embeddings, model.item_embeddings]).detach().cpu().double()


def table(model: MatrixFactorization) -> torch.Tensor:
    """The table of users above that of items, [V, dim]."""
    return torch.cat(model())


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.cpu(), expected.to(found.dtype), rtol=1e-5, atol=1e-6)


# --- all models ---


@pytest.mark.parametrize("name", ["mf", *GRAPH_MODELS])
def test_all_models_draw_the_same_embeddings_and_nothing_more(name):
    generator, expected = (torch.Generator().manual_seed(5) for _ in range(2))
    model = MODELS[name](make_data(), DIM, generator)
    assert torch.equal(model.user_embeddings, torch.randn(USERS, DIM, generator=expected))
    assert torch.equal(model.item_embeddings, torch.randn(ITEMS, DIM, generator=expected))
    assert torch.equal(generator.get_state(), expected.get_state())
    assert [len(table) for table in model()] == [USERS, ITEMS]


@pytest.mark.parametrize("name", ["mf", pytest.param("lightgcn", marks=needs_pyg)])
def test_models_without_a_loss_of_their_own_add_nothing(name):
    model = build(name, contrastive_weight=3.0)
    model()
    assert model.auxiliary_loss(torch.tensor([0]), torch.tensor([1])) is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"contrastive_weight": -0.1}, "contrastive_weight must be finite and at least 0, got -0.1"),
        ({"contrastive_weight": math.inf}, "contrastive_weight must be finite and at least 0, got inf"),
        ({"contrastive_weight": math.nan}, "contrastive_weight must be finite and at least 0, got nan"),
    ],
)
def test_options_out_of_range_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        ModelOptions(**options)


@pytest.mark.parametrize("name", ["lightgcn", "xsimgcl"])
def test_without_pytorch_geometric_the_error_says_what_to_install(name, monkeypatch):
    for module in list(sys.modules):
        if module.partition(".")[0] == "torch_geometric" or module == "benchmarks.training.graph_models":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    monkeypatch.delattr(benchmarks.training, "graph_models", raising=False)
    with pytest.raises(RuntimeError, match=f"model {name} needs torch_geometric, .*run: pip install torch_geometric"):
        build(name)
    build("mf")


@needs_pyg
def test_pytorch_geometric_is_imported_when_it_is_needed_and_without_warnings():
    script = """
import sys
from tests.benchmarks.test_models import build
assert "torch_geometric" not in sys.modules
build("mf")
assert "torch_geometric" not in sys.modules
for name in ("lightgcn", "xsimgcl"):
    build(name)()[0].sum().backward()
assert "torch_geometric" in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# --- graph convolutions ---


@needs_pyg
@pytest.mark.parametrize("repeated", [0, 3])
def test_the_adjacency_is_that_of_the_pairs(repeated):
    from benchmarks.training.graph_models import normalized_adjacency

    pairs = training_pairs()
    pairs += pairs[:repeated]
    pairs = pairs[::2] + pairs[1::2]  # in no order
    adjacency = normalized_adjacency(make_data(pairs))
    assert adjacency.layout == torch.sparse_csr
    assert adjacency.values().numel() == 2 * len(set(pairs))
    assert_close(adjacency.to_dense(), dense_adjacency(pairs))
    assert torch.equal(adjacency.to_dense(), adjacency.to_dense().T)


@needs_pyg
def test_the_convolution_is_lgconv_on_the_edges(device):
    from torch_geometric.nn import LGConv

    model = build("lightgcn", device=device)
    assert isinstance(model.convolution, LGConv)
    users, items = torch.tensor(training_pairs(), device=device).T
    edges = torch.stack([torch.cat([users, items + USERS]), torch.cat([items + USERS, users])])
    x = torch.randn(USERS + ITEMS, DIM, device=device)
    torch.testing.assert_close(model.convolution(x, model.adjacency), LGConv()(x, edges))


@needs_pyg
@pytest.mark.parametrize("num_layers", [None, 1, 3])
def test_lightgcn_is_the_mean_of_all_layers(num_layers, device):
    model = build("lightgcn", device=device, num_layers=num_layers)
    expected = dense_propagation(num_layers or 2, first=0) @ embeddings(model)
    for trains in (True, False):
        assert_close(table(model.train(trains)), expected)


@needs_pyg
@pytest.mark.parametrize("num_layers", [None, 2, 4])
def test_xsimgcl_evaluates_to_the_mean_of_all_layers_but_the_embeddings(num_layers, device):
    model = build("xsimgcl", device=device, num_layers=num_layers).eval()
    expected = dense_propagation(num_layers or 3, first=1) @ embeddings(model)
    assert_close(table(model), expected)
    assert torch.equal(table(model), table(model))


@needs_pyg
def test_users_and_items_without_a_pair_keep_to_themselves(device):
    model = build("lightgcn", device=device)
    users, items = model()
    torch.testing.assert_close(users[ALONE["user"]], model.user_embeddings[ALONE["user"]] / 3)
    torch.testing.assert_close(items[ALONE["item"]], model.item_embeddings[ALONE["item"]] / 3)
    model = build("xsimgcl", device=device)
    users, items = model()  # with noise, on all others
    assert not users[ALONE["user"]].any()
    assert not items[ALONE["item"]].any()
    users.sum().backward()
    assert model.item_embeddings.grad.isfinite().all()


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize(("name", "first"), [(name, first) for first, name in enumerate(["lightgcn", "xsimgcl"])])
def test_gradients_are_those_through_the_dense_matrix(name, first, trains, device):
    pytest.importorskip("torch_geometric")
    model = build(name, device=device).train(trains)
    weights = torch.randn(USERS + ITEMS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dense = embeddings(model).requires_grad_()
    ((dense_propagation(model.num_layers, first) @ dense) * weights).sum().backward()
    (table(model) * weights.to(device)).sum().backward()
    found = torch.cat([model.user_embeddings.grad, model.item_embeddings.grad])
    assert_close(found, dense.grad)


@needs_pyg
def test_the_product_can_be_differentiated_twice(device):
    model = build("lightgcn", device=device).double()
    x = torch.randn(USERS + ITEMS, 2, dtype=torch.float64, device=device, requires_grad=True)
    arguments = (lambda x: model.convolution(x, model.adjacency) ** 2, x)
    assert torch.autograd.gradcheck(*arguments)
    assert torch.autograd.gradgradcheck(*arguments)


# --- XSimGCL's noise ---


def step_in_training(model: MatrixFactorization) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """A forward pass; returns what came out of each convolution, the noise added to it, and the final table."""
    inputs, outputs = [], []

    def record(module, arguments, output):
        inputs.append(arguments[0].detach().clone())
        outputs.append(output.detach().clone())

    hook = model.convolution.register_forward_hook(record)
    final = table(model).detach()
    hook.remove()
    noisy = inputs[1:]
    noisy.append(len(outputs) * final - sum(noisy))  # the last layer goes into the mean alone
    return outputs, [layer - output for layer, output in zip(noisy, outputs, strict=True)], final


@needs_pyg
def test_noise_has_length_a_tenth_and_the_signs_of_the_layer(device):
    model = build("xsimgcl", device=device).double()
    outputs, noises, _ = step_in_training(model)
    assert len(outputs) == 3
    for output, noise in zip(outputs, noises, strict=True):
        alone = ~output.any(1)
        assert alone.nonzero().flatten().tolist() == [ALONE["user"], USERS + ALONE["item"]]
        torch.testing.assert_close(noise.norm(dim=1), torch.where(alone, 0.0, 0.1).double())
        noise, output = noise[~alone], output[~alone]
        assert (noise * output >= 0).all()
        # Numbers from U[0, 1] have the root-mean-square sqrt(1/3), so that those of a row are 0.1 / sqrt(dim / 3) times
        # uniform ones; for the half of a normal distribution the mean would be sqrt(2/π) in place of sqrt(3/4).
        relative = noise.abs() / 0.1 * math.sqrt(DIM)
        assert relative.mean().item() == pytest.approx(math.sqrt(3 / 4), abs=0.03)
        assert relative.max().item() < 1.5 * math.sqrt(3)
    drawn = torch.cat([*noises, *step_in_training(model)[1]]).abs()
    drawn = drawn[drawn.any(1)]
    assert len(drawn) == 6 * (USERS + ITEMS - 2)
    assert torch.cdist(drawn, drawn).fill_diagonal_(1).min() > 1e-3  # none twice


@needs_pyg
def test_noise_is_of_the_seed_and_of_nothing_else(device):
    tables = []
    for seed, others_seed in ((1, 1), (1, 2), (2, 2)):
        torch.manual_seed(others_seed)
        tables.append(step_in_training(build("xsimgcl", seed=seed, device=device))[1][0])
    assert torch.equal(tables[0], tables[1])
    assert not torch.allclose(tables[1].abs(), tables[2].abs())


@needs_pyg
def test_evaluation_takes_nothing_from_the_noise():
    model, other = build("xsimgcl"), build("xsimgcl")
    table(other.eval())
    other.train()
    assert torch.equal(table(model), table(other))


@needs_pyg
def test_a_saved_state_goes_on_with_the_same_noise(device):
    model = build("xsimgcl", device=device)
    table(model)
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    expected = [table(model) for _ in range(3)]
    saved.seek(0)
    resumed = build("xsimgcl", seed=9, device=device)
    table(resumed)
    # Saved numbers come to the CPU or to the model's device, as the caller asks.
    resumed.load_state_dict(torch.load(saved, weights_only=True, map_location=device))
    for one in expected:
        assert torch.equal(table(resumed), one)
    assert not torch.equal(expected[0], expected[1])


# --- XSimGCL's contrastive loss ---


def info_nce(queries: list[list[float]], keys: list[list[float]]) -> float:
    """Mean over the queries of -log softmax of the own key's cosine / 0.1 among those of all keys."""

    def cosine(a, b):
        product = sum(x * y for x, y in zip(a, b, strict=True))
        return product / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))

    total = 0.0
    for row, query in enumerate(queries):
        own = math.exp(cosine(query, keys[row]) / 0.1)
        total -= math.log(own / sum(math.exp(cosine(query, key) / 0.1) for key in keys))
    return total / len(queries)


BATCH = ([4, 0, 4, 2, 5, 4], [1, 6, 2, 6, 0, 1])  # users and items, some more than once


@needs_pyg
@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_the_contrastive_loss_is_that_of_its_formula(weight, device):
    model = build("xsimgcl", device=device, contrastive_weight=weight).double()
    outputs, noises, final = step_in_training(model)
    first = (outputs[0] + noises[0]).tolist()
    final = final.tolist()
    users, items = BATCH
    expected = 0.0
    for rows in (sorted(set(users)), [USERS + item for item in sorted(set(items))]):
        expected += info_nce([final[row] for row in rows], [first[row] for row in rows])
    found = model.auxiliary_loss(torch.tensor(users, device=device), torch.tensor(items, device=device))
    assert found.shape == ()
    assert found.item() == pytest.approx(weight * expected, rel=1e-9)


@needs_pyg
def test_the_contrastive_loss_has_the_gradient_of_both_views(device, monkeypatch):
    from benchmarks.training import graph_models

    monkeypatch.setattr(graph_models, "NOISE", 0.0)
    model = build("xsimgcl", device=device).double()
    dense = embeddings(model).requires_grad_()
    final, first = dense_propagation(3, first=1) @ dense, dense_propagation(1, first=1) @ dense
    expected = 0.0
    for rows in (sorted(set(BATCH[0])), [USERS + item for item in sorted(set(BATCH[1]))]):
        cosines = torch.cosine_similarity(final[rows].unsqueeze(1), first[rows].unsqueeze(0), dim=2)
        expected = expected - 0.1 * (cosines / 0.1).log_softmax(1).diagonal().mean()
    expected.backward()
    model()
    model.auxiliary_loss(*(torch.tensor(ids, device=device) for ids in BATCH)).backward()
    assert_close(torch.cat([model.user_embeddings.grad, model.item_embeddings.grad]), dense.grad)


@needs_pyg
def test_the_contrastive_loss_is_of_the_last_forward_pass_in_training():
    model = build("xsimgcl")
    batch = [torch.tensor(ids) for ids in BATCH]
    complaint = "auxiliary_loss needs a forward pass in training mode before it"
    with pytest.raises(RuntimeError, match=complaint):
        model.auxiliary_loss(*batch)
    losses = []
    for _ in range(2):
        model()
        losses.append(model.auxiliary_loss(*batch))
    assert losses[0] != losses[1] == model.auxiliary_loss(*batch)
    model.eval()()
    with pytest.raises(RuntimeError, match=complaint):
        model.auxiliary_loss(*batch)


@needs_pyg
def test_xsimgcl_with_one_layer_is_refused():
    with pytest.raises(ValueError, match="num_layers of xsimgcl must be at least 2, got 1"):
        build("xsimgcl", num_layers=1)

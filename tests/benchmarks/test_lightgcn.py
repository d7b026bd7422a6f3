"""The example of PyTorch Geometric's LightGCN: its loss against the package's own, and in training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from cases import assert_near
from training_cases import load_blocks, write_split

pytest.importorskip("torch_geometric", reason="the example of LightGCN needs the package torch_geometric")

from torch_geometric.nn import LightGCN  # noqa: E402

from cw_ext import Interactions, draw_negatives, presets  # noqa: E402
from examples import lightgcn  # noqa: E402


def test_one_negative_is_the_recommendation_loss(tmp_path: Path) -> None:
    """InfoNCE with one negative at temperature 1 is BPR: the same loss and gradients as recommendation_loss."""
    dataset = load_blocks(tmp_path)
    sizes = {"num_queries": dataset.num_users, "num_items": dataset.num_items}
    known = Interactions(dataset.train_users, dataset.train_items, **sizes)
    graph = lightgcn.graph_of(dataset)
    torch.manual_seed(0)
    own = LightGCN(dataset.num_users + dataset.num_items, 16, num_layers=2)
    adapted = copy.deepcopy(own)
    users, items = dataset.train_users[::3], dataset.train_items[::3]

    torch.manual_seed(1)
    found = lightgcn.cw_recommendation_loss(adapted, graph, users, items, known, 1, **presets.infonce(1.0))
    torch.manual_seed(1)
    negatives = draw_negatives(users, known, 1).squeeze(1)
    positive, negative = own(
        graph, torch.stack([users.repeat(2), dataset.num_users + torch.cat([items, negatives])])
    ).chunk(2)
    involved = torch.cat([users, dataset.num_users + items]).unique()
    expected = own.recommendation_loss(positive, negative, node_id=involved, lambda_reg=lightgcn.LAMBDA)

    assert_near(found, expected, torch.float32, "loss")
    found.backward()
    expected.backward()
    assert_near(adapted.embedding.weight.grad, own.embedding.weight.grad, torch.float32, "gradient")


@pytest.mark.parametrize("loss", ["cw", "bpr"])
def test_it_learns_blocks(loss: str, kernels: None, tmp_path: Path) -> None:
    """Users take items of their own block only: a model that finds the blocks ranks the rest of the block first."""
    dataset = load_blocks(tmp_path)
    torch.manual_seed(0)
    model = LightGCN(dataset.num_users + dataset.num_items, 16, num_layers=2)
    model.embedding.reset_parameters()  # so large that propagation alone does not find the blocks
    before = lightgcn.ndcg(model, dataset)
    lightgcn.train(model, dataset, 30, loss, lr=0.05)
    assert lightgcn.ndcg(model, dataset) > before + 0.1


def test_recommends_as_it_was_trained(kernels: None, tmp_path: Path) -> None:
    """The model's own recommend() ranks the items of a user's block before all others."""
    dataset = load_blocks(tmp_path)
    torch.manual_seed(0)
    model = LightGCN(dataset.num_users + dataset.num_items, 16, num_layers=2)
    lightgcn.train(model, dataset, 30, lr=0.05)
    items = torch.arange(dataset.num_users, dataset.num_users + dataset.num_items)
    users = torch.arange(dataset.num_users)
    ranked = model.recommend(lightgcn.graph_of(dataset), src_index=users, dst_index=items, k=10) - dataset.num_users
    taken = torch.zeros(dataset.num_items, dataset.num_items, dtype=torch.bool)  # by one user: of one block
    for user in range(dataset.num_users):
        of_user = dataset.train_items[dataset.train_users == user]
        taken[of_user.unsqueeze(1), of_user] = True
    first = torch.stack([dataset.train_items[dataset.train_users == user][0] for user in users])
    assert taken[first.unsqueeze(1), ranked].float().mean() > 0.9


def test_command_line(kernels: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_split(tmp_path, load_blocks(tmp_path))
    assert lightgcn.main(["--data", str(tmp_path), "--epochs", "1"]) == 0
    assert f"{tmp_path.name}: NDCG@20 0." in capsys.readouterr().out
    assert lightgcn.main(["--data", str(tmp_path / "nothing")]) == 2
    assert "nothing: expected an interaction file" in capsys.readouterr().err

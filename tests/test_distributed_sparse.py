"""Sparse gradients under DistributedDataParallel: what it needs, and the error of torch where that is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import assert_near, make_embeddings
from torch import Tensor, nn
from torchrun import process_of_group, torchrun

from cw_ext import cw_loss_from_embeddings

CASE = make_embeddings(6, 9, 8, 200, seed=103)
# Parts of both messages are in the documentation.
NO_SPARSE_LAYER = "Cannot access storage of SparseTensorImpl"
NO_SPARSE_GRADIENT = "Expected variable to have sparse gradient"


class _Model(nn.Module):
    """A table, and the loss of a part of the batch with it as tensor or as module."""

    def __init__(self, sparse_layer: bool, items_of: Callable[[nn.Embedding], Any], **arguments: Any) -> None:
        super().__init__()
        self.items = nn.Embedding.from_pretrained(CASE.items.clone(), freeze=False, sparse=sparse_layer)
        self.items_of, self.arguments = items_of, arguments

    def forward(self, queries: Tensor, pos_ids: Tensor, neg_ids: Tensor) -> Tensor:
        return cw_loss_from_embeddings(queries, self.items_of(self.items), pos_ids, neg_ids, **self.arguments)


def _module(items: nn.Embedding) -> nn.Embedding:
    return items


def _weight(items: nn.Embedding) -> Tensor:
    return items.weight


# In the order in which each process goes through them: what fails leaves its model's buckets in no state to go on.
RUNS: dict[str, tuple[bool, Callable[[nn.Embedding], Any], dict[str, bool]]] = {
    "module": (True, _module, {}),
    "tensor": (True, _weight, {"sparse_grad": True}),
    "dense layer": (False, _weight, {"sparse_grad": True}),
    "dense gradient": (True, _weight, {}),
}


@pytest.mark.cpu_kernels
def test_the_layer_must_be_sparse_too(kernels: None, tmp_path: Path) -> None:
    torchrun(__file__, tmp_path)
    found = torch.load(tmp_path / "found.pt")
    assert NO_SPARSE_LAYER in found["dense layer"] and NO_SPARSE_GRADIENT in found["dense gradient"]
    leaf = CASE.leaves(["items"])
    leaf.loss(backend="reference").backward()
    for name in ("module", "tensor"):
        assert found[name].is_sparse
        assert_near(found[name].to_dense(), leaf.items.grad, torch.float64, name)


def test_the_messages_are_documented(checkout: Path) -> None:
    text = (checkout / "docs" / "help" / "troubleshooting.md").read_text(encoding="utf-8")
    assert NO_SPARSE_LAYER in text and NO_SPARSE_GRADIENT in text


if __name__ == "__main__":
    with process_of_group() as (rank, folder):
        part = slice(3 * rank, 3 * rank + 3)
        batch = (CASE.queries[part], CASE.pos_ids[part], CASE.neg_ids[part])
        found: dict[str, Any] = {}
        for name, (sparse_layer, items_of, arguments) in RUNS.items():
            model = _Model(sparse_layer, items_of, **arguments)
            parallel = nn.parallel.DistributedDataParallel(model)
            try:
                for _ in range(2):  # the second step goes through the buckets that the first one arranged
                    parallel.zero_grad()
                    parallel(*batch).backward()
                found[name] = model.items.weight.grad
            except RuntimeError as error:  # torch's NotImplementedError is one
                found[name] = str(error)
        if rank == 0:
            torch.save(found, folder / "found.pt")

"""Collaborative-filtering models: what maps a user and an item id to an embedding."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.common.data import InteractionData
from benchmarks.training.matrix_factorization import MatrixFactorization, ModelOptions


def _graph_model(name: str, class_name: str) -> Callable[..., MatrixFactorization]:
    """A model of :mod:`benchmarks.training.graph_models`, which is imported when the first one is built."""

    def build(
        data: InteractionData, dim: int, generator: torch.Generator, options: ModelOptions = ModelOptions()
    ) -> MatrixFactorization:
        try:
            from benchmarks.training import graph_models
        except ModuleNotFoundError as error:
            if error.name.partition(".")[0] != "torch_geometric":
                raise
            raise RuntimeError(
                f'model {name} needs torch_geometric, which is in the extra "benchmarks"; run: '
                "pip install torch_geometric"
            ) from None
        return getattr(graph_models, class_name)(data, dim, generator, options)

    return build


# A model is built from (training data, dim, generator[, options]); called, it returns its user and its item table.
MODELS: dict[str, Callable[..., MatrixFactorization]] = {
    "mf": MatrixFactorization,
    "lightgcn": _graph_model("lightgcn", "LightGCN"),
    "xsimgcl": _graph_model("xsimgcl", "XSimGCL"),
}

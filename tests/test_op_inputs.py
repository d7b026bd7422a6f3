"""The tuples that describe the ops' arguments and results, against the schemas that the kernels register."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from cw_ext import op_inputs
from cw_ext.op_inputs import DRAWS, EMBEDDINGS, FULL, SAMPLED, SCORES, Layout, Losses
from cw_ext.parameters import RowParameters
from cw_ext.reference_sampling import Draws, History
from cw_ext.row_values import RowValues

OPS = {
    "scores_forward": (SCORES, op_inputs.Wanted, op_inputs.ScoreResults),
    "embeddings_forward": (EMBEDDINGS, op_inputs.EmbeddingsWanted, op_inputs.EmbeddingResults),
    "sampled_forward": (SAMPLED, op_inputs.SampledWanted, op_inputs.SampledResults),
    "full_forward": (FULL, op_inputs.FullWanted, op_inputs.FullResults),
}


def _schema(name: str) -> Any:
    return getattr(torch.ops.cw_ext, name).default._schema


@pytest.mark.parametrize("name", OPS)
def test_tuples_are_the_schemas(kernels: None, name: str) -> None:
    layout, wanted, results = OPS[name]
    schema = _schema(name)
    assert [*layout.names, *wanted._fields] == [a.name for a in schema.arguments]
    assert [*Losses._fields, *results._fields] == [r.name for r in schema.returns]
    tensors = [place for place, a in enumerate(schema.arguments[: len(layout.names)]) if "Tensor" in str(a.type)]
    assert list(layout.tensors) == tensors


def test_ops_that_take_a_part(kernels: None) -> None:
    assert ["rows", "num_items", *DRAWS.names] == [a.name for a in _schema("draw_negatives").arguments]
    own = ["unit_queries", "factor", "coefficients"]
    assert [*own, *SAMPLED.names, "sums"] == [a.name for a in _schema("sampled_item_gradient").arguments]
    assert [*own, *SAMPLED.names] == [a.name for a in _schema("sparse_sampled_item_gradient").arguments]


class _Nested(NamedTuple):
    first: int
    history: History | None
    row_values: RowValues
    last: str


@pytest.mark.parametrize("history", [None, History(*torch.zeros(3))], ids=["none", "history"])
def test_flat_and_back(history: History | None) -> None:
    layout = Layout(_Nested)
    rows = torch.tensor([0.1, 0.2])
    values = RowValues(*[rows if place % 2 else 0.5 for place in range(len(RowValues._fields))])
    nested = _Nested(1, history, values, "x")
    flat = dict(zip(layout.names, layout.flat(nested), strict=True))
    assert (flat["first"], flat["last"]) == (1, "x")
    assert [flat[name] for name in History._fields] == list(history or (None, None, None))
    for name, value in values._asdict().items():
        if isinstance(value, float):
            assert flat[f"{name}_rows"] is None and flat[name] == value
        else:
            assert flat[f"{name}_rows"] is value
    rebuilt = layout.rebuilt(list(flat.values()))
    assert (rebuilt.first, rebuilt.last) == (1, "x")
    assert all(a is b for a, b in zip(rebuilt.row_values, values, strict=True))
    assert rebuilt.history == history and type(rebuilt.history) is type(history)


def test_layouts_know_what_is_a_tensor() -> None:
    assert [DRAWS.names[place] for place in DRAWS.tensors] == [
        name for name in Draws._fields if name not in ("first_row", "num_negatives")
    ]
    assert not Layout(RowParameters).tensors

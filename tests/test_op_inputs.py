"""The tuples that describe the ops' arguments and results, against the schemas that the kernels register."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from cw_ext import op_errors, op_inputs
from cw_ext.op_inputs import DRAWS, EMBEDDINGS, FULL, SAMPLED, SCORES, Layout, Losses
from cw_ext.parameters import CHOICES, DEFAULTS, RowParameters, as_numbers, from_numbers, resolve
from cw_ext.reference_sampling import Draws, History
from cw_ext.row_values import CurveInputs, RowValues

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
    curve: CurveInputs
    parameters: RowParameters
    last: str


PARAMETERS = resolve({"weighting": "linear", "min_margin": -1.5, "surrogate": "relu", "return_above": True}).row


@pytest.mark.parametrize("history", [None, History(*torch.zeros(3))], ids=["none", "history"])
@pytest.mark.parametrize("curve", [CurveInputs(), CurveInputs(torch.zeros(2, 3), -0.5, 0.25, True)], ids=["", "curve"])
def test_flat_and_back(history: History | None, curve: CurveInputs) -> None:
    layout = Layout(_Nested)
    rows = torch.tensor([0.1, 0.2])
    values = RowValues(*[rows if place % 2 else 0.5 for place in range(len(RowValues._fields))])
    flat = dict(zip(layout.names, layout.flat(_Nested(1, history, values, curve, PARAMETERS, "x")), strict=True))
    assert (flat["first"], flat["last"]) == (1, "x")
    assert [flat[name] for name in History._fields] == list(history or (None, None, None))
    for place, (name, value) in enumerate(values._asdict().items()):
        if isinstance(value, float):
            assert flat[f"{name}_rows"] is None and flat["numbers"][place] == value
        else:
            assert flat[f"{name}_rows"] is value
    assert flat["curve"] is curve.curve
    rebuilt = layout.rebuilt(list(flat.values()))
    assert (rebuilt.first, rebuilt.last) == (1, "x")
    assert all(a is b for a, b in zip(rebuilt.row_values, values, strict=True))
    assert rebuilt.history == history and type(rebuilt.history) is type(history)
    assert rebuilt.curve.curve is curve.curve and rebuilt.curve[1:] == curve[1:]
    assert rebuilt.parameters == PARAMETERS
    assert [*map(type, rebuilt.parameters)] == [*map(type, PARAMETERS)]


# ---- the numbers, whose order the schemas do not tell ---------------------------------------------------------


def _macro(name: str) -> str:
    """What a macro of csrc/loss_fields.h stands for."""
    text = (Path(__file__).parents[1] / "csrc" / "loss_fields.h").read_text()
    found = re.search(rf"#define {name}\(.*?\)((?:.*\\\n)*.*\n)", text)
    assert found is not None
    return found[1]


def test_the_numbers_are_in_the_kernels_order() -> None:
    assert re.findall(r"X\((\w+)\)", _macro("CW_ROW_VALUES")) == [*RowValues._fields]
    fields = re.findall(r"(\w+)\((\w+)(?:, (\w+))?\)", _macro("CW_LOSS_FIELDS"))
    assert [name for _, name, _ in fields] == [*RowParameters._fields]
    for kind, name, choices in fields:
        default = DEFAULTS[name]
        if kind == "CHOICE":
            assert re.findall(r"X\((\w+)\)", _macro(choices)) == [*CHOICES[name]]
        else:
            assert type(default) is {"NUMBER": float, "OPTIONAL": type(None), "FLAG": bool}[kind]


def test_numbers_and_back() -> None:
    for arguments in ({}, {"weighting": "exponential", "weight_temperature": -2, "normalize_weights": True}):
        parameters = resolve(arguments).row
        numbers = as_numbers(parameters)
        assert {*map(type, numbers)} == {float}
        assert from_numbers(numbers) == parameters


COUNT = len(RowValues._fields) + len(CurveInputs._fields[1:]) + len(RowParameters._fields)
FIRST_CHOICE = COUNT - len(RowParameters._fields) + RowParameters._fields.index("weighting")


@pytest.mark.parametrize(
    ("place", "number", "message"),
    [
        (COUNT, 0.0, f"numbers must have {COUNT} elements, got {COUNT + 1}"),
        (FIRST_CHOICE, 9.0, "weighting must be in [0, 4), got 9"),
        (FIRST_CHOICE, -1.0, "weighting must be in [0, 4), got -1"),
        (FIRST_CHOICE, math.nan, "weighting must be in [0, 4), got nan"),
    ],
)
def test_wrong_numbers(kernels: None, place: int, number: float, message: str) -> None:
    parameters = resolve({}).row
    inputs = op_inputs.ScoreInputs(
        torch.zeros(2), torch.zeros(2, 3), None, None, RowValues(), CurveInputs(), parameters, "mean"
    )
    arguments = dict(zip(SCORES.names, SCORES.flat(inputs)))
    arguments["numbers"][place : place + 1] = [number]
    with pytest.raises(op_errors.RAISED, match=re.escape("ValueError: " + message)):
        torch.ops.cw_ext.scores_forward(**arguments, **op_inputs.Wanted(False, False, False)._asdict())


def test_layouts_know_what_is_a_tensor() -> None:
    assert [DRAWS.names[place] for place in DRAWS.tensors] == [
        name for name in Draws._fields if name not in ("first_row", "num_negatives")
    ]
    assert not Layout(RowParameters).tensors

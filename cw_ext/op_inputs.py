"""What the ops of the loss take and return: one tuple per op, with its fields in the order of the op's schema.

A tuple may contain other tuples: the row values, a curve, the loss's parameters, a history, draws. The op takes their
fields as plain arguments, and :class:`Layout` translates. tests/test_op_inputs.py compares the tuples with the schemas.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

import torch
from torch import Tensor

from cw_ext.parameters import RowParameters, as_numbers, as_numbers_once, from_numbers
from cw_ext.reference_sampling import Draws, History
from cw_ext.row_values import CurveInputs, RowValues


class ScoreInputs(NamedTuple):
    """The loss on scores."""

    pos: Tensor  # [B]
    neg: Tensor  # [B, N]
    extra: Tensor | None  # [B, M]
    log_q: Tensor | None  # [B, N]
    row_values: RowValues
    curve: CurveInputs
    parameters: RowParameters
    reduction: str


class EmbeddingInputs(NamedTuple):
    """The loss on embeddings."""

    queries: Tensor  # [B, D]
    items: Tensor  # [I, D]
    pos_ids: Tensor  # [B]
    neg_ids: Tensor  # [B, N], or [N] where all rows share the negatives
    extra_ids: Tensor | None  # [B, M]
    log_q: Tensor | None  # [B, N]
    exclude: bool  # each row leaves out the shared negatives that are its positive, or known in `history`
    history: History | None
    row_values: RowValues
    curve: CurveInputs
    parameters: RowParameters
    similarity: str
    reduction: str


class SampledInputs(NamedTuple):
    """The sampled loss: the negatives are drawn inside."""

    queries: Tensor  # [B, D]
    items: Tensor  # [I, D]
    pos_ids: Tensor  # [B]
    extra_ids: Tensor | None  # [B, M]
    draws: Draws
    row_values: RowValues
    curve: CurveInputs
    parameters: RowParameters
    similarity: str
    reduction: str


class FullInputs(NamedTuple):
    """All items as negatives, except each row's positive and what is known in `history`."""

    queries: Tensor  # [B, D]
    items: Tensor  # [I, D]
    pos_ids: Tensor  # [B]
    extra_ids: Tensor | None  # [B, M]
    history: History | None
    row_values: RowValues
    curve: CurveInputs
    parameters: RowParameters
    similarity: str
    reduction: str


# ---- the last arguments, which choose what is computed for backward ----------------------------------------


class Wanted(NamedTuple):
    """For the loss on scores."""

    with_gradients: bool
    with_log_q_gradient: bool
    with_curve_gradient: bool


class EmbeddingsWanted(NamedTuple):
    """For the loss on embeddings."""

    with_gradients: bool
    with_log_q_gradient: bool
    with_curve_gradient: bool
    sorted_pairs: bool = True  # for the dense gradient of the items on the CPU


class SampledWanted(NamedTuple):
    with_gradients: bool
    keep_coefficients: bool  # else the item gradient computes them again
    with_curve_gradient: bool
    sparse: bool = False  # the coefficients are for a sparse gradient of the items


class FullWanted(NamedTuple):
    with_gradients: bool
    factor: Tensor | None  # [B], or None: 1. The gradients are those of the rows' losses times this
    with_curve_gradient: bool
    sums: str  # how CUDA sums per item: "chosen", "atomic" or "sorted"
    bf16_products: bool  # on the CPU, products of fp32 numbers may be of numbers rounded to bf16


# ---- results -----------------------------------------------------------------------------------------------


class Losses(NamedTuple):
    """What every op returns first."""

    loss: Tensor  # [B], or reduced
    live: Tensor  # bool [B]: the row has a negative
    # int64 [B]: how many negatives score above the threshold. If not asked for: None from the op on scores, else empty.
    above: Tensor | None


# The rest is for backward: the wanted gradients of each row's loss. Gradients that are not wanted are None from the op
# on scores, where more tensors would slow small batches down, and else empty. Those of a mean still need the factor
# `rescale`.


class ScoreResults(NamedTuple):
    rescale: Tensor  # []
    d_pos: Tensor | None  # [B]
    d_neg: Tensor | None  # [B, N]
    d_extra: Tensor | None  # [B, M]
    d_log_q: Tensor | None  # [B, N]
    d_row_values: Tensor | None  # [K, B]
    d_curve: Tensor | None  # [B, K]


class EmbeddingResults(NamedTuple):
    rescale: Tensor
    d_queries: Tensor  # [B, D]
    unit_queries: Tensor  # [B, D]: the queries, normalised where the similarity is a cosine
    coefficients: Tensor  # [B, 1 + M + N]: dloss/dscore · scale; with shared negatives [B, 1 + M]; if dense [B, I]
    shared_coefficients: Tensor  # [B, N]
    pair_keys: Tensor  # these two: csrc/cpu/bucketed_pairs.h
    pair_ends: Tensor
    d_log_q: Tensor  # [B, N]
    d_row_values: Tensor  # [K, B]
    d_curve: Tensor  # [B, K]


class SampledResults(NamedTuple):
    rescale: Tensor
    d_queries: Tensor  # these three as in EmbeddingResults
    unit_queries: Tensor
    coefficients: Tensor
    d_row_values: Tensor  # [K, B]
    d_curve: Tensor  # [B, K]


class FullResults(NamedTuple):
    rescale: Tensor
    d_queries: Tensor  # [B, D]
    d_items: Tensor  # [I, D]
    d_row_values: Tensor  # [K, B]
    d_curve: Tensor  # [B, K]


# ---- tuples and an op's arguments --------------------------------------------------------------------------

T = TypeVar("T")
W = TypeVar("W")


class Layout(Generic[T]):
    """How the fields of a tuple map to an op's arguments.

    Attributes:
        make: the tuple's type.
        names: the names of the arguments.
        named: makes a tuple of the arguments, with their names.
        tensors: the positions of those that are tensors (or None).
    """

    names: tuple[str, ...]
    tensors: tuple[int, ...]

    def __init__(self, make: Callable[..., T]) -> None:
        self.make = make
        names: list[str] = []
        tensors: list[int] = []
        # Of each field that is a tuple itself: its place, the first and the last of its arguments, its layout, and
        # whether it may be None. The fields of the loss are one.
        groups: list[tuple[int, int, int, Layout[Any], bool]] = []
        hints = get_type_hints(make)
        for place, (name, hint) in enumerate(hints.items()):
            kinds = (hint, *get_args(hint))
            group = next((kind for kind in kinds if hasattr(kind, "_fields")), None)
            first = len(names)
            if name in _OF_LOSS[1:]:
                continue
            if group is None:
                names.append(name)
                tensors += [first] if Tensor in kinds else []
            else:
                layout = _LossLayout() if name == _OF_LOSS[0] else Layout(group)
                names += layout.names
                tensors += [first + tensor for tensor in layout.tensors]
                groups.append((place, first, len(names), layout, type(None) in kinds))
        self.names, self.tensors, self._groups = tuple(names), tuple(tensors), tuple(groups)
        self.named: Callable[..., Any] = namedtuple("named", self.names)  # type: ignore[misc]

    def flat(self, values: Any) -> list[Any]:
        """The op's arguments from the tuple."""
        if not self._groups:
            return [*values]
        found: list[Any] = []
        done = 0
        for place, first, end, layout, _ in self._groups:
            found += values[done:place]
            done = place + layout.fields
            if layout.fields > 1:
                found += layout.flat(values[place:done])
            elif values[place] is None:
                found += [None] * (end - first)
            else:
                found += layout.flat(values[place])
        found += values[done:]
        return found

    def rebuilt(self, arguments: Sequence[Any]) -> T:
        """The tuple from the op's arguments."""
        if not self._groups:
            return self.make(*arguments)
        found: list[Any] = []
        done = 0
        for _, first, end, layout, optional in self._groups:
            found += arguments[done:first]
            done = end
            if layout.fields > 1:
                found += layout.rebuilt(arguments[first:end])
            else:
                missing = optional and arguments[first] is None
                found.append(None if missing else layout.rebuilt(arguments[first:end]))
        found += arguments[done:]
        return self.make(*found)

    def split(self, arguments: Sequence[Any], wanted: Callable[..., W]) -> tuple[T, W]:
        """The tuple from the op's first arguments, and another from the rest."""
        mine = len(self.names)
        return self.rebuilt(arguments[:mine]), wanted(*arguments[mine:])

    # How many fields of another tuple it stands for.
    fields = 1


# These always come together.
_OF_LOSS = ("row_values", "curve", "parameters")


class _LossLayout(Layout[tuple[RowValues, CurveInputs, RowParameters]]):
    """A tensor or None for each row value and for the curve, and one list of all numbers that hold for every row.

    csrc/loss_arguments.h is its counterpart. It is a list because torch needs time for each argument of an op: with a
    small batch, more than the loss itself takes.
    """

    fields = len(_OF_LOSS)

    def __init__(self) -> None:
        self.names = (*(f"{value}_rows" for value in RowValues._fields), "curve", "numbers")
        self.tensors = tuple(range(len(self.names) - 1))

    def flat(self, values: Any) -> list[Any]:
        row_values, (curve, *of_curve), parameters = values
        found: list[Any] = []
        numbers: list[float] = []
        for value in row_values:
            number = isinstance(value, float)
            found.append(None if number else value)
            numbers.append(value if number else 0.0)
        numbers += of_curve
        numbers += (as_numbers if torch.compiler.is_compiling() else as_numbers_once)(parameters)
        found += (curve, numbers)
        return found

    def rebuilt(self, arguments: Sequence[Any]) -> tuple[RowValues, CurveInputs, RowParameters]:
        *rows, curve, numbers = arguments
        own, of_curve = len(rows), len(CurveInputs._fields) - 1
        values = [number if tensor is None else tensor for tensor, number in zip(rows, numbers)]
        low, high, on_margin = numbers[own : own + of_curve]
        parameters = from_numbers(numbers[own + of_curve :])
        return RowValues(*values), CurveInputs(curve, low, high, bool(on_margin)), parameters


SCORES = Layout(ScoreInputs)
EMBEDDINGS = Layout(EmbeddingInputs)
SAMPLED = Layout(SampledInputs)
FULL = Layout(FullInputs)
DRAWS = Layout(Draws)

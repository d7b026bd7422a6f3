"""What hypothesis draws for the tests: arguments of the loss, rows of numbers, and whole valid calls of each level."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields, replace
from typing import Any

import oracle
import torch
from cases import DTYPES, Embeddings, Scores, _with_tensors, generator, loss_dtype
from drawing import Drawn
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from cw_ext import Interactions, cw_loss_full, cw_loss_in_batch
from cw_ext.parameters import WEIGHTINGS
from cw_ext.score_curve import ScoreCurve

# How many examples each fuzz test draws, instead of its own few.
EXAMPLES = "CW_EXT_TEST_EXAMPLES"


def examples(default: int) -> int:
    """How many examples a test draws."""
    return int(os.environ.get(EXAMPLES, default))


def fuzzing(default: int) -> settings:
    """The same few examples each time; where many are asked for, others each time."""
    return settings(
        max_examples=examples(default),
        deadline=None,
        derandomize=EXAMPLES not in os.environ,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),  # the fixtures hold nothing to reset, and large calls are rare
    )


# ---- numbers and arguments -----------------------------------------------------------------------------------------

# Scores on a grid and ρ a power of two, so that margins and d/ρ are exact in both dtypes: whether a linear
# weight is zero is then a fact and not a rounding.
grid_scores = st.integers(-256, 256).map(lambda k: k / 64)
powers_of_two = st.integers(-4, 3).map(lambda k: 2.0**k)


@st.composite
def loss_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """All that determine a row's loss, except the prior."""
    weighting = draw(st.sampled_from(WEIGHTINGS))
    hard = weighting == "exponential" and draw(st.booleans())
    return {
        "temperature": draw(st.one_of(powers_of_two, st.floats(1e-3, 2.0))),
        "weighting": weighting,
        "weight_temperature": draw(st.one_of(st.none(), powers_of_two)) if not hard else -draw(powers_of_two),
        "positive_temperature": draw(st.one_of(st.none(), st.none(), st.floats(0.1, 3.0))),
        "detach_weights": draw(st.booleans()),
        "normalize_weights": draw(st.booleans()),
        "floor": draw(st.floats(0.01, 1.0)),
        "min_margin": draw(st.one_of(st.none(), grid_scores)),
        "confidence_temperature": draw(st.one_of(st.none(), st.floats(0.1, 3.0))),
        "confidence_threshold": draw(grid_scores),
        "include_positive": draw(st.booleans()),
        "surrogate": draw(st.sampled_from(["exp", "tanh", "atan", "relu"])),
    }


@st.composite
def oracle_rows(draw: st.DrawFn) -> list[oracle.Inputs]:
    """A few rows of a like number of negatives and extra positives, some of them absent or masked out."""
    n, m = draw(st.integers(1, 9)), draw(st.integers(0, 3))
    absent = st.just(-math.inf)

    def values(size: int, value: st.SearchStrategy[float]) -> list[float]:
        return draw(st.lists(value, min_size=size, max_size=size))

    log_q = st.one_of(st.integers(-12, 12).map(lambda k: k / 4), absent)
    return [
        oracle.Inputs(
            pos=draw(grid_scores),
            negatives=values(n, st.one_of(grid_scores, grid_scores, grid_scores, absent)),
            extras=values(m, st.one_of(grid_scores, grid_scores, grid_scores, absent)),
            log_q=values(n, log_q),
            prior=draw(st.integers(0, 60).map(lambda k: k / 64)),
        )
        for _ in range(draw(st.integers(1, 3)))
    ]


# ---- calls ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A valid call of one of the public functions, and what is asked of its result."""

    case: Scores | Embeddings | Drawn
    arguments: dict[str, Any]
    names: tuple[str, ...]  # what wants a gradient
    dtype: torch.dtype  # of scores or tables
    seed: int  # of the gradient that comes from outside

    @property
    def row_shape(self) -> torch.Size:
        return self.case.pos.shape if isinstance(self.case, Scores) else self.case.queries.shape[:1]

    @property
    def terms(self) -> int:
        """No fewer than a row has negatives."""
        if isinstance(self.case, Drawn):
            return self.case.settings.get("num_negatives", 0) + max(len(self.case.queries), len(self.case.items))
        return (self.case.neg if isinstance(self.case, Scores) else self.case.neg_ids).shape[-1]

    def grad_output(self) -> Tensor:
        """One number; or one per row where the rows are not reduced."""
        shape = self.row_shape if self.arguments["reduction"] == "none" else ()
        return torch.randn(shape, generator=generator(self.seed), dtype=torch.float64).to(loss_dtype(self.dtype))


@dataclass(frozen=True)
class WithoutHistory(Drawn):
    """In-batch or all items as negatives, where nothing is known of the queries."""

    def loss(self, **arguments: Any) -> Tensor:
        arguments = _with_tensors(self.settings | arguments, self)
        arguments |= {"extra_pos_ids": self.extra_ids, "row_weights": self.row_weights}
        function = {"in_batch": cw_loss_in_batch, "full": cw_loss_full}[self.kind]
        if self.kind == "in_batch":
            arguments["item_counts"] = self.interactions.item_counts.to(self.queries.device)
        return function(self.queries, self.items, self.pos_ids, **arguments)


# Mostly few, sometimes as many as a vector has lanes (and one more, or one less), rarely more than a block of a sum.
_few = st.integers(1, 40)
_lanes = st.sampled_from([7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65])
_blocks = st.sampled_from([127, 128, 129, 1023, 1024, 1025])
_widths = st.one_of(*[_few] * 6, *[_lanes] * 3, _blocks)
_dims = st.one_of(st.integers(1, 9), st.integers(1, 9), _lanes)
_batches = st.one_of(*[st.integers(1, 6)] * 12, st.sampled_from([0, 0, 16, 17, 70]))
_dtypes = st.sampled_from(DTYPES)
_seeds = st.integers(0, 2**32 - 1)


@st.composite
def _sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Rows, negatives and dimensions: many of all would take long."""
    rows, n, dim = draw(_batches), draw(_widths), draw(_dims)
    n = n if rows <= 17 else min(n, 129)
    return rows, n, dim if rows * n <= 2000 else 1 + dim % 9


@st.composite
def _call_arguments(draw: st.DrawFn, planted: bool) -> dict[str, Any]:
    arguments = draw(loss_arguments())
    arguments["prior"] = draw(st.one_of(st.just(0.0), st.floats(0.0, 0.99)))
    arguments["reduction"] = draw(st.sampled_from(["none"] if planted else ["mean", "sum", "none"]))
    arguments["return_above"] = draw(st.booleans())
    return arguments


def _values(draw: st.DrawFn, shape: tuple[int, ...], g: torch.Generator, largest: float) -> Tensor:
    """Numbers of an ordinary or a wide spread, or with many ties."""
    normal = torch.randn(shape, generator=g, dtype=torch.float64)
    match draw(st.sampled_from(["ordinary", "ordinary", "narrow", "wide", "grid", "equal"])):
        case "narrow":
            return 1 + normal * 1e-3
        case "wide":
            return (normal * largest / 4).clamp(-largest, largest)
        case "grid":
            return (4 * normal).round() / 8
        case "equal":
            return torch.full(shape, draw(grid_scores), dtype=torch.float64)
        case _:
            return normal / 2


def _absent(x: Tensor, g: torch.Generator, share: float, value: float) -> Tensor:
    return x.masked_fill(torch.rand(x.shape, generator=g) < share, value)


_shares = st.sampled_from([0.0, 0.0, 0.2, 0.9])


def _log_weights(draw: st.DrawFn, shape: tuple[int, ...], g: torch.Generator) -> Tensor | None:
    """None, or of a shape that broadcasts to that of the negatives."""
    form = draw(st.sampled_from(["none", "none", "full", "shared", "broadcast"]))
    if form == "none":
        return None
    own = {"full": shape, "shared": shape[-1:], "broadcast": (*(1 for _ in shape[:-1]), shape[-1])}[form]
    spread = draw(st.sampled_from([0.5, 5.0]))
    values = torch.randn(own, generator=g, dtype=torch.float64) * spread
    return _absent(values, g, draw(_shares), -math.inf).to(draw(_dtypes))


def _per_row(draw: st.DrawFn, shape: tuple[int, ...], g: torch.Generator, low: float, high: float) -> Tensor | None:
    """None, or a tensor with a value per row or one for all."""
    form = draw(st.sampled_from(["none", "none", "rows", "one"]))
    if form == "none":
        return None
    own = shape if form == "rows" else ()
    return (low + (high - low) * torch.rand(own, generator=g, dtype=torch.float64)).to(draw(_dtypes))


def _knots(draw: st.DrawFn, g: torch.Generator, arguments: dict[str, Any]) -> Tensor | None:
    """None, or a curve's log weights, whose places go into the arguments. They are finite: where a curve masks, the
    rounding of a score decides whether its negative is there."""
    if not draw(st.booleans()):
        return None
    count, dtype = draw(st.sampled_from([2, 3, 9, 33, 257])), draw(_dtypes)
    low, width = draw(st.sampled_from([-1.0, -0.5, 0.1])), draw(st.sampled_from([0.5, 1.0, 3.0]))
    on = draw(st.sampled_from(["score", "margin"]))
    arguments["score_curve"] = ScoreCurve(low, low + width, torch.zeros(count), on)
    values = torch.randn(count, generator=g, dtype=torch.float64).cumsum(0) / count**0.5  # no steeper with more of them
    return values.to(dtype)


def _new_tensors(
    draw: st.DrawFn, shape: tuple[int, ...], g: torch.Generator, arguments: dict[str, Any]
) -> dict[str, Tensor | None]:
    return {"temperature": _per_row(draw, shape, g, 0.02, 2.0), "knots": _knots(draw, g, arguments)}


def _row_weights(draw: st.DrawFn, shape: tuple[int, ...], g: torch.Generator) -> Tensor | None:
    form = draw(st.sampled_from(["none", "none", "none", "floating", "whole", "zeros"]))
    if form == "none":
        return None
    if form == "whole":
        return torch.randint(0, 4, shape, generator=g)
    weights = 0.1 + torch.rand(shape, generator=g, dtype=torch.float64)
    return (weights if form == "floating" else torch.zeros(shape)).to(draw(_dtypes))


def _laid_out(draw: st.DrawFn, x: Tensor, expand: bool = False) -> Tensor:
    """The same values behind other strides. With `expand`, other values, the same along one dimension."""
    forms = ["plain", "plain", "transposed", "stepped"] + ["expanded"] * expand
    form = draw(st.sampled_from(forms if x.dim() else ["plain"]))
    if form == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if form == "stepped":
        room = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), -7, dtype=x.dtype)
        room[..., 1::2] = x
        return room[..., 1::2]
    if form == "expanded":
        dim = draw(st.integers(0, x.dim() - 1))
        return x.narrow(dim, 0, 1).expand(x.shape) if x.shape[dim] else x
    return x


def _with_layouts(draw: st.DrawFn, case: Any, expand: tuple[str, ...] = ()) -> Any:
    """Each tensor behind strides of its own."""
    tensors = {f.name: getattr(case, f.name) for f in fields(case) if isinstance(getattr(case, f.name), Tensor)}
    return replace(case, **{name: _laid_out(draw, t, name in expand) for name, t in tensors.items()})


def _wanted(draw: st.DrawFn, case: Any) -> tuple[str, ...]:
    """Mostly all that can have a gradient, else some or none."""
    tensors = {f.name: getattr(case, f.name) for f in fields(case)}
    able = [name for name, t in tensors.items() if isinstance(t, Tensor) and t.is_floating_point()]
    return tuple(able if draw(st.integers(0, 3)) else [name for name in able if draw(st.booleans())])


@st.composite
def score_calls(draw: st.DrawFn, *, planted: bool = False) -> Call:
    """From scores. To be `planted` in: two rows or more, in one dimension, each in its own memory and not reduced."""
    g, dtype, arguments = generator(draw(_seeds)), draw(_dtypes), draw(_call_arguments(planted))
    rows, n = draw(_batches), draw(_widths)
    shape: tuple[int, ...] = (max(rows, 2),) if planted else (rows,)
    if not planted:
        shape = draw(st.sampled_from([shape, shape, (), (1, rows), (rows, 2), (2, 1, rows)]))
    m = draw(st.sampled_from([None, None, 0, 1, 2, 5]))
    largest = 1e4 if dtype in (torch.float64, torch.float32) else 50.0
    extra = None if m is None else _absent(_values(draw, (*shape, m), g, largest), g, draw(_shares), -math.inf)
    case = Scores(
        pos=_values(draw, shape, g, largest).to(dtype),
        neg=_absent(_values(draw, (*shape, n), g, largest), g, draw(_shares), -math.inf).to(dtype),
        extra=None if extra is None else extra.to(dtype),
        log_q=_log_weights(draw, (*shape, n), g),
        prior=_per_row(draw, shape, g, 0.0, 0.95),
        threshold=_per_row(draw, shape, g, -1.0, 1.0),
        row_weights=_row_weights(draw, shape, g),
        **_new_tensors(draw, shape, g, arguments),
    )
    if not planted:
        case = _with_layouts(draw, case, ("pos", "neg", "extra", "log_q"))
    return Call(case, arguments, _wanted(draw, case), dtype, draw(_seeds))


def _table(draw: st.DrawFn, shape: tuple[int, int], g: torch.Generator, similarity: str) -> Tensor:
    """Rows whose products are of the size of 1; some are the same, and some 0."""
    table = _values(draw, shape, g, 2.0)
    if similarity == "dot":
        table = table / shape[1] ** 0.25
    if shape[0] > 2 and draw(st.booleans()):
        table[1], table[2] = table[0], 0.0
    return table


def _ids(draw: st.DrawFn, shape: tuple[int, ...], count: int, g: torch.Generator, share: float = 0.0) -> Tensor:
    """Rows of the table, a share of them padding."""
    ids = torch.randint(count, shape, generator=g).to(draw(st.sampled_from([torch.int32, torch.int64])))
    return _absent(ids, g, share, -1)


@st.composite
def embedding_calls(draw: st.DrawFn, *, shared: bool, planted: bool = False) -> Call:
    """From embeddings, with negatives [B, N] or shared [N]."""
    g, dtype, arguments = generator(draw(_seeds)), draw(_dtypes), draw(_call_arguments(planted))
    similarity = draw(st.sampled_from(["half_cosine", "cosine", "dot"]))
    rows, n, dim = draw(_sizes())
    rows = max(rows, 2) if planted else rows
    items = draw(st.one_of(st.integers(1, 12), st.integers(50, 140)))
    m = draw(st.sampled_from([None, None, 0, 1, 2, 5]))
    padding = draw(_shares)
    case = Embeddings(
        queries=_table(draw, (rows, dim), g, similarity).to(dtype),
        items=_table(draw, (items, dim), g, similarity).to(dtype),
        pos_ids=_ids(draw, (rows,), items, g, min(padding, 0.3)),
        neg_ids=_ids(draw, (n,) if shared else (rows, n), items, g, padding),
        extra_ids=None if m is None else _ids(draw, (rows, m), items, g, padding),
        log_q=_log_weights(draw, (rows, n), g),
        prior=_per_row(draw, (rows,), g, 0.0, 0.95),
        threshold=_per_row(draw, (rows,), g, -1.0, 1.0),
        row_weights=_row_weights(draw, (rows,), g),
        **_new_tensors(draw, (rows,), g, arguments),
    )
    if not planted:
        case = _with_layouts(draw, case)
    arguments |= {"similarity": similarity, "sparse_grad": draw(st.sampled_from([False, False, True]))}
    return Call(case, arguments, _wanted(draw, case), dtype, draw(_seeds))


@st.composite
def _interactions(draw: st.DrawFn) -> Interactions:
    """Few queries, each with an item that it does not know and that occurs."""
    g = generator(draw(_seeds))
    queries, items = draw(st.integers(1, 6)), draw(st.one_of(st.integers(2, 12), st.integers(50, 140)))
    known = torch.rand((queries, items), generator=g) < draw(st.sampled_from([0.0, 0.1, 0.5, 0.95]))
    known[torch.arange(queries), torch.randint(items - 1, (queries,), generator=g)] = False
    # A query of no call knows the last item alone, which no other does.
    known[:, -1] = False
    known = torch.cat([known, torch.zeros(1, items, dtype=torch.bool)])
    known[-1, -1] = True
    query_ids, item_ids = known.nonzero(as_tuple=True)
    return Interactions(query_ids, item_ids, num_queries=queries + 1, num_items=items)


@st.composite
def _candidates(draw: st.DrawFn, interactions: Interactions) -> Tensor | None:
    """None, a mask or ids: with the last item, which no query of a call knows and which occurs."""
    form = draw(st.sampled_from(["none", "mask", "ids"]))
    if form == "none":
        return None
    mask = torch.rand(interactions.num_items, generator=generator(draw(_seeds))) < draw(
        st.sampled_from([0.0, 0.3, 1.0])
    )
    mask[-1] = True
    return mask if form == "mask" else mask.nonzero().squeeze(1).flip(0).repeat(2)


def _drawn_settings(draw: st.DrawFn, kind: str, n: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {"similarity": draw(st.sampled_from(["half_cosine", "cosine", "dot"]))}
    if kind == "full":
        return arguments
    arguments |= {
        "sparse_grad": draw(st.sampled_from([False, False, True])),
        "log_q_correction": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**63 - 1)),
    }
    if kind == "in_batch":
        return arguments | {"num_negatives": draw(st.sampled_from([0, n]))}
    return arguments | {
        "num_negatives": n,
        "first_row": draw(st.sampled_from([0, 1, 2**31, 2**62])),
        "popularity_smoothing": draw(st.sampled_from([0.0, 0.0, 0.5, 3.0])),
        "distribution": draw(st.sampled_from(["uniform", "popularity"])),
        "popularity_exponent": draw(st.sampled_from([0.0, 0.75, 2.0])),
        "shared": draw(st.booleans()),
        "recompute": draw(st.booleans()),
    }


@st.composite
def drawn_calls(draw: st.DrawFn, kind: str, *, planted: bool = False) -> Call:
    """The functions that find negatives themselves: `kind` as in Drawn."""
    g, dtype, arguments = generator(draw(_seeds)), draw(_dtypes), draw(_call_arguments(planted))
    (rows, n, dim), interactions = draw(_sizes()), draw(_interactions())
    rows = max(rows, 2) if planted else rows
    own = _drawn_settings(draw, kind, n)
    items = interactions.num_items
    if kind != "full":
        own["candidates"] = draw(_candidates(interactions))
    m = draw(st.sampled_from([None, None, 0, 1, 2, 5]))
    padding = draw(_shares)
    form = WithoutHistory if kind != "sampled" and draw(st.booleans()) else Drawn
    query_ids = torch.randint(interactions.num_queries - 1, (rows,), generator=g)
    case = form(
        queries=_table(draw, (rows, dim), g, own["similarity"]).to(dtype),
        items=_table(draw, (items, dim), g, own["similarity"]).to(dtype),
        query_ids=query_ids.to(draw(st.sampled_from([torch.int32, torch.int64]))),
        pos_ids=_ids(draw, (rows,), items, g, min(padding, 0.3)),
        interactions=interactions,
        kind=kind,
        settings=own,
        extra_ids=None if m is None else _ids(draw, (rows, m), items, g, padding),
        prior=_per_row(draw, (rows,), g, 0.0, 0.95),
        threshold=_per_row(draw, (rows,), g, -1.0, 1.0),
        row_weights=_row_weights(draw, (rows,), g),
        **_new_tensors(draw, (rows,), g, arguments),
    )
    if not planted:
        case = _with_layouts(draw, case)
    return Call(case, arguments, _wanted(draw, case), dtype, draw(_seeds))

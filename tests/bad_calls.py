"""Random wrong calls: a right call of any public function, then one argument of it (or two) made wrong.

    python tests/bad_calls.py COUNT SEED

Each call must raise TypeError, ValueError or IndexError (OSError for a file that is not there), with a message that
contains the wrong argument and what came; and the right call must give the same afterwards, with the same objects.
Call k is made from SEED + k alone, so that `python tests/bad_calls.py 1 K` repeats it. Exits with 1 where one failed.
"""

from __future__ import annotations

import faulthandler
import functools
import inspect
import math
import random
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))  # for a package that is built in place, and a script that is not in it

from cases import make_embeddings, make_scores  # noqa: E402
from drawing import make_interactions  # noqa: E402

import cw_ext  # noqa: E402
from cw_ext import FalseNegatives, Interactions, ScoreCurve, presets  # noqa: E402
from cw_ext.false_negatives import cvir_log_weights, delayed_weights  # noqa: E402
from cw_ext.parameters import DEFAULTS, LossArguments  # noqa: E402

warnings.simplefilter("ignore")  # torch's: some of the layouts are prototypes

INF, NAN = math.inf, math.nan
HUGE = 10**400  # beyond every float
INT64_MIN = -(2**63)
META = torch.device("meta")
GOOD_EXCEPTIONS = (TypeError, ValueError, IndexError)
SAYS_WHAT_CAME = re.compile(r"\bgot\b|missing \d+ required|unexpected keyword|unknown loss argument|has all \d+ items")


@dataclass(frozen=True)
class Call:
    """A call of a public function."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]

    def __call__(self, **changed: Any) -> Any:
        return self.function(**self.arguments | changed)


@dataclass(frozen=True)
class Mutation:
    """A way to make an argument wrong. `change` returns NotImplemented where it does not fit the value."""

    what: str
    change: Callable[[Any, random.Random, Call], Any]
    alone: bool = False  # right again where another argument changes with it, so not one of two
    named: tuple[str, ...] = ()  # what the message may name in place of the argument
    raises: tuple[type[Exception], ...] = GOOD_EXCEPTIONS


# ---- mutations ---------------------------------------------------------------------------------------------


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        layout = "nested" if value.is_nested else str(value.layout)
        shape = "" if value.is_nested else tuple(value.shape)
        return f"tensor({value.dtype} {shape} {layout} {value.device})".replace("torch.", "").replace(" strided", "")
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def values(*bad: Any, alone: bool = False) -> list[Mutation]:
    return [Mutation(_show(value), lambda *_, value=value: value, alone) for value in bad]


def changes(alone: bool = False, **change: Callable[[Any], Any]) -> list[Mutation]:
    """Functions of the value."""
    return [Mutation(what, lambda v, r, c, f=f: f(v), alone) for what, f in change.items()]


def to_dtypes(*dtypes: torch.dtype) -> list[Mutation]:
    return [Mutation(str(d), lambda v, r, c, d=d: v.detach().to(d)) for d in dtypes]


def _other_float(value: Tensor, *_: Any) -> Tensor:
    return value.detach().to(torch.float32 if value.dtype != torch.float32 else torch.float64)


def with_ids(last: Callable[[Call], int], *, padding: bool) -> list[Mutation]:
    """One id out of range, anywhere."""

    def put(value: Tensor, rng: random.Random, call: Call, bad: int | None) -> Any:
        bad = last(call) if bad is None else bad
        if abs(bad) >= 2**31 and value.dtype == torch.int32:
            return NotImplemented
        spoiled = value.clone()
        spoiled.view(-1)[rng.randrange(spoiled.numel())] = bad
        return spoiled

    numbers = [None, -2, 2**31 - 1, 2**40 + 3, -(2**33), 2**63 - 1, INT64_MIN, *([] if padding else [-1])]
    named = ["just beyond the last" if n is None else n for n in numbers]
    return [Mutation(f"id {n}", functools.partial(put, bad=bad)) for n, bad in zip(named, numbers)]


def with_value(*bad: float) -> list[Mutation]:
    """A floating tensor with a value that it must not hold."""

    def put(value: Any, rng: random.Random, call: Call, bad: float) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return NotImplemented
        spoiled = value.detach().clone()
        spoiled.view(-1)[rng.randrange(spoiled.numel())] = bad
        return spoiled

    return [Mutation(f"holds {b}", functools.partial(put, bad=b)) for b in bad]


def _mkldnn(value: Tensor) -> Any:
    fits = torch.backends.mkldnn.is_available() and value.dtype == torch.float32 and value.dim() > 0
    return value.detach().to_mkldnn() if fits else NotImplemented


def _csr(value: Tensor) -> Any:
    return value.detach().to_sparse_csr() if value.dim() == 2 else NotImplemented


def _nested(value: Tensor, layout: torch.layout) -> Any:
    if value.dim() < (2 if layout == torch.jagged else 1):
        return NotImplemented
    return torch.nested.nested_tensor(list(value.detach()), layout=layout)


def _quantized(value: Tensor) -> Any:
    return torch.quantize_per_tensor(value.detach().float(), 0.1, 0, torch.qint8)


def _row_more(value: Tensor) -> Any:
    return torch.cat([value, value[:1]]).detach() if value.dim() else NotImplemented


def _column_more(value: Tensor) -> Any:
    return torch.cat([value, value[..., :1]], -1).detach()


def of_tensors(*more: list[Mutation]) -> list[Mutation]:
    """What no argument that takes a tensor may be."""
    layouts = changes(
        sparse_coo=lambda v: v.detach().to_sparse(),
        sparse_csr=_csr,
        mkldnn=_mkldnn,
        nested=lambda v: _nested(v, torch.strided),
        jagged=lambda v: _nested(v, torch.jagged),
        quantized=_quantized,
    )
    on_meta = changes(alone=True, meta=lambda v: v.detach().to(META))
    lists = changes(list=lambda v: v.tolist(), array=lambda v: v.detach().double().numpy())
    return [*values(None, "tensor", {}, object()), *lists, *layouts, *on_meta, *sum(more, [])]


FLOAT8, COMPLEX, INT = torch.float8_e4m3fn, torch.complex64, torch.int64
NO_FLOATS = to_dtypes(torch.bool, torch.uint8, torch.int16, INT, COMPLEX, FLOAT8)
NO_IDS = to_dtypes(torch.bool, torch.uint8, torch.int16, torch.float32, COMPLEX, FLOAT8)
OTHER_FLOAT = [Mutation("another floating dtype", _other_float, alone=True)]
ROWS_OFF = changes(alone=True, row_less=lambda v: v[:-1], row_more=_row_more)
NO_SHAPE = changes(scalar=lambda v: v.detach().flatten()[0])
AXIS_MORE = changes(axis_first=lambda v: v.detach()[None], axis_last=lambda v: v.detach()[..., None])

NO_NUMBERS = values(None, "0.1", True, [0.1], {}, 1j, object(), b"1", float, Decimal("0.1"), np.array(0.1), np.ones(3))
NO_NUMBER_BUT_TENSOR = values(torch.tensor(0.1), torch.tensor([0.1, 0.2]))
NO_FINITE = values(NAN, INF, -INF, float("1e400"), HUGE, -HUGE, Fraction(HUGE))
NO_FLAGS = values(None, 0, 1, "yes", [], [True], {}, torch.tensor(True), object())
NO_CHOICES = values(
    *(None, "", "Mean", "nothing", 3, True, ["mean"], ("none",), {"a"}, {}, b"none", object()),
    *(np.array(["none"]), np.array(["mean"]), np.array(["cosine"]), np.array("dot"), np.array(["none", "sum"])),
    *(torch.tensor(1), torch.ones(2)),
)
NO_WHOLE_NUMBERS = values(None, "5", 2.0, NAN, True, [5], (5,), {}, 1j, object(), torch.tensor(5), np.array(5), int)
NO_COUNTS = [*values(-1, INT64_MIN, 2**63, 2**64, HUGE, -HUGE), *NO_WHOLE_NUMBERS]
NO_PROBABILITIES = [*values(-0.01, -1, *((INF, NAN, HUGE))), *NO_NUMBERS]


def _rows_of_items(call: Call) -> int:
    return len(call.arguments["items"])


def _queries_known(call: Call) -> int:
    return call.arguments["interactions"].num_queries


def _no_ids(*more: list[Mutation]) -> list[Mutation]:
    return of_tensors(NO_IDS, with_ids(_rows_of_items, padding=True), *more)


def _not_shared(value: Tensor, change: Callable[[Tensor], Tensor]) -> Any:
    return change(value) if value.dim() == 2 else NotImplemented


def _negative_scale(value: Any, rng: random.Random, call: Call) -> Any:
    return NotImplemented if call.arguments.get("weighting") == "exponential" else -0.3


def _per_row(*bad: float) -> list[Mutation]:
    """A number or a tensor with a value per row, of which none may be a `bad` one."""

    def tensor(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        return lambda v, r, c: change(v) if isinstance(v, Tensor) and v.dim() else NotImplemented

    def anyhow(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        return lambda v, r, c: change(v if isinstance(v, Tensor) else torch.tensor(v))

    shapes = {"row less": lambda v: v[:-1], "row more": _row_more, "one": lambda v: v.flatten()[:1]}
    layouts = {"sparse": lambda v: v.detach().to_sparse(), "quantized": _quantized, "meta": lambda v: v.to(META)}
    dtypes = {str(d): lambda v, d=d: v.detach().to(d) for d in (INT, COMPLEX, FLOAT8, torch.bool)}
    return [
        *(Mutation(what, tensor(change), alone=True) for what, change in shapes.items()),
        *(Mutation(what, anyhow(change)) for what, change in (layouts | dtypes).items()),
        *with_value(*bad),
    ]


NO_PRIOR = [*values(1, 1.0, 1.5), *NO_PROBABILITIES]
NO_TEMPERATURE = [*values(0, 0.0, -0.1), *NO_FINITE, *NO_NUMBERS]
NO_FLOAT_TEMPERATURE = [*NO_TEMPERATURE, *NO_NUMBER_BUT_TENSOR]

NO_LOSS: dict[str, list[Mutation]] = {
    "temperature": NO_TEMPERATURE,
    "prior": NO_PRIOR,
    "weighting": NO_CHOICES[:-1] + values("mean", np.array(["sigmoid"])),
    "weight_temperature": [
        *values(0, 0.0),
        Mutation("negative", _negative_scale, alone=True),
        *NO_FINITE,
        *NO_NUMBERS,
        *NO_NUMBER_BUT_TENSOR,
    ],
    "positive_temperature": NO_FLOAT_TEMPERATURE,
    "score_curve": values("curve", 0.5, True, {}, [], [0.0, 1.0], object(), torch.ones(3), np.ones(3), ScoreCurve),
    "detach_weights": NO_FLAGS,
    "normalize_weights": NO_FLAGS,
    "floor": [*values(0, -0.1, 1.01), *NO_FINITE, *NO_NUMBERS, *NO_NUMBER_BUT_TENSOR],
    "min_margin": [*NO_FINITE, *NO_NUMBERS, *NO_NUMBER_BUT_TENSOR],
    "confidence_temperature": NO_FLOAT_TEMPERATURE,
    "confidence_threshold": [*NO_FINITE, *NO_NUMBERS],
    "include_positive": NO_FLAGS,
    "surrogate": NO_CHOICES + values(np.array(["exp"])),
    "reduction": NO_CHOICES + values("avg"),
    "return_above": NO_FLAGS,
    "backend": NO_CHOICES + values("cuda", torch.device("cpu")),
}

NO_TENSORS: dict[str, list[Mutation]] = {
    "pos_scores": of_tensors(NO_FLOATS, OTHER_FLOAT, ROWS_OFF, changes(True, axis_last=lambda v: v[..., None])),
    "neg_scores": of_tensors(NO_FLOATS, OTHER_FLOAT, ROWS_OFF, NO_SHAPE, AXIS_MORE, changes(none=lambda v: v[..., :0])),
    "extra_pos_scores": of_tensors(NO_FLOATS, OTHER_FLOAT, ROWS_OFF, NO_SHAPE, AXIS_MORE),
    "neg_log_weights": of_tensors(
        NO_FLOATS, NO_SHAPE, AXIS_MORE, changes(True, column_more=_column_more, one=lambda v: v[..., :1])
    ),
    "row_weights": of_tensors(to_dtypes(COMPLEX), NO_SHAPE, AXIS_MORE, ROWS_OFF),
    "queries": of_tensors(
        NO_FLOATS,
        OTHER_FLOAT,
        ROWS_OFF,
        NO_SHAPE,
        changes(row=lambda v: v[0], axis_first=lambda v: v[None], no_dimensions=lambda v: v[:, :0]),
        changes(True, dimension_more=_column_more),
    ),
    "items": of_tensors(
        NO_FLOATS,
        OTHER_FLOAT,
        NO_SHAPE,
        changes(row=lambda v: v[0], axis_first=lambda v: v[None], no_rows=lambda v: v[:0]),
        changes(True, dimension_more=_column_more),
    ),
    "pos_ids": _no_ids(NO_SHAPE, AXIS_MORE, ROWS_OFF),
    "extra_pos_ids": _no_ids(NO_SHAPE, AXIS_MORE, ROWS_OFF, changes(row=lambda v: v[0])),
    "neg_ids": _no_ids(
        NO_SHAPE,
        changes(none=lambda v: v[..., :0]),
        changes(axis_first=lambda v: _not_shared(v, lambda v: v[None])),
        changes(axis_last=lambda v: _not_shared(v, lambda v: v[..., None])),
        changes(
            True,
            row_less=lambda v: _not_shared(v, lambda v: v[:-1]),
            row_more=lambda v: _not_shared(v, _row_more),
        ),
    ),
    "query_ids": of_tensors(NO_IDS, NO_SHAPE, AXIS_MORE, ROWS_OFF, with_ids(_queries_known, padding=True)),
    "item_ids": of_tensors(NO_IDS, NO_SHAPE, AXIS_MORE, ROWS_OFF, with_ids(lambda c: NUM_ITEMS, padding=False)),
    "item_counts": of_tensors(
        to_dtypes(COMPLEX, torch.bool, FLOAT8), NO_SHAPE, AXIS_MORE, ROWS_OFF, with_value(-1.0, NAN, INF, -INF)
    ),
}


def _interactions(change: Callable[[Interactions], Any]) -> Callable[..., Any]:
    return lambda v, r, c: change(v)


def _all_known(value: Interactions, rng: random.Random, call: Call) -> Any:
    if call.arguments.get("shared"):  # where it is left without negatives
        return NotImplemented
    full = make_interactions(value.num_queries, value.num_items, full=True)
    return full if (call.arguments["query_ids"] == 1).any() else NotImplemented


OTHER_ITEMS = [Mutation("of other items", _interactions(lambda v: make_interactions(v.num_queries, v.num_items + 1)))]
NO_INTERACTIONS = [
    *values(None, {}, [], "file", object(), 7, torch.ones(3, 3), scipy.sparse.eye(4), Interactions),
    Mutation("on another device", _interactions(lambda v: v.to(META)), alone=True),
]
NO_SEEDS = [
    *values(-1, 2**63, HUGE, -HUGE, 0.5, NAN, True, "1", [1], 1j, object(), np.array(1)),
    *values(torch.tensor([1]), torch.tensor(1.0), torch.tensor(1, dtype=torch.int32), torch.tensor(True)),
    *values(torch.tensor(1, device=META), torch.tensor(1).to_sparse()),
]
NO_CANDIDATES = [
    *values("all", {}, [1, 2], 7, object(), (0,), np.ones(3, dtype=bool)),
    *values(
        torch.ones(3), torch.ones(2, 2).int(), torch.tensor([0, 10**6]), torch.tensor([-1]), torch.ones(10**4).bool()
    ),
    *values(torch.tensor([], dtype=torch.int64), torch.tensor(3), torch.ones(3, dtype=torch.bool).to_sparse()),
    *values(torch.ones(3, dtype=torch.int64, device=META)),
]
NO_DRAWS: dict[str, list[Mutation]] = {
    "interactions": NO_INTERACTIONS,
    "num_negatives": [*values(0, 2**32 + 1, 2**40), *NO_COUNTS],
    "seed": NO_SEEDS,
    "distribution": NO_CHOICES,
    "popularity_exponent": [*values(-0.1, -1), *NO_FINITE, *NO_NUMBERS, *NO_NUMBER_BUT_TENSOR],
    "popularity_smoothing": [*values(-0.1, -1), *NO_FINITE, *NO_NUMBERS, *NO_NUMBER_BUT_TENSOR],
    "first_row": [*values(2**63, 2**63 - 4), *NO_COUNTS],
    "candidates": NO_CANDIDATES,
    "log_q_correction": NO_FLAGS,
    "estimate_full": NO_FLAGS,
    "shared": NO_FLAGS,
    "recompute": NO_FLAGS,
    "similarity": NO_CHOICES,
    "sparse_grad": NO_FLAGS,
    "symmetric": NO_FLAGS,
    "ring": NO_FLAGS,
    "gather_gradients": NO_FLAGS,
    "process_group": values("world", 0, True, {}, [0], object(), torch.ones(2)),
}
PER_ROW = {
    "temperature": NO_TEMPERATURE + _per_row(0.0, -0.1, NAN, INF),
    "prior": NO_PRIOR + _per_row(1.0, 1.5, -0.1, NAN, INF),
    "confidence_threshold": NO_LOSS["confidence_threshold"] + _per_row(),
    "score_curve": NO_LOSS["score_curve"] + values(ScoreCurve(-1.0, 1.0, torch.zeros(3, device=META)), alone=True),
}
NO_BATCH = NO_LOSS | NO_TENSORS | NO_DRAWS | PER_ROW
# What a module takes when it is made, where nothing is known of the rows.
NO_SETTINGS = NO_LOSS | NO_DRAWS

NO_PAIRS = [
    *values(
        None, 1, "ids", {}, {1, 2}, object(), [[0, 1], [2]], [0.5, 1.0], ["a"], [True], [None], [1j], [2**64], [HUGE]
    ),
    *changes(
        floats=lambda v: torch.as_tensor(v).double(),
        bools=lambda v: torch.as_tensor(v).bool(),
        bool_array=lambda v: np.asarray(v).astype(bool),
        float_array=lambda v: np.asarray(v).astype(np.float32),
        objects=lambda v: np.asarray(v).astype(object),
        column=lambda v: np.asarray(v)[:, None],
        sparse=lambda v: torch.as_tensor(v).to_sparse(),
        nested=lambda v: _nested(torch.as_tensor(v), torch.strided),
        jagged=lambda v: _nested(torch.as_tensor(v)[:, None], torch.jagged),
        quantized=lambda v: _quantized(torch.as_tensor(v)),
        negative=lambda v: [-1, *np.asarray(v)[1:].tolist()],
        smallest=lambda v: [INT64_MIN, *np.asarray(v)[1:].tolist()],
        unsigned=lambda v: np.append(np.asarray(v)[1:].astype(np.uint64), np.uint64(2**64 - 1)),
        beyond=lambda v: np.append(np.asarray(v)[1:], 10**6),
    ),
    *changes(True, less=lambda v: v[:-1], meta=lambda v: torch.as_tensor(v).to(META)),
]
TOO_FEW = [Mutation("fewer than the ids say", lambda v, r, c: 1, alone=True, named=("query_ids", "item_ids"))]
NO_SIZES = [*values(0), *NO_COUNTS]
NO_MATRICES = [
    *values(None, 3, "matrix", [[1]], {}, object(), np.ones((2, 2)), torch.ones(2, 2)),
    Mutation("no rows", lambda v, r, c: scipy.sparse.csr_array((0, 3)), named=("matrix", "num_queries")),
    Mutation("no columns", lambda v, r, c: scipy.sparse.csr_array((3, 0)), named=("matrix", "num_items")),
]
NO_FILES = [
    *values(None, 3, [], {}, b"pairs.tsv", object(), 1.5),
    Mutation("not there", lambda v, r, c: Path(v).with_name("none"), named=("none",), raises=(FileNotFoundError,)),
    Mutation("a folder", lambda v, r, c: Path(v).parent, named=("folder",), raises=(IsADirectoryError,)),
]
NO_COLUMNS = values(-1, 2, 1.0, True, "user", "", [0], {}, b"user", object(), torch.tensor(0), np.array([0, 1]))
NO_FORMATS = values("", "csv", 3, 1.5, [], ["table"], {}, b"table", object(), np.array(["table"]), torch.ones(2))
NO_ENCODINGS = values("", "nothing", "hex", "a\0", 3, True, [], {}, b"utf-8", object(), np.array(["utf-8"]))
NO_DEVICES = values(None, "nowhere", "", 1.5, True, [], {}, object(), torch.float64, torch.ones(2), b"cpu", "cpu:x")
NO_SCORES = [
    *values(None, "scores", 3, {}, [], [1, 2], [[0.1], [0.1, 0.2]], [0.1, NAN], [1j], ["a"], [None], object(), [HUGE]),
    *values(torch.ones(3, device=META), torch.ones(3).to_sparse(), torch.ones(2, 2).to_sparse_csr()),
    *to_dtypes(torch.bool, INT, COMPLEX),
    *with_value(NAN),
    *changes(quantized=_quantized, nested=lambda v: _nested(v, torch.strided), empty=lambda v: v[:0]),
]
NO_PRESETS = {
    "temperature": NO_TEMPERATURE,
    "negative_temperature": NO_FLOAT_TEMPERATURE,
    "quantile_temperature": NO_FLOAT_TEMPERATURE,
    "concentration": NO_FLOAT_TEMPERATURE,
    "confidence_temperature": NO_FLOAT_TEMPERATURE,
    "prior": NO_PRIOR,
    "label_frequency": [*values(1.01, 2), *NO_PROBABILITIES, *NO_NUMBER_BUT_TENSOR],
    "min_margin": [*NO_FINITE, *NO_NUMBERS, *NO_NUMBER_BUT_TENSOR],
    "surrogate": NO_CHOICES,
    "similarity": NO_CHOICES,
}


# ---- right calls -------------------------------------------------------------------------------------------

NUM_QUERIES, NUM_ITEMS = 6, 23
INTERACTIONS = make_interactions(NUM_QUERIES, NUM_ITEMS, 30)


def _some(rng: random.Random, choices: dict[str, list[Any]], probability: float = 0.3) -> dict[str, Any]:
    return {name: rng.choice(given) for name, given in choices.items() if rng.random() < probability}


def loss_arguments(rng: random.Random) -> dict[str, Any]:
    given = _some(
        rng,
        {
            "temperature": [0.2, 1],
            "prior": [0, 0.05, 0.5],
            "weighting": ["none", "sigmoid", "exponential", "linear"],
            "weight_temperature": [None, 0.5, 1],
            "positive_temperature": [None, 0.3],
            "score_curve": [
                None,
                *(ScoreCurve(-0.5, 1.0, torch.tensor([0.0, -INF, 1.0]), on) for on in ("score", "margin")),
            ],
            "detach_weights": [True, False],
            "normalize_weights": [True, False],
            "floor": [0.1, 1],
            "min_margin": [None, -1.0],
            "confidence_temperature": [None, 2.0],
            "confidence_threshold": [0, -0.5],
            "include_positive": [True, False],
            "surrogate": ["exp", "tanh", "atan", "relu"],
            "reduction": ["mean", "sum", "none"],
            "return_above": [True, False],
        },
    )
    return given | {"backend": rng.choice(["auto", "reference"])}


def per_row(rng: random.Random, rows: tuple[int, ...]) -> dict[str, Any]:
    tensors: list[Callable[[], Tensor]] = [lambda: torch.full(rows, 0.1), lambda: torch.tensor(0.1)]
    return {
        name: rng.choice(tensors)() for name in ("temperature", "prior", "confidence_threshold") if rng.random() < 0.2
    }


def tensors_of(case: Any, rng: random.Random, names: dict[str, str]) -> dict[str, Any]:
    """The case's tensors by the names of the arguments, in a random dtype, and some as leaves."""
    case = case.to(rng.choice([torch.float64, torch.float32, torch.float32, torch.float16, torch.bfloat16]))
    case = case.leaves() if rng.random() < 0.5 else case
    found = {argument: getattr(case, name) for name, argument in names.items()}
    return {argument: value for argument, value in found.items() if value is not None}


def on_scores(rng: random.Random) -> dict[str, Any]:
    shape = rng.choice([(5,), (2, 3)])
    case = make_scores(
        shape, 4, rng.choice([0, 2]), seed=rng.randrange(99), log_q=rng.random() < 0.5, row_weights=rng.random() < 0.5
    )
    names = {"pos": "pos_scores", "neg": "neg_scores", "extra": "extra_pos_scores", "log_q": "neg_log_weights"}
    return tensors_of(case, rng, names | {"row_weights": "row_weights"}) | per_row(rng, shape)


def on_embeddings(rng: random.Random, ids: bool = True) -> dict[str, Any]:
    case = make_embeddings(
        5,
        4,
        3,
        NUM_ITEMS,
        rng.choice([0, 2]),
        seed=rng.randrange(99),
        shared=rng.random() < 0.3,
        padding=rng.random() < 0.5,
        log_q=rng.random() < 0.5,
        row_weights=rng.random() < 0.5,
        id_dtype=rng.choice([torch.int32, torch.int64]),
    )
    names = {n: n for n in ("queries", "items", "pos_ids", "row_weights")} | {"extra_ids": "extra_pos_ids"}
    if ids:
        names |= {"neg_ids": "neg_ids", "log_q": "neg_log_weights"}
    similarity = _some(rng, {"similarity": ["half_cosine", "cosine", "dot"]})
    return tensors_of(case, rng, names) | per_row(rng, (5,)) | similarity


def query_ids(rng: random.Random) -> Tensor:
    ids = [rng.randrange(NUM_QUERIES) for _ in range(5)]
    return torch.tensor(ids, dtype=rng.choice([torch.int32, torch.int64]))


def draw_settings(rng: random.Random, shared: bool = True) -> dict[str, Any]:
    choices: dict[str, list[Any]] = {
        "distribution": ["uniform", "popularity"],
        "popularity_exponent": [0, 0.5, 1.0],
        "popularity_smoothing": [0, 1.5],
        "first_row": [0, 3, 2**62],
        "candidates": [None, torch.ones(NUM_ITEMS, dtype=torch.bool), torch.arange(NUM_ITEMS).flip(0)],
    }
    if shared:
        flags = [True, False]
        choices |= {"log_q_correction": flags, "shared": flags, "recompute": flags, "sparse_grad": flags}
    return {"num_negatives": rng.choice([1, 7])} | _some(rng, choices, 0.5)


def seed(rng: random.Random) -> dict[str, Any]:
    return {"seed": rng.choice([0, 17, 2**63 - 1, torch.tensor(5)])}


def known(rng: random.Random) -> dict[str, Any]:
    return {"interactions": INTERACTIONS, "query_ids": query_ids(rng)}


def in_batch_history(rng: random.Random) -> dict[str, Any]:
    """Known positives, counts, both or, without the correction, none."""
    counts = {"item_counts": torch.arange(NUM_ITEMS, dtype=rng.choice([torch.int64, torch.float32]))}
    return rng.choice([known(rng), known(rng) | counts, counts, {"log_q_correction": False}])


def presets_call(rng: random.Random) -> tuple[str, Callable[..., Any], dict[str, Any]]:
    name = rng.choice(["sl", "infonce", "dcl", "pucl", "hcl", "psl", "bsl", "slk", "cw"])
    function = getattr(presets, name)
    given = {p: NO_PRESETS[p] for p in inspect.signature(function).parameters}
    good = {"prior": [0.0, 0.2], "label_frequency": [0, 1.0], "min_margin": [None, -2], "surrogate": ["tanh", "exp"]}
    good["similarity"] = ["half_cosine", "cosine"]
    return f"presets.{name}", function, {p: rng.choice(good.get(p, [0.3, 2])) for p in given if rng.random() < 0.7}


def pairs(rng: random.Random) -> dict[str, Any]:
    def form() -> Any:
        ids = [rng.randrange(4) for _ in range(5)]
        return rng.choice([ids, np.array(ids), torch.tensor(ids), torch.tensor(ids, dtype=torch.uint8)])

    # At least one id that a size of 1 does not cover.
    sizes = {"num_queries": 4, "num_items": rng.choice([4, 9])}
    return {"query_ids": form(), "item_ids": form(), **sizes, "keep_counts": rng.random() < 0.5}


_FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def _file() -> Path:
    path = Path(_FOLDER.name, "folder", "pairs.tsv")
    path.parent.mkdir()
    path.write_text("0\t1\n2\t3\n")
    return path


MODULES = {
    "CWLoss": (cw_ext.CWLoss, cw_ext.cw_loss),
    "CWEmbeddingLoss": (cw_ext.CWEmbeddingLoss, cw_ext.cw_loss_from_embeddings),
    "CWSampledLoss": (cw_ext.CWSampledLoss, cw_ext.sampled_cw_loss),
    "CWInBatchLoss": (cw_ext.CWInBatchLoss, cw_ext.cw_loss_in_batch),
    "CWFullLoss": (cw_ext.CWFullLoss, cw_ext.cw_loss_full),
}


def batch(function: Callable[..., Any], rng: random.Random) -> dict[str, Any]:
    """The arguments of a right call of one of the five functions."""
    loss = loss_arguments(rng)
    if function is cw_ext.cw_loss:
        return loss | on_scores(rng)
    sparse = _some(rng, {"sparse_grad": [True, False]})
    if function is cw_ext.cw_loss_from_embeddings:
        return loss | sparse | on_embeddings(rng)
    if function is cw_ext.sampled_cw_loss:
        return loss | on_embeddings(rng, ids=False) | known(rng) | draw_settings(rng) | seed(rng)
    if function is cw_ext.cw_loss_in_batch:
        history, mixed = in_batch_history(rng), {"num_negatives": rng.choice([0, 3]), "estimate_full": False}
        if "interactions" in history:
            mixed["candidates"] = rng.choice([None, torch.arange(NUM_ITEMS)])
        mixed |= {"symmetric": False, "ring": False, "gather_gradients": True, "process_group": None}
        if history.keys() & {"interactions", "item_counts"} and rng.random() < 0.4:  # these tell the number
            mixed |= {"item_ids": torch.randperm(NUM_ITEMS), "num_negatives": 0}
        return loss | sparse | on_embeddings(rng, ids=False) | history | mixed | seed(rng)
    return loss | on_embeddings(rng, ids=False) | rng.choice([known(rng), {}])


Made = tuple[Call, dict[str, list[Mutation]]]


def functions(rng: random.Random) -> Made:
    function = rng.choice([function for _, function in MODULES.values()])
    arguments = batch(function, rng)
    wrong = dict(NO_BATCH)
    if "interactions" in arguments:
        wrong["interactions"] = NO_INTERACTIONS + OTHER_ITEMS
    if function is cw_ext.sampled_cw_loss:
        known_all = Mutation("a query knows all", _all_known, alone=True, named=("query_ids",))
        wrong["interactions"] = [*wrong["interactions"], known_all]
        rows = changes(True, row_less=lambda v: v[:-1], row_more=_row_more)
        wrong["items"] = wrong["items"] + rows
    if function is cw_ext.cw_loss_in_batch:
        wrong["num_negatives"] = wrong["num_negatives"][1:]
    return Call(function.__name__, function, arguments), wrong


def modules_made(rng: random.Random) -> Made:
    name = rng.choice(list(MODULES))
    module, function = MODULES[name]
    names = inspect.signature(module.__init__).parameters
    arguments = {n: v for n, v in batch(function, rng).items() if n in names and not isinstance(v, Tensor)}
    wrong = dict(NO_SETTINGS)
    wrong["interactions"] = NO_INTERACTIONS[:-1]  # a module moves them to where they are used
    if module is cw_ext.CWInBatchLoss:
        wrong["num_negatives"] = wrong["num_negatives"][1:]
    return Call(f"{name}()", module, arguments), wrong


def modules_called(rng: random.Random) -> Made:
    name = rng.choice(list(MODULES))
    module, function = MODULES[name]
    arguments = batch(function, rng)
    taken = inspect.signature(module.forward).parameters
    called = {n: v for n, v in arguments.items() if n in taken}
    made = module(**{n: v for n, v in arguments.items() if n not in called})
    wrong = dict(NO_BATCH)
    if "interactions" in arguments:  # which the range of query_ids is that of
        wrong["query_ids"] = of_tensors(
            NO_IDS, NO_SHAPE, AXIS_MORE, ROWS_OFF, with_ids(lambda c: NUM_QUERIES, padding=True)
        )
    return Call(f"{name}.forward", made, called), wrong


def draws(rng: random.Random) -> Made:
    arguments = known(rng) | draw_settings(rng, shared=False) | seed(rng)
    wrong = dict(NO_BATCH)
    wrong["query_ids"] = of_tensors(NO_IDS, NO_SHAPE, AXIS_MORE, with_ids(_queries_known, padding=True))[1:]
    known_all = Mutation("a query knows all", _all_known, alone=True, named=("query_ids",))
    wrong["interactions"] = [*NO_INTERACTIONS[:-1], known_all]
    return Call("draw_negatives", cw_ext.draw_negatives, arguments), wrong


def scores_of_candidates(rng: random.Random) -> Made:
    case = make_embeddings(5, 4, 3, NUM_ITEMS, seed=rng.randrange(99), padding=rng.random() < 0.5)
    arguments = tensors_of(case, rng, {"queries": "queries", "items": "items", "neg_ids": "ids"})
    arguments["ids"] = arguments["ids"].to(rng.choice([torch.int32, torch.int64]))
    arguments |= _some(rng, {"similarity": ["half_cosine", "cosine", "dot"], "backend": ["auto", "reference"]}, 0.7)
    wrong = dict(NO_BATCH)
    wrong["ids"] = _no_ids(NO_SHAPE, AXIS_MORE, ROWS_OFF, changes(row=lambda v: v[0]))
    return Call("candidate_scores", cw_ext.candidate_scores, arguments), wrong


def interactions(rng: random.Random) -> Made:
    made = INTERACTIONS
    full = make_interactions(NUM_QUERIES, NUM_ITEMS, full=True)
    ids = torch.tensor([0, 2, 3])
    own_ids = of_tensors(NO_IDS, with_ids(lambda c: NUM_QUERIES, padding=True))
    sizes = {"num_queries": NO_SIZES + TOO_FEW, "num_items": NO_SIZES + TOO_FEW + values(2**31)}
    return rng.choice(
        [
            (
                Call("Interactions", Interactions, pairs(rng)),
                {"query_ids": NO_PAIRS, "item_ids": NO_PAIRS, "keep_counts": NO_FLAGS} | sizes,
            ),
            (
                Call("Interactions.from_scipy", Interactions.from_scipy, {"matrix": scipy.sparse.eye(4)}),
                {"matrix": NO_MATRICES},
            ),
            (
                Call(
                    "Interactions.from_file",
                    Interactions.from_file,
                    {"path": _file(), "user_column": 0, "item_column": 1, "format": "table", "encoding": "utf-8"}
                    | {"separator": "tab"}
                    | {"renumber": False}
                    | dict.fromkeys(sizes, 5),
                ),
                {"path": NO_FILES, "user_column": NO_COLUMNS, "item_column": NO_COLUMNS, "format": NO_FORMATS}
                | {"encoding": NO_ENCODINGS, "renumber": NO_FORMATS[1:], "separator": NO_FORMATS}
                | sizes,
            ),
            (Call("Interactions.to", made.to, {"device": "cpu"}), {"device": NO_DEVICES}),
            (
                Call("Interactions.popularity", made.popularity, {"exponent": 0.5}),
                {"exponent": NO_DRAWS["popularity_exponent"]},
            ),
            (
                Call(
                    "Interactions.check_has_negatives",
                    full.check_has_negatives,
                    {"query_ids": ids, "distribution": "uniform"},
                ),
                {"query_ids": own_ids, "distribution": NO_CHOICES},
            ),
        ]
    )


def presets_made(rng: random.Random) -> Made:
    return Call(*presets_call(rng)), NO_PRESETS


def prior(rng: random.Random) -> Made:
    scores = {n: torch.rand(9, dtype=rng.choice([torch.float32, torch.float64])) for n in ("positive", "unlabeled")}
    arguments = {f"{n}_scores": s for n, s in scores.items()} | _some(rng, {"confidence": [0.9, 0.5]}, 0.8)
    wrong = {
        "positive_scores": NO_SCORES,
        "unlabeled_scores": NO_SCORES,
        "confidence": [*values(0, 1), *NO_PRIOR, *NO_NUMBER_BUT_TENSOR],
    }
    return Call("estimate_prior", cw_ext.prior.estimate_prior, arguments), wrong


def curves(rng: random.Random) -> Made:
    log_weights = torch.rand(4, dtype=rng.choice([torch.float16, torch.float32, torch.float64]))
    arguments = {"low": -0.5, "high": 1, "log_weights": log_weights} | _some(rng, {"on": ["score", "margin"]})
    no_weights = of_tensors(NO_FLOATS, NO_SHAPE, AXIS_MORE, with_value(NAN, INF), changes(one=lambda v: v[:1]))
    wrong = {
        "low": [*values(-1e31), *NO_FINITE, *NO_NUMBERS, *NO_NUMBER_BUT_TENSOR],
        "high": [*values(1e31, -0.5, -0.6), *NO_FINITE, *NO_NUMBERS, *NO_NUMBER_BUT_TENSOR],
        "log_weights": [m for m in no_weights if m.what != "meta"],
        "on": NO_CHOICES,
    }
    return Call("ScoreCurve", ScoreCurve, arguments), wrong


def false_negatives(rng: random.Random) -> Made:
    """What estimates false negatives: fits, what a fit is asked for, and the weights that need none."""
    dtype, prior = rng.choice([torch.float32, torch.float64]), rng.choice([0, 0.1, 0.9])
    scores = {f"{n}_scores": torch.rand(9, dtype=dtype) for n in ("positive", "unlabeled")}
    family = rng.choice(["normal", "isotonic"])
    fitted = FalseNegatives.fit(**scores, prior=prior, family=family)
    strength = _some(rng, {"strength": [0, 0.5, 1]}, 0.8)
    no_prior, no_strength = NO_PRIOR + NO_NUMBER_BUT_TENSOR, [*NO_FINITE, *NO_NUMBERS, *values(-0.1, -1)]
    no_scores = [*NO_SCORES, *with_value(INF), *values([-INF, -INF])]
    no_tensor = [m for m in of_tensors(NO_FLOATS) if m.what != "meta"]
    row = torch.rand(2, dtype=dtype)
    return rng.choice(
        [
            (
                Call("fit", FalseNegatives.fit, scores | {"prior": prior, "family": family}),
                {"positive_scores": no_scores, "unlabeled_scores": no_scores, "prior": no_prior, "family": NO_CHOICES},
            ),
            (
                Call("log_weights", fitted.log_weights, {"scores": torch.rand(2, 3, dtype=dtype)} | strength),
                {"scores": no_tensor, "strength": no_strength},
            ),
            (
                Call("curve", fitted.curve, {"knots": 5} | strength),
                {"knots": [*NO_COUNTS, *values(0, 1)], "strength": no_strength},
            ),
            (
                Call("cvir_log_weights", cvir_log_weights, {"neg_scores": torch.rand(2, 3), "prior": prior}),
                {"neg_scores": of_tensors(NO_FLOATS, NO_SHAPE), "prior": no_prior},
            ),
            (
                Call("delayed_weights", delayed_weights, {"kinds": torch.tensor([0, 3]), "f_dp": row}),
                {
                    "kinds": of_tensors(NO_IDS, ROWS_OFF, AXIS_MORE, with_ids(lambda c: 4, padding=True)),
                    "f_dp": of_tensors(NO_FLOATS, ROWS_OFF, AXIS_MORE, with_value(NAN, -0.1, 1.1, INF)),
                },
            ),
        ]
    )


SMALL = [modules_made, draws, scores_of_candidates, interactions, presets_made, prior, curves, false_negatives]
MAKERS = [functions] * 8 + [modules_called] * 3 + SMALL * 2


# ---- wrong calls -------------------------------------------------------------------------------------------


def _optional(call: Call, name: str) -> bool:
    """Whether None is a right value."""
    parameter = inspect.signature(call.function).parameters.get(name)
    if isinstance(call.function, torch.nn.Module):
        parameter = inspect.signature(call.function.forward).parameters.get(name)
    return name == "min_margin" or (parameter is not None and parameter.default is None)


@dataclass(frozen=True)
class Wrong:
    """A call with what is wrong in it."""

    call: Call
    arguments: dict[str, Any]
    what: str
    named: tuple[str, ...]
    raises: tuple[type[Exception], ...]


# What query_ids must not come without, and what must not come without them.
ONLY_TOGETHER = {"cw_loss_full": ["query_ids", "interactions"], "cw_loss_in_batch": ["interactions"]}


def _missing_or_unknown(call: Call, rng: random.Random) -> Wrong | None:
    function = call.function.forward if isinstance(call.function, torch.nn.Module) else call.function
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.name in call.arguments]
    arguments = dict(call.arguments)
    if "query_ids" in arguments:
        needed += ONLY_TOGETHER.get(call.name, [])
    if needed and rng.random() < 0.5:
        name = rng.choice(needed)
        del arguments[name]
        what = f"without {name}"
    else:
        name = rng.choice(["tau", "seeds", "negatives", *(f"{n}_" for n in arguments)])
        arguments[name] = 1
        what = f"with an unknown {name}"
    return Wrong(call, arguments, what, (name,), (TypeError, ValueError))


def wrong_call(call: Call, table: dict[str, list[Mutation]], rng: random.Random) -> Wrong | None:
    """None where what was picked does not fit the call."""
    names = {name for name in (*call.arguments, *(DEFAULTS if _takes_loss(call) else ())) if name in table}
    if not names or rng.random() < 0.04:
        return _missing_or_unknown(call, rng)
    wanted = 2 if rng.random() < 0.2 and len(names) > 1 else 1
    arguments, what, named, raises = dict(call.arguments), [], [], set()
    for name in rng.sample(sorted(names), wanted):
        mutation = rng.choice([m for m in table[name] if wanted == 1 or not m.alone])
        value = mutation.change(arguments.get(name, DEFAULTS.get(name)), rng, call)
        if value is NotImplemented or (value is None and _optional(call, name)):
            return None
        arguments[name] = value
        what.append(f"{name}: {mutation.what}")
        named += [name, *mutation.named]
        raises |= set(mutation.raises)
    return Wrong(call, arguments, ", ".join(what), tuple(named), tuple(raises))


def _takes_loss(call: Call) -> bool:
    return not isinstance(call.function, torch.nn.Module) and LossArguments.__annotations__.keys() <= set(
        inspect.signature(call.function).parameters
    )


def complaint(wrong: Wrong) -> str | None:
    """What is not as it should be about how the call fails."""
    try:
        wrong.call.function(**wrong.arguments)
    except wrong.raises as error:
        if not any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)) for name in wrong.named):
            return f"does not name the argument: {type(error).__name__}: {error}"
        if not isinstance(error, OSError) and not SAYS_WHAT_CAME.search(str(error)):
            return f"does not say what came: {type(error).__name__}: {error}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no exception"


def _plain(result: Any) -> Any:
    """What two results can be compared by."""
    if isinstance(result, Tensor):
        return (result.dtype, result.shape, result.detach().double().nan_to_num(7e77).tolist())
    if isinstance(result, Interactions):
        return result.starts.tolist(), result.items.tolist()
    if isinstance(result, ScoreCurve):
        return repr(result), _plain(result.log_weights)
    if isinstance(result, FalseNegatives):
        return repr(result), _plain(result.curve())
    if isinstance(result, torch.nn.Module):
        return repr(result)
    return [_plain(r) for r in result] if isinstance(result, tuple) else result


def attempts(first: int, count: int) -> Iterator[tuple[int, Wrong, str | None]]:
    """(number, call, complaint) of each wrong call."""
    for number in range(first, first + count):
        rng = random.Random(number)
        torch.manual_seed(number)
        call, table = rng.choice(MAKERS)(rng)
        before = _plain(call())
        wrong = None
        while wrong is None:
            wrong = wrong_call(call, table, rng)
        # The last thing to be read where the process dies.
        print(f"\r{number}", end="", file=sys.stderr, flush=True)
        found = complaint(wrong)
        if _plain(call()) != before:
            found = f"the right call gives another result afterwards ({found})"
        yield number, wrong, found


def main(count: int, first: int) -> int:
    faulthandler.enable()
    calls, failures = Counter[str](), Counter[tuple[str, str, str]]()
    for number, wrong, found in attempts(first, count):
        calls[wrong.call.name] += 1
        if found is None:
            continue
        key = (wrong.call.name, wrong.what, found)
        failures[key] += 1
        if failures[key] == 1:
            shown = ", ".join(f"{name}={_show(value)}" for name, value in wrong.arguments.items())
            print(f"\n{wrong.call.name}, {wrong.what}: {found[:400]}")
            print(f"    {wrong.call.name}({shown})")
            print(f"    python tests/bad_calls.py 1 {number}", flush=True)
    print(file=sys.stderr)
    print(f"{calls.total()} wrong calls of {len(calls)} functions, {failures.total()} without a clear exception")
    return 1 if failures or calls.total() != count else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tests/bad_calls.py COUNT SEED")
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))

"""What all samplers do alike: their checks, dtypes, padding, seeds, threads and states."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import generator, saved_and_loaded
from sampler_cases import Tables, make_tables
from torch import Tensor, nn

from cw_ext import Interactions, cw_loss_from_embeddings
from cw_ext.samplers import Chain, Memory, Negatives, Sampler, Scored, Uniform, fne, softmax
from cw_ext.samplers.base import SamplerBase

NEIGHBOURS = torch.randint(50, (50, 6), generator=generator(7))


def _above_positive(scores: Tensor, pos_scores: Tensor) -> Tensor:
    return (scores - pos_scores.unsqueeze(1)) / 0.1


MAKE: dict[str, Callable[[Interactions], SamplerBase]] = {
    "uniform": lambda known: Uniform(known, 7),
    "popular": lambda known: Uniform(known, 7, distribution="popularity"),
    "scored": lambda known: Scored(known, 7, log_weight=softmax(0.1), num_candidates=40, log_q_correction=True),
    "scored once": lambda known: Scored(known, 7, log_weight=softmax(0.1), num_candidates=40, replacement=False),
    "fne": lambda known: Scored(known, 7, log_weight=fne((0.6, 0.1, 0.2, 0.1), 0.5), similarity="cosine"),
    "own weights": lambda known: Scored(known, 7, log_weight=_above_positive, num_candidates=40),
    "catalogue": lambda known: Scored(known, 7, log_weight=softmax(0.1), num_candidates=None),
    "memory": lambda known: Memory(known, 3, size=5, extension=9, pool=20, seed=1),
    "chain": lambda known: Chain(known, 7, temperature=0.1, seed=1),
    "neighbours": lambda known: Chain(known, 7, temperature=0.1, seed=1, neighbours=NEIGHBOURS.to(known.device)),
}
STATEFUL = ("memory", "chain", "neighbours")


@pytest.fixture(params=MAKE)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _batch(tables: Tables, rows: int = 24, *, padding: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = generator(3)
    query_ids, pos_ids = torch.randint(5, (rows,), generator=g), torch.randint(50, (rows,), generator=g)
    if padding:
        query_ids[1] = pos_ids[2] = query_ids[3] = pos_ids[3] = -1
    return tables.batch(query_ids, pos_ids)


def _run(sampler: Sampler, batch: tuple[Tensor, Tensor, Tensor, Tensor], steps: int = 3) -> list[Negatives]:
    drawn = []
    for step in range(steps):
        drawn.append(sampler.draw(*batch, seed=step))
        sampler.update(*batch, epoch=step // 2, seed=step)
    return drawn


def _assert_same(found: list[Negatives], expected: list[Negatives]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert (a.log_weights is None) == (b.log_weights is None)
        if a.log_weights is not None and b.log_weights is not None:
            assert torch.equal(a.log_weights, b.log_weights)


def test_it_draws_unknown_items_that_a_loss_can_take(kind: str, device: torch.device) -> None:
    tables = make_tables(device=device)
    sampler = MAKE[kind](tables.interactions)
    assert isinstance(sampler, Sampler)
    queries, items, query_ids, pos_ids = _batch(tables)
    queries, items = queries.requires_grad_(), items.clone().requires_grad_()
    for step in range(3):
        ids, log_weights = sampler.draw(queries, items, query_ids, pos_ids, seed=step)
        assert ids.dtype == torch.int64 and ids.device.type == device.type
        assert ids.shape == (24, sampler.num_negatives) and not ids.requires_grad
        for row, query in enumerate(query_ids.tolist()):
            assert set(ids[row].tolist()) <= set(tables.unknown(query))
        if log_weights is not None:
            assert log_weights.shape == ids.shape and not log_weights.requires_grad
            assert log_weights.isfinite().all()
        loss = cw_loss_from_embeddings(queries, items, pos_ids, ids, neg_log_weights=log_weights)
        assert loss.isfinite()
        loss.backward()
        sampler.update(queries, items, query_ids, pos_ids, epoch=step, seed=step)


def test_the_seed_is_all_that_is_random(kind: str) -> None:
    tables = make_tables()
    batch, sampler = _batch(tables), MAKE[kind](tables.interactions)
    sampler.update(*batch, epoch=1, seed=0)
    first = sampler.draw(*batch, seed=5)
    _assert_same([sampler.draw(*batch, seed=5), sampler.draw(*batch, seed=torch.tensor(5))], [first, first])
    assert kind == "memory" or not torch.equal(sampler.draw(*batch, seed=6).ids, first.ids)


def test_without_a_seed_torchs_generator_decides(kind: str) -> None:
    tables = make_tables()
    batch, sampler = _batch(tables), MAKE[kind](tables.interactions)
    torch.manual_seed(1)
    first = [sampler.draw(*batch), sampler.draw(*batch)]
    torch.manual_seed(1)
    _assert_same([sampler.draw(*batch), sampler.draw(*batch)], first)
    assert kind == "memory" or not torch.equal(first[0].ids, first[1].ids)


@pytest.mark.parametrize(
    "make", [lambda k: Memory(k, size=3, extension=4, pool=9), lambda k: Chain(k, 4, temperature=1)]
)
def test_without_a_seed_torchs_generator_makes_the_state(make: Callable[[Interactions], SamplerBase]) -> None:
    known = make_tables().interactions
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(torch.cat([t.flatten().float() for t in make(known).state_dict().values()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.cpu_kernels
def test_any_number_of_threads_draws_the_same(kind: str) -> None:
    tables = make_tables(num_queries=300)
    query_ids = torch.arange(300).repeat(4)
    batch = tables.batch(query_ids, query_ids % 50)
    before, drawn = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            sampler = MAKE[kind](tables.interactions)
            drawn.append((_run(sampler, batch), sampler.state_dict()))
    finally:
        torch.set_num_threads(before)
    for found, state in drawn[1:]:
        _assert_same(found, drawn[0][0])
        assert all(torch.equal(tensor, drawn[0][1][name]) for name, tensor in state.items())


def test_kernels_and_reference_draw_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = make_tables()
    batch = _batch(tables, padding=True)
    found = _run(MAKE[kind](tables.interactions), batch)
    monkeypatch.setattr("cw_ext.extension.use_kernels", lambda backend, device: False)
    for a, b in zip(_run(MAKE[kind](tables.interactions), batch), found, strict=True):
        assert torch.equal(a.ids, b.ids)
        torch.testing.assert_close(a.log_weights, b.log_weights, rtol=1e-5, atol=1e-5)


def test_padding(kind: str) -> None:
    """Rows of padding are −1 throughout, and change no other row."""
    tables = make_tables()
    padded, whole = _batch(tables, padding=True), _batch(tables)
    sampler = MAKE[kind](tables.interactions)
    found, expected = sampler.draw(*padded, seed=4), sampler.draw(*whole, seed=4)
    is_padding = (padded[2] < 0) | (padded[3] < 0)
    assert is_padding.sum() == 3
    assert (found.ids[is_padding] == -1).all() and torch.equal(found.ids[~is_padding], expected.ids[~is_padding])
    if found.log_weights is not None and expected.log_weights is not None:
        assert (found.log_weights[is_padding] == -torch.inf).all()
        assert torch.equal(found.log_weights[~is_padding], expected.log_weights[~is_padding])
    only_padding = tuple(t[is_padding] if t is not padded[1] else t for t in padded)
    before = {name: tensor[:-1].clone() for name, tensor in sampler.state_dict().items() if tensor.dim()}
    sampler.update(*only_padding, epoch=0, seed=1)
    assert all(torch.equal(sampler.state_dict()[name][:-1], tensor) for name, tensor in before.items())
    assert (sampler.draw(*only_padding, seed=1).ids == -1).all()


@pytest.mark.parametrize("what", ["query", "positive"])
def test_nan_gives_nan_in_its_row_of_the_loss(kind: str, what: str, device: torch.device) -> None:
    """And in no other: the row has items, not padding, whose loss would be 0."""
    tables = make_tables(device=device)
    queries, items, query_ids, pos_ids = _batch(tables)
    pos_ids = pos_ids.where(pos_ids != 7, 8)
    sampler = MAKE[kind](tables.interactions)
    sampler.update(queries, items, query_ids, pos_ids, epoch=0, seed=0)

    def loss(queries: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        ids, log_weights = sampler.draw(queries, items, query_ids, pos_ids, seed=1)
        arguments: dict[str, Any] = {"neg_log_weights": log_weights, "reduction": "none"}
        return ids, cw_loss_from_embeddings(queries, items, pos_ids, ids, **arguments)

    if what == "query":
        is_broken = torch.arange(24, device=device) == 5
        broken = queries.masked_fill(is_broken.unsqueeze(1), torch.nan), items
    else:  # which every query knows
        pos_ids[5] = 7
        is_broken = pos_ids == 7
        broken = queries, items.masked_fill(torch.arange(50, device=device).unsqueeze(1) == 7, torch.nan)
    expected, found = loss(queries, items), loss(*broken)
    assert found[1][is_broken].isnan().all() and torch.equal(found[1][~is_broken], expected[1][~is_broken])
    assert set(found[0][5].tolist()) <= set(tables.unknown(int(query_ids[5])))


def test_no_rows(kind: str) -> None:
    tables = make_tables()
    sampler = MAKE[kind](tables.interactions)
    empty = torch.zeros(0, dtype=torch.int64)
    ids, log_weights = sampler.draw(torch.zeros(0, 4), tables.items, empty, empty, seed=0)
    assert ids.shape == (0, sampler.num_negatives) and ids.dtype == torch.int64
    assert log_weights is None or log_weights.shape == ids.shape
    sampler.update(torch.zeros(0, 4), tables.items, empty, empty, seed=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(kind: str, dtype: torch.dtype, device: torch.device) -> None:
    """Ids of both widths are the same ids, and scores are computed in fp32 or fp64: as from the table's own values."""
    tables = make_tables(device=device)
    low = Tables(tables.queries.to(dtype), tables.items.to(dtype), tables.interactions)
    exact = Tables(low.queries.float(), low.items.float(), tables.interactions)
    batch = _batch(low, padding=True)
    narrow = (*batch[:2], batch[2].int(), batch[3].int())
    found = _run(MAKE[kind](tables.interactions), batch)
    _assert_same(_run(MAKE[kind](tables.interactions), narrow), found)
    if dtype in (torch.float16, torch.bfloat16):
        expected = _run(MAKE[kind](tables.interactions), _batch(exact, padding=True))
        same = [(a.ids == b.ids).float().mean() for a, b in zip(found, expected)]
        assert min(same) > 0.95, "the same but for scores that differ in their last bit"
    weights = found[0].log_weights
    assert weights is None or weights.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_autocast_changes_nothing(kind: str) -> None:
    tables = make_tables()
    batch = _batch(tables)
    found = _run(MAKE[kind](tables.interactions), batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _assert_same(_run(MAKE[kind](tables.interactions), batch), found)


def test_items_may_be_an_embedding(kind: str) -> None:
    tables = make_tables()
    queries, items, *ids = _batch(tables)
    embedding = nn.Embedding.from_pretrained(items, freeze=False, padding_idx=3, sparse=True)
    found = _run(MAKE[kind](tables.interactions), (queries, embedding, *ids))  # type: ignore[arg-type]
    _assert_same(found, _run(MAKE[kind](tables.interactions), (queries, items, *ids)))  # type: ignore[arg-type]


def test_a_state_that_was_saved_goes_on(kind: str) -> None:
    tables = make_tables()
    batch = _batch(tables)
    sampler = MAKE[kind](tables.interactions)
    _run(sampler, batch)
    state = saved_and_loaded(sampler.state_dict())
    assert bool(state) == (kind in STATEFUL)
    expected = _run(sampler, batch)
    torch.manual_seed(99)
    other = MAKE[kind](tables.interactions)
    other.load_state_dict(state)
    _assert_same(_run(other, batch), expected)
    assert all(torch.equal(tensor, sampler.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_a_pickled_sampler_goes_on(kind: str) -> None:
    tables = make_tables()
    batch = _batch(tables)
    sampler = MAKE[kind](tables.interactions)
    _run(sampler, batch)
    sampler.draw(*batch, seed=9)
    other = pickle.loads(pickle.dumps(sampler))
    _assert_same(_run(other, batch), _run(sampler, batch))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", STATEFUL)
def test_a_loaded_state_holds_no_item_that_is_known_by_now(kind: str, assign: bool) -> None:
    """And what was unknown before and is so still stays in its place."""
    tables = make_tables()
    batch = _batch(tables)
    sampler = MAKE[kind](tables.interactions)
    _run(sampler, batch)
    sampler.update(batch[0], 2 * batch[1] + 1, *batch[2:], epoch=2, seed=9)
    before = saved_and_loaded(sampler.state_dict())
    queries = torch.arange(5).repeat_interleave(30)
    grown = tables._replace(interactions=Interactions(queries, torch.arange(30).repeat(5), num_queries=5, num_items=50))
    loaded = []
    for _ in range(2):
        model = nn.Module()
        model.sampler = MAKE[kind](grown.interactions)
        state = {f"sampler.{name}": tensor.clone() for name, tensor in before.items()}
        model.load_state_dict(state, assign=assign)
        assert all(torch.equal(state[f"sampler.{name}"], tensor) for name, tensor in before.items())
        loaded.append({name: tensor.clone() for name, tensor in model.sampler.state_dict().items()})
        ids = _run(model.sampler, batch)[0].ids
        for row, query in enumerate(batch[2].tolist()):
            assert set(ids[row].tolist()) <= set(grown.unknown(query))
    name = "pool" if kind == "memory" else "states"
    assert all(torch.equal(tensor, loaded[1][key]) for key, tensor in loaded[0].items())
    replaced, now = before[name] < 30, loaded[0][name]
    replaced[-1] = False
    assert replaced.any() and torch.equal(now[~replaced], before[name][~replaced])
    assert (now[:-1] >= 30).all() and len(now[replaced].unique()) > 10
    for key in ("mean", "variance", "counts") if kind == "memory" else ():
        assert before[key][replaced].any() and not loaded[0][key][replaced].any()
        assert torch.equal(loaded[0][key][~replaced], before[key][~replaced])


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_state_of_other_queries_is_refused(kind: str) -> None:
    state = MAKE[kind](make_tables(num_queries=6).interactions).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch"):
        MAKE[kind](make_tables().interactions).load_state_dict(state)


@pytest.mark.parametrize("kind", ["memory", "chain"])
def test_a_state_of_more_items_is_refused_and_changes_nothing(kind: str) -> None:
    state = MAKE[kind](make_tables(num_items=80).interactions).state_dict()
    sampler = MAKE[kind](make_tables().interactions)
    before = {name: tensor.clone() for name, tensor in sampler.state_dict().items()}
    name = "pool" if kind == "memory" else "states"
    with pytest.raises(ValueError, match=rf"{name} of the loaded state must be in \[-1, 50\), an item of interactions"):
        sampler.load_state_dict(state)
    assert all(torch.equal(tensor, sampler.state_dict()[name]) for name, tensor in before.items())


def test_it_is_saved_with_the_model_that_has_it() -> None:
    known = make_tables().interactions
    model = nn.Module()
    model.sampler = MAKE["chain"](known)
    assert set(model.state_dict()) == {"sampler.states"}
    model.half()
    assert model.sampler.states.dtype == torch.int32
    memory = MAKE["memory"](known).half()
    assert memory.mean.dtype == memory.variance.dtype == torch.float32


def test_interactions_move_along(kind: str, device: torch.device) -> None:
    tables = make_tables()
    sampler = MAKE[kind](tables.interactions).to(device)
    moved = tables._replace(items=tables.items.to(device), queries=tables.queries.to(device))
    ids = sampler.draw(*_batch(moved), seed=0).ids
    assert ids.device.type == device.type
    assert sampler.interactions.device.type == device.type


def _wrong(tables: Tables) -> dict[str, tuple[dict[str, Any], type[Exception], str]]:
    queries, items, query_ids, pos_ids = _batch(tables)
    return {
        "queries": ({"queries": queries[0]}, ValueError, r"queries must have shape \[B, D\]"),
        "dtype": ({"queries": queries.double()}, TypeError, "items must have the dtype of queries"),
        "integers": ({"queries": queries.long()}, TypeError, "queries must have dtype"),
        "rows": ({"items": items[:-1]}, ValueError, "items must have one row per item of interactions, 50, got 49"),
        "a list": ({"items": items.tolist()}, TypeError, "items must be a torch.Tensor or a torch.nn.Embedding"),
        "query_ids": ({"query_ids": query_ids[1:]}, ValueError, r"query_ids must have shape \(24,\)"),
        "range": ({"query_ids": query_ids + 1}, IndexError, r"query_ids must be in \[0, 5\), or −1 for padding, got 5"),
        "pos_ids": ({"pos_ids": pos_ids.float()}, TypeError, "pos_ids must have dtype"),
        "positive": ({"pos_ids": pos_ids + 50}, IndexError, r"pos_ids must be in \[0, 50\), or −1 for padding"),
        "seed": ({"seed": -1}, ValueError, "seed must be an integer in"),
    }


@pytest.mark.parametrize("what", _wrong(make_tables()))
def test_wrong_batches(kind: str, what: str) -> None:
    tables = make_tables()
    sampler = MAKE[kind](tables.interactions)
    arguments, error, message = _wrong(tables)[what]
    batch = dict(zip(("queries", "items", "query_ids", "pos_ids"), _batch(tables), strict=True))
    before = {name: tensor.clone() for name, tensor in sampler.state_dict().items()}
    for call in (sampler.draw, sampler.update) if kind in STATEFUL else (sampler.draw,):
        with pytest.raises(error, match=message):
            call(**batch | arguments)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sampler.state_dict().items())


@pytest.mark.parametrize("make", [lambda k, n: Uniform(k, n), lambda k, n: Scored(k, n, log_weight=softmax(0.1))])
def test_wrong_numbers_of_negatives(make: Callable[[Any, Any], SamplerBase]) -> None:
    known = make_tables().interactions
    with pytest.raises(ValueError, match="num_negatives must be an integer ≥ 1, got 0"):
        make(known, 0)
    with pytest.raises(TypeError, match="num_negatives must be an integer ≥ 1, got float"):
        make(known, 2.0)
    with pytest.raises(TypeError, match="interactions must be a cw_ext.Interactions, got list"):
        make([1, 2], 3)


def test_a_sampler_of_ones_own() -> None:
    class Fixed:
        num_negatives = 1

        def draw(self, queries: Any, items: Any, query_ids: Any, pos_ids: Tensor, *, seed: Any = None) -> Negatives:
            return Negatives(pos_ids.unsqueeze(1), None)

        def update(
            self, queries: Any, items: Any, query_ids: Any, pos_ids: Any, *, epoch: int = 0, seed: Any = None
        ) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state_dict: Any) -> None: ...

    assert isinstance(Fixed(), Sampler)
    assert not isinstance(object(), Sampler)

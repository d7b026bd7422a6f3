"""Interactions: the CSR against a dict of sets, every way to make one, and the errors of wrong arguments."""

from __future__ import annotations

import copy
import math
import pickle
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import saved_and_loaded
from drawing import histories
from hypothesis import given, settings
from hypothesis import strategies as st

from cw_ext import cw_loss_in_batch
from cw_ext.interactions import Interactions

META = torch.device("meta")
PAIRS = [(3, 4), (0, 2), (3, 0), (0, 2), (4, 4), (0, 0), (3, 4), (0, 4)]
# A query id, an item id: query 1 and 2 have no history, item 1, 3 and 5 never occur.
SIZES = {"num_queries": 5, "num_items": 6}


def _make(pairs: list[tuple[int, int]] = PAIRS, **sizes: int) -> Interactions:
    return Interactions([q for q, _ in pairs], [i for _, i in pairs], **(SIZES | sizes))


def _histories(interactions: Interactions) -> dict[int, list[int]]:
    """Every query's items, read back from the CSR in a loop."""
    starts, items = interactions.starts.tolist(), interactions.items.tolist()
    return {q: items[starts[q] : starts[q + 1]] for q in range(interactions.num_queries)}


def _assert_holds(interactions: Interactions, pairs: list[tuple[int, int]], num_queries: int, num_items: int) -> None:
    """Everything that the attributes promise about `pairs`."""
    known: dict[int, set[int]] = {q: set() for q in range(num_queries)}
    for q, i in pairs:
        known[q].add(i)
    counts = [sum(i in items for items in known.values()) for i in range(num_items)]
    assert (interactions.num_queries, interactions.num_items) == (num_queries, num_items)
    assert interactions.starts.dtype == interactions.item_counts.dtype == torch.int64
    assert interactions.items.dtype == torch.int32
    assert interactions.starts.shape == (num_queries + 1,) and interactions.starts[0] == 0
    assert len(interactions) == interactions.items.numel() == interactions.starts[-1] == len(set(pairs))
    assert _histories(interactions) == {q: sorted(items) for q, items in known.items()}
    assert interactions.item_counts.tolist() == counts
    assert interactions.most_per_query == max(map(len, known.values()))
    assert interactions.num_occurring == sum(map(bool, counts))
    assert type(interactions.most_per_query) is type(interactions.num_occurring) is int


# ---- the CSR -----------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), num_queries=st.integers(1, 12), num_items=st.integers(1, 12))
def test_random_pairs(data: st.DataObject, num_queries: int, num_items: int) -> None:
    pair = st.tuples(st.integers(0, num_queries - 1), st.integers(0, num_items - 1))
    pairs = data.draw(st.lists(pair, max_size=60))
    _assert_holds(_make(pairs, num_queries=num_queries, num_items=num_items), pairs, num_queries, num_items)


def test_many_pairs(device: torch.device) -> None:
    rng = random.Random(5)
    pairs = [(rng.randrange(300), int(200 * rng.random() ** 3)) for _ in range(20_000)]
    queries, items = torch.tensor(pairs, device=device).T
    _assert_holds(Interactions(queries, items, num_queries=300, num_items=200), pairs, 300, 200)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint64, torch.int8, torch.int32, torch.int64])
def test_tensors_of_any_integer_dtype(device: torch.device, dtype: torch.dtype) -> None:
    queries, items = torch.tensor(PAIRS, device=device).T
    made = Interactions(queries.to(dtype), items.to(dtype), **SIZES)
    _assert_holds(made, PAIRS, **SIZES)
    assert made.device == made.items.device == made.item_counts.device == queries.device


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        np.array,
        torch.tensor,
        lambda ids: np.array(ids, dtype=np.uint16),
        lambda ids: np.array(ids, dtype=">i4"),
        lambda ids: np.array(ids[::-1])[::-1],
        lambda ids: np.array([ids, ids]).T[:, 0],
        lambda ids: _read_only(np.array(ids)),
        lambda ids: [np.int32(i) for i in ids],
        lambda ids: [torch.tensor(i) for i in ids],
    ],
    ids="list tuple numpy tensor uint16 big-endian reversed strided read-only numpy-scalars tensors".split(),
)
def test_sequences(form: Any) -> None:
    made = Interactions(form([q for q, _ in PAIRS]), form([i for _, i in PAIRS]), **SIZES)
    _assert_holds(made, PAIRS, **SIZES)
    assert made.device == torch.device("cpu")


@pytest.mark.parametrize("device_first", [True, False], ids=["tensor", "list"])
def test_events_are_counted_on_request(device: torch.device, device_first: bool) -> None:
    queries, items = [0, 0, 0, 1, 1, 2], [3, 3, 1, 3, 3, 5]
    given = torch.tensor(queries, device=device) if device_first else queries
    by_event = Interactions(given, items, **SIZES, keep_counts=True)
    by_pair = Interactions(given, items, **SIZES)
    for made in (by_event, by_pair):
        assert made.num_events == 6 and len(made) == 4
        assert histories(made)[:3] == [{1, 3}, {3}, {5}]
    occurrences = Counter(items)
    assert by_event.item_counts.tolist() == [occurrences[i] for i in range(SIZES["num_items"])]
    distinct = Counter(i for _, i in set(zip(queries, items, strict=True)))
    assert by_pair.item_counts.tolist() == [distinct[i] for i in range(SIZES["num_items"])]
    assert by_event.to(device).keep_counts and pickle.loads(pickle.dumps(by_event)).num_events == 6


def test_interactions_pickled_by_0_1_0_work_in_batch() -> None:
    """They counted no events, and no bounds of the counts."""
    known = Interactions([0, 1, 0], [5, 7, 2], num_queries=2, num_items=10)
    state = known.__getstate__()
    for name in ("num_events", "keep_counts", "count_bounds"):
        del state[name]
    old = Interactions.__new__(Interactions)
    old.__setstate__(state)
    assert old.num_events == 3 and not old.keep_counts
    queries, items, ids, pos_ids = torch.eye(2, 4), torch.ones(10, 4), torch.arange(2), torch.tensor([5, 7])
    expected, found = (
        cw_loss_in_batch(queries, items, pos_ids, query_ids=ids, interactions=made) for made in (known, old)
    )
    assert torch.equal(found, expected)


def test_events_of_a_matrix_and_of_a_file(tmp_path: Path) -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    plays = np.array([[0, 3, 1], [0, 2, 0]])
    made = Interactions.from_scipy(scipy_sparse.csr_array(plays), keep_counts=True)
    assert made.item_counts.tolist() == plays.sum(0).tolist() and made.num_events == 6 and len(made) == 3
    twice = scipy_sparse.coo_array(([1, 1, 0], ([0, 0, 1], [2, 2, 1])), shape=(2, 3))
    assert Interactions.from_scipy(twice).num_events == 2, "a pair that stands there twice, and a zero"
    assert Interactions.from_scipy(scipy_sparse.csr_array(plays)).num_events == 3, "values may be ratings"
    for value in (-1, 0.5, math.inf):
        with pytest.raises(ValueError, match="matrix must hold whole numbers ≥ 0 with keep_counts=True, got"):
            Interactions.from_scipy(scipy_sparse.csr_array([[1.0, value]]), keep_counts=True)
    file = tmp_path / "plays.tsv"
    file.write_text("0\t1\n0\t1\n0\t2\n1\t1\n")
    assert Interactions.from_file(file, keep_counts=True).item_counts.tolist() == [0, 3, 1]
    assert Interactions.from_file(file).item_counts.tolist() == [0, 2, 1]


@pytest.mark.parametrize("empty", [[], np.empty(0, np.int32), torch.empty(0, dtype=torch.int64)])
def test_no_pairs(empty: Any) -> None:
    _assert_holds(Interactions(empty, empty, **SIZES), [], **SIZES)


def test_numpy_items_go_where_the_query_tensor_is(device: torch.device) -> None:
    queries = torch.tensor([q for q, _ in PAIRS], device=device)
    made = Interactions(queries, np.array([i for _, i in PAIRS]), **SIZES)
    _assert_holds(made, PAIRS, **SIZES)
    assert made.items.device == queries.device


def test_pairs_are_numbered_in_64_bits() -> None:
    size = 2**20
    pairs = [(size - 1, size - 1), (size - 1, 0), (0, size - 1), (2**12, 5)]
    queries, items = torch.tensor(pairs, dtype=torch.int32).T
    made = Interactions(queries, items, num_queries=size, num_items=size)
    assert made.items.tolist() == [size - 1, 5, 0, size - 1]
    # Where the histories that are not empty begin.
    assert made.starts.diff().nonzero().squeeze(1).tolist() == [0, 2**12, size - 1]
    assert made.starts[[0, 2**12, size - 1, size]].tolist() == [0, 1, 2, 4]


def test_the_input_is_left_alone() -> None:
    queries, items = (t.clone() for t in torch.tensor(PAIRS).T)
    Interactions(queries, items, **SIZES)
    assert list(zip(queries.tolist(), items.tolist(), strict=True)) == PAIRS


def test_repr() -> None:
    assert repr(_make()) == "Interactions(num_queries=5, num_items=6, pairs=6, device='cpu')"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"query_ids": [0, 1, 2, 7]}, IndexError, r"query_ids must be in \[0, 5\), got 7 at position 3"),
        ({"query_ids": [0, -1, 9, 0]}, IndexError, r"query_ids must be in \[0, 5\), got -1 at position 1"),
        ({"item_ids": [0, 0, 6, 0]}, IndexError, r"item_ids must be in \[0, 6\), got 6 at position 2"),
        ({"item_ids": torch.tensor([0, 0, 0, 2**40])}, IndexError, rf"item_ids .* got {2**40} at position 3"),
        ({"item_ids": np.array([2**64 - 1, 0, 0, 0], np.uint64)}, IndexError, rf"got {2**64 - 1} at position 0"),
        ({"query_ids": [0.0, 1.0, 2.0, 3.0]}, TypeError, r"query_ids must hold integers, got float64"),
        ({"query_ids": torch.zeros(4)}, TypeError, r"query_ids must hold integers, got float32"),
        ({"query_ids": torch.zeros(4, dtype=torch.bool)}, TypeError, r"query_ids must hold integers, got bool"),
        ({"item_ids": [True, False, True, True]}, TypeError, r"item_ids must hold integers, got bool"),
        ({"item_ids": np.empty(0)}, TypeError, r"item_ids must hold integers, got float64"),
        ({"item_ids": torch.empty(0)}, TypeError, r"item_ids must hold integers, got float32"),
        ({"item_ids": ["a", "b", "c", "d"]}, TypeError, r"item_ids must hold integers, got strings: .*unique"),
        ({"item_ids": None}, TypeError, r"item_ids must hold integers, got object"),
        ({"item_ids": [0, 1, 2]}, ValueError, r"item_ids must have the length of query_ids, 4, got 3"),
        ({"item_ids": [[0, 1, 2, 3]]}, ValueError, r"item_ids must have shape \[P\], got \(1, 4\)"),
        ({"item_ids": [[0, 1], [2]]}, ValueError, r"item_ids must have shape \[P\], got sequences of different"),
        ({"query_ids": torch.tensor(1)}, ValueError, r"query_ids must have shape \[P\], got \(\)"),
        ({"query_ids": 1}, ValueError, r"query_ids must have shape \[P\], got \(\)"),
        (
            {"item_ids": torch.zeros(4, dtype=torch.int64, device=META)},
            ValueError,
            r"item_ids must be on the device of query_ids, cpu, got meta",
        ),
        ({"num_queries": 0}, ValueError, r"num_queries must be ≥ 1, got 0"),
        ({"num_items": -3}, ValueError, r"num_items must be ≥ 1, got -3"),
        ({"num_items": 2**31}, ValueError, r"num_items must be at most 2\*\*31 - 1, got 2147483648"),
        ({"num_queries": 2**61}, ValueError, rf"num_queries \* num_items .*2\*\*63, got {2**61} \* 6"),
        ({"num_queries": True}, TypeError, r"num_queries must be an integer ≥ 1, got bool"),
        ({"num_items": 6.0}, TypeError, r"num_items must be an integer ≥ 1, got float"),
        ({"num_items": None}, TypeError, r"num_items must be an integer ≥ 1, got NoneType"),
    ],
)
def test_bad_pairs(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Interactions(**({"query_ids": [0, 1, 2, 3], "item_ids": [0, 1, 2, 3]} | SIZES | arguments))


# ---- scipy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "matrix"])
@pytest.mark.parametrize("form", ["coo", "csr", "csc", "lil", "dok", "bsr", "dia"])
@pytest.mark.parametrize("dtype", ["bool", "int8", "float64"])
def test_from_scipy(form: str, kind: str, dtype: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.zeros(tuple(SIZES.values()))
    for n, (q, i) in enumerate(PAIRS):
        dense[q, i] = n - 20
    matrix = getattr(sparse, f"{form}_{kind}")(dense.astype(dtype))
    before = matrix.toarray()
    _assert_holds(Interactions.from_scipy(matrix), PAIRS, **SIZES)
    assert (matrix.toarray() == before).all()


def test_stored_zeros_are_no_interactions() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.csr_array(([1.0, 0.0, math.nan, 0.0], [2, 1, 0, 3], [0, 2, 2, 4]), shape=(3, 4))
    _assert_holds(Interactions.from_scipy(matrix), [(0, 2), (2, 0)], 3, 4)
    assert matrix.nnz == 4 and matrix.indices.tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize("form", ["coo_array", "csr_array"])
def test_entries_at_one_position_are_one(form: str) -> None:
    """In every format: 2 − 1 is an interaction, 1 − 1 is a zero."""
    sparse = pytest.importorskip("scipy.sparse")
    values = [2, -1, 1, -1]
    places = ([0, 0, 1, 1], [3, 3, 2, 2]) if form == "coo_array" else ([3, 3, 2, 2], [0, 2, 4])
    data = (values, places) if form == "coo_array" else (values, *places)
    _assert_holds(Interactions.from_scipy(getattr(sparse, form)(data, shape=(2, 4))), [(0, 3)], 2, 4)


def test_bad_matrices() -> None:
    for bad in (np.eye(3), torch.eye(3), [[1]], None):
        with pytest.raises(TypeError, match=rf"matrix must be a scipy.sparse .*, got {type(bad).__name__}"):
            Interactions.from_scipy(bad)
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ValueError, match=r"matrix must have shape \[num_queries, num_items\], got \(3,\)"):
        Interactions.from_scipy(sparse.coo_array(np.array([1, 0, 2])))
    with pytest.raises(ValueError, match="num_queries must be ≥ 1, got 0"):
        Interactions.from_scipy(sparse.csr_array((0, 4)))


# ---- files -------------------------------------------------------------------------------------------------


def _file(folder: Path, content: str | bytes, name: str = "pairs.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "blank": " ", "blanks": "   ", "comma-blank": ", "}


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("header", [None, "query{s}item", "# 5 queries"])
@pytest.mark.parametrize("separator", SEPARATORS.values(), ids=SEPARATORS.keys())
def test_files(tmp_path: Path, separator: str, header: str | None, end: str) -> None:
    lines = [] if header is None else [header.format(s=separator)]
    lines += [f"{q}{separator}{i}" for q, i in PAIRS]
    for content in (end.join(lines), end.join(lines) + end, end * 2 + f"{end}   {end}".join(lines) + end * 3):
        path = _file(tmp_path, content)
        _assert_holds(Interactions.from_file(path), PAIRS, 5, 5)
        _assert_holds(Interactions.from_file(str(path), num_queries=9, num_items=7), PAIRS, 9, 7)


@pytest.mark.parametrize("separator", SEPARATORS.values(), ids=SEPARATORS.keys())
def test_further_columns_are_ignored_where_the_two_are_known(tmp_path: Path, separator: str) -> None:
    """By their numbers or by a header; with anything in the others."""
    lines = [separator.join(map(str, (q, i, "three", "#1"))) for q, i in PAIRS]
    path = _file(tmp_path, "\n".join(lines))
    with pytest.raises(ValueError, match="expected a header, .* or the numbers .* got 4 columns by .* without"):
        Interactions.from_file(path)
    _assert_holds(Interactions.from_file(path, user_column=0, item_column=1), PAIRS, 5, 5)
    path = _file(tmp_path, "\n".join([separator.join(("user", "item", "stars", "note")), *lines]))
    _assert_holds(Interactions.from_file(path), PAIRS, 5, 5)


def test_a_byte_order_mark_is_no_header(tmp_path: Path) -> None:
    _assert_holds(Interactions.from_file(_file(tmp_path, b"\xef\xbb\xbf1,2\n0,1\n")), [(1, 2), (0, 1)], 2, 3)


def test_a_single_pair(tmp_path: Path) -> None:
    _assert_holds(Interactions.from_file(_file(tmp_path, "2 1")), [(2, 1)], 3, 2)


@pytest.mark.parametrize("content", ["", "\n \n", "query,item\n"])
def test_an_empty_file(tmp_path: Path, content: str) -> None:
    path = _file(tmp_path, content)
    _assert_holds(Interactions.from_file(path, **SIZES), [], **SIZES)
    for sizes in ({}, {"num_queries": 5}, {"num_items": 6}):
        with pytest.raises(ValueError, match=r"pairs.txt: expected .*num_queries and num_items.*got (an empty|0 pos)"):
            Interactions.from_file(path, **sizes)


@pytest.mark.parametrize(
    ("bad", "separator"),
    [
        ("3", ","),
        ("3,", ","),
        (",3", ","),
        ("3;4", ","),
        ("3\t4", ","),
        ("3,4", "\t"),
        ("\t3\t4", "\t"),
        ("3\t\t4", "\t"),
        ("a,4", ","),
        ("4,a", ","),
        ("3 4 5", ","),
        ("3,4", " "),
        ("3 four", " "),
        ("1.0,4", ","),
        ("4,1.5", ","),
        ("1e3,4", ","),
        ("nan,4", ","),
        ("1_0,4", ","),
        ("0x1,4", ","),
        ("-1,4", ","),
        ("4,-2", ","),
        ("- 1,4", ","),
        (f"{2**63},4", ","),
        ('"3","4', ","),
        ('"3"4,5', ","),
        ("query,item", ","),
        ("# 3,4", ","),
    ],
)
def test_bad_lines(tmp_path: Path, bad: str, separator: str) -> None:
    """Named wherever they stand: first after a header or blank lines, in the midst, last; never skipped."""
    good, header = f"1{separator}2", f"query{separator}item"
    for lines in ([good, bad, good], [header, "", good, good, "", bad]):
        number = len(lines) - lines[::-1].index(bad) if bad == header else lines.index(bad) + 1
        path = _file(tmp_path, "\n".join(lines))
        with pytest.raises((ValueError, IndexError)) as caught:
            Interactions.from_file(path, num_queries=10, num_items=10)
        if '"' not in bad:  # where the field ends shows only at the end of the file
            assert str(caught.value).startswith(f"{path}, line {number}: ")


@pytest.mark.parametrize("bad", ["a,4", "4,a", "3.0,4", "1e3,4", "nan,4", "- 1,4", "-1,4", f"{2**63},4", "# 3,4"])
def test_one_id_that_is_no_integer_does_not_renumber_the_others(tmp_path: Path, bad: str) -> None:
    path = _file(tmp_path, f"1,2\n{bad}\n2,2\n")
    message = r"pairs.txt, line 2: expected an integer from 0 as .* give renumber=True, got"
    with pytest.raises(ValueError, match=message):
        Interactions.from_file(path)
    assert len(Interactions.from_file(path, renumber=True)) == 3


@pytest.mark.parametrize("first", ["1.5,2", "-1,2", "7", "7:8"])
def test_a_bad_first_line_is_no_header(tmp_path: Path, first: str) -> None:
    with pytest.raises(ValueError, match=r"pairs.txt, line 1: expected"):
        Interactions.from_file(_file(tmp_path, f"{first}\n1,2\n"))


def test_only_one_header(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs.txt, line 2: .* got 'a'"):
        Interactions.from_file(_file(tmp_path, "query,item\na,b\n1,2\n2,2\n"))


def test_a_long_bad_line_is_cut(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 2: .*x\.\.\.'$"):
        Interactions.from_file(_file(tmp_path, "1,2\n" + "x" * 100_000))


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.tsv"):
        Interactions.from_file(tmp_path / "nothing.tsv")
    with pytest.raises(ValueError, match=r"pairs.txt, line 2: expected UTF-8 text; .*latin-1, got the byte 0xff"):
        Interactions.from_file(_file(tmp_path, b"1,2\n3,\xff\xfe\n"))


def test_ids_of_a_file_out_of_range(tmp_path: Path) -> None:
    path = _file(tmp_path, "0,1\n3,2\n1,5\n")
    with pytest.raises(IndexError, match=r"query_ids must be in \[0, 3\), got 3 at position 1"):
        Interactions.from_file(path, num_queries=3)
    with pytest.raises(IndexError, match=r"item_ids must be in \[0, 5\), got 5 at position 2"):
        Interactions.from_file(path, num_items=5)


@pytest.mark.parametrize("form", ["csr_array", "coo_matrix"])
def test_npz(tmp_path: Path, form: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    dense = np.zeros(tuple(SIZES.values()))
    dense[tuple(zip(*PAIRS, strict=True))] = 1
    path = tmp_path / "pairs.npz"
    sparse.save_npz(path, getattr(sparse, form)(dense))
    _assert_holds(Interactions.from_file(path), PAIRS, **SIZES)
    _assert_holds(Interactions.from_file(path, num_queries=8), PAIRS, 8, 6)
    with pytest.raises(IndexError, match=r"item_ids must be in \[0, 4\), got 4"):
        Interactions.from_file(path, num_items=4)


def test_bad_npz(tmp_path: Path) -> None:
    pytest.importorskip("scipy.sparse")
    with pytest.raises(FileNotFoundError, match="nothing.npz"):
        Interactions.from_file(tmp_path / "nothing.npz")
    path = tmp_path / "other.npz"
    np.savez(path, x=np.zeros(3))
    for _ in ("another archive", "no archive", "empty"):
        with pytest.raises(ValueError, match=r"other.npz: expected an .npz that scipy.sparse.save_npz wrote"):
            Interactions.from_file(path)
        path.write_text("1,2\n" if path.stat().st_size > 10 else "")


def test_npz_without_scipy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match="pairs.npz: reading an .npz needs scipy"):
        Interactions.from_file(tmp_path / "pairs.npz")


# ---- copies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied",
    [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy, copy.copy, saved_and_loaded],
    ids=["pickle", "deepcopy", "copy", "torch.save"],
)
def test_copies(device: torch.device, copied: Any) -> None:
    original = _make().to(device)
    table = original.popularity(0.5)
    other = copied(original)
    _assert_holds(other, PAIRS, **SIZES)
    assert other is not original and other != original and other.device == original.device
    assert other.popularity(0.5) is not table
    assert all(torch.equal(a, b) for a, b in zip(other.popularity(0.5)[:5], table[:5], strict=True))
    assert original.popularity(0.5) is table


def test_tables_are_not_pickled() -> None:
    made = _make()
    before = len(pickle.dumps(made))
    made.popularity(1.0)
    assert len(pickle.dumps(made)) == before


def test_to(device: torch.device) -> None:
    original = _make()
    table = original.popularity(1.0)
    there = original.to(device)
    _assert_holds(there, PAIRS, **SIZES)
    assert there.device.type == device.type
    assert {t.device for t in (there.starts, there.items, there.item_counts)} == {there.device}
    assert (there is original) == (device.type == "cpu")
    assert there.to(device) is there and there.to(str(device)) is there
    moved = there.popularity(1.0)
    assert all(a.device == there.device and torch.equal(a.cpu(), b) for a, b in zip(moved[:5], table[:5], strict=True))
    _assert_holds(original, PAIRS, **SIZES)
    assert original.device.type == "cpu" and original.popularity(1.0) is table


def test_to_another_device_moves_everything() -> None:
    original = _make()
    there = original.to("meta")
    assert there is not original
    assert {t.device for t in (there.starts, there.items, there.item_counts)} == {META} and there.device == META
    _assert_holds(original, PAIRS, **SIZES)


# ---- popularity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0, 0.5, 0.75, 1, 3.0, np.float32(0.5)])
def test_popularity(device: torch.device, exponent: float) -> None:
    made = _make().to(device)
    counts = [2, 0, 1, 0, 3, 0]  # PAIRS, counted by hand
    weights = [c ** float(exponent) if c else 0.0 for c in counts]
    table = made.popularity(exponent)
    assert table.masses.tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-14)
    assert table.masses.device == made.device
    assert made.popularity(float(exponent)) is table
    assert made.popularity(float(exponent) + 1) is not table


@pytest.mark.parametrize("exponent", [1e3, 1e300])
def test_an_item_that_occurs_has_a_mass_whatever_the_exponent(exponent: float) -> None:
    table = _make().popularity(exponent)
    assert (table.masses > 0).tolist() == [True, False, True, False, True, False]
    assert table.masses[4].item() == pytest.approx(1) and table.log_weights.isfinite().all()


@pytest.mark.parametrize(
    ("exponent", "error", "message"),
    [
        (-0.5, ValueError, r"exponent must be a number ≥ 0, got -0.5"),
        (math.nan, ValueError, r"exponent must be a number ≥ 0, got nan"),
        (math.inf, ValueError, r"exponent must be a number ≥ 0, got inf"),
        (True, TypeError, r"exponent must be a number ≥ 0, got bool"),
        ("1", TypeError, r"exponent must be a number ≥ 0, got str"),
        (None, TypeError, r"exponent must be a number ≥ 0, got NoneType"),
    ],
)
def test_bad_exponents(exponent: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _make().popularity(exponent)


def test_no_popularity_without_interactions() -> None:
    empty = _make([])
    query_ids = torch.tensor([0])
    for call in (lambda: empty.popularity(1.0), lambda: empty.check_has_negatives(query_ids, "popularity")):
        with pytest.raises(ValueError, match="no item occurs in any interaction, so none can be drawn by popularity"):
            call()
    empty.check_has_negatives(query_ids, "uniform")


# ---- queries without negatives -----------------------------------------------------------------------------

# 1 and 3 know all of four items, 2 all but one.
EVERYTHING = [(q, i) for q in (1, 3) for i in range(4)] + [(2, 0), (2, 1), (2, 3)]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_queries_that_know_everything(device: torch.device, dtype: torch.dtype) -> None:
    made = _make(EVERYTHING, num_items=4).to(device)
    for distribution, items in (("uniform", "all 4 items"), ("popularity", "all 4 items that occur")):
        made.check_has_negatives(torch.tensor([0, 2, 4, 2], device=device, dtype=dtype), distribution)
        made.check_has_negatives(torch.tensor([], device=device, dtype=dtype), distribution)
        bad = torch.tensor([[0, 2], [3, 1]], device=device, dtype=dtype)
        message = rf"query_ids: query 3 has {items} as known positives, so no negative can be drawn for it"
        with pytest.raises(ValueError, match=message):
            made.check_has_negatives(bad, distribution)


def test_queries_that_know_everything_that_occurs(device: torch.device) -> None:
    made = _make(EVERYTHING, num_items=6).to(device)
    bad = torch.tensor([0, 1, 3], device=device)
    made.check_has_negatives(bad, "uniform")
    with pytest.raises(ValueError, match="query_ids: query 1 has all 4 items that occur as known positives"):
        made.check_has_negatives(bad, "popularity")
    made.check_has_negatives(bad[:1], "popularity")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30),
    num_items=st.integers(4, 5),
    queries=st.lists(st.integers(0, 3), max_size=4),
)
def test_random_queries_have_negatives_or_not(pairs: list[tuple[int, int]], num_items: int, queries: list[int]) -> None:
    made = _make(pairs, num_queries=4, num_items=num_items)
    for distribution, drawable in (("uniform", set(range(num_items))), ("popularity", {i for _, i in pairs})):
        without = [q for q in queries if not drawable - {i for p, i in pairs if p == q}]
        ids = torch.tensor(queries, dtype=torch.int64)
        if without:
            with pytest.raises(ValueError, match=f"query {without[0]} has all {len(drawable)} items"):
                made.check_has_negatives(ids, distribution)
        else:
            made.check_has_negatives(ids, distribution)


def test_the_batch_is_not_looked_at_where_every_query_has_negatives() -> None:
    """On the meta device there are no values, and asking for one is an error."""
    batch = torch.zeros(3, dtype=torch.int64, device=META)
    made = _make().to(META)
    made.check_has_negatives(batch, "uniform")
    with pytest.raises(RuntimeError, match="(?i)meta"):
        _make(EVERYTHING, num_items=4).to(META).check_has_negatives(batch, "uniform")


def test_an_unknown_distribution() -> None:
    with pytest.raises(ValueError, match="distribution must be one of 'uniform', 'popularity', got 'popular'"):
        _make().check_has_negatives(torch.tensor([0]), "popular")

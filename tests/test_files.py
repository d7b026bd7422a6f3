"""The reader of interactions: each kind of file against pairs written down or counted here, and what it refuses."""

from __future__ import annotations

import bz2
import copy
import csv
import gzip
import io
import json
import logging
import lzma
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cw_ext import Interactions, draw_negatives
from cw_ext.files import InteractionTable, Reading, blocks, read_interactions, text

Pair = tuple[Any, Any]


def _write(folder: Path, content: str | bytes, name: str = "file.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _table_pairs(table: InteractionTable) -> list[Pair]:
    return list(zip(table.users.of_rows.tolist(), table.items.of_rows.tolist(), strict=True))


def _read(path: Path, **reading: Any) -> list[Pair]:
    """Every interaction, in the file's own ids and in its order."""
    return _table_pairs(read_interactions(path, Reading(**reading)))


def _known(known: Interactions) -> set[Pair]:
    """The pairs of a CSR, in the file's own ids."""
    queries = torch.arange(known.num_queries).repeat_interleave(known.starts.diff()).numpy()
    items = known.items.numpy()
    if known.query_labels is not None:
        queries = known.query_labels[queries]
    if known.item_labels is not None:
        items = known.item_labels[items]
    return set(zip(queries.tolist(), items.tolist(), strict=True))


# --- what users met ---


def test_lightgcn_lists_hold_all_their_pairs(tmp_path: Path) -> None:
    path = _write(tmp_path, "0 1 2 3\n1 2 4\n2 5\n")
    known = Interactions.from_file(path)
    assert (len(known), known.num_queries, known.num_items) == (6, 3, 6)
    assert _known(known) == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 4), (2, 5)}
    assert known.query_labels is None and known.item_labels is None
    drawn = draw_negatives(torch.tensor([0]), known, 400, seed=0).unique()
    assert drawn.tolist() == [0, 4, 5]


def test_labels_of_zero_are_no_positives(tmp_path: Path) -> None:
    content = "user_id:token\titem_id:token\tlabel:float\nu\tx\t1\nu\ty\t0\nv\tx\t1\nv\ty\t0\n"
    table = read_interactions(_write(tmp_path, content, "b.inter"))
    assert _table_pairs(table) == [("u", "x"), ("v", "x")]
    assert table.summary == (
        "2 positives of 2 users and 1 items: columns user_id, item_id; label = 1 kept, 2 rows left out"
    )


def test_check_ins_of_snap(tmp_path: Path) -> None:
    content = "".join(f"{u}\t2010-10-1{d}T2{u}:00:00Z\t30.2\t-97.7\t{d}\n" for u in (0, 1) for d in (7, 8))
    path = _write(tmp_path, content + "1\t2010-10-12T21:00:00Z\t0.0\t0.0\t\n")
    assert set(_read(path)) == {(0, 7), (0, 8), (1, 7), (1, 8)}
    assert "columns 0, 4 of SNAP check-ins; 1 rows without an item left out" in Interactions.from_file(path).source
    with pytest.raises(ValueError, match="5 columns by tabs without a header"):
        Interactions.from_file(_write(tmp_path, content.replace("T", " ")))
    assert len(Interactions.from_file(tmp_path / "file.txt", user_column=0, item_column=4)) == 4


def test_movielens_and_book_crossing(tmp_path: Path) -> None:
    path = _write(tmp_path, "1::10::5::978300760\n1::11::3::978302109\n2::10::4::978301968\n2::12::2::978301968\n")
    assert _read(path) == [(1, 10), (1, 11), (2, 10), (2, 12)]
    assert _read(path, min_rating=4) == [(1, 10), (2, 10)]
    path = _write(tmp_path, "1\t10\t5\t978300760\n1\t11\t2\t978302109\n")
    assert _read(path, min_rating=3) == [(1, 10)]
    plays = _write(tmp_path, "1\t10\t5\t978300760\n" * 200 + "1\t11\t6\t978302109\n")
    with pytest.raises(ValueError, match="line 201: expected a MovieLens rating of at most 5; .*, got '6'"):
        _read(plays, min_rating=3)
    assert _read(plays, user_column=0, item_column=1) == [(1, 10)] * 200 + [(1, 11)]
    with pytest.raises(
        ValueError, match=r"expected a column of ratings for min_rating \(--min-rating\), got 4 columns"
    ):
        _read(plays, user_column=0, item_column=1, min_rating=1)
    path = _write(tmp_path, "1\t10\t5\t978300760\n1\t11\t2\t978302109\n")
    books = (
        '"User-ID";"ISBN";"Book-Rating"\n"276725";"034545104X";"0"\n"276726";"0155061224";"5"\n"276726";"é;""1";"7"\n'
    )
    path = _write(tmp_path, books.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"file.txt, line 4: expected UTF-8 text; .*encoding \(--encoding\), such as lat"
    ):
        Interactions.from_file(path)
    expected = [(276725, "034545104X"), (276726, "0155061224"), (276726, 'é;"1')]
    assert _read(path, encoding="latin-1") == expected
    assert _read(path, encoding="latin-1", min_rating=1) == expected[1:]
    known = Interactions.from_file(path, encoding="latin-1")
    assert _known(known) == set(expected)


def test_ids_with_gaps_make_a_compact_table(tmp_path: Path) -> None:
    path = _write(tmp_path, "0 2000000000\n2000000000 0\n5 7\n")
    known = Interactions.from_file(path)
    assert (known.num_queries, known.num_items) == (3, 3)
    assert known.query_labels.tolist() == [0, 5, 2 * 10**9] and known.item_labels.tolist() == [0, 7, 2 * 10**9]
    assert _known(known) == {(0, 2 * 10**9), (2 * 10**9, 0), (5, 7)}


# --- kinds of files ---

PAIRS = [("u1", "i 9"), ("u2", "i3"), ("u1", "i3"), ("ü", "☂")]
HEADERS = [
    ("user_id", "item_id"),
    ("userId", "movieId"),
    ("USERID", "ASIN"),
    ("user_procid", "item_procid"),
    ("customer", "sku"),
    ("Customer ID", "StockCode"),
    ("reviewerID", "asin"),
    ("user_id", "parent_asin"),
    ("visitorid", "itemid"),
    ("session_id", "item_id"),
    ("uid", "iid"),
    ("user", "business_id"),
    ("userID", "artistID"),
    ("users", "track_id"),
    ("user_id:token", "item_id:token"),
    ("User-ID", "ISBN"),
    ("user", "location_id"),
    ("msg.user_id", "news_id"),
]


@pytest.mark.parametrize("header", HEADERS[:-1], ids=" ".join)
@pytest.mark.parametrize("separator", ["\t", ",", ";", "|"], ids=["tab", "comma", "semicolon", "bar"])
def test_columns_are_found_by_name_whatever_their_order(
    tmp_path: Path, header: tuple[str, str], separator: str
) -> None:
    noise = ("time:float", "note:token") if ":" in header[0] else ("timestamp", "note")
    for order in ((0, 1, 2, 3), (3, 1, 2, 0), (1, 0, 3, 2)):
        lines = [separator.join([(*header, *noise)[k] for k in order])]
        lines += [separator.join([(*pair, "7", "x")[k] for k in order]) for pair in PAIRS]
        assert _read(_write(tmp_path, "\n".join(lines))) == PAIRS


def test_more_than_one_column_of_a_name(tmp_path: Path) -> None:
    for line, got in (("user,movie,track", "movie and track"), ("customer,client,item", "customer and client")):
        path = _write(tmp_path, f"{line}\n1,2,3\n")
        with pytest.raises(ValueError, match=rf"line 1: expected one column of .*_column.*, got {got}$"):
            _read(path)
    assert _read(path, user_column="Client") == [(2, 3)]
    assert _read(_write(tmp_path, "user,asin,parent_asin\na,b,c\n")) == [("a", "c")]
    assert _read(_write(tmp_path, "session_id,user_id,item\n1,2,3\n")) == [(2, 3)]


@pytest.mark.parametrize(
    ("content", "reading", "complaint"),
    [
        (
            "kunde,artikel\n1,2\n",
            {},
            "line 1: expected a column of users with a common name .* got columns kunde, artikel",
        ),
        ("kunde,artikel\nk1,a2\n", {}, "line 1: expected a column of users .* got columns kunde, artikel"),
        (
            "user,artikel\n1,2\n",
            {},
            r"expected a column of items .* as item_column \(--item-column\), got columns user, a",
        ),
        ("user,x\n1,2\n", {"item_column": "y"}, r"expected one column 'y' for item_column .*, got columns user, x"),
        ("1,2\n3,4\n", {"item_column": "y"}, "got a table without header"),
        ("1,2,3\n", {"user_column": 0, "item_column": 3}, "expected a column with the number 3 .*, got 3 columns"),
        ("1,2,3\n", {"user_column": 1, "item_column": 1}, "expected different columns for user and item, got column 1"),
        ("1,2,3\n", {"user_column": 1}, "got 3 columns by (commas|blanks) without a header"),
        (
            "user,item\n1,2\n",
            {"min_rating": 3},
            r"expected a column of ratings for min_rating .* got columns user, item",
        ),
        ("1 2 3\n2 4\n", {"min_rating": 3}, r"min_rating \(--min-rating\) does not apply to LightGCN lists"),
        ("1 2 3\n2 4\n", {"format": "lightgcn", "item_column": 1}, "item_column .* does not apply to LightGCN lists"),
        ('{"user": 1, "item": 2}\n', {"format": "table"}, r"format \(--format\) does not apply to JSON lines"),
        ('{"user": 1, "thing": 2}\n', {}, "line 1: expected a column of items .*, got columns user, thing"),
        ('{"user": 1, "item": 2}\n\n{"user": 1,\n', {}, "line 3: expected a JSON object per line, got '{\"user\": 1,'"),
        ('[{"user": 1}]\n', {}, "line 1: expected a JSON object per line"),
        ("user,item,rating\n1,2,3\n1,3,good\n", {"min_rating": 1}, "line 3: expected a number as rating, got 'good'"),
        ("user,item,label\n1,2,1\n1,3,\n", {}, "line 3: expected a number as label, got ''"),
        ("user,item,split\n1,2,train\n1,3,tset\n", {}, "line 3: expected train, valid or test as split, got 'tset'"),
        ("user,item\n1,2\n\n ,3\n", {}, "line 4: expected a user id and an item id that are not empty, got no user id"),
        (
            "user,item,x\n1,2,3\n4,5\n",
            {},
            r"line 3: expected 3 columns separated by commas.*\(this line has 2\), got '4,5'",
        ),
        ('user,item\n"1","2"\n"3"\n', {}, r"line 3: expected 2 columns .*\(this line has 1\), got '3'"),
        ('user,item\n"1"x,2\n', {}, "line 2: expected fields separated by commas, quoted or not, got"),
        ("1\t2 3 4\n2\t5\n", {}, r"line 1: expected one item per line; .* format \(--format\) lightgcn, got '2 3 4'"),
        (
            "1 2 3\n2 4 5\n",
            {},
            r"expected a table or LightGCN lists; choose with format \(--format\) table or lightgcn, got 3",
        ),
        ("1 2\n2\n3 4\n", {}, "expected a table or LightGCN lists; .*got 1 to 2 integers per line"),
        ("1 2 3\n1 4 5\n", {}, "got 3 columns by (commas|blanks) without a header"),
        ("1 2\n1 3\n2\n", {}, r"line 3: expected 2 columns separated by blanks.*\(this line has 1\)"),
        (b"PK\x03\x04rest", {}, "expected text, plain or compressed .*, got a zip archive"),
        # Without the time, which would be a part of the test's name, and differ from process to process.
        (gzip.compress(b"1,2\n" * 1000, mtime=0)[:-20], {}, "expected a whole compressed file, got"),
        (b"PAR1rest", {}, "expected a whole parquet file, got"),
        ("1,2\n3,4\n".encode("utf-16"), {}, r"line 1: expected UTF-8 text; .*\(--encoding\)"),
        (b"1,2\n\x813,4\n", {"encoding": "cp1252"}, "line 2: expected CP1252 text, got the byte 0x"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, content: str | bytes, reading: dict[str, Any], complaint: str
) -> None:
    path = _write(tmp_path, content)
    with pytest.raises(ValueError, match=complaint) as caught:
        Interactions.from_file(path, **reading)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reading", "error", "complaint"),
    [
        ({"user_column": -1}, ValueError, "user_column must be a column's name or a number from 0, got -1"),
        ({"item_column": 1.0}, TypeError, "item_column must be a column's name or number, got float"),
        ({"format": "csv"}, ValueError, "format must be one of 'table', 'lightgcn', got 'csv'"),
        ({"encoding": "latin-99"}, ValueError, "encoding must be the name of a text encoding, .* got 'latin-99'"),
        ({"encoding": "base64"}, ValueError, "encoding must be the name of a text encoding"),
        ({"encoding": 3}, TypeError, "encoding must be the name of an encoding, got int"),
        ({"min_rating": "3"}, TypeError, "min_rating must be a number, got str"),
        ({"min_rating": float("nan")}, ValueError, "min_rating must be a finite number, got nan"),
        ({"renumber": 1}, TypeError, "renumber must be True, False or None, got int"),
        ({"renumber": True, "num_items": 9}, ValueError, "num_items must not be given with renumber=True"),
    ],
)
def test_arguments_are_checked(tmp_path: Path, reading: dict[str, Any], error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        Interactions.from_file(_write(tmp_path, "1,2\n"), **reading)


def test_switches_that_do_not_apply(tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    pl.DataFrame({"user": [1], "item": [2]}).write_parquet(path)
    with pytest.raises(ValueError, match=r"encoding \(--encoding\) does not apply to a parquet file"):
        Interactions.from_file(path, encoding="latin-1")
    sparse = pytest.importorskip("scipy.sparse")
    sparse.save_npz(tmp_path / "file.npz", sparse.eye(3).tocsr())
    with pytest.raises(ValueError, match=r"user_column \(--user-column\) does not apply to an .npz"):
        Interactions.from_file(tmp_path / "file.npz", user_column=0)
    with pytest.raises(ValueError, match=r"rating_column .* has no effect without min_rating \(--min-rating\)"):
        Interactions.from_file(_write(tmp_path, "user,item,n\n1,2,3\n", "rated.csv"), rating_column="n")


def test_ratings_that_are_all_too_low(tmp_path: Path) -> None:
    path = _write(tmp_path, "user,item,rating\n1,2,0.5\n1,3,1\n")
    with pytest.raises(ValueError, match=r"2 rows left out; lower min_rating \(--min-rating\)"):
        Interactions.from_file(path, min_rating=2)


def test_behaviors_of_mind(tmp_path: Path) -> None:
    content = (
        "1\tU13740\t11/11/2019 9:05:58 AM\tN55189 N42782\tN55689-1 N35729-0\n"
        "2\tU91836\t11/12/2019 6:11:30 PM\t\tN20678-0 N39317-0 N58114-1 N-1-1\n"
    )
    content += content.splitlines()[0].replace("N55689-1", "N1-1") + "\n"
    table = read_interactions(_write(tmp_path, content, "behaviors.tsv"))
    expected = {("U13740", item) for item in ("N55189", "N42782", "N55689", "N1")}
    expected |= {("U91836", item) for item in ("N58114", "N-1")}
    assert set(_table_pairs(table)) == expected and len(table.lines) == 6
    assert table.summary.endswith("(MIND); label = 1 kept, 4 rows left out")
    bad = _write(tmp_path, content * 60 + content.replace("-1", ""))
    with pytest.raises(ValueError, match=r"line 181: expected impressions with a label, such as N1-0.*, got 'N55689'"):
        read_interactions(bad)


def test_json_lines(tmp_path: Path) -> None:
    records = [
        {"review_id": "r", "user_id": "a", "business_id": "b", "stars": 4.0, "text": 'x "y", z\n'},
        {"stars": 2, "user_id": 12, "text": None, "business_id": "☂"},
    ]
    path = _write(tmp_path, "".join(json.dumps(record) + "\n\n" for record in records), "review.json")
    assert _read(path) == [("a", "b"), ("12", "☂")]
    assert _read(path, min_rating=3) == [("a", "b")]
    amazon = [("A1", "0001", 5.0), ("A1", "B0", 1.0), ("A2", "0001", 4.0)]
    lines = [json.dumps({"reviewerID": user, "asin": item, "overall": rating}) for user, item, rating in amazon]
    path = _write(tmp_path, "\n".join(lines))
    assert _read(path, min_rating=0) == [(user, item) for user, item, _ in amazon]
    path = _write(tmp_path, '{"user": 1, "item": 2}\n{"user": 1}\n')
    with pytest.raises(
        ValueError, match="line 2: expected a user id and an item id that are not empty, got no item id"
    ):
        _read(path)


def test_json_keys_that_the_first_record_lacks(tmp_path: Path) -> None:
    for key, expected, reading in (
        ("split", "train, valid or test as split", {}),
        ("label", "a number as label", {}),
        ("stars", "a number as rating", {"min_rating": 3}),
    ):
        lines = ['{"item": "x", "user": "a"}\n'] * 999 + [json.dumps({key: 1, "user": "a", "item": "y"})]
        with pytest.raises(ValueError, match=f"line 1: expected {expected}, got ''"):
            _read(_write(tmp_path, "".join(lines)), **reading)
    path = _write(tmp_path, '{"user": "a", "item": "x", "other": 1}\n{"overall": 2, "user": "a", "item": "y"}\n')
    with pytest.raises(ValueError, match="line 1: expected a number as rating, got ''"):
        _read(path, min_rating=1)


@pytest.mark.parametrize("value", [{"$oid": "u2"}, ["u2"], True, False])
@pytest.mark.parametrize("role", ["user", "item"])
def test_json_ids_are_strings_or_numbers(tmp_path: Path, value: object, role: str) -> None:
    good = [{"user": word, "item": word} for word in ("[u]", "{}", "true", "false")]
    lines = [json.dumps(record) + "\n" for record in good]
    path = _write(tmp_path, "".join(lines))
    assert _read(path) == [(word, word) for word in ("[u]", "{}", "true", "false")]
    path = _write(tmp_path, "".join([*lines, json.dumps({"user": 1, "item": 2} | {role: value})]))
    with pytest.raises(ValueError, match=f"line 5: expected a string or a number as {role} id, got "):
        _read(path)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "file.pq"
    frame = pl.DataFrame(
        {"t": [1.5, 2.5, 3.5], "movieId": [7, 8, 9], "userId": ["a", "b", "b"], "liked": [True, False, True]},
        schema_overrides={"movieId": pl.UInt16, "userId": pl.Categorical},
    )
    frame.write_parquet(path)
    assert _read(path) == [("a", 7), ("b", 9)]
    frame.with_columns(movieId=pl.Series([1, None, 2])).write_parquet(path)
    with pytest.raises(ValueError, match="file.pq, row 2: expected a user id and an item id .*, got no item id"):
        _read(path, label_column="t")
    frame.with_columns(movieId=pl.Series([1.0, 2.0, 3.0])).write_parquet(path)
    with pytest.raises(ValueError, match="expected integers or strings as item ids, got the column type Float64"):
        _read(path)
    pl.DataFrame({"user": [" a", "a", "a "], "item": [1, 2, 3]}).write_parquet(path)
    assert _read(path) == [(" a", 1), ("a", 2), ("a ", 3)]
    pl.DataFrame({"user": [2**64 - 1, 5], "item": [1, 2]}, schema_overrides={"user": pl.UInt64}).write_parquet(path)
    assert _read(path) == [(str(2**64 - 1), 1), ("5", 2)]


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("packer", PACKERS)
def test_compressed_text(tmp_path: Path, packer: str) -> None:
    path = _write(tmp_path, PACKERS[packer](b"user,item\n1,2\n3,4\n"), f"orders.csv.{packer}")
    assert _read(path) == [(1, 2), (3, 4)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_BLOCK", 7)  # so that characters are cut
    path = _write(tmp_path, "user,item\nü,é\n\nß,é\n".encode(encoding))
    assert _read(path, encoding=encoding) == [("ü", "é"), ("ß", "é")]


def test_a_text_that_begins_as_a_compressed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """polars takes what begins with "x^" for zlib's, and makes something of it."""
    monkeypatch.setattr(text, "_BLOCK", 8)
    assert _read(_write(tmp_path, "x^2,7\n1x,2\nx^3,4\n")) == [("x^2", 7), ("1x", 2), ("x^3", 4)]


def test_labels_and_ratings_are_of_any_form(tmp_path: Path) -> None:
    content = "user,item,is_click,rating\n1,2,true,5\n1,3,FALSE,5\n1,4,1.0,nan\n1,5,-1,5\n1,6,3,2.5\n"
    path = _write(tmp_path, content)
    table = read_interactions(path)
    assert _table_pairs(table) == [(1, 2), (1, 4), (1, 6)]
    assert "label > 0 kept, 2 rows left out; every rating kept" in table.summary
    assert _read(path, min_rating=2.5) == [(1, 2), (1, 6)]


def test_comments_at_the_top(tmp_path: Path) -> None:
    assert _read(_write(tmp_path, "# Directed graph\n# From To\n0\t1\n2\t3\n")) == [(0, 1), (2, 3)]
    assert _read(_write(tmp_path, "#\nuser,item\n# 1,2\n")) == [("# 1", 2)]


def test_quotes_that_are_none(tmp_path: Path) -> None:
    """Only at the beginning of a field does a quote mean something; then the field may hold separators and lines."""
    content = 'user,item,title\n1,2,5" disc\n2,3,7" disc\n'
    assert _read(_write(tmp_path, content)) == [(1, 2), (2, 3)]
    content += '3,4,"a, b\n""c"\n5,6,x\n'
    assert _read(_write(tmp_path, content)) == [(1, 2), (2, 3), (3, 4), (5, 6)]
    assert _read(_write(tmp_path, '"user"\titem\n"a\tb\nc"\td"\n')) == [("a\tb\nc", 'd"')]
    content = 'user\tartist\tname\n1\ta\t"Weird Al" Yankovic\n2\t"b\t"c\n'  # without quotes in its first line
    assert _read(_write(tmp_path, content)) == [(1, "a"), (2, '"b')]


def test_the_separator_is_that_of_most_columns(tmp_path: Path) -> None:
    """Whatever else divides every line: decimal commas, bars in a name."""
    content = "u1;i1;0,5\nu2;i1;1,5\nu2;i2;2,5\n"
    path = _write(tmp_path, content)
    assert _read(path, user_column=0, item_column=1) == [("u1", "i1"), ("u2", "i1"), ("u2", "i2")]
    content = "u1,a;b,1\nu2,c;d,2\n"  # semicolons divide every line, too
    path = _write(tmp_path, content)
    assert _read(path, user_column=0, item_column=1) == [("u1", "a;b"), ("u2", "c;d")]
    assert _read(path, user_column=0, item_column=1, separator=";") == [("u1,a", "b,1"), ("u2,c", "d,2")]
    path = _write(tmp_path, "x;user,item;y\n1;2,3;4\n")  # semicolons give more, but no known name
    assert _read(path, item_column=0, user_column="user,item") == [("2,3", 1)]
    path = _write(tmp_path, "user,item|x|y\n1,2|3|4\n")
    assert _read(path, item_column="item|x|y") == [(1, "2|3|4")]


@pytest.mark.parametrize("separator", ["\t", ",", ";", "|", "::", "^", "~", "-"])
def test_a_separator_that_is_given(tmp_path: Path, separator: str) -> None:
    name = "tab" if separator == "\t" else separator
    content = "".join(separator.join((f"u{n}", f"i{n}", "x y")) + "\n" for n in range(3))
    for header in ("", separator.join(("user", "item", "z")) + "\n"):
        path = _write(tmp_path, header + content)
        chosen = {"separator": name} | ({} if header else {"user_column": 0, "item_column": 1})
        assert _read(path, **chosen) == [(f"u{n}", f"i{n}") for n in range(3)]
    quoted = content.replace("u1", f'"u{separator}1"') if separator != "::" else content
    quoted = quoted.replace("u0", '"u0"') if separator != "::" else quoted
    expected = [("u0", "i0"), (f"u{separator}1" if separator != "::" else "u1", "i1"), ("u2", "i2")]
    assert _read(_write(tmp_path, quoted), separator=name, user_column=0, item_column=1) == expected


def test_two_separators_of_as_many_columns(tmp_path: Path) -> None:
    path = _write(tmp_path, "1,2|3\n4,5|6\n")
    complaint = r"line 1: expected columns separated in one way; .* separator \(--separator\), got 2 columns by "
    with pytest.raises(ValueError, match=complaint + "commas or bars"):
        Interactions.from_file(path)
    assert _read(path, separator="|") == [("1,2", 3), ("4,5", 6)]
    path = _write(tmp_path, "1 5 0,5\n2 5 1,5\n")  # by commas the user would be "1 5 0"
    with pytest.raises(ValueError, match="line 1: expected a header, .* got 3 columns by blanks without a header"):
        _read(path)
    assert _read(path, user_column=0, item_column=1) == [(1, 5), (2, 5)]
    assert _read(path, separator=",") == [("1 5 0", 5), ("2 5 1", 5)]
    assert _read(path, separator="blanks", user_column=0, item_column=1) == [(1, 5), (2, 5)]
    assert read_interactions(path, Reading(separator="blanks", user_column=0, item_column=1)).summary.endswith(
        "columns 0, 1 of a table without header, separated by blanks"
    )
    with pytest.raises(ValueError, match="expected a user and an item, separated by semicolons, got '1 5 0,5'"):
        _read(path, separator=";")


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("kind", ["table", "lists", "json"])
def test_line_ends_of_old_macs_are_one_line(tmp_path: Path, quote: str, kind: str) -> None:
    lines = {
        "table": [f"{quote}user_id{quote},item_id", f"{quote}u1{quote},i1", "u2,i2"],
        "lists": ["0 1 2", "1 2", "2 0 1 2"],
        "json": ['{"user": 1, "item": 2}'] * 3,
    }[kind]
    path = _write(tmp_path, "\r".join(lines) + "\r")
    complaint = r"file.txt, line 1: expected lines that end with .*, got line ends \\r: "
    with pytest.raises(ValueError, match=complaint) as caught:
        Interactions.from_file(path)
    assert "\n" not in str(caught.value) and "\r" not in str(caught.value)


def test_a_line_end_of_old_macs_further_down(tmp_path: Path) -> None:
    for rows in (1, 200):
        path = _write(tmp_path, "user,item\n" + "a,b\n" * rows + '"c","d"\r"e","f"\n')
        with pytest.raises(ValueError, match=f"file.txt, line {rows + 2}: expected fields separated by commas"):
            _read(path)


def test_line_ends_of_any_kind_within_quotes(tmp_path: Path) -> None:
    content = 'user,text,item\n1,"a\n""b"" c\rd",2\n3,"\r",4\n'
    assert _read(_write(tmp_path, content)) == [(1, 2), (3, 4)]


def test_long_quoted_fields(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    long = "x" * 200_000
    content = f'user,text,item\n1,"{long}, y",2\n3,"z",4\n'
    assert _read(_write(tmp_path, content)) == [(1, 2), (3, 4)]
    content = "user,text,item\n" + "1,x,2\n" * 200 + f'3,"{long}\n{long}",4\n'
    assert _read(_write(tmp_path, content))[-1] == (3, 4)
    content = f'1;"{long}"\n'
    assert _read(_write(tmp_path, content)) == [(1, long)]
    assert csv.field_size_limit() == limit


# --- headers ---


def test_with_numbers_of_columns_no_header_is_guessed(tmp_path: Path) -> None:
    path = _write(tmp_path, "anna,paris,x\nb1,c2,3\nb4,c5,6\n")
    assert _read(path, user_column=0, item_column=1) == [("anna", "paris"), ("b1", "c2"), ("b4", "c5")]
    path = _write(tmp_path, "anna,paris,x\n1,2,3\n4,5,6\n")  # but words above numbers are
    assert _read(path, user_column=0, item_column=1) == [(1, 2), (4, 5)]
    for header in ("customer,paris,x", "anna,item_id,x", "a:token,b:token,c:float"):
        path = _write(tmp_path, f"{header}\n1,2,3\n4,5,6\n")
        assert _read(path, user_column=0, item_column=1) == [(1, 2), (4, 5)]
    path = _write(tmp_path, "anna,paris,item\nb1,c2,3\n")  # no item stands in the column of users
    assert _read(path, user_column=0, item_column=1) == [("anna", "paris"), ("b1", "c2")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("u1,i1,A|B|C|D\nu2,i2,C|D|E|F\n", [("u1", "i1"), ("u2", "i2")]),
        ("1\t2\ta,b,c,d\n3\t4\ta,b,c,e\n", [(1, 2), (3, 4)]),
        ('1,2,"a;b;c;d"\n3,4,"a;b;c;e"\n', [(1, 2), (3, 4)]),
        ("10,100,Action;Drama\n20,200,War;Comedy\n", [(10, 100), (20, 200)]),
        ("u1 p1 10:00:00,123\nu2 p2 11:00:00,456\n", [("u1", "p1"), ("u2", "p2")]),
    ],
)
def test_the_separator_is_not_in_the_ids(tmp_path: Path, content: str, expected: list[tuple[Any, Any]]) -> None:
    """Columns after those of users and items may hold lists by other marks."""
    assert _read(_write(tmp_path, content), user_column=0, item_column=1) == expected


@pytest.mark.parametrize("polars", [True, False])
@pytest.mark.parametrize("comment", ["# 943 users 1682 items", "# movie reader", "# Game Client", "# user items"])
def test_a_comment_is_no_header_by_chance(
    tmp_path: Path, comment: str, polars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if polars:
        ratings = _write(tmp_path, f"{comment}\n196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
        assert _read(ratings) == [(186, 302), (196, 242)] or _read(ratings) == [(196, 242), (186, 302)]
    else:
        monkeypatch.setitem(sys.modules, "polars", None)
    known = Interactions.from_file(_write(tmp_path, f"{comment}\n1\t2\n3\t4\n"))
    assert _known(known) == {(1, 2), (3, 4)}


@pytest.mark.parametrize("polars", [True, False])
@pytest.mark.parametrize("separator", [",", "\t", " "])
@pytest.mark.parametrize("comment", ["# item_id,user_id", "# item_id user_id", "#\titem_id\tuser_id"])
def test_a_header_may_be_a_comment(
    tmp_path: Path, polars: bool, separator: str, comment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not polars:
        monkeypatch.setitem(sys.modules, "polars", None)
    content = f"# pairs of user and item\n{comment}\n# from a log\n1{separator}2\n3{separator}4\n"
    if "," in comment and separator != ",":
        comment = comment.replace(",", separator)
    known = Interactions.from_file(_write(tmp_path, content.replace("# item_id,user_id", comment)))
    assert _known(known) == {(2, 1), (4, 3)} and "columns user_id, item_id" in known.source
    known = Interactions.from_file(_write(tmp_path, f"# From To\n1{separator}2\n3{separator}4\n"))
    assert _known(known) == {(1, 2), (3, 4)}


# --- lists ---


def test_users_without_items_are_rows(tmp_path: Path) -> None:
    path = _write(tmp_path, "0 4 1\n1\n2 0 3 4\n5 \n")
    known = Interactions.from_file(path)
    assert (known.num_queries, known.num_items) == (6, 5)
    assert _known(known) == {(0, 4), (0, 1), (2, 0), (2, 3), (2, 4)}


def test_the_first_user_may_have_no_items(tmp_path: Path) -> None:
    known = Interactions.from_file(_write(tmp_path, "0\n1\n2 7\n3 1 2\n"))
    assert (_known(known), known.num_queries) == ({(2, 7), (3, 1), (3, 2)}, 4)


def test_a_user_without_items_may_have_any_id(tmp_path: Path) -> None:
    big = str(2**64)
    known = Interactions.from_file(_write(tmp_path, f"5 1 2\n{big}\n"), format="lightgcn", renumber=True)
    assert known.query_labels.tolist() == [big, "5"] and known.query_rows(["5"]).tolist() == [1]
    with pytest.raises(ValueError, match=f"line 2: expected an integer from 0 as query id, got '{big}'"):
        Interactions.from_file(tmp_path / "file.txt", format="lightgcn", renumber=False)


def test_format_decides(tmp_path: Path) -> None:
    path = _write(tmp_path, "1 2 3\n2 4 5\n")
    assert _read(path, format="lightgcn") == [(1, 2), (1, 3), (2, 4), (2, 5)]
    assert _read(path, user_column=2, item_column=0) == [(3, 1), (5, 2)]
    assert _read(path, format="table", user_column=2, item_column=0) == [(3, 1), (5, 2)]
    path = _write(tmp_path, "u1\ta b\nu2\tc\n")
    assert _read(path, format="lightgcn") == [("u1", "a"), ("u1", "b"), ("u2", "c")]


@pytest.mark.parametrize("separator", ["\t", ",", ";", "::", ", "])
def test_lists_with_another_first_separator(tmp_path: Path, separator: str) -> None:
    lists = {n: [n] for n in range(60)} | {70: [1, 2, 3], 71: []}
    content = "".join(f"{user}{separator}{' '.join(map(str, items))}\n" for user, items in lists.items())
    path = _write(tmp_path, content)
    with pytest.raises(ValueError, match=r"line 61: expected one item per line; .*\(--format\) lightgcn, got '1 2 3'"):
        Interactions.from_file(path)
    expected = {(user, item) for user, items in lists.items() for item in items}
    assert set(_read(path, format="lightgcn")) == expected
    path = _write(tmp_path, "1,2\n" * 200 + "2,3 4\n")
    with pytest.raises(
        ValueError, match=r"line 201: expected an integer from 0 as item id; .* format .* lightgcn, got"
    ):
        Interactions.from_file(path)


@pytest.mark.parametrize(
    ("content", "line", "got"),
    [
        ("1,2,3\n2,3\n", 1, "'1,2,3'"),
        ("u1,a b\nu2,c\n", 1, "'u1,a b'"),
        ("1 2 3\n2,3\n", 2, "'2,3'"),
        ("1 2 3\n2 3,4 5\n", 2, "'2 3,4 5'"),
        ("1 2 3\n2 3\n" * 60 + "2,4 5\n", 121, "'2,4 5'"),
        ("1,2 3\n" * 120 + "1 2 3\n", 121, "'1 2 3'"),
    ],
)
def test_lists_of_other_words_are_refused(tmp_path: Path, content: str, line: int, got: str) -> None:
    path = _write(tmp_path, content)
    with pytest.raises(ValueError, match=rf"line {line}: expected a user.* items, separated by blanks.*, got {got}"):
        Interactions.from_file(path, format="lightgcn")


def test_a_column_of_splits(tmp_path: Path) -> None:
    content = "user,item,split\na,x,train\na,y,TRAIN\nb,y,valid\nb,x,train\nb,z,train\na,z,test\n"
    path = _write(tmp_path, content)
    known = Interactions.from_file(path)
    assert _known(known) == {("a", "x"), ("a", "y"), ("b", "x"), ("b", "z")}
    assert known.source.endswith("split train kept, 2 rows left out")


# --- rows and own ids ---


def test_strings_are_numbered_in_their_order(tmp_path: Path) -> None:
    path = _write(tmp_path, "user,item\nzoe,7\nann,0007\nbob,7\nzoe,\u00e9\n")
    known = Interactions.from_file(path)
    assert known.query_labels.tolist() == ["ann", "bob", "zoe"] and known.item_labels.tolist() == ["0007", "7", "é"]
    assert known.query_rows(["zoe", "ann"]).tolist() == [2, 0] and known.item_rows("7").item() == 1
    assert known.source.startswith("4 positives of 3 users and 3 items: columns user, item")
    for bad in (["eve"], [3], "zzz"):
        with pytest.raises(KeyError, match="no query has the id"):
            known.query_rows(bad)
    with pytest.raises(KeyError, match="no query has the id 3: these ids are strings"):
        known.query_rows([3])
    for copied in (copy.copy(known), copy.deepcopy(known), pickle.loads(pickle.dumps(known)), known.to("meta")):
        assert copied.query_labels.tolist() == known.query_labels.tolist() and copied.source == known.source


def test_the_same_id_as_an_integer_and_a_decimal(tmp_path: Path) -> None:
    for content, line, role in (("1,2\n1.0,3\n", 2, "user"), ("a,2.00\nb,3\nb,c\nb,2\n", 1, "item")):
        path = _write(tmp_path, f"user,item\n{content}")
        decimal = "1.0" if role == "user" else "2.00"
        got = f"got both '{decimal[0]}' and '{decimal}'"
        with pytest.raises(ValueError, match=rf"file.txt, line {line + 1}: expected {role} ids of one form.*, {got}"):
            Interactions.from_file(path)
    assert _read(_write(tmp_path, "user,item\na,1.0\na,2\n")) == [("a", "1.0"), ("a", "2")]


def test_integers_are_rows_as_they_are(tmp_path: Path) -> None:
    path = _write(tmp_path, "3,7\n0,2\n")
    known = Interactions.from_file(path)
    assert known.query_labels is known.item_labels is None and (known.num_queries, known.num_items) == (4, 8)
    assert known.item_rows(torch.tensor([7, 2])).tolist() == [7, 2]
    with pytest.raises(KeyError, match="no query has the id 'x': these ids are integers"):
        known.query_rows(["x"])
    with pytest.raises(KeyError, match="no item has the id 8"):
        known.item_rows([2, 8])
    renumbered = Interactions.from_file(path, renumber=True)
    assert renumbered.query_labels.tolist() == [0, 3] and renumbered.item_labels.tolist() == [2, 7]
    for far, size in ((2**20, 2**20 + 1), (2**20 + 1, 2)):  # from there on, with few ids, they are numbered
        assert Interactions.from_file(_write(tmp_path, f"0,1\n{far},2\n")).num_queries == size
    assert Interactions.from_file(tmp_path / "file.txt", renumber=False).num_queries == 2**20 + 2
    assert Interactions.from_file(tmp_path / "file.txt", num_queries=2**21).num_queries == 2**21


def test_integers_beyond_what_a_table_can_hold(tmp_path: Path) -> None:
    path = _write(tmp_path, f"0,1\n\n{2**31},1\n")
    with pytest.raises(
        ValueError, match=rf"file.txt, line 3: .*query_ids below 2\*\*31 - 1 .*, got {2**31} at position 1"
    ):
        Interactions.from_file(path, renumber=False)
    hashes = [-(2**62), 2**61, -5]
    path = _write(tmp_path, "".join(f"{h},{n}\n" for n, h in enumerate(hashes)))
    assert Interactions.from_file(path).query_labels.tolist() == sorted(hashes)


def test_what_was_read_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cw_ext"):
        known = Interactions.from_file(_write(tmp_path, "1,2\n"))
    assert caplog.messages == [f"{tmp_path / 'file.txt'}: {known.source}"]
    assert Interactions([0], [0], num_queries=1, num_items=1).source is None


# --- without polars ---


@pytest.fixture
def no_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)


@pytest.mark.parametrize("separator", ["\t", ",", ";", " ", "   ", ", "])
def test_two_columns_of_integers_need_no_polars(no_polars: None, tmp_path: Path, separator: str) -> None:
    for header in ("", f"user_id{separator}item_id\n", "# pairs\n"):
        path = _write(tmp_path, f"\n{header}3{separator}4\n\n0{separator}2\r\n3{separator}0")
        known = Interactions.from_file(path)
        assert _known(known) == {(3, 4), (0, 2), (3, 0)} and (known.num_queries, known.num_items) == (4, 5)
    path = _write(tmp_path, f"item{separator}user\n3{separator}4\n")
    assert _known(Interactions.from_file(path)) == {(4, 3)}
    path = _write(tmp_path, f"3{separator}{10**10}\n4{separator}1\n")
    assert Interactions.from_file(path).item_labels.tolist() == [1, 10**10]


@pytest.mark.parametrize(
    "content", ["1,2\n1,2,3\n", "a,b\n", "1::2::3::4\n", "user,item\nx,y\n", '"1","2"\n', "1 2 3\n"]
)
def test_the_rest_asks_for_polars(no_polars: None, tmp_path: Path, content: str) -> None:
    path = _write(tmp_path, content)
    with pytest.raises(ImportError, match=r'file.txt, line \d: .*run: pip install "polars>=2"'):
        Interactions.from_file(path)
    with pytest.raises(ImportError, match=r"file.txt: min_rating needs polars"):
        Interactions.from_file(path, min_rating=3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 9)), min_size=1, max_size=20),
    separator=st.sampled_from(["\t", ",", ";", " ", "  ", ", "]),
    head=st.sampled_from(["", "\r\n", "# pairs\n", "user_id{0}item_id\n"]),
    end=st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n"]),
    block=st.integers(3, 60),
)
def test_pairs_are_the_same_with_and_without_polars(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair], separator: str, head: str, end: str, block: int
) -> None:
    content = head.format(separator) + "".join(f"{user}{separator}{item}{end}" for user, item in pairs)
    path = _write(tmp_path_factory.mktemp("pairs"), content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK", block)
        known = [Interactions.from_file(path)]
        patch.setitem(sys.modules, "polars", None)
        known.append(Interactions.from_file(path))
    assert _known(known[0]) == _known(known[1]) == set(pairs)
    assert known[0].source == known[1].source and repr(known[0]) == repr(known[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lists=st.dictionaries(st.integers(0, 99), st.lists(st.integers(0, 50), max_size=6), min_size=2, max_size=12),
    block=st.integers(3, 60),
)
def test_random_lists(tmp_path_factory: pytest.TempPathFactory, lists: dict[int, list[int]], block: int) -> None:
    """Told by their lengths, or the file asks."""
    assume(any(lists.values()))
    content = "".join(" ".join(map(str, (user, *items))) + "\n" for user, items in lists.items())
    path = _write(tmp_path_factory.mktemp("lists"), content)
    widths = {len(items) + 1 for items in lists.values()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK", block)
        if widths != {2} and (len(widths) == 1 or widths == {1, 2}):
            with pytest.raises(
                ValueError, match="expected a (table or LightGCN lists; choose with format|user and an item)"
            ):
                Interactions.from_file(path)
        known = Interactions.from_file(path, format=None if max(widths) > 2 and len(widths) > 1 else "lightgcn")
    assert _known(known) == {(user, item) for user, items in lists.items() for item in items}
    assert known.num_queries == max(lists) + 1


# --- there and back ---

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=6)
IDS = st.one_of(WORDS, st.integers(-(2**70), 2**70).map(str))


def _as_csv(pairs: list[tuple[str, str]], delimiter: str, quoting: Any) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    writer.writerows([("item", "x", "user"), *((item, "5,;", user) for user, item in pairs)])
    return file.getvalue().encode()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pairs=st.lists(st.tuples(IDS, IDS), min_size=1, max_size=30), block=st.integers(5, 100))
def test_random_ids_come_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], block: int
) -> None:
    """Whatever the kind of file, and wherever it is cut into blocks."""
    folder = tmp_path_factory.mktemp("there")
    names = [{"user": user, "n": [1], "item": item} for user, item in pairs]
    bare = [(u, i) for u, i in pairs if not {*u, *i} & set('\t,"#')]
    lists: dict[str, list[str]] = {}
    for user, item in pairs:
        lists.setdefault(user, []).append(item)
    of_lists = [(user, item) for user, items in lists.items() for item in items]
    frame = pl.DataFrame(pairs, schema=["user", "item"], orient="row")
    packed = io.BytesIO()
    frame.write_parquet(packed)
    lightgcn = {"format": "lightgcn", "separator": "blanks"}
    contents: list[tuple[bytes, list[tuple[str, str]], dict[str, Any]]] = [
        (_as_csv(pairs, ",", csv.QUOTE_MINIMAL), pairs, {}),
        (_as_csv(pairs, ";", csv.QUOTE_ALL), pairs, {}),
        (_as_csv(pairs, "\t", csv.QUOTE_ALL), pairs, {}),
        (gzip.compress(_as_csv(pairs, ",", csv.QUOTE_ALL)), pairs, {}),
        (("user\titem\n" + "".join(f"{u}\t{i}\n" for u, i in bare)).encode(), bare, {}),
        ("".join(json.dumps(name) + "\n" for name in names).encode(), pairs, {}),
        (packed.getvalue(), pairs, {}),
        ("".join(f"{u} {' '.join(i)}\n" for u, i in lists.items()).encode(), of_lists, lightgcn),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_BLOCK", block)
        patch.setattr(blocks, "_QUOTED_ROWS", 7)
        for content, expected, reading in contents:
            path = _write(folder, content)
            found = [(str(user), str(item)) for user, item in _read(path, **reading)]
            assert found == expected


@pytest.mark.parametrize(
    "content",
    ["user_id,item_ids\n1,2 3 4\n2,5\n", "user\titems\n1\t7\n2\t2;3;4\n", 'user,items\n1,"[2, 3]"\n2,4\n'],
)
def test_lists_in_a_table_with_a_header_are_no_ids(tmp_path: Path, content: str) -> None:
    with pytest.raises(ValueError, match="line [23]: expected one item per line, not a list of them, got "):
        _read(_write(tmp_path, content))

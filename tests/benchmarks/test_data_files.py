"""Files that the benchmarks train on, as users have them: read, split, filtered, or refused in one line."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks.common import data
from benchmarks.training import __main__ as training

Pair = tuple[Any, Any]


def _write(folder: Path, content: str | bytes, name: str = "file.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _loaded(dataset: data.InteractionData) -> set[Pair]:
    """The pairs of training and test, in the file's own ids."""
    users = torch.cat([dataset.train_users, dataset.test_users]).numpy()
    items = torch.cat([dataset.train_items, dataset.test_items]).numpy()
    own_users = users if dataset.user_ids is None else dataset.user_ids[users]
    own_items = items if dataset.item_ids is None else dataset.item_ids[items]
    return set(zip(own_users.tolist(), own_items.tolist(), strict=True))


def _ranked(train: set[Pair], test: set[Pair], scores: np.ndarray, k: int) -> float:
    """Mean over users of hits / test items, known items left out."""
    recalls = []
    for user in sorted({user for user, _ in test}):
        order = [item for item in np.argsort(-scores[user]).tolist() if (user, item) not in train]
        targets = {item for other, item in test if other == user}
        recalls.append(len(targets & set(order[:k])) / len(targets))
    return float(np.mean(recalls))


def test_test_pairs_of_training_do_not_lower_recall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With two items left for each user, of which one is in the test set, Recall@2 is 1 for any model."""
    train = {(u, i) for u in (0, 1) for i in range(5)} | {(0, 5), (1, 6)}
    test = {(0, 0), (0, 1), (0, 6), (1, 2), (1, 3), (1, 5)}
    for name, pairs in (("train", train), ("test", test)):
        lines = "".join(f"{u}\t{i}\n" for u, i in sorted(pairs))
        _write(tmp_path, f"user_procid\titem_procid\n{lines}", f"{name}.tsv")
    scores = np.random.default_rng(0).normal(size=(2, 7))
    assert _ranked(train, test - train, scores, 2) == 1.0 and _ranked(train, test, scores, 2) < 0.5
    arguments = ["--data", str(tmp_path), "--loss", "sl", "--epochs", "1", "--eval-every", "1", "--negatives", "1"]
    assert training.main([*arguments, "--k", "2", "--dim", "2", "--out", str(tmp_path / "out")]) == 0
    run = json.loads((tmp_path / "out" / "results.json").read_text())["runs"][0]
    assert run["test_validation_masked"]["recall"] == 1.0
    assert "warning: " in (said := capsys.readouterr().err) and "6 distinct test pairs, 4 are also in training" in said


def test_a_header_is_no_customer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    rows = [
        (f"c{c}", f"s{s}", n) for n, (c, s) in enumerate((rng.random((400, 2)) ** 2 * [60, 40]).astype(int).tolist())
    ]
    content = "customer,sku,ts,qty\n" + "".join(f"{c},{s},{ts},1\n" for c, s, ts in rows)
    path = _write(tmp_path, content, "orders.csv")
    pairs = {(c, s) for c, s, _ in rows}
    assert _loaded(data.load(path, core=1)) == pairs
    dataset = data.load(path, core=4)
    kept = _loaded(dataset)
    assert 0 < len(kept) < len(pairs)
    users, items = (len({pair[side] for pair in pairs}) for side in (0, 1))
    left = (users - dataset.num_users, items - dataset.num_items)
    assert dataset.notes[1:] == (
        f"400 rows: {len(pairs)} distinct pairs of {users} users and {items} items",
        f"4-core (--core 4): {len(kept)} pairs of {dataset.num_users} users and {dataset.num_items} items kept; "
        f"{left[0]} users and {left[1]} items with fewer than 4 left out",
    )
    out = tmp_path / "out"
    arguments = ["--data", str(path), "--core", "4", "--loss", "sl", "--epochs", "1", "--negatives", "2", "--dim", "2"]
    assert training.main([*arguments, "--eval-every", "1", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("\n".join(dataset.notes))
    for side, ids in (("user", dataset.user_ids), ("item", dataset.item_ids)):
        table = pl.read_parquet(out / f"{side}_ids.parquet")
        assert table["row"].to_list() == list(range(len(ids))) and table["id"].to_list() == list(ids)


def test_a_directory_that_cannot_be_saved_to_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, "".join(f"{u},{i}\n" for u in range(4) for i in range(4)))
    (tmp_path / "full").mkdir()
    _write(tmp_path / "full", "x", "thesis.txt")
    before = sorted(tmp_path.rglob("*"))
    for seeds in (["0"], ["0", "1"]):
        target = "full" if len(seeds) == 1 else "full/thesis.txt"
        arguments = ["--data", "file.txt", "--core", "1", "--loss", "sl", "--save", target, "--seed", *seeds]
        assert training.main(arguments) == 2
        assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_of_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path, "0 1 2 3\n1 0\n2 3 4\n", "train.txt")
    _write(tmp_path, "0 4 1\n1 9\n2\n3 1\n", "test.txt")
    dataset = data.load(tmp_path)
    assert (dataset.num_users, dataset.num_items) == (3, 5)
    assert (dataset.test_users.tolist(), dataset.test_items.tolist()) == ([0], [4])
    [line] = capsys.readouterr().err.splitlines()
    assert "of 4 distinct test pairs, 1 are also in training, 1 have users and 1 have items that do not" in line


def test_a_directory_of_other_files(tmp_path: Path) -> None:
    for part, pairs in (("train", "a,x\na,y\nb,x\nb,z\n"), ("valid", "b,y\n"), ("test", "b,y\na,z\n")):
        _write(tmp_path, gzip.compress(f"customer,sku\n{pairs}".encode()), f"{part}.csv.gz")
    dataset = data.load(tmp_path)
    assert dataset.user_ids.tolist() == ["a", "b"] and dataset.item_ids.tolist() == ["x", "y", "z"]
    assert len(dataset.train_users) == 5  # with what is for validation
    assert (dataset.test_users.tolist(), dataset.test_items.tolist()) == ([0], [2])
    with pytest.raises(data.DataError, match=r"split_column \(--split-column\) does not apply to a directory"):
        data.load(tmp_path, split_column="sku")
    for split, complaint in (("test", None), ("TRAIN", "test.csv, line 2: expected the split test, .*, got train")):
        (tmp_path / "test.csv.gz").unlink(missing_ok=True)
        _write(tmp_path, f"customer,sku,split\na,z,{split}\n", "test.csv")
        if complaint is None:
            assert data.load(tmp_path).test_items.tolist() == [2]
        else:
            with pytest.raises(data.DataError, match=complaint):
                data.load(tmp_path)
    _write(tmp_path, "1 2\n", "train.txt")
    with pytest.raises(data.DataError, match="expected one file of the part train, got train.csv.gz, train.txt"):
        data.load(tmp_path)


def test_the_core_is_10_and_ratings_count_from_3_by_default(tmp_path: Path) -> None:
    rows = "1::10::5::978300760\n1::11::3::978302109\n2::10::4::978301968\n2::12::2::978301968\n"
    path = _write(tmp_path, rows)
    assert _loaded(data.load(path, core=1)) == {(1, 10), (1, 11), (2, 10)}
    assert _loaded(data.load(path, core=1, min_rating=0)) == {(1, 10), (1, 11), (2, 10), (2, 12)}
    with pytest.raises(data.DataError, match=r"10-core filter \(--core 10\), got none of 3 distinct pairs of 2 users"):
        data.load(path)
    for reading in ({}, {"min_rating": 2}):
        with pytest.raises(data.DataError, match=r"2 rows left out; lower min_rating \(--min-rating\)"):
            data.load(_write(tmp_path, "user,item,rating\n1,2,0.5\n1,3,1\n"), **reading)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("1,2|3\n4,5|6\n", r"line 1: expected columns separated in one way; .*\(--separator\), got 2 columns by "),
        ("u1,i1\ru2,i2\r", r"line 1: expected lines that end with .*, got line ends \\r: "),
        ("user,item\n1,2\n1.0,3\n", "line 3: expected user ids of one form.*, got both '1' and '1.0'"),
        ("1,2\n".encode("utf-16"), r"line 1: expected UTF-8 text; .*\(--encoding\)"),
    ],
    ids=["separators", "line ends", "ids of two forms", "encoding"],
)
def test_what_the_reader_refuses_is_an_error_of_the_data(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    path = _write(tmp_path, content)
    with pytest.raises(data.DataError, match=complaint) as caught:
        data.load(path, core=1)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_without_polars_the_error_has_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(data.DataError, match=r'run: pip install "polars>=2"'):
        data.load(_write(tmp_path, "user,item\nx,y\n"))


def test_switches_reach_the_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _write(tmp_path, "1,2|3\n4,5|6\n")
    arguments = ["--data", str(path), "--core", "1", "--separator", ",", "--loss", "sl", "--min-rating", "1"]
    assert training.main(arguments) == 2
    assert "expected a column of ratings for min_rating (--min-rating)" in capsys.readouterr().err


def test_a_core_cannot_act_where_a_split_is_kept(tmp_path: Path) -> None:
    split = _write(tmp_path, "user,item,split\n1,2,train\n1,3,train\n1,4,test\n2,4,train\n")
    with pytest.raises(data.DataError, match=r"core \(--core\) does not apply to a file with a column split"):
        data.load(split, core=3)
    (tmp_path / "folder").mkdir()
    with pytest.raises(data.DataError, match=r"core \(--core\) does not apply to a directory"):
        data.load(tmp_path / "folder", core=3)


def test_the_name_of_compressed_data(tmp_path: Path) -> None:
    path = _write(tmp_path, gzip.compress(b"user,item\n1,2\n1,3\n2,2\n"), "orders.csv.gz")
    assert data.load(path, core=1).name == "orders"


def test_users_without_items_are_left_out(tmp_path: Path) -> None:
    dataset = data.load(_write(tmp_path, "0 4 1\n1\n2 0 3 4\n5 \n"), core=1)
    assert (dataset.num_users, _loaded(dataset)) == (2, {(0, 4), (0, 1), (2, 0), (2, 3), (2, 4)})


def test_a_column_of_splits_is_kept(tmp_path: Path) -> None:
    content = "user,item,split\na,x,train\na,y,TRAIN\nb,y,valid\nb,x,train\nb,z,train\na,z,test\n"
    dataset = data.load(_write(tmp_path, content))
    assert len(dataset.train_users) == 5 and _loaded(dataset) == {tuple(r.split(",")[:2]) for r in content.split()[1:]}
    assert dataset.user_ids[dataset.test_users.numpy()].tolist() == ["a"]
    assert dataset.item_ids[dataset.test_items.numpy()].tolist() == ["z"]

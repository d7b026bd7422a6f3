"""Loading and splitting of interactions, against pure-Python counts of the same files."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.common import data

HEADER = "user_procid\titem_procid\n"


def random_pairs(num_users: int, num_items: int, density: float, seed: int = 0) -> list[tuple[int, int]]:
    rng = np.random.default_rng(seed)
    # Popularity falls with the id, so that a core filter has something to drop, over several rounds.
    chance = density * 2 * (1 - np.arange(num_items) / num_items)
    pairs = np.argwhere(rng.random((num_users, num_items)) < chance)
    return [(int(user), int(item)) for user, item in rng.permutation(pairs)]


def k_core(pairs: set[tuple[str, str]], k: int) -> set[tuple[str, str]]:
    while True:
        users = Counter(user for user, _ in pairs)
        items = Counter(item for _, item in pairs)
        kept = {(user, item) for user, item in pairs if users[user] >= k and items[item] >= k}
        if kept == pairs:
            return kept
        pairs = kept


def degrees(pairs: set[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Numbers of interactions per user and per item, sorted: what renumbering leaves unchanged."""
    return tuple(sorted(Counter(pair[side] for pair in pairs).values()) for side in (0, 1))


def all_pairs(dataset: data.InteractionData) -> list[tuple[int, int]]:
    users = torch.cat([dataset.train_users, dataset.test_users]).tolist()
    items = torch.cat([dataset.train_items, dataset.test_items]).tolist()
    return list(zip(users, items, strict=True))


def assert_same(a: data.InteractionData, b: data.InteractionData) -> None:
    assert (a.num_users, a.num_items) == (b.num_users, b.num_items)
    for name in ("train_users", "train_items", "test_users", "test_items"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_split(directory: Path, train: str, test: str) -> Path:
    write(directory / "train.tsv", train)
    write(directory / "test.tsv", test)
    return directory


# --- split directory ---


def test_split_directory_is_kept_as_it_is(tmp_path):
    write_split(tmp_path, HEADER + "0\t2\n0\t0\n1\t1\n2\t3\n0\t2\n", HEADER + "2\t0\n1\t3\n")
    dataset = data.load(tmp_path)
    train = list(zip(dataset.train_users.tolist(), dataset.train_items.tolist(), strict=True))
    assert sorted(train) == [(0, 0), (0, 2), (1, 1), (2, 3)]
    assert sorted(zip(dataset.test_users.tolist(), dataset.test_items.tolist(), strict=True)) == [
        (1, 3),
        (2, 0),
    ]
    assert (dataset.num_users, dataset.num_items, dataset.name) == (3, 4, tmp_path.name)
    assert dataset.train_users.dtype == dataset.test_items.dtype == torch.int64


@pytest.mark.parametrize(
    ("train", "line", "complaint"),
    [
        (
            HEADER + "0\t1\n1\n",
            3,
            "expected 2 columns separated by tabs, as in the first line (this line has 1), got '1'",
        ),
        (HEADER + "0\t1\t5\n", 2, "expected 2 columns separated by tabs, as in the first line (this line has 3)"),
        (HEADER + "0 1\n", 2, "expected 2 columns separated by tabs, as in the first line (this line has 1)"),
        (HEADER + "0\t1\n1\t\n", 3, "expected a user id and an item id that are not empty, got no item id"),
        ("a\tb\n0\t1\n", 1, "expected a column of users with a common name"),
    ],
)
def test_malformed_train_file_is_refused_with_its_line(tmp_path, train, line, complaint):
    write_split(tmp_path, train, HEADER + "0\t1\n")
    with pytest.raises(data.DataError) as caught:
        data.load(tmp_path)
    assert f"train.tsv, line {line}: " in str(caught.value)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("test", "complaint"),
    [
        ("2\t1\n", "1 distinct test pairs, 0 are also in training, 1 have users and 0 have items that do not occur"),
        (
            "0\t3\n0\t0\n",
            "2 distinct test pairs, 0 are also in training, 0 have users and 2 have items that do not occur",
        ),
        ("0\t1\n1\t2\n1\t2\n", "2 distinct test pairs, 2 are also in training, 0 have users and 0 have items"),
        ("", "test.tsv: expected interactions, got 0 positives"),
    ],
)
def test_a_test_file_without_a_pair_to_test_is_refused_with_the_reason(tmp_path, test, complaint):
    write_split(tmp_path, HEADER + "0\t1\n1\t2\n", HEADER + test)
    with pytest.raises(data.DataError) as caught:
        data.load(tmp_path)
    assert complaint in str(caught.value)


def test_test_pairs_that_cannot_be_hits_are_left_out_and_counted(tmp_path, capsys):
    rng = np.random.default_rng(0)
    train = [tuple(pair) for pair in rng.integers(0, [12, 9], (60, 2)).tolist()]
    test = [tuple(pair) for pair in rng.integers(0, [14, 12], (60, 2)).tolist()]
    lines = ["".join(f"{user}\t{item}\n" for user, item in pairs) for pairs in (train, test)]
    write_split(tmp_path, HEADER + lines[0], HEADER + lines[1])
    users, items = ({pair[side] for pair in train} for side in (0, 1))
    unknown_users = {pair for pair in test if pair[0] not in users}
    unknown_items = {pair for pair in test if pair[1] not in items}
    known = set(test) & set(train)
    dataset = data.load(tmp_path)
    found = set(zip(dataset.test_users.tolist(), dataset.test_items.tolist(), strict=True))
    assert found == set(test) - unknown_users - unknown_items - known and found and known
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"warning: {tmp_path}: of {len(set(test))} distinct test pairs, {len(known)} are also in training, "
        f"{len(unknown_users)} have users and {len(unknown_items)} have items that do not occur in training; "
        f"these are left out, and {len(found)} remain"
    )


def test_missing_test_file_is_named(tmp_path):
    write(tmp_path / "train.tsv", HEADER + "0\t1\n")
    with pytest.raises(data.DataError, match=r"test\.tsv: expected an interaction file, got none"):
        data.load(tmp_path)


@pytest.mark.parametrize("form", ["directory", "column"])
def test_a_split_has_no_rows_for_ids_that_do_not_occur(tmp_path, form):
    train, test = [(7, 30), (7, 12), (3, 30), (9, 5)], [(3, 12), (9, 30), (5, 30), (7, 6)]
    if form == "directory":
        write_split(tmp_path, *(HEADER + "".join(f"{u}\t{i}\n" for u, i in pairs) for pairs in (train, test)))
        dataset = data.load(tmp_path)
    else:
        rows = [(*pair, part) for part, pairs in (("train", train), ("test", test)) for pair in pairs]
        content = "user,item,split\n" + "".join(f"{u},{i},{part}\n" for u, i, part in rows)
        dataset = data.load(write(tmp_path / "pairs.csv", content))
    assert dataset.user_ids.tolist() == [3, 7, 9] and dataset.item_ids.tolist() == [5, 12, 30]
    assert (dataset.num_users, dataset.num_items) == (3, 3)
    for pairs, users, items in (
        (train, dataset.train_users, dataset.train_items),
        (test[:2], dataset.test_users, dataset.test_items),
    ):
        assert sorted(zip(dataset.user_ids[users], dataset.item_ids[items], strict=True)) == sorted(pairs)


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_ids_that_are_integers_in_some_files_only_are_compared_as_strings(tmp_path, part):
    pairs = {"train": [(1, 2), (1, 10), (2, 2)], "valid": [(2, 3)], "test": [(2, 10), (1, 3)]}
    odd = {"train": "a,2", "valid": "1,b", "test": "a,b"}[part]
    for name, rows in pairs.items():
        content = "user,item\n" + "".join(f"{u},{i}\n" for u, i in rows) + (f"{odd}\n" if name == part else "")
        write(tmp_path / f"{name}.csv", content)
    dataset = data.load(tmp_path)
    own = list(zip(dataset.user_ids[dataset.test_users], dataset.item_ids[dataset.test_items], strict=True))
    assert sorted((str(user), str(item)) for user, item in own) == [("1", "3"), ("2", "10")]


def test_raw_ids_in_a_split_directory_are_numbered_anew(tmp_path):
    write_split(tmp_path, HEADER + f"0\t1\n{10**12}\t0\n", HEADER + f"0\t0\n{10**12}\t1\n")
    dataset = data.load(tmp_path)
    assert (dataset.num_users, dataset.num_items) == (2, 2)
    assert dataset.user_ids.tolist() == [0, 10**12] and dataset.item_ids is None
    assert list(zip(dataset.test_users.tolist(), dataset.test_items.tolist())) == [(0, 0), (1, 1)]


# --- single files ---


def test_all_plain_formats_load_the_same(tmp_path):
    pairs = random_pairs(30, 20, 0.4)
    lines = [(f"{user}", f"{item}") for user, item in pairs]
    texts = {
        "blanks": "".join(f"{u} {i}\n" for u, i in lines),
        "wide": "".join(f"  {u}   {i} \r\n" for u, i in lines),
        "tabs": "".join(f"{u}\t{i}\t5\t881250949\n" for u, i in lines),
        "commas": "userId,movieId,rating\n" + "".join(f"{u}, {i}, 3.5\n" for u, i in lines),
        "named": "user\titem\n" + "".join(f"u-{u}\titem {i}\n" for u, i in lines),
        "repeated": "".join(f"{u} {i}\n\n" for u, i in lines + lines[:40]),
        "bom": "\ufeff" + "".join(f"{u} {i}\n" for u, i in lines),
        "no end of line": "\n".join(f"{u} {i}" for u, i in lines),
    }
    loaded = {name: data.load(write(tmp_path / f"{name}.txt", text), core=3) for name, text in texts.items()}
    for dataset in loaded.values():
        assert_same(dataset, loaded["blanks"])
    assert loaded["tabs"].name == "tabs"


@pytest.mark.parametrize("core", [1, 3, 6])
def test_k_core_is_that_of_repeated_filtering(tmp_path, core):
    pairs = random_pairs(60, 40, 0.2)
    expected = k_core({(str(user), str(item)) for user, item in pairs}, core)
    if core > 1:
        assert 0 < len(expected) < len(pairs)
    dataset = data.load(write(tmp_path / "pairs", "".join(f"{u} {i}\n" for u, i in pairs)), core=core)
    found = all_pairs(dataset)
    assert len(found) == len(set(found)) == len(expected)
    assert degrees(set(found)) == degrees(expected)
    assert dataset.num_users == len({user for user, _ in expected})
    assert dataset.num_items == len({item for _, item in expected})
    for ids, count in ((0, dataset.num_users), (1, dataset.num_items)):
        assert {pair[ids] for pair in found} == set(range(count))


def test_split_is_80_20_per_user_by_seed_without_cold_items(tmp_path):
    path = write(tmp_path / "pairs", "".join(f"{u} {i}\n" for u, i in random_pairs(80, 60, 0.3)))
    dataset = data.load(path, core=5, seed=1)
    train = Counter(dataset.train_users.tolist())
    test = Counter(dataset.test_users.tolist())
    for user in range(dataset.num_users):
        total = train[user] + test[user]
        assert test[user] == total // 5
    assert set(dataset.test_items.tolist()) <= set(dataset.train_items.tolist())
    assert_same(dataset, data.load(path, core=5, seed=1))
    other = data.load(path, core=5, seed=2)
    assert set(zip(other.test_users.tolist(), other.test_items.tolist(), strict=True)) != set(
        zip(dataset.test_users.tolist(), dataset.test_items.tolist(), strict=True)
    )
    assert sorted(all_pairs(other)) == sorted(all_pairs(dataset))


@pytest.mark.parametrize("seed", range(5))
def test_items_that_occur_once_stay_in_training(tmp_path, seed):
    # Every user has 5 items of their own, which may only be in training, and 5 that all users have.
    own = {f"{user} own-{user}-{item}\n" for user in range(4) for item in range(5)}
    shared = {f"{user} shared-{item}\n" for user in range(4) for item in range(5)}
    dataset = data.load(write(tmp_path / "pairs", "".join(sorted(own | shared))), core=1, seed=seed)
    assert len(all_pairs(dataset)) == 40
    occurrences = Counter(item for _, item in all_pairs(dataset))
    assert set(dataset.test_items.tolist()) <= set(dataset.train_items.tolist())
    assert all(occurrences[item] == 4 for item in dataset.test_items.tolist())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected interactions, got an empty file"),
        ("\n  \n", "expected interactions, got an empty file"),
        ("user item\n", "expected interactions, got 0 positives"),
        (
            "1 2\n1 3\n2\n",
            "line 3: expected 2 columns separated by blanks, as in the first line (this line has 1), got '2'",
        ),
        ("1 2\n1 3 4 5\n", "line 2: expected 2 columns separated by blanks, as in the first line (this line has 4)"),
        ("user,item,x\n1,2,5\n1,3\n", "line 3: expected 3 columns separated by commas"),
        ("1,2,5\n1,3,5\n", "line 1: expected a header, or two columns, or the numbers of the columns"),
        (
            "1\n2\n",
            "line 1: expected a user and an item, separated by a tab, a comma, a semicolon, a bar, '::' or blanks, "
            "got '1'",
        ),
        ("1\t2\n\t3\n", "line 2: expected a user id and an item id that are not empty"),
        (
            "1 2\n1 3\n2 3\n",
            "expected interactions left after the 10-core filter (--core 10), got none of 3 distinct pairs",
        ),
        (
            "user_id:token\tb:token\n1\t2\n",
            "line 1: expected a column of items with a common name",
        ),
        (
            "user_id:token\titem_id:token\trating:float\n1\t2\t4\n1\t3\tgood\n",
            "line 3: expected a number as rating, got 'good'",
        ),
        (
            "user_id:token\titem_id:token\trating:float\n1\t2\t2.5\n",
            "expected interactions, got 0 positives of 0 users and 0 items: columns user_id, item_id; rating ≥ 3",
        ),
    ],
)
def test_malformed_file_is_refused(tmp_path, text, complaint):
    with pytest.raises(data.DataError) as caught:
        data.load(write(tmp_path / "pairs.txt", text))
    assert "pairs.txt" in str(caught.value)
    assert complaint in str(caught.value)


def test_missing_binary_and_long_input_are_refused(tmp_path):
    with pytest.raises(data.DataError, match=r"nowhere: expected an interaction file, got none"):
        data.load(tmp_path / "nowhere")
    (tmp_path / "packed").write_bytes(b"1 2\n\xfd7zXZ\x00\xff\xfe")
    with pytest.raises(data.DataError, match=r"packed, line 2: expected UTF-8 text; .*, got the byte 0xfd"):
        data.load(tmp_path / "packed")
    write(tmp_path / "long", "1 2\n" + "9" * 10_000 + "\n")
    with pytest.raises(data.DataError) as caught:
        data.load(tmp_path / "long")
    assert len(str(caught.value)) < 300


def test_core_is_checked(tmp_path):
    with pytest.raises(data.DataError, match="core must be at least 1, got 0"):
        data.load(write(tmp_path / "pairs", "1 2\n"), core=0)


def test_typed_header_finds_its_columns_and_drops_low_ratings(tmp_path):
    pairs = random_pairs(30, 20, 0.5)
    ratings = [1 + index % 5 for index in range(len(pairs))]
    rows = list(zip(pairs, ratings, strict=True))
    typed = "timestamp:float\titem_id:token\trating:float\tuser_id:token\n"
    typed += "".join(f"0\t{item}\t{rating}\t{user}\n" for (user, item), rating in rows)
    plain = "".join(f"{user} {item}\n" for (user, item), rating in rows if rating >= 4)
    assert_same(
        data.load(write(tmp_path / "typed.inter", typed), core=2, min_rating=4),
        data.load(write(tmp_path / "plain", plain), core=2),
    )


# --- MovieLens-100K ---


@pytest.mark.skipif(
    importlib.util.find_spec("recbole") is None,
    reason="recbole, which carries MovieLens-100K, is not installed",
)
def test_movielens_100k_is_the_10_core_of_ratings_from_3():
    directory = Path(importlib.util.find_spec("recbole").submodule_search_locations[0])
    lines = (directory / "dataset_example/ml-100k/ml-100k.inter").read_text().splitlines()[1:]
    ratings = [line.split("\t") for line in lines]
    expected = k_core({(user, item) for user, item, rating, _ in ratings if float(rating) >= 3}, 10)

    dataset = data.load()
    found = all_pairs(dataset)
    assert len(found) == len(set(found)) == len(expected)
    assert degrees(set(found)) == degrees(expected)
    assert dataset.name == "ml-100k"


def test_missing_recbole_is_answered_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(data.DataError, match=r"pip install --no-deps recbole==1\.2\.1"):
        data.load()


# --- validation ---


def test_validation_takes_a_tenth_of_each_users_training_items():
    counts = [1, 2, 9, 10, 25, 100]
    users = torch.repeat_interleave(torch.arange(6), torch.tensor(counts))
    items = torch.cat([torch.arange(count) for count in counts])
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(0))
    none = torch.empty(0, dtype=torch.int64)
    dataset = data.InteractionData(users[order], items[order], none, none, 6, 100, "made up")

    fit, validation_users, validation_items = data.split_validation(dataset, seed=3)
    assert torch.bincount(validation_users, minlength=6).tolist() == [0, 1, 1, 1, 2, 10]
    fit_pairs = set(zip(fit.train_users.tolist(), fit.train_items.tolist(), strict=True))
    validation_pairs = set(zip(validation_users.tolist(), validation_items.tolist(), strict=True))
    assert not fit_pairs & validation_pairs
    assert fit_pairs | validation_pairs == set(zip(users.tolist(), items.tolist(), strict=True))

    again = data.split_validation(dataset, seed=3)[2]
    other = data.split_validation(dataset, seed=4)[2]
    assert torch.equal(again, validation_items)
    assert not torch.equal(other, validation_items)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_validation_fraction_is_checked(fraction):
    ids = torch.zeros(2, dtype=torch.int64)
    dataset = data.InteractionData(ids, torch.arange(2), ids, ids, 1, 2, "made up")
    with pytest.raises(ValueError, match="fraction must be in"):
        data.split_validation(dataset, fraction)


@pytest.mark.parametrize("name", ["valid.csv", "val.csv", "validation.csv", "dev.csv"])
def test_the_validation_part_has_several_names(tmp_path, name):
    for part, rows in {"train.csv": "1,5\n2,6\n", name: "1,6\n", "test.csv": "2,5\n"}.items():
        (tmp_path / part).write_text("user,item\n" + rows)
    loaded = data.load(tmp_path)
    assert len(loaded.train_users) == 3 and len(loaded.test_users) == 1


def test_an_id_has_one_form_in_all_files(tmp_path):
    for part, rows in {"train.csv": "1,5\n2,5\n2,7\n", "valid.csv": "1.0,6\n", "test.csv": "1,7\n2,6\n"}.items():
        (tmp_path / part).write_text("user,item\n" + rows)
    with pytest.raises(data.DataError, match=r"expected user ids of one form, got both '1' and '1.0'"):
        data.load(tmp_path)

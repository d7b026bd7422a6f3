"""The split whose test items are drawn evenly over popularity, against its distribution written out."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing import assert_distributed

from benchmarks.common import data
from benchmarks.study import shifted
from benchmarks.study.shifted import draw_evenly, write_split

# Users 1 and 4 and item 3 have one pair each, which may not be drawn; (1, 0) still counts for n_0.
SMALL = np.array([(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 3), (3, 0), (3, 2), (4, 1)])


def probabilities(pairs: np.ndarray, number: int) -> Counter[frozenset[int]]:
    """Of every set of pairs that may be drawn, by adding up over the orders of drawing it."""
    popularity = Counter(pairs[:, 1].tolist())
    found: Counter[frozenset[int]] = Counter()

    def draw(drawn: frozenset[int], probability: float) -> None:
        if len(drawn) == number:
            found[drawn] += probability
            return
        left = [index for index in range(len(pairs)) if index not in drawn]
        users, items = (Counter(pairs[left, side].tolist()) for side in (0, 1))
        weights = {
            index: 1 / popularity[pairs[index, 1]]
            for index in left
            if users[pairs[index, 0]] > 1 and items[pairs[index, 1]] > 1
        }
        for index, weight in weights.items():
            draw(drawn | {index}, probability * weight / sum(weights.values()))

    draw(frozenset(), 1.0)
    return found


def write_directory(path: Path, train: list[tuple], test: list[tuple]) -> Path:
    path.mkdir()
    for name, pairs in (("train", train), ("test", test)):
        lines = [f"{user}\t{item}\n" for user, item in pairs]
        (path / f"{name}.tsv").write_text("user\titem\n" + "".join(lines), encoding="utf-8")
    return path


def skewed(seed: int = 0) -> list[tuple[int, int]]:
    """Pairs of 300 users and 60 items, the first of which are the most popular."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, 61)
    chosen = (rng.choice(60, 12, replace=False, p=popularity / popularity.sum()) for _ in range(300))
    pairs = [(user, int(item)) for user, items in enumerate(chosen) for item in items]
    assert len({item for _, item in pairs}) == 60
    return pairs


def read(path: Path) -> tuple[set[tuple], set[tuple]]:
    def pairs(name: str) -> set[tuple]:
        first, *lines = (path / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        assert first == "user\titem"
        assert len(set(lines)) == len(lines)
        return {tuple(line.split("\t")) for line in lines}

    return pairs("train"), pairs("test")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pairs = skewed()
    return write_directory(tmp_path / "source", pairs[::2], pairs[1::2])


def test_sets_of_pairs_are_drawn_with_the_probabilities_of_the_definition():
    expected = probabilities(SMALL, 3)
    assert sum(expected.values()) == pytest.approx(1)
    draws = 20_000
    counts = Counter(frozenset(np.flatnonzero(draw_evenly(*SMALL.T, 3, seed)).tolist()) for seed in range(draws))
    sets = [frozenset(some) for some in combinations(range(len(SMALL)), 3)]
    assert 10 < len(expected) < len(sets)
    found, exact = (torch.tensor([counter[some] for some in sets]).double() for counter in (counts, expected))
    assert_distributed(found, draws * exact)


def test_items_are_tested_alike_whatever_their_popularity():
    users, items = np.array(skewed()).T
    popularity = np.bincount(items)
    rare = popularity < np.median(popularity)
    # So few pairs that no item runs out of them.
    tested = sum(np.bincount(items[draw_evenly(users, items, 60, seed)], minlength=60) for seed in range(500))
    assert tested[~rare].mean() == pytest.approx(tested[rare].mean(), rel=0.1)
    as_popular = popularity[~rare].sum() / popularity.sum()
    assert tested[~rare].sum() / tested.sum() < as_popular - 0.2


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6])
def test_every_user_and_item_is_trained_on(source, tmp_path, share):
    pool = set.union(*read(source))
    write_split(source, tmp_path / "out", share, seed=4)
    train, test = read(tmp_path / "out")
    assert not train & test and train | test == pool
    assert len(test) == round(share * len(pool))
    for side in (0, 1):
        assert {pair[side] for pair in train} == {pair[side] for pair in pool}
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}
    # As training reads it.
    found = data.load_split_directory(tmp_path / "out")
    assert (found.num_users, found.num_items, len(found.test_users)) == (300, 60, len(test))


def test_the_split_depends_on_the_pairs_and_the_seed_alone(source, tmp_path):
    pairs = skewed()
    other = write_directory(tmp_path / "other", pairs[1::2], pairs[::2])
    for name, directory, seed in (("a", source, 0), ("b", other, 0), ("c", source, 1)):
        write_split(directory, tmp_path / name, seed=seed)
    a, b, c = (read(tmp_path / name) for name in "abc")
    assert a == b
    assert a != c


def test_ids_stay_as_they_are(tmp_path):
    items = ['"x"', "#1", "007", "7", "ü b"]
    pairs = [(f"user{user}", item) for user in range(4) for item in items]
    write_split(write_directory(tmp_path / "source", pairs[::2], pairs[1::2]), tmp_path / "out")
    train, test = read(tmp_path / "out")
    assert train | test == set(pairs)
    found = data.load_split_directory(tmp_path / "out")
    assert set(found.item_ids) == set(items)


@pytest.mark.parametrize("item", ["a\tb", "a\nb", " a"])
def test_ids_that_a_table_cannot_have_are_refused(tmp_path, item):
    """Which those of parquet files may be."""
    polars = pytest.importorskip("polars")
    (tmp_path / "source").mkdir()
    for name, users, items in (("train", ["u", "v", "w", "w"], [item, item, "c", "d"]), ("test", ["v"], ["d"])):
        polars.DataFrame({"user": users, "item": items}).write_parquet(tmp_path / "source" / f"{name}.parquet")
    with pytest.raises(ValueError, match="ids of source must read the same from a table separated by tabs, got others"):
        write_split(tmp_path / "source", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_command_line(source, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    arguments = ["--data", str(source), "--out", str(out)]
    assert shifted.main([*arguments, "--seed", "3", "--share", ".1"]) == 0
    train, test = read(out)
    popularity = Counter(item for _, item in train | test)
    before, now = (np.mean([popularity[item] for _, item in pairs]) for pairs in (read(source)[1], test))
    assert capsys.readouterr().out == (
        f"{out}: 3240 training and 360 test pairs of 300 users and 60 items; the item of a test pair has {now:.1f} "
        f"pairs in the mean, {before:.1f} in the split read\n"
    )
    # Once more, it is left as it is; another is refused.
    written = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert shifted.main([*arguments, "--seed", "3", "--share", ".1"]) == 0
    assert shifted.main([*arguments, "--seed", "4", "--share", ".1"]) == 2
    expected = f"error: {out} (--out): expected a new or empty directory, or this split, got another split\n"
    assert capsys.readouterr().err == expected
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == written


@pytest.mark.parametrize(
    ("share", "complaint"),
    [
        ("0", "share (--share) must be in (0, 1), got 0.0"),
        ("1", "share (--share) must be in (0, 1), got 1.0"),
        ("nan", "share (--share) must be in (0, 1), got nan"),
        (
            ".95",
            "share (--share) must leave each user and each item a pair to train on, got 3420 test pairs of 3600",
        ),
    ],
)
def test_a_share_that_cannot_be_drawn_is_refused(source, tmp_path, capsys, share, complaint):
    assert shifted.main(["--data", str(source), "--out", str(tmp_path / "out"), "--share", share]) == 2
    assert capsys.readouterr().err.startswith(f"error: {complaint}")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_is_there_is_kept(source, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target, got in ((out, "one with notes.txt"), (tmp_path / "file", "a file"), (source, "another split")):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert shifted.main(["--data", str(source), "--out", str(target)]) == 2
        expected = f"error: {target} (--out): expected a new or empty directory, or this split, got {got}\n"
        assert capsys.readouterr().err == expected
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (out / "notes.txt").unlink()
    assert shifted.main(["--data", str(source), "--out", str(out)]) == 0
    assert read(out)[1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("no space left")])
def test_an_interrupted_write_leaves_nothing(source, tmp_path, monkeypatch, error):
    write_bytes = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if path.name == "test.tsv":
            raise error
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    assert shifted.main(["--data", str(source), "--out", str(tmp_path / "out")]) == (
        130 if error is KeyboardInterrupt else 2
    )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_that_is_no_split_is_refused(tmp_path, capsys):
    assert shifted.main(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "none/train.tsv: expected an interaction file, got none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

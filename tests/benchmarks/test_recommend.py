"""Recommendations against a brute-force ranking in numpy and against faiss, and what is written of them."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from documentation.markdown_blocks import blocks
from training_cases import FLAGS, write_blocks

import benchmarks.training
from benchmarks.common.data import InteractionData
from benchmarks.recommend import __main__ as recommend
from benchmarks.recommend import rankings, top_k
from benchmarks.recommend import vectors as vectors_module
from benchmarks.training import __main__ as training
from benchmarks.training import saved
from cw_ext import Interactions

pl = pytest.importorskip("polars")

USERS, ITEMS = 9, 23
NASTY = [
    "a,b",
    'q"x"',
    "new\nline",
    "cr\rx",
    "crlf\r\nx",
    " lead",
    "trail ",
    "#c",
    "é日本",
    "007",
    "null",
    "t\tx",
    "\u2028",
]


def brute_force(users, items, k: int, left_out: set[tuple[int, int]], rows=None) -> dict[int, list[tuple[int, float]]]:
    """The first k (item, score) of each user by decreasing score, then by increasing row, in fp64."""
    scores = np.asarray(users, dtype=np.float64) @ np.asarray(items, dtype=np.float64).T
    ranked = {}
    for user in range(len(users)) if rows is None else rows:
        rest = [item for item in range(len(items)) if (user, item) not in left_out]
        order = sorted(rest, key=lambda item: (-scores[user, item], item))
        ranked[user] = [(item, scores[user, item]) for item in order[:k]]
    return ranked


def found_by(blocks) -> dict[int, list[tuple[int, float]]]:
    found = {}
    for rows, ids, scores in blocks:
        for row, items, values in zip(rows.tolist(), ids.tolist(), scores.tolist(), strict=True):
            found[row] = [(item, score) for item, score in zip(items, values, strict=True) if score > -np.inf]
    return found


def vectors(kind: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 [USERS, 4] and [ITEMS, 4] whose inner products are exact, so that ties are ties in any arithmetic."""
    rng = np.random.default_rng(seed)
    low, high = {"all equal": (1, 2), "few ties": (-40, 40), "many ties": (-1, 2), "zero": (0, 1)}[kind]
    return tuple(torch.from_numpy(rng.integers(low, high, (n, 4)).astype(np.float32)) for n in (USERS, ITEMS))


def known_pairs(seed: int = 0) -> set[tuple[int, int]]:
    """Of any number per user: user 0 knows nothing, user 1 everything, user 2 all but two."""
    rng = np.random.default_rng(seed)
    pairs = {(user, item) for user in range(3, USERS) for item in rng.choice(ITEMS, 7 * (user % 3), replace=False)}
    return pairs | {(1, item) for item in range(ITEMS)} | {(2, item) for item in range(ITEMS) if item not in (5, 17)}


def interactions(pairs: set[tuple[int, int]]) -> Interactions:
    return Interactions(*zip(*pairs, strict=True), num_queries=USERS, num_items=ITEMS)


# --- top k ---


@pytest.mark.parametrize("kind", ["few ties", "many ties", "all equal", "zero"])
@pytest.mark.parametrize("k", [1, 3, 7, ITEMS - 1, ITEMS])
@pytest.mark.parametrize(("queries_per_block", "items_per_block"), [(512, 32768), (4, 5), (1, 1), (2, ITEMS)])
def test_the_top_k_is_that_of_a_whole_sort(monkeypatch, kind, k, queries_per_block, items_per_block):
    monkeypatch.setattr(top_k, "_QUERIES_PER_BLOCK", queries_per_block)
    monkeypatch.setattr(top_k, "_ITEMS_PER_BLOCK", items_per_block)
    users, items = vectors(kind)
    for pairs in (set(), known_pairs()):
        left_out = interactions(pairs) if pairs else None
        assert found_by(top_k.top_k(users, items, k, left_out)) == brute_force(users, items, k, pairs)
        rows = [7, 1, 4]
        found = found_by(top_k.top_k(users, items, k, left_out, torch.tensor(rows)))
        assert found == brute_force(users, items, k, pairs, rows)
        assert list(found) == rows


def test_scores_without_ties_are_right_too(monkeypatch):
    monkeypatch.setattr(top_k, "_ITEMS_PER_BLOCK", 10)
    generator = torch.Generator().manual_seed(0)
    users, items = torch.randn(USERS, 16, generator=generator), torch.randn(ITEMS, 16, generator=generator)
    expected = brute_force(users, items, 5, known_pairs())
    for user, found in found_by(top_k.top_k(users, items, 5, interactions(known_pairs()))).items():
        assert [item for item, _ in found] == [item for item, _ in expected[user]]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected[user]], rel=1e-5)


# --- the command line, on a made-up model ---


def save_model(
    directory: Path, user_ids=None, item_ids=None, tables=None, similarity: str = "dot"
) -> tuple[Path, set[tuple[int, int]], set[tuple[int, int]]]:
    """Return (the model's directory, training pairs, test pairs)."""
    known = sorted(known_pairs())
    test = {(user, item) for user, item in known if (user + item) % 4 == 0}
    train = set(known) - test
    columns = [torch.tensor(sorted(pairs)).unbind(1) for pairs in (train, test)]
    data = InteractionData(*columns[0], *columns[1], USERS, ITEMS, "made up", user_ids, item_ids)
    saved.save(directory / "model", data, tables or vectors("many ties"), similarity, {})
    return directory / "model", train, test


def run(model: Path, *arguments: Any) -> None:
    assert recommend.main(["--model", str(model), *map(str, arguments)]) == 0


def read(path: Path) -> list[tuple[str, str, int, float]]:
    """The rows (user, item, rank, score) with ids as text, read without the library that wrote them where possible."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        assert header[2:] == ["rank", "score"]
        return [(user, item, int(rank), float(score)) for user, item, rank, score in rows]
    if path.suffix == ".parquet":
        return [(str(user), str(item), rank, score) for user, item, rank, score in pl.read_parquet(path).rows()]
    rows = []
    for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        (_, user), (_, items), (_, scores) = json.loads(line).items()
        rows += [(str(user), str(i), n, s) for n, (i, s) in enumerate(zip(items, scores, strict=True), 1)]
    return rows


def as_rows(ranked: dict[int, list[tuple[int, float]]], user_ids, item_ids) -> list[tuple[str, str, int, float]]:
    return [
        (str(user_ids[user]), str(item_ids[item]), rank, score)
        for user, found in ranked.items()
        for rank, (item, score) in enumerate(found, 1)
    ]


STRINGS = (np.array(NASTY[:USERS]), np.array([*NASTY, *(f"item{n}" for n in range(ITEMS - len(NASTY)))]))
IDS = {"rows": (None, None), "numbers": (np.arange(USERS)[::-1] * 10**12, np.arange(ITEMS) - 5), "strings": STRINGS}


@pytest.mark.parametrize("suffix", recommend.FORMATS)
@pytest.mark.parametrize("ids", IDS)
def test_each_users_top_k_is_written_in_own_ids(tmp_path, capsys, suffix, ids):
    model, train, test = save_model(tmp_path, *IDS[ids])
    names = [np.arange(n) if given is None else given for n, given in zip((USERS, ITEMS), IDS[ids], strict=True)]
    out = tmp_path / f"recs{suffix}"
    for arguments, left_out in (([], train | test), (["--keep-test"], train), (["--keep-known"], set())):
        run(model, "--k", 4, "--out", out, *arguments)
        expected = as_rows(brute_force(*vectors("many ties"), 4, left_out), *names)
        assert read(out) == expected
        assert f"{out}: {len(expected)} items for {USERS} users, at most 4 each" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", out.name]


def test_in_jsonl_a_user_with_nothing_left_has_empty_lists(tmp_path):
    model, _, _ = save_model(tmp_path)
    run(model, "--k", 3, "--out", tmp_path / "recs.jsonl")
    objects = [json.loads(line) for line in (tmp_path / "recs.jsonl").read_text().splitlines()]
    assert [found["user"] for found in objects] == list(range(USERS))
    assert objects[1] == {"user": 1, "item": [], "score": []}
    assert len(objects[2]["item"]) == 2


def test_parquet_has_types(tmp_path):
    model, _, _ = save_model(tmp_path, item_ids=STRINGS[1])
    run(model, "--out", tmp_path / "recs.parquet")
    schema = {"user": pl.Int64, "item": pl.String, "rank": pl.Int32, "score": pl.Float32}
    assert dict(pl.read_parquet(tmp_path / "recs.parquet").schema) == schema


def test_k_may_be_more_than_there_are_items(tmp_path):
    model, _, _ = save_model(tmp_path)
    run(model, "--k", 1000, "--keep-known", "--out", tmp_path / "recs.csv")
    assert len(read(tmp_path / "recs.csv")) == USERS * ITEMS


@pytest.mark.parametrize("k", [2, ITEMS])
@pytest.mark.parametrize("some", [False, True])
def test_similar_items_are_those_with_the_highest_cosine(tmp_path, k, some):
    generator = torch.Generator().manual_seed(1)
    tables = torch.randn(USERS, 6, generator=generator), torch.randn(ITEMS, 6, generator=generator) * 3
    model, _, _ = save_model(tmp_path, item_ids=STRINGS[1], tables=tables)
    rows = [4, 2, 9] if some else list(range(ITEMS))
    if some:
        pl.DataFrame({"x": [1, 2, 3], "item": STRINGS[1][rows].tolist()}).write_csv(tmp_path / "items.csv")
    further = ["--items", tmp_path / "items.csv"] if some else []
    run(model, "--similar-items", "--k", k, "--out", tmp_path / "similar.csv", *further)
    found = read(tmp_path / "similar.csv")
    items = tables[1].double().numpy()
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    expected = as_rows(brute_force(items, items, k, {(i, i) for i in rows}, rows), STRINGS[1], STRINGS[1])
    assert [row[:3] for row in found] == [row[:3] for row in expected]
    assert [row[3] for row in found] == pytest.approx([row[3] for row in expected], abs=1e-6)
    header = (tmp_path / "similar.csv").read_text(encoding="utf-8").partition("\n")[0]
    assert header == "item,similar,rank,score"


def test_what_is_not_installed_is_named(tmp_path, monkeypatch, capsys):
    model, _, _ = save_model(tmp_path)
    monkeypatch.delitem(sys.modules, "benchmarks.training.saved")
    monkeypatch.delattr(benchmarks.training, "saved")
    monkeypatch.setitem(sys.modules, "polars", None)
    line = fails(capsys, model, "--out", tmp_path / "recs.csv")
    expected = 'saved models need polars, which is in the extra "benchmarks"; run: pip install polars safetensors'
    assert line == f"error: {expected}"


# --- files of ids ---


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet", ""])
def test_users_are_taken_from_a_file_in_its_order(tmp_path, suffix):
    model, train, test = save_model(tmp_path, *STRINGS)
    # An id with a line break cannot stand in a text file.
    rows = [7, 0, 5] if suffix in ("", ".txt") else [7, 2, 0, 5, 4]
    ids, path = STRINGS[0][rows].tolist(), tmp_path / f"users{suffix}"
    if suffix in ("", ".txt"):
        path.write_bytes("".join(f"{name}\r\n" for name in [*ids, ids[0], ""]).encode())
    else:
        table = pl.DataFrame({"item": ["x"] * (len(ids) + 1), "user": [*ids, ids[0]]})
        table.write_csv(path) if suffix == ".csv" else table.write_parquet(path)
    run(model, "--users", path, "--k", 3, "--out", tmp_path / "recs.csv")
    expected = brute_force(*vectors("many ties"), 3, train | test, rows)
    assert read(tmp_path / "recs.csv") == as_rows(expected, *STRINGS)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".parquet"])
def test_blanks_around_an_id_of_a_text_count_only_if_the_model_has_them(tmp_path, capsys, suffix):
    model, train, test = save_model(tmp_path, *STRINGS)
    names = STRINGS[0].tolist()
    rows = [row for row, name in enumerate(names) if name == name.strip() and name.isprintable()][:3]
    rows += [row for row, name in enumerate(names) if name != name.strip()][:1]
    assert len(rows) == 4
    ids, path = [STRINGS[0][row] for row in rows], tmp_path / f"users{suffix}"
    padded = [f" {ids[0]}\t", *ids]
    if suffix == ".txt":
        path.write_text("\n".join(padded))
    else:
        table = pl.DataFrame({"user": padded})
        table.write_csv(path) if suffix == ".csv" else table.write_parquet(path)
    if suffix == ".parquet":
        assert "got 1 unknown ones of 5" in fails(capsys, model, "--users", path, "--out", tmp_path / "recs.csv")
        return
    run(model, "--users", path, "--k", 3, "--out", tmp_path / "recs.csv")
    expected = brute_force(*vectors("many ties"), 3, train | test, rows)
    assert read(tmp_path / "recs.csv") == as_rows(expected, *STRINGS)


def test_what_was_written_can_be_read_as_ids(tmp_path):
    model, _, _ = save_model(tmp_path, *STRINGS)
    for suffix in (".csv", ".parquet"):
        run(model, "--k", 3, "--out", tmp_path / f"first{suffix}")
        run(model, "--k", 3, "--out", tmp_path / f"second{suffix}", "--users", tmp_path / f"first{suffix}")
        assert read(tmp_path / f"second{suffix}") == read(tmp_path / f"first{suffix}")


def fails(capsys, model: Path, *arguments: Any) -> str:
    """The one line on stderr of a call that ends with status 2 and writes nothing."""
    before = sorted(model.parent.rglob("*"))
    capsys.readouterr()
    try:
        status = recommend.main(["--model", str(model), *map(str, arguments)])
    except SystemExit as error:  # argparse's, after the usage
        status = error.code
    assert status == 2
    assert sorted(model.parent.rglob("*")) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()[-1]


BAD_FILES = {
    "unknown": (
        "u.txt",
        b"3\n99\nx\n03\n1\n -2\n4.0\ny\nz\n",
        "got 7 unknown ones of 9: '99', 'x', '03', '-2', '4.0', ...",
    ),
    "one unknown": ("u.txt", b"3\nx\n", "got 1 unknown ones of 2: 'x'"),
    "empty": ("u.txt", b"", "expected at least one user id, got none"),
    "blank": ("u.txt", b"\n \n", "expected at least one user id, got none"),
    "other bytes": ("u.txt", b"\xff\xfe3\n", "expected UTF-8 text, got other bytes"),
    "no column": ("u.csv", b"users,x\n3,1\n", "expected a column 'user', got the columns users, x"),
    "no header": ("u.csv", b"3\n4\n", "expected a column 'user', got the columns 3"),
    "an empty csv": ("u.csv", b"", "expected a table of user ids, got: "),
    "no parquet": ("u.parquet", b"user\n3\n", "expected a table of user ids, got: "),
    "missing": ("u.txt", None, "expected a file of user ids, got: No such file or directory"),
    "missing csv": ("u.csv", None, "expected a file of user ids, got: No such file or directory"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_a_bad_file_of_ids_is_one_line_and_nothing_is_written(tmp_path, capsys, bad):
    model, _, _ = save_model(tmp_path)
    name, data, complaint = BAD_FILES[bad]
    if data is not None:
        (tmp_path / name).write_bytes(data)
    line = fails(capsys, model, "--users", tmp_path / name, "--out", tmp_path / "recs.csv")
    assert line.startswith(f"error: {tmp_path / name}: ")
    assert complaint in line


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--out", "recs.txt"], "--out: expected a file that ends in .parquet, .csv, .jsonl, got 'recs.txt'"),
        (["--out", "recs"], "--out: expected a file that ends in .parquet, .csv, .jsonl, got 'recs'"),
        ([], "expected --out, --vectors or both"),
        (["--out", "r.csv", "--k", "0"], "--k: expected a whole number of at least 1, got '0'"),
        (["--out", "r.csv", "--similar-items", "--users", "u"], "--users only applies to recommendations"),
        (["--out", "r.csv", "--similar-items", "--keep-known"], "--keep-known only applies to recommendations"),
        (["--vectors", "v", "--keep-test"], "--keep-test only applies to recommendations"),
        (["--vectors", "v", "--similar-items"], "--similar-items needs --out"),
        (["--out", "r.csv", "--items", "i.txt"], "--items needs --similar-items"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_any_work(tmp_path, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(saved, "load", lambda _: pytest.fail("loaded"))
    assert complaint in fails(capsys, tmp_path / "model", *arguments)


def test_no_model_or_a_directory_as_output_is_one_line(tmp_path, capsys):
    line = fails(capsys, tmp_path / "nowhere", "--out", tmp_path / "recs.csv")
    assert line == f"error: {tmp_path / 'nowhere'}: expected a model saved by training with --save, got none"
    model, _, _ = save_model(tmp_path)
    (tmp_path / "recs.csv").mkdir()
    line = fails(capsys, model, "--out", tmp_path / "recs.csv")
    assert line == f"error: --out {tmp_path / 'recs.csv'}: expected a file, got a directory"


@pytest.mark.parametrize("suffix", recommend.FORMATS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError("x")])
def test_an_interruption_leaves_the_earlier_file(tmp_path, monkeypatch, capsys, suffix, error):
    model, _, _ = save_model(tmp_path)
    out = tmp_path / f"recs{suffix}"
    run(model, "--k", 3, "--out", out)
    before, files = out.read_bytes(), sorted(tmp_path.rglob("*"))
    original = rankings.top_k

    def interrupted(*arguments):
        yield next(original(*arguments))
        raise error

    monkeypatch.setattr(rankings, "top_k", interrupted)
    monkeypatch.setattr(top_k, "_QUERIES_PER_BLOCK", 2)
    expected = 130 if isinstance(error, KeyboardInterrupt) else 2
    assert recommend.main(["--model", str(model), "--k", "5", "--out", str(out)]) == expected
    assert out.read_bytes() == before
    assert sorted(tmp_path.rglob("*")) == files


@pytest.mark.parametrize("suffix", recommend.FORMATS)
def test_a_full_disk_is_one_line_with_the_file(tmp_path, capsys, suffix):
    """A link to the device that is always full stands where the file is written."""
    if not Path("/dev/full").is_char_device():
        pytest.skip("there is no /dev/full")
    model, _, _ = save_model(tmp_path)
    out = tmp_path / f"recs{suffix}"
    (tmp_path / f"unfinished-{out.name}").symlink_to("/dev/full")
    assert recommend.main(["--model", str(model), "--out", str(out)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and str(out) in line and "No space left on device" in line
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# --- vectors ---


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_faiss_finds_the_same_top_k(tmp_path, similarity):
    faiss = pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(2)
    tables = [torch.randn(n, 16, generator=generator) for n in (USERS, ITEMS)]
    if similarity == "cosine":
        tables = [torch.nn.functional.normalize(table, dim=1) for table in tables]
    model, _, _ = save_model(tmp_path, *STRINGS, tables=tuple(tables), similarity=similarity)
    run(model, "--vectors", tmp_path / "vectors", "--out", tmp_path / "recs.parquet", "--keep-known", "--k", 7)
    users, items = (np.load(tmp_path / "vectors" / f"{kind}.npy") for kind in ("users", "items"))
    user_ids, item_ids = (
        pl.read_parquet(tmp_path / "vectors" / f"{kind}.parquet")["id"] for kind in ("users", "items")
    )
    index = faiss.IndexFlatIP(items.shape[1])
    index.add(items)
    scores, rows = index.search(users, 7)
    found = read(tmp_path / "recs.parquet")
    assert [row[0] for row in found] == np.repeat(user_ids.to_list(), 7).tolist()
    assert [row[1] for row in found] == [item_ids[int(row)] for row in rows.flatten()]
    assert [row[3] for row in found] == pytest.approx(scores.flatten().tolist(), rel=1e-5, abs=1e-6)


def test_the_serving_page_leaves_out_what_each_user_of_a_saved_model_has(tmp_path, monkeypatch):
    """The block of docs/get-started/serving.md that reads a saved model, and the two blocks after it."""
    monkeypatch.chdir(tmp_path)
    page = blocks(Path(__file__).parents[2] / "docs" / "get-started" / "serving.md")
    start = next(at for at, block in enumerate(page) if "known.parquet" in block.code)
    model, train, test = save_model(tmp_path, *STRINGS)
    (tmp_path / "models" / "orders").mkdir(parents=True)
    model.rename(tmp_path / "models" / "orders" / "cw-seed0")
    run(Path("models/orders/cw-seed0"), "--vectors", "vectors")
    names: dict[str, Any] = {}
    for block in page[start : start + 3]:
        exec(compile(block.code, "serving.md", "exec"), names)
    assert [names[f"{kind}_labels"].tolist() for kind in ("user", "item")] == [list(ids) for ids in STRINGS]
    expected = brute_force(*vectors("many ties"), names["K"], train | test)
    assert all(len(expected[user]) == names["K"] for user in (0, 3))
    for user in (0, 3):  # with equal scores any order is right
        found = names["exact"][user]
        assert names["scores"][user, found].tolist() == [score for _, score in expected[user]]
        assert not (train | test) & {(user, item) for item in found.tolist()}


def test_vectors_replace_earlier_ones_and_nothing_else(tmp_path, capsys):
    model, _, _ = save_model(tmp_path)
    (tmp_path / "vectors").mkdir()
    (tmp_path / "vectors" / "mine.npy").touch()
    line = fails(capsys, model, "--vectors", tmp_path / "vectors", "--out", tmp_path / "recs.csv")
    expected = "expected a new or empty directory or earlier vectors, got mine.npy"
    assert line == f"error: {tmp_path / 'vectors'}: {expected}"
    (tmp_path / "vectors" / "mine.npy").unlink()
    for _ in range(2):
        run(model, "--vectors", tmp_path / "vectors")
    assert {path.name for path in (tmp_path / "vectors").iterdir()} == vectors_module.FILES
    assert np.array_equal(np.load(tmp_path / "vectors" / "items.npy"), vectors("many ties")[1])


# --- from a file of pairs to recommendations ---


@pytest.mark.parametrize("model", ["mf", "lightgcn"])
def test_from_training_to_recommendations(tmp_path, model):
    if model != "mf":
        pytest.importorskip("torch_geometric")
    path = write_blocks(tmp_path / "blocks.txt")
    where = ["--out", str(tmp_path / "out"), "--save", str(tmp_path / "model")]
    arguments = ["--data", str(path), *FLAGS, "--loss", "cw", "--model", model, "--epochs", "1", *where]
    assert training.main(arguments) == 0
    run(tmp_path / "model", "--k", 6, "--out", tmp_path / "recs.csv", "--vectors", tmp_path / "vectors")
    found = saved.load(tmp_path / "model")
    starts, items = found.known_with_test.starts.tolist(), found.known_with_test.items.tolist()
    known = {(user, item) for user in range(60) for item in items[starts[user] : starts[user + 1]]}
    assert len(known) == 600  # all pairs of the file
    users, items = (np.load(tmp_path / "vectors" / f"{kind}.npy") for kind in ("users", "items"))
    expected = as_rows(brute_force(users, items, 6, known), found.user_ids, found.item_ids)
    rows = read(tmp_path / "recs.csv")
    assert [row[:3] for row in rows] == [row[:3] for row in expected]
    assert [row[3] for row in rows] == pytest.approx([row[3] for row in expected], abs=1e-5)

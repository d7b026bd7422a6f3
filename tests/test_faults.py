"""Files that are bad, locked or would run code: one clear error each, and nothing run."""

from __future__ import annotations

import ast
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_files import BAD_FILES, Payload, unprivileged

from cw_ext import Interactions


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_of_interactions_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    content, line = BAD_FILES[name]
    path = tmp_path / "pairs.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        Interactions.from_file(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message and len(message) < 400
    assert line is None or f"line {line}" in message


def test_an_id_out_of_range_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    for head, line in (("", 3), ("query\titem\n", 4), ("\n\nquery\titem\n\n", 7)):
        path.write_text(f"{head}0\t1\n1\t0\n5\t1\n", encoding="utf-8")
        with pytest.raises(IndexError) as caught:
            Interactions.from_file(path, num_queries=5)
        assert str(caught.value) == f"{path}, line {line}: query_ids must be in [0, 5), got 5 at position 2"


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    path = locked / "pairs.tsv"
    path.write_text("0\t1\n")
    locked.chmod(0o000)
    try:
        with unprivileged(), pytest.raises(PermissionError, match="pairs.tsv"):
            Interactions.from_file(path)
    finally:
        locked.chmod(0o755)


# --- files that would run code ---


@pytest.mark.parametrize("place", ["data", "indices", "format", "alone"])
def test_an_npz_that_would_run_code_is_refused(tmp_path: Path, place: str) -> None:
    pytest.importorskip("scipy.sparse")
    payload = np.array([Payload(tmp_path / "made")], dtype=object)
    path = tmp_path / "pairs.npz"
    parts: dict[str, Any] = {"data": np.ones(1), "indices": np.zeros(1, int), "indptr": np.array([0, 1])}
    parts |= {"shape": np.array([1, 1]), "format": b"csr"} | {place: payload}
    if place == "alone":
        file = io.BytesIO()
        np.save(file, payload)
        path.write_bytes(file.getvalue())
    else:
        np.savez(path, **parts)
    with pytest.raises(ValueError, match=r"pairs.npz: expected an .npz that scipy.sparse.save_npz wrote, got: "):
        Interactions.from_file(path)
    assert not (tmp_path / "made").exists()
    loaded = np.load(path, allow_pickle=True)
    _ = loaded if place == "alone" else loaded[place]
    assert (tmp_path / "made").exists()  # it would have


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr"])
def test_an_npz_cut_short_or_altered_is_refused_or_holds_what_is_in_range(tmp_path: Path, form: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    path = tmp_path / "pairs.npz"
    sparse.save_npz(path, sparse.random(30, 20, 0.2, format="csr", random_state=0).asformat(form))
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    altered = [bytearray(whole) for _ in range(60)]
    for content in altered:
        content[rng.integers(len(content))] ^= int(rng.integers(1, 256))
    cut = [whole[:size] for size in range(0, len(whole), 41)]
    for content in cut:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^\S*pairs.npz: expected an .npz .*, got: .+$"):
            Interactions.from_file(path)
    for content in altered:
        path.write_bytes(content)
        try:
            found = Interactions.from_file(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: expected an .npz")
        else:  # what does not count, such as a time
            assert len(found) == 120


@pytest.mark.parametrize(
    ("form", "indices", "starts"),
    [
        ("csr", [0, 99, 2], [0, 1, 3]),
        ("csc", [0, 99, 1], [0, 1, 3]),
        ("csr", [0, -1, 2], [0, 1, 3]),
        ("csc", [0, -1, 1], [0, 1, 3]),
        ("csr", [0, 1, 2], [0, 10**7, 3]),
    ],
)
def test_an_npz_whose_indices_point_elsewhere_is_refused(
    tmp_path: Path, form: str, indices: list[int], starts: list[int]
) -> None:
    """scipy would read and write there."""
    pytest.importorskip("scipy.sparse")
    path = tmp_path / "pairs.npz"
    shape = (2, 5) if form == "csr" else (5, 2)
    np.savez(path, data=np.ones(3), indices=indices, indptr=starts, shape=shape, format=form.encode())
    with pytest.raises(ValueError, match="pairs.npz: expected an .npz that scipy.sparse.save_npz wrote, got: "):
        Interactions.from_file(path)


def _called(node: ast.Call) -> str:
    """What is called, as in the source."""
    return ast.unparse(node.func)


ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("cw_ext", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
RUNS_CODE = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
UNPICKLES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "yaml", "cloudpickle"}
SAFELY = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & UNPICKLES
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in UNPICKLES
        if isinstance(node, ast.Call):
            assert _called(node) not in RUNS_CODE, f"line {node.lineno}"
            if _called(node) in SAFELY:
                name, expected = SAFELY[_called(node)]
                found = [k.value for k in node.keywords if k.arg == name]
                assert [ast.literal_eval(value) for value in found] == [expected], f"line {node.lineno}"

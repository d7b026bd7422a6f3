"""Saved models: whole or not at all, read back as they were, and damaged or foreign ones refused by name."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_resume import interrupt_main
from training_cases import FLAGS, load_blocks, write_blocks

from benchmarks.common import whole_directory
from benchmarks.common.data import InteractionData
from benchmarks.training import __main__ as training
from benchmarks.training import compare, saved
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.metrics import ranking_metrics
from benchmarks.training.negatives import Negatives
from benchmarks.training.saved import SavedModelError
from benchmarks.training.trainer import Trainer, TrainingConfig, train

pl = pytest.importorskip("polars")

NASTY = ["a,b", 'q"x"', "new\nline", "cr\rx", " lead", "trail ", "#c", "é日本", "007", "null", "t\tx", "\u2028", "1e5"]


@pytest.fixture(autouse=True)
def plots(monkeypatch) -> None:
    monkeypatch.setattr(compare, "plot_runs", lambda runs, path, title: path.touch())


def made_up(user_ids=None, item_ids=None) -> InteractionData:
    """3 users and 4 items; users 0 and 1 have training pairs, user 0 a test pair."""
    train, test = torch.tensor([[0, 1], [0, 3], [1, 2]]), torch.tensor([[0, 2]])
    ids = {"user_ids": user_ids, "item_ids": item_ids}
    return InteractionData(*train.unbind(1), *test.unbind(1), num_users=3, num_items=4, name="made up", **ids)


def tables(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, generator=generator), torch.randn(4, 5, generator=generator)


def save(directory: Path, seed: int = 0, **ids: Any) -> None:
    saved.save(directory, made_up(**ids), tables(seed), "dot", {"loss": "sl", "seed": seed})


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def pairs_of(known) -> list[tuple[int, int]]:
    users = torch.arange(known.num_queries).repeat_interleave(known.starts.diff())
    return list(zip(users.tolist(), known.items.tolist(), strict=True))


# --- round trip ---


@pytest.mark.parametrize(
    ("user_ids", "item_ids"),
    [
        (None, None),
        (np.array([7, -3, 2**62]), np.array([10, 11, 12, 13], dtype=np.int32)),
        (np.array(NASTY[:3]), np.array(NASTY[3:7], dtype=object)),
        (np.array(NASTY[7:10]), np.array([*NASTY[10:], "x"])),
    ],
)
def test_what_was_saved_is_read_back(tmp_path, user_ids, item_ids):
    save(tmp_path / "model", user_ids=user_ids, item_ids=item_ids)
    model = saved.load(tmp_path / "model")
    assert all(torch.equal(found, table) for found, table in zip((model.users, model.items), tables(), strict=True))
    assert model.user_ids.to_list() == list(range(3) if user_ids is None else user_ids)
    assert model.item_ids.to_list() == list(range(4) if item_ids is None else item_ids)
    assert pairs_of(model.known) == [(0, 1), (0, 3), (1, 2)]
    assert pairs_of(model.known_with_test) == [(0, 1), (0, 2), (0, 3), (1, 2)]
    assert model.config["data"] == made_up().sizes()
    assert model.config["run"] == {"loss": "sl", "seed": 0} == saved.run_of(tmp_path / "model")


def test_tables_that_are_views_are_saved_as_they_are(tmp_path):
    both = torch.arange(35.0).reshape(5, 7).T
    saved.save(tmp_path / "model", made_up(), (both[:3], both[3:]), "dot", {})
    model = saved.load(tmp_path / "model")
    assert torch.equal(torch.cat([model.users, model.items]), both)


def test_all_files_have_the_rights_of_new_ones(tmp_path):
    save(tmp_path / "model")
    (tmp_path / "new").touch()
    expected = stat.S_IMODE((tmp_path / "new").stat().st_mode)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()} == {expected}


# --- whole or not at all ---


class Killed(BaseException):
    """Nothing catches it."""


WRITES = {
    "vectors": (saved, "save_file"),
    "configuration": (saved.reporting, "write_json"),
    "ids and pairs": (pl.DataFrame, "write_parquet"),
    "rights": (saved.shutil, "copymode"),
}


def fail_at(patch, write: str, error: BaseException, call: int = 0) -> None:
    """Let the error come after that many calls of the function, and after some of the file is written."""
    owner, name = WRITES[write]
    original, calls = getattr(owner, name), []

    def failing(*arguments, **keywords):
        calls.append(arguments)
        result = original(*arguments, **keywords)
        if len(calls) > call:
            raise error
        return result

    patch.setattr(owner, name, failing)


@pytest.mark.parametrize("error", [Killed(), KeyboardInterrupt(), OSError("no space left on device")])
@pytest.mark.parametrize(("write", "call"), [*((w, 0) for w in WRITES), ("ids and pairs", 1), ("ids and pairs", 2)])
@pytest.mark.parametrize("earlier", [False, True])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch, error, write, call, earlier):
    if earlier:
        save(tmp_path / "model")
    before = content(tmp_path / "model") if earlier else None
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        fail_at(patch, write, error, call)
        save(tmp_path / "model", seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"] * earlier
    if earlier:
        assert content(tmp_path / "model") == before
    save(tmp_path / "model", seed=2)
    assert torch.equal(saved.load(tmp_path / "model").users, tables(2)[0])


@pytest.mark.parametrize("write", WRITES)
def test_a_killed_write_leaves_what_was_there(tmp_path, write):
    """A process of its own, which ends in the middle of the write without another instruction."""
    save(tmp_path / "model")
    before = content(tmp_path / "model")
    child = os.fork()
    if child == 0:
        try:
            owner, name = WRITES[write]
            setattr(owner, name, lambda *_, **__: os._exit(7))
            # Not polars, whose threads are not there after a fork.
            pl.DataFrame.write_parquet = lambda *_, **__: os._exit(7)
            save(tmp_path / "model", seed=1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert content(tmp_path / "model") == before
    save(tmp_path / "model", seed=2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (saved.safetensors.SafetensorError("I/O error\nmore"), "I/O error"),
        (pl.exceptions.ComputeError("no space left"), "no space left"),
    ],
)
def test_a_library_that_cannot_write_is_one_line(tmp_path, monkeypatch, error, shown):
    monkeypatch.setattr(saved, "save_file", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(OSError) as caught:
        save(tmp_path / "model")
    assert str(caught.value) == f"{tmp_path / 'model'}: expected a writable place, got: {shown}"


@pytest.mark.parametrize("swap_of_the_system", [True, False])
def test_an_older_model_is_replaced(tmp_path, monkeypatch, swap_of_the_system):
    if not swap_of_the_system:
        monkeypatch.setattr(whole_directory.sys, "platform", "other")
    save(tmp_path / "model")
    save(tmp_path / "model", seed=1)
    assert torch.equal(saved.load(tmp_path / "model").users, tables(1)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_without_a_swap_a_failed_rename_brings_the_older_model_back(tmp_path, monkeypatch):
    save(tmp_path / "model")
    before = content(tmp_path / "model")
    original = os.replace

    def rename(source, target):
        if Path(source).name == "unfinished-model":
            raise OSError("no")
        original(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(whole_directory.sys, "platform", "other")
        patch.setattr(os, "replace", rename)
        save(tmp_path / "model", seed=1)
    assert content(tmp_path / "model") == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_stays_one_and_leads_to_the_new_model(tmp_path):
    save(tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    save(tmp_path / "current", seed=1)
    assert (tmp_path / "current").is_symlink()
    assert torch.equal(saved.load(tmp_path / "v1").users, tables(1)[0])


# --- directories and files of something else ---


def test_a_directory_of_something_else_is_refused_and_kept(tmp_path):
    save(tmp_path / "with more")
    (tmp_path / "with more" / "notes.txt").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name, got in (("with more", "notes.txt"), ("other", "a damaged or incomplete one"), ("file", "a file")):
        expected = f"{tmp_path / name}: expected a new or empty directory or an earlier saved model, got {got}"
        for function in (saved.check_target, save):
            with pytest.raises(SavedModelError) as caught:
                function(tmp_path / name)
            assert str(caught.value) == expected
    assert (tmp_path / "with more" / "notes.txt").read_text() == "mine"
    saved.load(tmp_path / "with more")


def rewrite(**columns):
    """A table with some columns replaced."""
    return lambda path: pl.read_parquet(path).with_columns(**columns).write_parquet(path)


def other_vectors(users: torch.Tensor, items: torch.Tensor, name: str = "users"):
    return lambda path: saved.save_file({name: users, "items": items}, path)


def rewrite_config(change):
    def damage(path: Path) -> None:
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return damage


DAMAGES = {
    "no vectors": ("model.safetensors", Path.unlink, "with the file model.safetensors, got none"),
    "no items": ("items.parquet", Path.unlink, "with the file items.parquet, got none"),
    "no configuration": ("config.json", Path.unlink, "expected a model saved by training with --save, got something"),
    "another json": ("config.json", lambda path: path.write_text("[1]"), "without the format"),
    "text as configuration": ("config.json", lambda path: path.write_text("x"), "without the format"),
    "other sizes": ("config.json", rewrite_config(lambda c: c["data"].update(items=9)), "expected items 9, as in conf"),
    "another length": ("config.json", rewrite_config(lambda c: c.update(dim=9)), "expected dim 9, as in config.json"),
    "no sizes": ("config.json", rewrite_config(lambda c: c.update(data=3)), "expected users None"),
    "cut vectors": ("model.safetensors", lambda path: os.truncate(path, 100), "a damaged or another one"),
    "empty vectors": ("model.safetensors", lambda path: path.write_bytes(b""), "a damaged or another one"),
    "a pickle": ("model.safetensors", lambda path: torch.save({"users": 1}, path), "a damaged or another one"),
    "other tensors": ("model.safetensors", other_vectors(*tables(), name="x"), "the tensors users and items"),
    "half precision": ("model.safetensors", other_vectors(*(t.half() for t in tables())), "expected float32 users"),
    "no table": ("model.safetensors", other_vectors(torch.zeros(3), torch.zeros(4, 1)), "expected float32 users"),
    "lengths differ": ("model.safetensors", other_vectors(tables()[0], torch.zeros(4, 6)), "expected float32 items"),
    "NaN": ("model.safetensors", other_vectors(tables()[0], tables()[1] * torch.nan), "expected finite items"),
    "a user more": ("model.safetensors", other_vectors(torch.zeros(4, 5), tables()[1]), "expected users 3, as in conf"),
    "cut ids": ("users.parquet", lambda path: os.truncate(path, 50), "a damaged or another one"),
    "ids twice": ("users.parquet", rewrite(id=pl.lit("a")), "expected 3 different ids, got 1"),
    "rows in another order": ("users.parquet", rewrite(row=pl.col("row").reverse()), "expected the rows 0 to 2"),
    "ids that are missing": ("items.parquet", rewrite(id=pl.lit(None, pl.String)), "a column id of Int64 or String"),
    "ids of another type": ("items.parquet", rewrite(id=pl.lit(1.5)), "expected a column id of Int64 or String"),
    "pairs out of range": ("known.parquet", rewrite(item=pl.lit(9, pl.Int64)), "item_ids"),
    "pairs below 0": ("known.parquet", rewrite(user=pl.lit(-1, pl.Int64)), "query_ids"),
    "pairs of another type": ("known.parquet", rewrite(test=pl.lit(1)), "expected a column test of Boolean"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_refused_by_name(tmp_path, damage):
    save(tmp_path / "model")
    name, function, complaint = DAMAGES[damage]
    function(tmp_path / "model" / name)
    with pytest.raises(SavedModelError) as caught:
        saved.load(tmp_path / "model")
    assert str(caught.value).startswith(f"{tmp_path / 'model'}")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_models_is_refused_with_their_names(tmp_path):
    for seed in range(7):
        save(tmp_path / f"sl-seed{seed}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(SavedModelError) as raised:
        saved.load(tmp_path)
    names = ", ".join(str(tmp_path / f"sl-seed{seed}") for seed in range(5))
    expected = f"saved by training with --save, got a folder of such models; name one of them: {names} and 2 more"
    assert str(raised.value).endswith(expected)


def test_nothing_there_is_refused(tmp_path):
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(SavedModelError, match="expected a model saved by training with --save, got "):
            saved.load(path)


# --- training ---


@pytest.mark.parametrize("model", ["mf", "lightgcn", "xsimgcl"])
@pytest.mark.parametrize("name", ["sl", "bpr", "advinfonce"])
def test_the_saved_vectors_rank_as_the_best_epoch_does(tmp_path, model, name):
    """The metrics in the configuration come out of the saved vectors and pairs alone."""
    if model != "mf":
        pytest.importorskip("torch_geometric")
    dataset = load_blocks(tmp_path)
    config = TrainingConfig(model=model, dim=8, lr=0.3, epochs=6, batch_size=64, eval_every=1, k=5)
    loss = build_loss(name, LossOptions(negatives=Negatives("uniform", 8), backend="reference"))
    run = train(dataset, loss, config, show_progress=False, save=tmp_path / "model")
    found = saved.load(tmp_path / "model")
    assert found.config["run"] == json.loads(json.dumps(run))
    assert found.config["similarity"] == ("dot" if name == "bpr" else "cosine")
    if name != "bpr":
        for table in (found.users, found.items):
            torch.testing.assert_close(table.norm(dim=1), torch.ones(len(table)))
    masked = torch.tensor(pairs_of(found.known)).unbind(1)
    test = set(pairs_of(found.known_with_test)) - set(pairs_of(found.known))
    metrics = ranking_metrics(found.users, found.items, *torch.tensor(sorted(test)).unbind(1), *masked, k=5)
    assert metrics == pytest.approx({name: run["test_validation_masked"][name] for name in metrics})


def test_what_is_held_out_as_false_negatives_is_known(tmp_path):
    dataset = load_blocks(tmp_path)
    config = TrainingConfig(dim=8, epochs=1, batch_size=64, false_negatives=0.3)
    loss = build_loss("sl", LossOptions(negatives=Negatives("uniform", 8), backend="reference"))
    train(dataset, loss, config, show_progress=False, save=tmp_path / "model")
    expected = zip(dataset.train_users.tolist(), dataset.train_items.tolist(), strict=True)
    assert pairs_of(saved.load(tmp_path / "model").known) == sorted(expected)


def arguments(directory: Path, *further: str) -> list[str]:
    path = directory / "blocks.txt"
    if not path.exists():
        write_blocks(path)
    basics = ["--loss", "sl", "--epochs", "2", "--eval-every", "1"]
    where = ["--out", str(directory / "out"), "--save", str(directory / "model")]
    return ["--data", str(path), *FLAGS, *basics, *where, *further]


def results(directory: Path) -> list[dict[str, Any]]:
    return json.loads((directory / "out" / "results.json").read_text(encoding="utf-8"))["runs"]


def test_one_run_is_saved_in_the_directory_several_in_folders(tmp_path, capsys):
    assert training.main(arguments(tmp_path)) == 0
    assert saved.run_of(tmp_path / "model") == results(tmp_path)[0]
    assert f"saved: {tmp_path / 'model'}" in capsys.readouterr().out

    several = ["--loss", "sl", "bpr", "--seed", "0", "3"]
    assert training.main(arguments(tmp_path, *several)) == 2
    assert "model: expected a directory for 4 models, got a saved model" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "model")
    assert training.main(arguments(tmp_path, *several)) == 0
    names = ["bpr-seed0", "bpr-seed3", "sl-seed0", "sl-seed3"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == names
    for run in results(tmp_path):
        name = f"{run['loss']}-seed{run['config']['seed']}"
        assert saved.load(tmp_path / "model" / name).config["run"] == run


def test_a_directory_of_something_else_is_refused_before_training(tmp_path, monkeypatch, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").touch()
    monkeypatch.setattr(Trainer, "_train_epoch", lambda self: pytest.fail("trained"))
    assert training.main(arguments(tmp_path)) == 2
    complaint = "model: expected a new or empty directory or an earlier saved model, got thesis.tex"
    assert complaint in capsys.readouterr().err
    with pytest.raises(SystemExit):
        training.main(arguments(tmp_path, "--save", str(tmp_path / "out" / ".." / "out")))
    assert "--save and --out must be different directories" in capsys.readouterr().err


def test_an_interrupted_run_is_saved_and_its_resumption_too(tmp_path, monkeypatch):
    further = ["--loss", "bpr", "sl", "--save", str(tmp_path / "models")]
    interrupt_main(monkeypatch, tmp_path, "sl", 5, *further)
    run = saved.run_of(tmp_path / "models" / "sl-seed0")
    assert (run["ended_by"], run["epochs"]) == ("interrupt", 5)
    before = content(tmp_path / "models" / "bpr-seed0")
    resume = ["--data", str(tmp_path / "blocks.txt"), *FLAGS, "--epochs", "6", "--eval-every", "2"]
    assert training.main([*resume, "--out", str(tmp_path / "out"), *further, "--resume"]) == 0
    assert saved.run_of(tmp_path / "models" / "sl-seed0") == results(tmp_path)[1]
    assert results(tmp_path)[1]["ended_by"] == "epochs"
    assert content(tmp_path / "models" / "bpr-seed0") == before


def test_a_finished_run_that_was_not_saved_is_said_when_resumed(tmp_path, monkeypatch, capsys):
    assert training.main(arguments(tmp_path)) == 0
    before = content(tmp_path / "model")
    monkeypatch.setattr(Trainer, "_train_epoch", lambda self: pytest.fail("trained"))
    assert training.main(arguments(tmp_path, "--resume")) == 0
    assert content(tmp_path / "model") == before
    save(tmp_path / "of another run")
    for name in ("elsewhere", "of another run"):
        capsys.readouterr()
        assert training.main(arguments(tmp_path, "--resume", "--save", str(tmp_path / name))) == 2
        assert capsys.readouterr().err == (
            f"error: {tmp_path / name}: expected the model of the finished run of sl (seed 0), got none or another; "
            "without --resume it is trained again\n"
        )
    assert not (tmp_path / "elsewhere").exists()
    assert saved.run_of(tmp_path / "of another run") == {"loss": "sl", "seed": 0}


def test_a_model_that_cannot_be_saved_is_saved_when_resumed(tmp_path, monkeypatch, capsys):
    """The checkpoint stays, so that nothing has to be trained again."""
    with monkeypatch.context() as patch:
        fail_at(patch, "vectors", OSError(28, "No space left on device"))
        assert training.main(arguments(tmp_path)) == 2
    assert f"error: {tmp_path / 'model'}: expected a writable place, got: " in capsys.readouterr().err
    monkeypatch.setattr(Trainer, "_train_epoch", lambda self: pytest.fail("trained"))
    assert training.main(arguments(tmp_path, "--resume")) == 0
    assert saved.run_of(tmp_path / "model") == results(tmp_path)[0]


def test_training_without_save_needs_no_directory(tmp_path):
    dataset = replace(load_blocks(tmp_path), name="x")
    loss = build_loss("sl", LossOptions(negatives=Negatives("uniform", 8), backend="reference"))
    train(dataset, loss, TrainingConfig(dim=8, epochs=1), show_progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["blocks.txt"]

"""What goes wrong outside while a benchmark runs: the disk, files, and a user who presses Ctrl-C. Each ends in one
clear error, and leaves whole what was there before."""

from __future__ import annotations

import copy
import itertools
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from bad_files import BAD_FILES, PACKED, Payload, unprivileged
from cases import child_environment
from training_cases import FLAGS, write_blocks

import benchmarks
from benchmarks.common import command, data, reporting
from benchmarks.demo import __main__ as demo
from benchmarks.study import __main__ as study
from benchmarks.throughput import __main__ as throughput
from benchmarks.training import __main__ as training
from benchmarks.training import checkpoints, compare
from benchmarks.training.losses import LossOptions, build_loss
from benchmarks.training.negatives import Negatives
from benchmarks.training.trainer import Trainer, TrainingConfig

ID_MAPS = {"user_ids.parquet", "item_ids.parquet"}
HEADER = "user_procid\titem_procid\n"

# --- Ctrl-C ---

TRAINING = ["--loss", "sl", "cw", "--epochs", "4", "--eval-every", "2", "--batch-size", "256"]


@pytest.fixture
def plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files only, since plots take most of the time."""
    monkeypatch.setattr(compare, "plot_runs", lambda runs, path, title: path.touch())


def train(directory: Path, *further: str) -> int:
    blocks = directory.parent / "blocks.txt"
    if not blocks.exists():
        write_blocks(blocks)
    return training.main(["--data", str(blocks), *FLAGS, *TRAINING, "--out", str(directory), *further])


def runs_of(directory: Path) -> list[dict[str, Any]]:
    """What is written of the runs, without the seconds."""
    runs = json.loads((directory / "results.json").read_text(encoding="utf-8"))["runs"]
    return [{name: value for name, value in run.items() if name != "seconds"} for run in runs]


class Moments:
    """The moments at which a program calls or leaves a function of the benchmarks, or calls one from there; while it
    writes a file, all functions count. At a chosen one Ctrl-C arrives.

    Attributes:
        kinds: of each moment so far: "write", or the name of the file of the benchmarks' code.
    """

    _OUTERMOST = {training.main.__code__, command.run.__code__}
    _WRITERS = {checkpoints.save.__code__, reporting.write_json.__code__}

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.kinds: list[str] = []
        self._interrupt_at = interrupt_at
        self._folder = str(Path(benchmarks.__file__).parent)
        self._depth = 0

    def __enter__(self) -> Moments:
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code in self._WRITERS and event in ("call", "return"):
            self._depth += 1 if event == "call" else -1
        if frame.f_code in self._OUTERMOST:  # before and after all that it could do about it
            return
        if self._depth or frame.f_code.co_filename.startswith(self._folder):
            self.kinds.append("write" if self._depth else Path(frame.f_code.co_filename).stem)
            if len(self.kinds) - 1 == self._interrupt_at:
                self.__exit__()
                raise KeyboardInterrupt


def spread(moments: list[int], count: int) -> list[int]:
    return [moments[i] for i in np.linspace(0, len(moments) - 1, count).round().astype(int)]


def test_ctrl_c_at_any_moment_leaves_everything_whole(
    tmp_path: Path, plots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 130; results absent or whole; and what goes on from there ends with the same numbers."""
    monkeypatch.setattr(reporting, "git_commit", lambda _: None)  # another process each time
    assert train(tmp_path / "first") == 0  # with what is imported only once
    with Moments() as seen:
        assert train(tmp_path / "whole") == 0
    whole = runs_of(tmp_path / "whole")
    assert {"write", "compare", "trainer", "checkpoints", "data"} <= set(seen.kinds)
    counts = {"write": 8, "compare": 5, "trainer": 6}
    chosen = [
        m
        for kind in set(seen.kinds)
        for m in spread([i for i, k in enumerate(seen.kinds) if k == kind], counts.get(kind, 1))
    ]
    statuses = []
    for moment in chosen:
        directory = tmp_path / f"out-{moment}"
        with Moments(moment):
            statuses.append(train(directory))
        names = {path.name for path in directory.iterdir()} if directory.exists() else set()
        assert names <= {"results.json", "results.png", "checkpoint.pt", *ID_MAPS}, moment
        if "results.json" in names:
            runs_of(directory)
        if "checkpoint.pt" in names:
            torch.load(directory / "checkpoint.pt", weights_only=True)
        assert train(directory, "--resume") == 0, moment
        assert runs_of(directory) == whole, moment
        assert {path.name for path in directory.iterdir()} == {"results.json", "results.png", *ID_MAPS}, moment
    assert statuses == [130] * len(chosen)


def test_ctrl_c_at_every_moment_of_a_validation_leaves_no_epoch_with_the_tables_of_another(tmp_path: Path) -> None:
    dataset = data.load(write_blocks(tmp_path / "blocks.txt"), core=2)
    loss = build_loss("sl", LossOptions(negatives=Negatives("uniform", 8), backend="reference"))
    trainer = Trainer(dataset, loss, TrainingConfig(dim=8, epochs=1, batch_size=64))
    trainer.train(show_progress=False)
    first = trainer.tables()[0]
    trainer._train_epoch()
    trainer.epoch = 2
    state = copy.deepcopy(trainer.state_dict())
    state["curve"][0]["ndcg"] = -1.0  # so that the second is better
    second = trainer.tables()[0]
    assert not torch.equal(first, second)
    for moment in itertools.count():
        trainer.load_state_dict(copy.deepcopy(state))
        with Moments(moment), suppress(KeyboardInterrupt):
            trainer._validate(0.0)
            break
        expected = {1: first, 2: second}[int(trainer.best["epoch"])]
        assert torch.equal(trainer._best_tables[0], expected), moment
    assert trainer.best["epoch"] == 2  # or the test could not tell them apart
    assert moment > 5


def test_ctrl_c_after_a_result_is_written_does_not_stop_the_next_run(
    tmp_path: Path, plots: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a process that is killed there: the checkpoint of the finished run is not taken for the next one's."""
    assert train(tmp_path / "whole") == 0
    unlink = Path.unlink

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        if path.name == "checkpoint.pt" and path.exists():
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        assert train(tmp_path / "out") == 130
    assert (tmp_path / "out" / "checkpoint.pt").exists()
    assert len(runs_of(tmp_path / "out")) == 1
    assert train(tmp_path / "out", "--resume") == 0
    assert runs_of(tmp_path / "out") == runs_of(tmp_path / "whole")
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_a_signal_ends_the_program_itself(tmp_path: Path, plots: None) -> None:
    """As a process of its own, once it trains: status 130 and one line after the progress bars, no traceback."""
    blocks, out = write_blocks(tmp_path / "blocks.txt"), tmp_path / "out"
    arguments = ["--data", str(blocks), *FLAGS, "--loss", "sl", "--epochs", "100000", "--eval-every", "2"]
    program = [sys.executable, "-m", "benchmarks.training", *arguments, "--out", str(out)]
    root = Path(benchmarks.__file__).parents[1]
    with subprocess.Popen(
        program,
        cwd=root,
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell has what it runs in the background ignore Ctrl-C, and what that starts too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while not (out / "checkpoint.pt").exists():
                assert process.poll() is None and time.monotonic() < deadline, process.communicate()
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "interrupted; finished runs: sl (seed 0)"
    [run] = runs_of(out)
    assert run["ended_by"] == "interrupt"
    torch.load(out / "checkpoint.pt", weights_only=True)


# --- files ---


def split(directory: Path, train: bytes, test: bytes = b"0\t1\n") -> Path:
    for name, content in (("train.tsv", train), ("test.tsv", test)):
        (directory / name).write_bytes(HEADER.encode() + content)
    return directory


def expect_one_line(main: Callable[[list[str]], int], arguments: list[str], capsys: Any) -> str:
    """Status 2, one line on stderr, nothing else; the line."""
    capsys.readouterr()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert line.startswith("error: ")
    return line


PROGRAMS: dict[str, Callable[[Path, Path], tuple[Callable[[list[str]], int], list[str]]]] = {
    "training": lambda source, out: (training.main, ["--data", str(source), "--out", str(out)]),
    "throughput": lambda source, out: (throughput.main, ["--quick", "--history", str(source), "--out", str(out)]),
}
# What is not a row of a table may still be an id, and is numbered then.
OWN_IDS = {"a negative id", "an id beyond int64", "an id of many digits"}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", [name for name in BAD_FILES if name not in OWN_IDS])
def test_bad_files_of_a_split_are_one_line_and_status_2(tmp_path: Path, capsys: Any, program: str, name: str) -> None:
    content, line = BAD_FILES[name]
    main, arguments = PROGRAMS[program](split(tmp_path, content), tmp_path / "out")
    said = expect_one_line(main, arguments, capsys)
    assert said.startswith(f"error: {tmp_path / 'train.tsv'}")
    if line is not None:  # lines are counted from the header on
        assert f", line {line + 1}: " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_no_file_is_one_line_and_status_2(tmp_path: Path, capsys: Any, program: str) -> None:
    (tmp_path / "train.tsv").mkdir()
    (tmp_path / "test.tsv").write_text("0\t1\n")
    (tmp_path / "whole").mkdir()
    split(tmp_path / "whole", b"0\t1\n").joinpath("test.tsv").unlink()
    (tmp_path / "packed.tsv").write_bytes(PACKED)
    for source, named in (
        (tmp_path / "nowhere", "nowhere: expected an interaction file, got none"),
        (tmp_path, "train.tsv: expected a readable file, got: Is a directory"),
        (tmp_path / "whole", "test.tsv: expected an interaction file, got none"),
        (tmp_path / "packed.tsv", "packed.tsv: expected a whole compressed file, got "),
    ):
        main, arguments = PROGRAMS[program](source, tmp_path / "out")
        assert named in expect_one_line(main, arguments, capsys)


@pytest.mark.parametrize("main", [training.main, demo.main, study.main, throughput.main])
def test_a_file_in_the_place_of_the_results_is_one_line_and_status_2(
    tmp_path: Path, capsys: Any, main: Callable[[list[str]], int]
) -> None:
    (tmp_path / "out").write_text("")
    arguments = ["--out", str(tmp_path / "out")]
    if main is training.main:
        arguments += ["--data", str(write_blocks(tmp_path / "blocks.txt")), *FLAGS]
    elif main is throughput.main:
        arguments += ["--quick"]
    line = expect_one_line(main, arguments, capsys)
    assert line == f"error: {tmp_path / 'out'}: expected a writable output directory, got: File exists"


def test_what_may_not_be_read_or_written_is_named(tmp_path: Path, capsys: Any) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    path = locked / "pairs.tsv"
    path.write_text("0\t1\n")
    locked.chmod(0o000)
    try:
        with unprivileged():
            line = expect_one_line(training.main, ["--data", str(path), "--out", str(tmp_path / "out")], capsys)
            with pytest.raises(OSError, match="locked: expected a writable output directory, got: Permission denied"):
                reporting.make_writable_directory(locked)
    finally:
        locked.chmod(0o755)
    assert "pairs.tsv" in line and "ermission denied" in line


def test_users_with_nothing_to_train_on_are_no_obstacle(tmp_path: Path, plots: None) -> None:
    """User 1 is only in the test set, user 3 in neither; that no user has two items is reported before training."""
    rows = b"".join(b"%d\t%d\n" % (user, item) for user in (0, 2, 4) for item in range(user, user + 6))
    split(tmp_path, rows, b"0\t7\n1\t3\n")
    assert training.main(["--data", str(tmp_path), *FLAGS[:-2], *TRAINING, "--out", str(tmp_path / "out")]) == 0
    assert all(np.isfinite(run["test"]["ndcg"]) for run in runs_of(tmp_path / "out"))


def test_nobody_to_validate_on_is_one_line(tmp_path: Path, capsys: Any) -> None:
    split(tmp_path, b"0\t1\n1\t0\n2\t2\n", b"0\t0\n")
    assert training.main(["--data", str(tmp_path), *FLAGS[:-2], "--out", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.endswith("expected a user with at least 2 training items to validate on")


# --- a disk that is full ---


@contextmanager
def room(size: int) -> Iterator[None]:
    """Files of so many bytes at most."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_without_room_for_a_checkpoint(tmp_path: Path, plots: None, capsys: Any) -> None:
    out = tmp_path / "out"
    write_blocks(tmp_path / "blocks.txt")
    with room(2000):
        assert train(out) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {out / 'checkpoint.pt'}: expected space for a checkpoint, got: ")
    assert {path.name for path in out.iterdir()} == ID_MAPS


def test_a_disk_without_room_for_results(tmp_path: Path, capsys: Any) -> None:
    """Status 2, the file named, its earlier version kept, and the run goes on from its checkpoint."""
    out = tmp_path / "out"
    assert train(out) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with room(2000):
        for name, write in (
            ("results.json", lambda path: reporting.write_json(path, {"values": [0.5] * 1000})),
            ("results.png", write_picture),
        ):
            with pytest.raises(OSError) as caught:
                write(out / name)
            assert str(caught.value) == f"[Errno 27] File too large: '{out / name}'"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def write_picture(path: Path) -> None:
    with reporting.written_whole(path) as unfinished:
        unfinished.write_bytes(bytes(10_000))


# --- files that would run code ---


def test_a_checkpoint_that_would_run_code_stops_the_command_line(tmp_path: Path, plots: None, capsys: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    torch.save({"run": Payload(tmp_path / "made"), "state": {}}, out / "checkpoint.pt")
    assert train(out, "--resume") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {out / 'checkpoint.pt'}: expected a checkpoint of a training run, got another")
    assert not (tmp_path / "made").exists()
    torch.load(out / "checkpoint.pt", weights_only=False)
    assert (tmp_path / "made").exists()  # it would have

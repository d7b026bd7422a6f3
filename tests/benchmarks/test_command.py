"""How a benchmark's command ends: its exit status and what it prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.common import command, reporting


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "status", "printed"),
    [
        (lambda: None, 0, ""),
        (lambda: 0, 0, ""),
        (lambda: 1, 1, ""),
        (raising(ValueError("n must be at least 1, got 0")), 2, "error: n must be at least 1, got 0\n"),
        (raising(FileNotFoundError(2, "No such file", "a.txt")), 2, "error: [Errno 2] No such file: 'a.txt'\n"),
        (raising(RuntimeError("CUDA error\nand much advice")), 2, "error: CUDA error\n"),
        (raising(MemoryError()), 2, "error: MemoryError\n"),
        (raising(KeyboardInterrupt()), 130, "interrupted; a part is in runs/\n"),
    ],
)
def test_status_and_line(
    work: Callable[[], int | None], status: int, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run(work, "a part is in runs/") == status
    assert capsys.readouterr() == ("", printed)


def test_a_mistake_in_the_program_is_not_hidden() -> None:
    with pytest.raises(TypeError):
        command.run(raising(TypeError("unexpected keyword argument")))


def test_help_keeps_paragraphs_and_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    description = "Do one thing\nand another.\n\n    python -m benchmarks.made_up --out DIR\n\nMore."
    parser = command.make_parser(
        "python -m benchmarks.made_up", description, "bad data", "nothing is written", "1 a check failed"
    )
    parser.add_argument("--seeds", nargs="+", default=[0, 1], help="of it all")
    parser.add_argument("--share", default="5 %", help="in percent")
    parser.add_argument("--out", help="a folder")
    parser.add_argument("--list", action="store_true", help="only list")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    printed = capsys.readouterr().out
    assert printed.startswith("usage: python -m benchmarks.made_up [options]\n\nDo one thing and another.\n\n")
    assert "\n\n    python -m benchmarks.made_up --out DIR\n\nMore.\n" in printed
    assert "of it all (default: 0 1)\n" in printed and "in percent (default: 5 %)\n" in printed
    assert "a folder\n" in printed and "only list\n" in printed
    ending = "Exit status: 0 done; 1 a check failed; 2 bad data; 130 Ctrl-C (nothing is written).\n"
    assert " ".join(printed.split()).endswith(ending.strip())


def test_a_progress_bar_counts_units_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(command.progress([1, 2], unit="step")) == [1, 2]
    assert list(command.progress([1, 2], unit="step", shown=False)) == [1, 2]
    out, err = capsys.readouterr()
    assert out == "" and "2/2" in err and " step/s" in err


def test_results_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    reporting.print_results(Path("runs/a.json"), Path("runs/a.png"))
    assert capsys.readouterr().out == "results: runs/a.json, runs/a.png\n"

"""How a benchmark's command ends: its exit status and what it prints."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.common import command


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

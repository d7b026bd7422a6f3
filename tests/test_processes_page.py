"""What docs/processes.md has readers type: it runs, learns, and prints the same for any number of processes."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from cases import child_environment

if not dist.is_available():
    pytest.skip("this torch has no distributed package", allow_module_level=True)

pytestmark = pytest.mark.cpu_kernels

PAGE = Path(__file__).parents[1] / "docs" / "processes.md"
PROCESSES = re.compile(r"--nproc-per-node \d+")
LOSS = re.compile(r"step (\d+): loss (\S+)")


def sections() -> dict[str, tuple[str, list[str]]]:
    """Each section's program and commands, by the name in the program's first line."""
    if not PAGE.exists():  # tests/ stands outside the source tree
        return {}
    found = {}
    for section in re.split(r"(?m)^## ", PAGE.read_text(encoding="utf-8")):
        for program in re.findall(r"(?s)```python\n(.*?)```", section):
            commands = re.findall(r"(?s)```bash\n(.*?)```", section)
            found[program.split("\n", 1)[0].removeprefix("# ")] = program, "".join(commands).splitlines()
    return found


SECTIONS = sections()


def run(command: str, folder: Path) -> str:
    """What the command prints in this folder, if it succeeds."""
    program, *arguments = shlex.split(command)
    assert program == "torchrun", command
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments],
        cwd=folder,
        env=child_environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def losses(name: str, folder: Path, processes: int | None = None) -> list[tuple[int, float]]:
    """Step and loss of each line that the section's commands print: as they stand, or with so many processes."""
    program, commands = SECTIONS[name]
    if processes is not None:
        commands = [PROCESSES.sub(f"--nproc-per-node {processes}", command) for command in commands]
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(program, encoding="utf-8")
    output = "".join(run(command, folder) for command in commands)
    return [(int(step), float(loss)) for step, loss in LOSS.findall(output)]


@pytest.mark.parametrize("name", SECTIONS)
def test_a_program_learns_what_one_process_learns(name: str, tmp_path: Path) -> None:
    printed = losses(name, tmp_path)
    assert [step for step, _ in printed] == [0, 29]
    assert printed[-1][1] < printed[0][1] - 0.5
    for (step, loss), (_, alone) in zip(printed, losses(name, tmp_path / "alone", processes=1), strict=True):
        assert loss == pytest.approx(alone, abs=2e-3), step  # 3 digits are printed

"""The programs of docs/guides/processes.md run, learn, and print the same losses with any number of processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from cases import child_environment
from documentation.markdown_blocks import NOT_RUN, RUN_BY, blocks

if not dist.is_available():
    pytest.skip("this torch has no distributed package", allow_module_level=True)

pytestmark = pytest.mark.cpu_kernels

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "processes.md"
LOSS = re.compile(r"step (\d+): loss (\S+)")


def sections() -> dict[str, tuple[str, list[str]]]:
    """Each program and its commands, by the name in the program's first line."""
    if not PAGE.exists():  # tests/ is outside of the source tree
        return {}
    found: dict[str, tuple[str, list[str]]] = {}
    name = ""
    for block in blocks(PAGE):
        if not RUN_BY.fullmatch(block.comment):
            continue
        if block.language == "python":
            name = block.code.split("\n", 1)[0].removeprefix("# ")
            found[name] = block.code, []
        else:
            found[name][1].extend(block.code.splitlines())
    return found


SECTIONS = sections()
# What one process needs to be a group of one. It counts as a restarted one, so that it does not fail on purpose.
ALONE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
    "TORCHELASTIC_RESTART_COUNT": "1",
}
LAUNCHER = [sys.executable, "-m", "torch.distributed.run"]


def run(command: list[str], folder: Path, **environment: str) -> str:
    """Run the command in this folder. Returns what it prints."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=child_environment(OMP_NUM_THREADS="1", **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def losses(name: str, folder: Path, processes: int | None = None) -> list[tuple[int, float]]:
    """Step and loss of each line that the program's commands print, as they are or with another number of processes."""
    program, commands = SECTIONS[name]
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(program, encoding="utf-8")
    output = ""
    for command in commands:
        before, _, after = command.partition("torchrun ")
        environment, arguments = dict(setting.split("=") for setting in before.split()), after.split()
        assert arguments[-1] == name, command
        if processes == 1:
            output += run([sys.executable, name], folder, **ALONE)
            continue
        if processes is not None:
            arguments[arguments.index("--nproc-per-node") + 1] = str(processes)
        output += run([*LAUNCHER, *arguments], folder, **environment)
    return [(int(step), float(loss)) for step, loss in LOSS.findall(output)]


@pytest.mark.parametrize("processes", [None, pytest.param(3, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", SECTIONS)
def test_a_program_learns_what_one_process_learns(name: str, processes: int | None, tmp_path: Path) -> None:
    if name.startswith("torchrec"):
        pytest.importorskip("torchrec", reason="TorchRec is not installed")
    printed, alone = losses(name, tmp_path / "several", processes), losses(name, tmp_path / "one", 1)
    assert [step for step, _ in printed] == [0, 29]
    assert printed[-1][1] < printed[0][1] - 0.5
    for (step, loss), (_, expected) in zip(printed, alone, strict=True):
        assert loss == pytest.approx(expected, abs=2e-3), step  # 3 digits are printed


@pytest.mark.skipif(not PAGE.exists(), reason="tests/ is outside of the source tree")
def test_the_page_installs_what_is_tested() -> None:
    commands = [block.code for block in blocks(PAGE) if NOT_RUN.fullmatch(block.comment)]
    versions = re.findall(r"\S+==\S+", "".join(commands))
    tested = (PAGE.parents[2] / ".ci" / "integrations").read_text(encoding="utf-8")
    assert len(versions) == 4 and all(f'"{version}"' in tested for version in versions)

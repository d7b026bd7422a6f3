"""Makes wheels of compiled libraries and the wheel that setup.py builds without any."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from symbols import TAG

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, **environment: str) -> None:
    """A command whose output is only of interest if it fails."""
    words = list(map(str, command))
    env = os.environ | environment
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, env=env)
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\nfailed: {' '.join(words)}")


def source_distribution(tree: Path, to: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", to, tree)
    (made,) = to.glob("*.tar.gz")
    return made


def without_libraries(sdist: Path, label: str, to: Path) -> Path:
    """The package's modules alone, with a label to the version: cw_ext-1.0+cpu-py3-none-any.whl."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        (tree,) = Path(folder).iterdir()
        (tree / "setup.cfg").write_text(f"[egg_info]\ntag_build = +{label}\n")
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", to, tree, USE_KERNELS="0")
    (made,) = to.glob(f"*+{label}-*.whl")
    return made


def with_libraries(modules: Path, libraries: Iterable[Path], python: str, machine: str, to: Path) -> Path:
    """A wheel of the modules and the libraries, for a Python ("311") and a machine ("aarch64")."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "wheel", "unpack", modules, "--dest", folder)
        (tree,) = Path(folder).iterdir()
        for library in libraries:
            shutil.copy(library, tree / "cw_ext")
        (about,) = tree.glob("*.dist-info/WHEEL")
        lines = [line for line in about.read_text().splitlines() if line and not line.startswith(("Root-", "Tag:"))]
        lines += ["Root-Is-Purelib: false", f"Tag: cp{python}-cp{python}-{TAG}_{machine}", ""]
        about.write_text("\n".join(lines))
        packed = Path(folder, "packed")
        packed.mkdir()
        run(sys.executable, "-m", "wheel", "pack", tree, "--dest-dir", packed)
        (wheel,) = packed.iterdir()
        to.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheel, to / wheel.name))

"""What a library asks of the system that loads it: the promise of a manylinux tag (PEP 600), checked on the file."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

# Torch's own wheels promise the same.
TAG = "manylinux_2_28"
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
SYSTEM = {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "libpthread.so.0", "librt.so.1"}
SYSTEM |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def _readelf(library: Path, *options: str) -> str:
    return subprocess.check_output(["readelf", "--wide", *options, library], text=True)


def machine_of(library: Path) -> str:
    """As platform.machine() has it."""
    names = {"Advanced Micro Devices X86-64": "x86_64", "AArch64": "aarch64"}
    return names[re.search(r"Machine: +(.+)", _readelf(library, "--file-header"))[1]]


def needed(library: Path) -> set[str]:
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", _readelf(library, "--dynamic")))


def faults(library: Path, machine: str, from_torch: set[str]) -> list[str]:
    """What keeps the library from the tag, or from the machine, or from being loaded after torch."""
    found = []
    if machine_of(library) != machine:
        found.append(f"{library.name} is for {machine_of(library)}, not for {machine}")
    if (others := needed(library) - SYSTEM) != from_torch:
        found.append(f"{library.name} needs {sorted(others)} beside the system's libraries, not {sorted(from_torch)}")
    for name, kind, version in re.findall(r" UND (\S+)@([A-Z]+)_([0-9.]+)\b", _readelf(library, "--dyn-syms")):
        if tuple(map(int, version.split("."))) > NEWEST[kind]:
            newest = ".".join(map(str, NEWEST[kind]))
            found.append(f"{library.name} needs {name} of {kind} {version}, which is newer than {TAG}'s {newest}")
    return found

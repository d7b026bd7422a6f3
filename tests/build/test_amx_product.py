"""The matrix product in AMX's tiles: on a twin of them in software, and on those of the processor if it has any."""

from __future__ import annotations

import platform
import subprocess

import pytest
from native_build import ROOT, compiler


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
@pytest.mark.skipif(platform.machine() != "x86_64" or platform.system() != "Linux", reason="AMX is x86-64's")
def test_the_product_is_that_of_a_plain_loop(tmp_path):
    program = tmp_path / "amx_product"
    flags = ["-std=c++20", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-psabi"]
    source = ROOT / "tests" / "build" / "amx_product.cpp"
    subprocess.run([str(compiler()), *flags, f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)], check=True)
    found = subprocess.run([str(program)], stdout=subprocess.PIPE, text=True)
    assert found.returncode == 0, found.stdout
    assert "tiles in software: 432 products, 0 wrong" in found.stdout

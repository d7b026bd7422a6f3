"""What the machine can do at most: rates.cpp, compiled for the processor that it runs on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_SOURCE = Path(__file__).parent / "rates.cpp"
# As cw_ext's kernels are compiled, for this processor alone.
_FLAGS = ("-O3", "-march=native", "-std=c++20", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-pthread")


def measure(threads: int, tables: Sequence[tuple[int, int]], copies: Sequence[int]) -> dict[str, float]:
    """Measure rates per second, of all threads together.

    Args:
        threads: how many run at the same time.
        tables: (rows, bytes of a row) of each table to read at random.
        copies: bytes that a copy reads and writes together.

    Returns:
        "multiply_add" in fp32; "multiply_add_bf16", where the processor has AVX512_BF16; "exponential", with values
        and results in cache; "word", 32 bits from Philox; "rows ROWS BYTES" read at random, for each table; and
        "copy BYTES", in bytes read and written, for each size.

    Raises:
        RuntimeError: there is no C++ compiler.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise RuntimeError("--floors needs a C++ compiler: install g++ or clang++, or set CXX to one")
    asked = [str(part) for table in tables for part in ("rows", *table)]
    asked += [str(part) for size in copies for part in ("copy", size)]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "rates"
        subprocess.run([compiler, *_FLAGS, str(_SOURCE), "-o", str(program)], check=True)
        found = subprocess.run([str(program), str(threads), *asked], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout)

"""Benchmarks of cw_ext; each folder with a ``__main__`` runs as ``python -m benchmarks.<folder>``."""

import os
import sys

# OpenMP threads that spin while they wait make training ten times slower once another process wants a core.
# Read when torch is loaded, hence set here, before any module of the package can import it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Without it cuBLAS refuses to run under deterministic algorithms, which the throughput benchmark times on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from benchmarks.common import startup  # noqa: E402

# Only where python -m runs a benchmark or an example: a program that imports one keeps its own hook.
if any(argument.startswith(("benchmarks.", "examples.")) for argument in sys.orig_argv):
    sys.excepthook = startup.report_missing_extra
startup.use_the_built_copy()

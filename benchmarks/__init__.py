"""Training and step-cost benchmarks of cw_ext; each module runs as ``python -m benchmarks.<name>``."""

import os
import sys

# OpenMP threads that spin while they wait make training ten times slower once another process wants a core.
# Read when torch is loaded, hence set here, before any module of the package can import it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Without it cuBLAS refuses to run under deterministic algorithms, which the throughput benchmark times on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

from benchmarks import startup  # noqa: E402

# Where python -m runs a benchmark; a program that imports one has its own ways.
if any(argument.startswith("benchmarks.") for argument in sys.orig_argv):
    sys.excepthook = startup.say_what_is_missing
startup.use_the_built_copy()

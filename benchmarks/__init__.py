"""Training and step-cost benchmarks of cw_ext; each module runs as ``python -m benchmarks.<name>``."""

import os

# OpenMP threads that spin while they wait make training ten times slower once another process wants a core.
# Read when torch is loaded, hence set here, before any module of the package can import it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Without it cuBLAS refuses to run under deterministic algorithms, which the throughput benchmark times on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

"""Uses of the loss beyond the benchmarks; each module runs as ``python -m benchmarks.examples.<name>``."""

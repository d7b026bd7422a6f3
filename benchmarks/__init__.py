"""Training and step-cost benchmarks of cw_ext; each module runs as ``python -m benchmarks.<name>``."""

"""Examples of using cw_ext, to copy from; each runs as ``python -m examples.<name>``."""

"""Very large calls, and memory over many steps."""

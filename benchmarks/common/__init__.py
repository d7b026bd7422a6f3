"""What several benchmarks share: data, command-line arguments, timing, memory, results."""

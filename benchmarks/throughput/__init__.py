"""Time and memory of one training step, against rivals."""

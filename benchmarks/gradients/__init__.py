"""What CW does to gradients, as a figure."""

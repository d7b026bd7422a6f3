"""Does CW rank better than the losses it is compared with: a grid of training runs, its tables and its plots."""

"""Traffic and time of an item table over several processes."""

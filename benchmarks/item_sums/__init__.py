"""Two ways to sum the gradient of the item table on a GPU."""

"""What each kind of negatives costs, and how well models trained with it rank."""

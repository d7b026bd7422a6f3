"""Train recommenders with one loss or another, test their rankings, and save models."""

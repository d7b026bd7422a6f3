"""The corrected estimate where the truth is known."""

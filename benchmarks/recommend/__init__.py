"""Recommend with a saved model, and export its vectors."""

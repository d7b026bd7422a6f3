"""The demo on MovieLens-100K."""

"""Images with a known share of false negatives."""

"""Memory and time of a large batch that is encoded in parts."""

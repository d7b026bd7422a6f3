"""SL@20 with learned thresholds, and with those of passes over the catalogue."""

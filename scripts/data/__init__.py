"""Scans, labels and datalists: reading, checking, and the random samples of a training."""

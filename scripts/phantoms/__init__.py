"""Synthetic spines with exact labels."""

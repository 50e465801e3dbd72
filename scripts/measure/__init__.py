"""Measure the structures in a mask and their signals, report on them, and list what is doubtful."""

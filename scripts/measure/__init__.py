"""Measures and signals of the structures in a mask, the report on them, and what is doubtful."""

"""Folders of scans: what is done, what failed and why."""

"""Remedies: one a file, and one line in the tuple of `catalogue`."""

"""Measure what the README claims: `python -m bench [NAME ...]` runs all benchmarks or some."""

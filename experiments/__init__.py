"""Runnable experiments, one per claim: `python -m experiments.NAME --help`."""

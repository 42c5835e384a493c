"""Measurements of speed, one JSON line each: `python -m experiments.bench.NAME`."""

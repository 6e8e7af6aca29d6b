"""Steering compared with its baselines on labelled passages: `python -m benchmarks.steering --help`."""

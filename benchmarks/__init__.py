"""Benchmarks and the studies of the paper: not in the wheel, run from the root of the repository."""

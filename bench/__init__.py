"""Benchmarks: ours and others' side by side, in one run, on one machine."""

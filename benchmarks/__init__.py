"""Benchmarks: one command a figure."""

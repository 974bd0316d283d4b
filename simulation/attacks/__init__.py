"""Attacks by malicious clients, for measuring what defences are worth.

Only the simulation and benchmarks use them; server and device code cannot import this package.
"""

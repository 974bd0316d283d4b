"""Simulated devices: how fast they are, when they are there, and how they fail.

Nothing is stored a client: every property is a hash of (seed, purpose, client, round), so that a
population of a million costs nothing until some of it is asked for.
"""

"""Whole cohorts at once: shards of clients, trained side by side in worker processes."""

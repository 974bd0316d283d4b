"""Vectors in, vectors out: how updates become the next global model."""

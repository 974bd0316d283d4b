"""Other people's engines, and plain loops, on the same work; nothing here imports fedge."""

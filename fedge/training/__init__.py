"""Training of one client's model."""

"""The device: predictions at once, private training beside them."""

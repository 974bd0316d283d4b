"""Privacy accounting, noise sources and what may honestly be said of them."""

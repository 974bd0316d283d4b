"""Tasks for simulations: data made from a seed, for any number of clients."""

"""Tasks that benchmarks learn and the product does not ship."""

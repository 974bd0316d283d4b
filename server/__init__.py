"""The aggregation server: rounds, refinement, published versions."""

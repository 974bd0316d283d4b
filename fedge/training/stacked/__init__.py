"""Clients trained side by side: their weights are stacked and every product is batched."""

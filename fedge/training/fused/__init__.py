"""Training of chains of layers by written-out backward passes on flat buffers: backend `fused`."""

"""Weights into TFLite files: plan, patch, interpreter. Needs numpy and a TFLite runtime only."""

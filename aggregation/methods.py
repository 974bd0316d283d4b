"""Every method of this package under its name; import the registries from here."""

from __future__ import annotations

from aggregation import codecs, mean, median, optimizers
from aggregation.contracts import BUFFERED, CODECS, OPTIMIZERS, STREAMING

__all__ = [
    "BUFFERED",
    "CODECS",
    "OPTIMIZERS",
    "STREAMING",
    "codecs",
    "mean",
    "median",
    "optimizers",
]

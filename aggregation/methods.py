"""Every method of this package under its name; import the registries from here."""

from __future__ import annotations

from aggregation import (
    adaptive,
    bounded,
    bulyan,
    centred,
    fednova,
    fltrust,
    krum,
    mean,
    median,
    optimizers,
    private,
    rfa,
    scaffold,
    trimmed,
)
from aggregation.contracts import BUFFERED, OPTIMIZERS, STREAMING

__all__ = [
    "BUFFERED",
    "OPTIMIZERS",
    "STREAMING",
    "adaptive",
    "bounded",
    "bulyan",
    "centred",
    "fednova",
    "fltrust",
    "krum",
    "mean",
    "median",
    "optimizers",
    "private",
    "rfa",
    "scaffold",
    "trimmed",
]

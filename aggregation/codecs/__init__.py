"""Codecs: how a delta travels between a device and the server. Numpy alone."""

from __future__ import annotations

from aggregation.codecs.pipeline import decode_payload, make_codec
from aggregation.codecs.raw import RawCodec

__all__ = ["RawCodec", "decode_payload", "make_codec"]

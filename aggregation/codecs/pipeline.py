"""What the rest of fedge asks of codecs: make one, or decode what a client sent."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from aggregation.codecs.spec import parse
from aggregation.contracts import Codec
from fedge.errors import ConfigError, UpdateRejected
from fedge.params import Layout, Vector


def make_codec(spec: str, *, key: str | None = None) -> Codec[Any]:
    """Return the codec of a written form such as ``topk:0.05+int8``.

    Args:
        key: where the form was written, for the error text.

    Raises:
        ConfigError: it is no codec; the text says what is allowed.
    """
    try:
        return parse(spec)
    except ConfigError as error:
        raise ConfigError(str(error), key=key) from None


def decode_payload(spec: str, payload: bytes, layout: Layout, allowed: Collection[str]) -> Vector:
    """Return the delta of a payload whose codec a client named.

    Raises:
        UpdateRejected: reason ``codec`` where it is not an allowed one, or the codec's own.
    """
    if spec not in allowed:
        raise UpdateRejected("codec", expected=" or ".join(sorted(allowed)), got=f"{spec:.40}")
    return parse(spec).decode(payload, layout)

"""Version of everything that fedge processes say to each other."""

from __future__ import annotations

PROTOCOL_VERSION = 2


def refusal(found: int) -> str:
    """Return what a service tells a caller that speaks another version."""
    return f"protocol {found} was asked for and {PROTOCOL_VERSION} is spoken here"

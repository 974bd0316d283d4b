"""Version of everything that fedge processes say to each other."""

from __future__ import annotations

PROTOCOL_VERSION = 1

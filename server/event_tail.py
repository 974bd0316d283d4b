"""What the ServerApp has appended to a file of JSON lines since one last looked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 64 * 1024


class EventTail:
    """New whole lines of a growing file; what was there before it was made is passed over.

    Args:
        path: need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def read(self) -> list[dict[str, Any]]:
        """Return the objects appended since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        parsed = (parse_object(line) for line in whole.splitlines())
        return [event for event in parsed if event is not None]


def last_object(path: Path) -> dict[str, Any] | None:
    """Return the last whole line of a file of JSON lines, or None if there is none."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            content = b""
            while end and content.count(b"\n") < 3:
                start = max(0, end - _BLOCK_BYTES)
                file.seek(start)
                content = file.read(end - start) + content
                end = start
    except FileNotFoundError:
        return None
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    parsed = (parse_object(line) for line in reversed(lines))
    return next((entry for entry in parsed if entry is not None), None)


def parse_object(line: bytes) -> dict[str, Any] | None:
    """Return one line's object, or None where a crash has left something else."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None

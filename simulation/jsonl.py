"""Reading files to which another process appends one JSON object a line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return every whole line of a file that may still be growing; [] if it is not there yet.

    A writer that was killed leaves a line cut short; it is left out wherever it stands.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    objects = []
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        with contextlib.suppress(ValueError):
            objects.append(json.loads(line))
    return objects

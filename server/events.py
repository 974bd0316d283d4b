"""What the ServerApp tells the supervisor: events and metrics, one JSON object a line.

The run folder is all they share. Events are appended; the metrics file holds one line a
committed round, and a resumed run makes it agree with the checkpoint that it resumes from.
"""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

from fedge.durable import append_line, write_atomically
from fedge.errors import CheckpointError

log = logging.getLogger(__name__)


class EventLog:
    """``events.jsonl``: what happened, as it happens."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "events.jsonl"

    def append(self, kind: str, **fields: Any) -> None:
        """Add one event; one that cannot be written is logged, for it is not worth a run."""
        event = {"kind": kind, "time": time.time(), **fields}
        try:
            append_line(self.path, _line(event))
        except OSError as error:
            log.warning("cannot append to %s: %s", self.path, error.strerror)


class MetricsLog:
    """``metrics.jsonl``: one line a committed round, in order, none twice."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / "metrics.jsonl"

    def append(self, metrics: dict[str, Any]) -> None:
        """Add the line of a round that has just been committed.

        Raises:
            CheckpointError: it cannot be written.
        """
        try:
            append_line(self.path, _line(metrics), fsync=True)
        except OSError as error:
            raise CheckpointError(f"cannot append to {self.path}: {error.strerror}") from error

    def read(self) -> list[dict[str, Any]]:
        """Return the rounds in order; lines that a crash cut short are left out."""
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {self.path}: {error}") from error
        rounds: dict[int, dict[str, Any]] = {}
        for line in lines:
            try:
                entry = json.loads(line)
                rounds[int(entry["round"])] = entry
            except (ValueError, KeyError, TypeError):
                log.warning("%s: a line is not a round and is left out: %.80s", self.path, line)
        return [rounds[round] for round in sorted(rounds)]

    def reconcile(self, committed: dict[str, Any]) -> None:
        """Make the file end with a committed round: later lines go, a missing one comes.

        Args:
            committed: the line of the checkpoint that the run resumes from.
        """
        last = committed["round"]
        kept = [entry for entry in self.read() if entry["round"] < last]
        content = "".join(_line(entry) + "\n" for entry in [*kept, committed])
        if not self.path.exists() or self.path.read_text() != content:
            write_atomically(self.path, content.encode())


def jsonable(value: Any) -> Any:
    """Return the value with NaN and infinities as None: JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(jsonable(entry), separators=(",", ":"), allow_nan=False)

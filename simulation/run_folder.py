"""What a run was begun with: kept beside its figures, for those who resume or compare it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedge.config import to_tree
from fedge.durable import write_atomically
from fedge.errors import ConfigError
from server.checkpoint import CheckpointStore
from simulation.settings import SimulateConfig

log = logging.getLogger(__name__)

CONFIG = "config.json"
_MAY_DIFFER = ("server.run_dir", "server.rounds.num_rounds", "engine.")
"""Settings that leave the rounds so far what they are."""


@dataclass(frozen=True)
class Difference:
    """A setting that is another one than when the run began."""

    key: str
    before: str
    now: str


def open_run(config: SimulateConfig) -> SimulateConfig:
    """Return the configuration to go on with, and write it down.

    A run that goes on keeps its seed, because its clients do; of other settings that have changed
    the log tells, since its rounds are then not of one kind.

    Raises:
        ConfigError: the run folder cannot be written.
    """
    folder = config.server.run_dir
    committed = CheckpointStore(folder / "checkpoints").latest()
    if committed is not None:
        if committed.seed != config.server.seed:
            text = "seed = %d is ignored: the run began with %d"
            log.warning(text, config.server.seed, committed.seed)
            config = replace(config, server=replace(config.server, seed=committed.seed))
        for found in differences(folder, config):
            text = "%s: the run goes on with %s = %s, its rounds so far had %s"
            log.warning(text, folder, found.key, found.now, found.before)
    _write(config)
    return config


def differences(folder: Path, config: SimulateConfig) -> Iterator[Difference]:
    """Yield the settings, those of the engine apart, that a folder's run was not begun with."""
    try:
        before = flatten_config(json.loads((folder / CONFIG).read_bytes())) or {}
    except (OSError, ValueError, AttributeError):
        return
    now = flatten_config(json.loads(json.dumps(to_tree(config)))) or {}
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key] and not key.startswith(_MAY_DIFFER):
            yield Difference(key, before[key], now[key])


def flatten_config(tree: Mapping[str, Any] | None, prefix: str = "") -> dict[str, str] | None:
    """Return settings by dotted key as text; None for None."""
    if tree is None:
        return None
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten_config(value, f"{prefix}{key}.") or {})
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[prefix + key] = text
    return flat


def _write(config: SimulateConfig) -> None:
    folder = config.server.run_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(to_tree(config), default=str, indent=2)
        write_atomically(folder / CONFIG, text.encode())
    except OSError as error:
        raise ConfigError(
            f"cannot write {folder}: {error.strerror}", key="server.run_dir"
        ) from error

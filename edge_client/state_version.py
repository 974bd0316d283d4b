"""The version of a state folder's layout: noted in a file, brought up to date once.

Databases in the folder have schema versions of their own; this one is about which files there
are, and where.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from fedge.durable import write_atomically
from fedge.errors import ConfigError

log = logging.getLogger(__name__)

VERSION_FILE = "state_version"
LOCK_FILE = "daemon.lock"

Migrations = Sequence[Callable[[Path], None]]
"""Each leads a folder from its position's version to the next. After a kill it runs again."""


def _adopt(folder: Path) -> None:
    """Take over a folder as it was before versions were noted: nothing moves."""
    log.info("%s was made before state had a version", folder)


MIGRATIONS: Migrations = (_adopt,)


def bring_up_to_date(folder: Path, migrations: Migrations = MIGRATIONS) -> None:
    """Migrate a folder that this process alone uses, and note its version.

    Raises:
        ConfigError: a newer release of fedge used it, the note cannot be read, or a step failed.
    """
    newest = len(migrations)
    try:
        found = _read_version(folder, newest)
        if found > newest:
            raise ConfigError(
                f"{folder} has state version {found}, this release knows {newest}: use the newer "
                "release of fedge that made it, or another folder",
                key="state_dir",
            )
        for version in range(found, newest):
            migrations[version](folder)
            _note_version(folder, version + 1)
        if not (folder / VERSION_FILE).exists():
            _note_version(folder, newest)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be brought up to date: {error.strerror} ({error.filename})",
            key="state_dir",
        ) from error


def _read_version(folder: Path, newest: int) -> int:
    """Return the version noted; without a note 0, or the newest where nothing is kept yet."""
    path = folder / VERSION_FILE
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        kept = [each for each in folder.iterdir() if each.name != LOCK_FILE]
        return 0 if kept else newest
    except UnicodeDecodeError:
        text = ""
    if not text.strip().isdecimal():
        raise ConfigError(
            f"{path} does not hold a version: restore it, or use another folder", key="state_dir"
        )
    return int(text)


def _note_version(folder: Path, version: int) -> None:
    """Write the version; where the disk is full or read-only the device still has its duty."""
    try:
        write_atomically(folder / VERSION_FILE, f"{version}\n".encode())
    except OSError as error:
        log.error("%s cannot be written: %s", folder / VERSION_FILE, error.strerror)

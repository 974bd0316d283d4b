"""Writes that survive a kill or a power cut at any instant.

A file is written beside its place, synced, renamed over it, and the folder is synced: a reader
finds the old content or the new, never half of one. Within `unsynced` the disk is not waited for:
a kill loses nothing, a power cut may lose or damage what was written last.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_synced: ContextVar[bool] = ContextVar("synced", default=True)
_BESIDE = re.compile(r"\.(\d+)-\d+\.tmp$")


@contextmanager
def unsynced() -> Iterator[None]:
    """Leave it to the operating system when the disk gets what this thread writes meanwhile.

    For what can be made again, such as a simulation.
    """
    token = _synced.set(False)
    try:
        yield
    finally:
        _synced.reset(token)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content as one step; its folder must exist.

    Raises:
        OSError: it could not be written; the old content stands.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        write_synced(beside, content)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_cut_off(folder: Path) -> None:
    """Remove what `write_atomically` was writing, in this folder and below, when it was killed.

    What a process that lives may be writing stays; so call it before this one writes there.

    Raises:
        OSError: a file cannot be removed.
    """
    for path in folder.rglob(".*.tmp"):
        match = _BESIDE.search(path.name)
        if match is None:
            continue
        writer = int(match[1])
        if writer == os.getpid() or not Path(f"/proc/{writer}").exists():
            path.unlink(missing_ok=True)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it; not atomic by itself."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        _sync(file.fileno())


def append_line(path: Path, line: str, *, fsync: bool = False) -> None:
    """Append one line with a single write, so that lines of several processes never mix.

    A last line that a crash cut short is ended first: it stays one bad line.

    Args:
        path: made if it is missing; its folder must exist.
        line: without its newline.
        fsync: wait until the disk has it; else a power cut may lose it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        whole = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
        content = ("" if whole else "\n") + line + "\n"
        _write_all(descriptor, content.encode())
        if fsync:
            _sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's entries (names that were made, renamed or removed)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def _sync(descriptor: int) -> None:
    if _synced.get():
        os.fsync(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    """Write everything: the kernel may take less when the disk is nearly full."""
    while content:
        content = content[os.write(descriptor, content) :]

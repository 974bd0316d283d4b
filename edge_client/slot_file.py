"""One value in a file, replaced again and again by a process that may be killed at any instant.

Two slots take turns: what is being written is never what would be read. A slot counts if its
CRC is right, and the newer one wins, so a reader finds the last value or the one before, whole.
Nothing waits for the disk: a kill loses at most what was being written, a power cut may lose all.
"""

from __future__ import annotations

import logging
import os
import struct
import zlib
from pathlib import Path

_log = logging.getLogger(__name__)

KEY_BYTES = 32
_HEADER = struct.Struct("<8s32sQ")  # magic, key, bytes of a slot
_MAGIC = b"fedge-s1"
_SLOT = struct.Struct("<QQI")  # number, size of the value, CRC of both and of the value
_FIRST_SLOT = 4096
_NUM_SLOTS = 2


class SlotFile:
    """The newest value that was written under one key; for one process at a time.

    A file that belongs to another key, or is damaged, holds nothing and is replaced by the first
    value written. What cannot be written is logged once and does without.

    Args:
        path: its folder must exist.
        key: 32 bytes that say what the values are of.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, got {len(key)}")
        self._path = path
        self._key = key
        self._descriptor: int | None = None
        self._slot_bytes = 0
        self._number = 0
        self._failed = False

    def read(self) -> bytes | None:
        """Return the newest whole value; None where there is none."""
        try:
            if self._descriptor is None and not self._open():
                return None
            found = [self._read_slot(index) for index in range(_NUM_SLOTS)]
        except OSError as error:
            _log.warning("%s cannot be read: %s", self._path, error.strerror)
            return None
        self._number, value = max(found, key=lambda slot: slot[0])
        return value

    def write(self, value: bytes) -> None:
        """Replace the value."""
        try:
            if self._descriptor is None or _SLOT.size + len(value) > self._slot_bytes:
                self._make(value)
            else:
                self._put(self._descriptor, value)
        except OSError as error:
            if not self._failed:
                _log.warning("%s cannot be written: %s", self._path, error.strerror)
            self._failed = True

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> bool:
        """Open the file; False where there is none, or another key's."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        header = os.pread(descriptor, _HEADER.size, 0)
        if len(header) == _HEADER.size:
            magic, key, slot_bytes = _HEADER.unpack(header)
            if (magic, key) == (_MAGIC, self._key):
                self._descriptor, self._slot_bytes = descriptor, slot_bytes
                return True
        os.close(descriptor)
        return False

    def _make(self, value: bytes) -> None:
        """Replace the file by one whose slots are large enough and one of which holds the value."""
        self.close()
        self._slot_bytes = _SLOT.size + len(value)
        beside = self._path.with_name(f".{self._path.name}.tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(beside, flags, 0o600)
        try:
            # Room for both slots now: later writes cannot run out of it.
            os.posix_fallocate(descriptor, 0, _FIRST_SLOT + _NUM_SLOTS * self._slot_bytes)
            _write_all(descriptor, _HEADER.pack(_MAGIC, self._key, self._slot_bytes), 0)
            self._put(descriptor, value)
            os.replace(beside, self._path)
        except OSError:
            os.close(descriptor)
            beside.unlink(missing_ok=True)  # what it took of a full disk others need
            raise
        self._descriptor = descriptor

    def _put(self, descriptor: int, value: bytes) -> None:
        number = self._number + 1
        at = _FIRST_SLOT + number % _NUM_SLOTS * self._slot_bytes
        # The old header does not fit the new value: until the new one is there, the slot is void.
        _write_all(descriptor, value, at + _SLOT.size)
        _write_all(descriptor, _SLOT.pack(number, len(value), _check(number, value)), at)
        self._number = number

    def _read_slot(self, index: int) -> tuple[int, bytes | None]:
        """Return a slot's number and value; 0 and None where it is void."""
        assert self._descriptor is not None
        at = _FIRST_SLOT + index * self._slot_bytes
        header = os.pread(self._descriptor, _SLOT.size, at)
        if len(header) < _SLOT.size:
            return 0, None
        number, size, check = _SLOT.unpack(header)
        if number < 1 or size > self._slot_bytes - _SLOT.size:
            return 0, None
        value = os.pread(self._descriptor, size, at + _SLOT.size)
        return (number, value) if _check(number, value) == check else (0, None)


def _check(number: int, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(struct.pack("<QQ", number, len(value))))


def _write_all(descriptor: int, content: bytes, at: int) -> None:
    view = memoryview(content)
    while view:
        count = os.pwrite(descriptor, view, at)
        view, at = view[count:], at + count

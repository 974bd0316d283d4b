import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_client.slot_file import SlotFile

KEY, OTHER = b"k" * 32, b"o" * 32


class Cut(Exception):
    """The process is killed here."""


def cut_writes(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let so many more bytes reach the file."""
    left, write = [after], os.pwrite

    def pwrite(descriptor: int, content: Any, at: int) -> int:
        count = write(descriptor, bytes(content)[: left[0]], at) if left[0] else 0
        left[0] -= count
        if count < len(content):
            raise Cut
        return count

    monkeypatch.setattr(os, "pwrite", pwrite)


def read(path: Path, key: bytes = KEY) -> bytes | None:
    return SlotFile(path, key).read()


def test_the_last_value_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "steps"
    assert read(path) is None
    file = SlotFile(path, KEY)
    for value in (b"one", b"two", b"a longer three", b"4"):
        file.write(value)
        assert file.read() == read(path) == value
    file.close()
    again = SlotFile(path, KEY)
    assert again.read() == b"4"
    again.write(b"five")
    assert read(path) == b"five"


def test_a_file_of_another_key_holds_nothing_and_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "steps"
    SlotFile(path, OTHER).write(b"theirs")
    assert read(path) is None
    SlotFile(path, KEY).write(b"ours")
    assert (read(path), read(path, OTHER)) == (b"ours", None)


@pytest.mark.parametrize("size", [3, 200])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 10, 22, 23])
def test_a_write_cut_off_anywhere_leaves_the_value_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, size: int
) -> None:
    """A longer value needs a new file; a shorter one goes into the other slot."""
    path = tmp_path / "steps"
    file = SlotFile(path, KEY)
    for value in (b"one", b"two", b"six"):
        file.write(value)
    with monkeypatch.context() as patch:
        cut_writes(patch, after)
        if size == 3 and after == 23:  # all of it: three bytes and a header of twenty
            file.write(b"new")
        else:
            with pytest.raises(Cut):
                file.write(b"n" * size)
    assert read(path) == (b"new" if size == 3 and after == 23 else b"six")


def test_of_a_damaged_file_the_whole_slot_is_read(tmp_path: Path) -> None:
    path = tmp_path / "steps"
    file = SlotFile(path, KEY)
    for value in (b"older" * 20, b"newer" * 20):
        file.write(value)
    content = path.read_bytes()
    for position in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        assert read(path) in (b"older" * 20, b"newer" * 20, None)
    path.write_bytes(content[: content.index(b"newer") + 3])
    assert read(path) in (b"older" * 20, None)
    path.write_bytes(b"")
    assert read(path) is None


def test_a_file_that_cannot_be_written_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = SlotFile(tmp_path / "no such folder" / "steps", KEY)
    file.write(b"one")
    file.write(b"two")
    assert file.read() is None
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text


def test_a_full_disk_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, at: int, count: int) -> None:
        os.ftruncate(descriptor, (at + count) // 2)  # what there was room for
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    SlotFile(tmp_path / "steps", KEY).write(b"one")
    assert list(tmp_path.iterdir()) == []


def test_a_key_has_one_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SlotFile(tmp_path / "steps", b"short")


WRITER = """
import sys
from pathlib import Path
from edge_client.slot_file import SlotFile
file = SlotFile(Path(sys.argv[1]), b"k" * 32)
number = int((file.read() or b"0").split(b" ")[0])
while True:
    number += 1
    file.write(b" ".join([str(number).encode()] * 20000))
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_instant_leaves_what_it_said_was_written(tmp_path: Path) -> None:
    path, last = tmp_path / "steps", 0
    rng = random.Random(0)
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        with writer.stdout:
            for _ in range(rng.randrange(1, 60)):
                said = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
            rest = writer.stdout.read().split()
            writer.wait()
        said = int(rest[-1]) if rest else said
        words = (read(path) or b"").split(b" ")
        assert len(words) == 20000
        assert len(set(words)) == 1
        assert said <= int(words[0]) <= said + 1
        assert int(words[0]) > last
        last = int(words[0])

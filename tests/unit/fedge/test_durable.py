import os
from pathlib import Path

import pytest

from fedge.durable import append_line, sync_folder, unsynced, write_atomically


def test_a_file_is_made_and_then_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_failed_write_leaves_the_old_content_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("fsync", [False, True])
def test_lines_are_appended_in_order(tmp_path: Path, fsync: bool) -> None:
    path = tmp_path / "lines"
    for line in ("one", "zwei €", "three"):
        append_line(path, line, fsync=fsync)
    assert path.read_text() == "one\nzwei €\nthree\n"


def test_a_line_after_one_that_was_cut_short_stands_alone(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text('{"a": 1}\n{"b"')
    append_line(path, '{"c": 3}')
    assert path.read_text().splitlines() == ['{"a": 1}', '{"b"', '{"c": 3}']


def test_a_folder_that_is_not_there_cannot_be_synced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "missing")


def test_the_disk_is_waited_for_but_where_it_need_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    path = tmp_path / "state"
    with unsynced():
        write_atomically(path, b"first")
        append_line(path, "line", fsync=True)
        assert (path.read_bytes(), synced) == (b"first\nline\n", [])
    write_atomically(path, b"second")
    assert len(synced) == 2  # the file and its folder
    append_line(path, "line", fsync=True)
    assert len(synced) == 3
